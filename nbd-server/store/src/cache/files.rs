//! Small files in a folder of the cache directory, each replaced as a whole; beyond a number of them the oldest go.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use tempfile::NamedTempFile;
use vmnetx_format::Digest;

use crate::file::{age_time, open_regular};

/// A folder of files that are named by digests.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    files_max: usize,
}

impl Files {
    /// Keeps files in the folder `dir`, which is made when there is one to keep.
    pub(crate) const fn new(dir: PathBuf, files_max: usize) -> Self {
        Self { dir, files_max }
    }

    /// The bytes of a file, if it is there and has no more than `max_bytes`. Reads the disk: not for async code.
    pub(crate) fn get(&self, name: &Digest, max_bytes: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = open_regular(&self.dir.join(name.to_string())).ok()?;
        file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= max_bytes).then_some(bytes)
    }

    /// Replaces a file. Failing to is no failure: it is only there to be quicker the next time. Not for async code.
    pub(crate) fn put(&self, name: &Digest, bytes: &[u8]) {
        if let Err(error) = self.write(name, bytes).and_then(|()| self.remove_oldest()) {
            tracing::debug!(dir = %self.dir.display(), %error, "cannot keep a file");
        }
    }

    fn write(&self, name: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let mut file = NamedTempFile::new_in(&self.dir)?;
        file.write_all(bytes)?;
        file.persist(self.dir.join(name.to_string())).map_err(|error| error.error)?;
        Ok(())
    }

    fn remove_oldest(&self) -> std::io::Result<()> {
        let (mut files, now) = (Vec::new(), SystemTime::now());
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            files.push((age_time(entry.metadata()?.modified(), now), entry.path()));
        }
        files.sort_unstable();
        let surplus = files.len().saturating_sub(self.files_max);
        files.iter().take(surplus).try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("links"), 3);
        let name = |number: u8| Digest::of(&[number]);
        assert_eq!(files.get(&name(0), 10), None);
        for number in 0..5_u8 {
            files.put(&name(number), &[number; 4]);
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number.into());
            let file = std::fs::File::open(files.dir.join(name(number).to_string())).unwrap();
            file.set_modified(at).unwrap();
        }
        assert_eq!(files.get(&name(1), 10), None);
        assert_eq!(files.get(&name(4), 4), Some(vec![4; 4]));
        assert_eq!(files.get(&name(4), 3), None, "longer than it may be");
    }

    #[test]
    fn files_of_a_clock_that_was_ahead_do_not_drive_out_newer_ones() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("links"), 3);
        let name = |number: u8| Digest::of(&[number]);
        let year = std::time::Duration::from_secs(365 * 24 * 3600);
        for number in 0..3 {
            files.put(&name(number), b"ahead");
            let file = std::fs::File::open(files.dir.join(name(number).to_string())).unwrap();
            file.set_modified(SystemTime::now() + year).unwrap();
        }
        for number in 3..6 {
            files.put(&name(number), b"now");
            assert!(files.get(&name(number), 10).is_some(), "{number}");
        }
        assert!((0..3).all(|number| files.get(&name(number), 10).is_none()));
    }
}
