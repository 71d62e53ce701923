//! Tombstones: objects that nothing leads to any more, and since when that is known.
//!
//! They are the publisher's own notes, never served. A build takes no object with a tombstone for granted, and `prune`
//! removes what has had one for long enough.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmnetx_format::FORMAT_NUMBER;

/// The objects with a tombstone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstones {
    vmnetx: u32,
    /// Path of each object, relative to the repository, and when it was marked, in seconds since 1970 (UTC).
    objects: BTreeMap<String, u64>,
}

impl Tombstones {
    /// When the object at `path` was marked, in seconds since 1970, if it was.
    #[must_use]
    pub fn since_unix_s(&self, path: &str) -> Option<u64> {
        self.objects.get(path).copied()
    }

    /// Marks an object, unless it was marked earlier.
    pub fn mark(&mut self, path: String, unix_s: u64) {
        let since = self.objects.entry(path).or_insert(unix_s);
        *since = unix_s.min(*since);
    }

    /// Takes the tombstones away from all objects but those that `stays` says yes to.
    pub fn retain(&mut self, mut stays: impl FnMut(&str) -> bool) {
        self.objects.retain(|path, _| stays(path));
    }

    /// Paths of the objects with a tombstone, and when each was marked.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.objects.iter().map(|(path, unix_s)| (path.as_str(), *unix_s))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Maps of text to numbers always serialise.
        serde_json::to_vec(&Self { vmnetx: FORMAT_NUMBER, ..self.clone() }).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        // Only where it is wrong: serde's own words repeat bytes of the file, which may steer a terminal.
        let place = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        let read: Self = serde_json::from_slice(bytes).map_err(place)?;
        if read.vmnetx == FORMAT_NUMBER {
            Ok(read)
        } else {
            Err(format!("it has format number {}, this program reads {FORMAT_NUMBER}", read.vmnetx))
        }
    }
}
