//! A raw disk image, read leaf by leaf without its holes.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use vmnetx_format::{BLOCK_BYTES, Geometry};

use super::leaves::by_leaf;
use super::{BLOCK, LEAF_BYTES, Leaf, Source};
use crate::Error;

/// A regular file or a block device that holds a disk as it is.
#[derive(Debug)]
pub(crate) struct RawDisk {
    path: PathBuf,
    file: File,
    geometry: Geometry,
    before: Metadata,
}

impl RawDisk {
    /// Opens the image in the file `path`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::NoDisk`], [`Error::DiskTooLarge`].
    pub(super) fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let failed = || Error::file("open disk image", &path);
        // Looked at before it is opened: opening a pipe or a terminal would wait.
        let kind = std::fs::metadata(&path).map_err(failed())?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NoDisk { path });
        }
        Self::of(File::open(&path).map_err(failed())?, path)
    }

    /// The image in an open file, which is called `path` where it is told of.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn of(file: File, path: PathBuf) -> Result<Self, Error> {
        let failed = || Error::file("open disk image", &path);
        let before = file.metadata().map_err(failed())?;
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|errno| failed()(errno.into()))?;
        let geometry = match Geometry::new(size_bytes) {
            Ok(geometry) => geometry,
            Err(source) => return Err(Error::DiskTooLarge { path, source }),
        };
        // Only advice: where it is not taken, reading is as it was.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        Ok(Self { path, file, geometry, before })
    }

    fn changed(&self, change: &'static str) -> Error {
        Error::DiskChanged { path: self.path.clone(), change }
    }

    /// The first run of data from the byte `at` on.
    fn next_run(&self, at: u64) -> Result<Option<Range<u64>>, Error> {
        let size = self.geometry.size_bytes();
        let find = |from: fn(u64) -> SeekFrom, at: u64, otherwise: u64| match seek(&self.file, from(at)) {
            Ok(found) => Ok(Some(found.min(size))),
            // Behind the last data.
            Err(Errno::NXIO) => Ok(None),
            // Block devices and some file systems know no holes: all is data.
            Err(Errno::INVAL) => Ok(Some(otherwise)),
            Err(errno) => Err(Error::file("find holes in disk image", &self.path)(errno.into())),
        };
        if at >= size {
            return Ok(None);
        }
        let Some(data) = find(SeekFrom::Data, at, at)?.filter(|&data| data < size) else { return Ok(None) };
        let hole = find(SeekFrom::Hole, data, size)?.unwrap_or(size);
        Ok(Some(data..hole.max(data + 1)))
    }
}

impl Source for RawDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_> {
        let mut at = 0;
        let runs = std::iter::from_fn(move || {
            let run = self.next_run(at).transpose()?;
            // Nothing comes after an error.
            at = run.as_ref().map_or(u64::MAX, |run| run.end);
            Some(run)
        });
        Box::new(by_leaf(runs, self.geometry.blocks()).map(|found| found.map(Leaf::Data)))
    }

    fn read(&self, leaf: &Leaf, buffer: &mut [u8]) -> Result<(), Error> {
        let Leaf::Data(extents) = leaf else { return Ok(()) };
        let start = u64::from(extents.leaf) * LEAF_BYTES;
        let mut rest = buffer;
        for &(first_block, blocks) in &extents.runs {
            let offset = start + u64::from(first_block) * BLOCK;
            let length = blocks as usize * BLOCK_BYTES;
            let (piece, behind) = rest.split_at_mut(length);
            rest = behind;
            let there = (self.geometry.size_bytes() - offset).min(length as u64) as usize;
            let (data, padding) = piece.split_at_mut(there);
            padding.fill(0);
            self.file.read_exact_at(data, offset).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.changed("it became shorter"),
                _ => Error::file("read disk image", &self.path)(error),
            })?;
        }
        Ok(())
    }

    /// A block device says too little about itself.
    fn check_unchanged(&self) -> Result<(), Error> {
        let after = self.file.metadata().map_err(Error::file("read disk image", &self.path))?;
        unchanged(&self.before, &after).map_err(|change| self.changed(change))
    }
}

/// Compares what the system says of a file then and now; gives what is not as it was.
pub(super) fn unchanged(before: &Metadata, after: &Metadata) -> Result<(), &'static str> {
    if !after.file_type().is_file() {
        return Ok(());
    }
    if after.len() != before.len() {
        return Err("it has another size");
    }
    let written = |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec());
    if written(after) != written(before) { Err("it was written to") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_changes_meanwhile_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let check = |change: fn(&File), expected: &str| {
            std::fs::write(&path, vec![1; 100_000]).unwrap();
            let disk = RawDisk::open(&path).unwrap();
            disk.check_unchanged().unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            change(&file);
            let error = disk.check_unchanged().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|file| file.set_len(50_000).unwrap(), "another size");
        check(|file| file.set_len(150_000).unwrap(), "another size");
        let write = |file: &File| {
            // Longer than the file system's clock takes for a tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            file.write_all_at(b"x", 5).unwrap();
        };
        check(write, "written to");
    }
}
