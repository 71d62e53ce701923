//! Which records were used, from one process to the next: without it everything would be dropped after a restart that the
//! last process has learned to keep.
//!
//! It is a hint. One that is lost or wrong costs a record that is fetched again.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::Path;

use tempfile::NamedTempFile;
use vmnetx_format::Digest;

use crate::file::open_regular;
use crate::limits::USES_BYTES_MAX;

const FILE: &str = "used";
const MAGIC: &[u8] = b"VXU0";
const CHECK_BYTES: usize = 8;

/// Segment and offset of records that were used.
#[derive(Debug, Default)]
pub(super) struct Uses(HashSet<(u32, u32)>);

impl Uses {
    /// What was saved in `dir`; nothing if it is damaged.
    pub(super) fn load(dir: &Path) -> Self {
        let mut bytes = Vec::new();
        let file = open_regular(&dir.join(FILE));
        if file.and_then(|file| file.take(USES_BYTES_MAX).read_to_end(&mut bytes)).is_err() {
            return Self::default();
        }
        Self::decode(&bytes).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
        if !Digest::of(body).as_bytes().starts_with(check) {
            return None;
        }
        let pair = |pair: &[u8]| {
            let (segment, offset) = pair.split_first_chunk::<4>()?;
            Some((u32::from_le_bytes(*segment), u32::from_le_bytes(*offset.first_chunk()?)))
        };
        body.strip_prefix(MAGIC)?.chunks_exact(8).map(pair).collect::<Option<_>>().map(Self)
    }

    pub(super) fn contains(&self, segment: u32, offset: u32) -> bool {
        self.0.contains(&(segment, offset))
    }
}

/// Replaces what is saved in `dir`.
pub(super) fn save(dir: &Path, used: &[(u32, u32)]) -> std::io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    for (segment, offset) in used {
        bytes.extend(segment.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    let check = Digest::of(&bytes);
    bytes.extend(&check.as_bytes()[..CHECK_BYTES]);
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(&bytes)?;
    file.persist(dir.join(FILE)).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_remembered_and_damaged_ones_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Uses::load(dir.path()).0.is_empty());
        save(dir.path(), &[(1, 52), (7, 9000)]).unwrap();
        let uses = Uses::load(dir.path());
        assert!(uses.contains(1, 52) && uses.contains(7, 9000) && !uses.contains(1, 9000));
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert!(Uses::load(dir.path()).0.is_empty(), "byte {at}");
            std::fs::write(dir.path().join(FILE), &bytes[..at]).unwrap();
            assert!(Uses::load(dir.path()).0.is_empty(), "cut to {at}");
        }
    }
}
