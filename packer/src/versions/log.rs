//! The history of a package: its versions, newest publication first, and what each added.

use std::collections::HashSet;

use serde::Serialize;
use vmnetx_format::{Digest, Name, Version};
use vmnetx_store::Location;

use crate::info::remote;
use crate::local::{LeafNode, LocalLink, NodeKey, Packs, images};
use crate::{Error, OrderInfo, Part, Progress, Reader};

/// The versions of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogReport {
    /// Its name.
    pub name: Name,
    /// The link's serial number.
    pub serial: u64,
    /// The versions that the link names: the current one, then the retained ones as the link has them.
    pub versions: Vec<LogEntry>,
}

/// A version of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// The digest of its manifest.
    pub version: Digest,
    /// Whether readers take it.
    pub state: State,
    /// Whether it stays until it is unpinned.
    pub pinned: bool,
    /// When it was first published, in seconds since 1970 (UTC).
    pub published_unix_s: u64,
    /// What it has that no version published before it has; only known of a repository on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<Part>,
    /// Its orders; only known of a repository on this host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<OrderInfo>,
}

/// What a version is to its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Readers take it.
    Current,
    /// Readers can ask for it.
    Retained,
}

/// Lists the versions of the package that `location` names.
///
/// # Errors
/// [`Error`] when its link or an index cannot be read, or the link is not to be believed.
pub fn log(location: &Location, reader: &Reader, progress: &dyn Progress) -> Result<LogReport, Error> {
    let Some(found) = LocalLink::find(location)? else {
        let link = remote(location, reader, progress)?.link().clone();
        let versions =
            link.versions().enumerate().map(|(index, version)| entry(index, version, None, Vec::new())).collect();
        return Ok(LogReport { name: link.name, serial: link.serial, versions });
    };
    found.demand(&reader.trust)?;
    let link = &found.envelope.link;
    let mut oldest_first: Vec<(usize, &Version)> = link.versions().enumerate().collect();
    oldest_first.sort_by_key(|(index, version)| (version.published_unix_s, usize::MAX - index));
    let mut seen = Seen::default();
    let mut entries = Vec::new();
    for (index, version) in oldest_first {
        let added = seen.add(&found, location, version)?;
        let orders = OrderInfo::of(&found.repository, &version.orders);
        entries.push((index, entry(index, version, Some(added), orders)));
    }
    entries.sort_by_key(|(index, _)| *index);
    let versions = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(LogReport { name: link.name.clone(), serial: link.serial, versions })
}

fn entry(index: usize, version: &Version, added: Option<Part>, orders: Vec<OrderInfo>) -> LogEntry {
    LogEntry {
        version: version.manifest,
        state: if index == 0 { State::Current } else { State::Retained },
        pinned: version.pinned,
        published_unix_s: version.published_unix_s,
        added,
        orders,
    }
}

/// What the versions so far have.
#[derive(Default)]
struct Seen {
    /// Nodes, which need not be looked at again.
    nodes: HashSet<NodeKey>,
    /// Content leaves, whose chunks need not be looked at again.
    leaves: HashSet<Digest>,
    chunks: HashSet<Digest>,
}

impl Seen {
    /// Takes a version; gives what it has that was not seen before.
    fn add(&mut self, found: &LocalLink, location: &Location, version: &Version) -> Result<Part, Error> {
        let unreadable = |source| Error::Version { link: location.to_string(), source: Box::new(source) };
        let manifest = found.repository.manifest(version).map_err(|error| unreadable(error.into()))?;
        let packs = Packs::new(found.repository.clone());
        let mut added = Part::default();
        for image in images(&found.repository, version, &manifest).map_err(unreadable)? {
            let (leaves, chunks) = (&mut self.leaves, &mut self.chunks);
            let visit = |node: &LeafNode| {
                if leaves.insert(node.content) {
                    let new =
                        packs.chunks(image.geometry, node)?.into_iter().filter(|chunk| chunks.insert(chunk.digest));
                    new.for_each(|chunk| added.add(&chunk));
                }
                Ok(())
            };
            packs.new_leaves(&image, &mut self.nodes, visit).map_err(unreadable)?;
        }
        Ok(added)
    }
}
