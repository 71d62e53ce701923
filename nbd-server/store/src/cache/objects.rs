//! Manifests, layout objects and orders in the cache directory, each a file that is named by its digest: what opening a
//! package needs besides its link is then not fetched again.

use std::fs::FileTimes;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::NamedTempFile;
use vmnetx_format::Digest;

use super::DiskCache;
use crate::file::{age_time, open_regular};
use crate::limits::{OBJECTS_BYTES_MAX, OBJECTS_MAX};

/// Objects in a directory.
#[derive(Debug)]
pub(crate) struct ObjectCache {
    dir: PathBuf,
    /// Knows which objects are pinned.
    disk: Arc<DiskCache>,
}

/// A file of the directory.
struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl ObjectCache {
    /// Keeps objects in the directory `dir`, which is made when there is one to keep.
    pub(crate) const fn new(dir: PathBuf, disk: Arc<DiskCache>) -> Self {
        Self { dir, disk }
    }

    /// The object, if it is here. One that does not have its digest is removed. Reads the disk: not for async code.
    pub(crate) fn get(&self, digest: &Digest, max_bytes: u64) -> Option<Bytes> {
        let path = self.path(digest);
        let mut file = open_regular(&path).ok()?;
        let mut bytes = Vec::new();
        let read = Read::by_ref(&mut file).take(max_bytes.saturating_add(1)).read_to_end(&mut bytes);
        if read.is_err() || Digest::of(&bytes) != *digest {
            tracing::warn!(object = %path.display(), "cached object is damaged, fetching it again");
            let _ = std::fs::remove_file(&path);
            return None;
        }
        // What is used stays; where the time cannot be set, it goes earlier than it might.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        Some(bytes.into())
    }

    /// Keeps an object whose digest was compared. Failing to is no failure: it is only a copy. Not for async code.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) {
        if let Err(error) = self.write(digest, bytes).and_then(|()| self.evict()) {
            tracing::debug!(dir = %self.dir.display(), %error, "cannot keep an object");
        }
    }

    fn write(&self, digest: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let mut file = NamedTempFile::new_in(&self.dir)?;
        file.write_all(bytes)?;
        // Not flushed: one that a crash has damaged is found out by its digest.
        file.persist(self.path(digest)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Removes what was not used for the longest time, until the rest is within its bounds.
    fn evict(&self) -> std::io::Result<()> {
        let mut kept = self.list()?;
        kept.sort_by_key(|kept| kept.used);
        let mut bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
        let mut count = kept.len();
        for old in kept {
            if bytes <= OBJECTS_BYTES_MAX && count <= OBJECTS_MAX {
                break;
            }
            std::fs::remove_file(&old.path)?;
            bytes -= old.bytes;
            count -= 1;
        }
        Ok(())
    }

    /// The objects that may be removed.
    fn list(&self) -> std::io::Result<Vec<Kept>> {
        let (mut kept, now) = (Vec::new(), SystemTime::now());
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let is_pinned = digest.is_some_and(|digest| self.disk.is_pinned(&digest));
            if metadata.is_file() && !is_pinned {
                let used = age_time(metadata.accessed(), now);
                kept.push(Kept { path: entry.path(), bytes: metadata.len(), used });
            }
        }
        Ok(kept)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;

    fn cache(dir: &Path) -> ObjectCache {
        ObjectCache::new(dir.join("objects"), Arc::new(DiskCache::open(dir, 1 << 20).unwrap()))
    }

    #[test]
    fn objects_are_kept_and_damaged_ones_are_not_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let object = vec![7; 5000];
        let digest = Digest::of(&object);
        assert_eq!(cache.get(&digest, 5000), None);
        cache.put(&digest, &object);
        assert_eq!(cache.get(&digest, 5000).as_deref(), Some(&object[..]));
        let path = cache.path(&digest);
        for damage in [&b""[..], &object[1..], &[7; 6000]] {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(cache.get(&digest, 5000), None);
            assert!(!path.exists());
        }
        // Something else of that name.
        std::fs::create_dir(&path).unwrap();
        assert_eq!(cache.get(&digest, 5000), None);
        cache.put(&digest, &object);
        assert_eq!(cache.get(&digest, 5000), None);
    }

    #[test]
    fn what_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let object = |number: usize| number.to_le_bytes();
        let digest = |number| Digest::of(&object(number));
        for number in 0..OBJECTS_MAX {
            cache.write(&digest(number), &object(number)).unwrap();
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            File::open(cache.path(&digest(number))).unwrap().set_times(FileTimes::new().set_accessed(old)).unwrap();
        }
        assert!(cache.get(&digest(0), 8).is_some());
        cache.put(&digest(OBJECTS_MAX), &object(OBJECTS_MAX));
        assert!(cache.get(&digest(0), 8).is_some() && cache.get(&digest(OBJECTS_MAX), 8).is_some());
        assert!(cache.get(&digest(1), 8).is_none() && cache.get(&digest(2), 8).is_some());
    }

    #[test]
    fn objects_of_a_clock_that_was_ahead_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let object = |number: usize| number.to_le_bytes();
        let digest = |number| Digest::of(&object(number));
        let ahead = SystemTime::now() + std::time::Duration::from_secs(365 * 24 * 3600);
        for number in 0..OBJECTS_MAX {
            cache.write(&digest(number), &object(number)).unwrap();
            File::open(cache.path(&digest(number))).unwrap().set_times(FileTimes::new().set_accessed(ahead)).unwrap();
        }
        // The one that is used has the time of its use.
        assert!(cache.get(&digest(7), 8).is_some());
        for number in OBJECTS_MAX..OBJECTS_MAX + 2 {
            cache.put(&digest(number), &object(number));
        }
        for number in [7, OBJECTS_MAX, OBJECTS_MAX + 1] {
            assert!(cache.get(&digest(number), 8).is_some(), "{number}");
        }
    }
}
