//! A raw disk image, read leaf by leaf without its holes.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use vmnetx_format::limits::LEAF_BLOCKS;
use vmnetx_format::{BLOCK_BYTES, Geometry};

use crate::Error;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of an image that one leaf covers.
const LEAF_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK;

/// A regular file or a block device that holds a disk as it is.
#[derive(Debug)]
pub struct RawDisk {
    path: PathBuf,
    file: File,
    geometry: Geometry,
    before: Metadata,
}

/// Where one leaf's span has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafExtents {
    /// The leaf's number.
    pub(crate) leaf: u32,
    /// First block, counted from the leaf's first one, and blocks of each run of data, in order and with gaps between.
    pub(crate) runs: Vec<(u32, u32)>,
}

impl LeafExtents {
    pub(crate) fn bytes(&self) -> usize {
        self.runs.iter().map(|&(_, blocks)| blocks as usize * BLOCK_BYTES).sum()
    }
}

impl RawDisk {
    /// Opens the image in the file `path`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::NoDisk`], [`Error::DiskTooLarge`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let failed = || Error::file("open disk image", &path);
        // Looked at before it is opened: opening a pipe or a terminal would wait.
        let kind = std::fs::metadata(&path).map_err(failed())?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NoDisk { path });
        }
        let file = File::open(&path).map_err(failed())?;
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

    /// The file that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size and what follows from it.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes outside its holes, in whole blocks.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn data_bytes(&self) -> Result<u64, Error> {
        let mut sum = 0;
        for extents in self.leaves() {
            sum += extents?.bytes() as u64;
        }
        Ok(sum)
    }

    /// The leaves that have data, in order.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = Result<LeafExtents, Error>> {
        let mut at = 0;
        std::iter::from_fn(move || self.next_leaf(&mut at).transpose())
    }

    /// Reads what `extents` covers, run after run, into the front of `buffer`; the image's last block is filled up with
    /// zeros.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::DiskChanged`] when the image ends too early.
    pub(crate) fn read(&self, extents: &LeafExtents, buffer: &mut [u8]) -> Result<(), Error> {
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

    /// Says whether the image is still as it was when it was opened. A block device says too little about itself.
    ///
    /// # Errors
    /// [`Error::DiskChanged`]; [`Error::File`].
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let after = self.file.metadata().map_err(Error::file("read disk image", &self.path))?;
        if !after.file_type().is_file() {
            return Ok(());
        }
        if after.len() != self.before.len() {
            return Err(self.changed("it has another size"));
        }
        let written = |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec());
        if written(&after) != written(&self.before) { Err(self.changed("it was written to")) } else { Ok(()) }
    }

    fn changed(&self, change: &'static str) -> Error {
        Error::DiskChanged { path: self.path.clone(), change }
    }

    /// The next leaf with data from the byte `at` on, which is moved behind it.
    fn next_leaf(&self, at: &mut u64) -> Result<Option<LeafExtents>, Error> {
        let Some((start, mut end)) = self.next_extent(*at)? else { return Ok(None) };
        let leaf = start / LEAF_BYTES;
        let leaf_end = ((leaf + 1) * LEAF_BYTES).min(self.geometry.blocks() * BLOCK);
        let mut extents = LeafExtents { leaf: leaf as u32, runs: Vec::new() };
        let mut run = start..end.min(leaf_end);
        while end < leaf_end {
            let Some((start, next_end)) = self.next_extent(end)? else { break };
            end = next_end;
            if start >= leaf_end {
                break;
            }
            if start <= run.end {
                run.end = end.min(leaf_end);
            } else {
                extents.push(&run, leaf);
                run = start..end.min(leaf_end);
            }
        }
        extents.push(&run, leaf);
        *at = leaf_end;
        Ok(Some(extents))
    }

    /// The first run of data from the byte `at` on, widened to whole blocks.
    fn next_extent(&self, at: u64) -> Result<Option<(u64, u64)>, Error> {
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
        Ok(Some((data / BLOCK * BLOCK, hole.max(data + 1).next_multiple_of(BLOCK))))
    }
}

impl LeafExtents {
    fn push(&mut self, run: &std::ops::Range<u64>, leaf: u64) {
        let first_block = (run.start - leaf * LEAF_BYTES) / BLOCK;
        self.runs.push((first_block as u32, ((run.end - run.start) / BLOCK) as u32));
    }
}
