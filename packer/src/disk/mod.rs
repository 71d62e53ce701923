//! Disks that are to be packed: raw files as they are, other formats through `qemu-nbd`, overlays over a published disk.
//!
//! [`Source`] is all that the pipeline knows of them. Holes cost nothing with any of them.

mod base;
mod chain;
mod error;
mod foreign;
mod format;
mod header;
mod leaves;
mod nbd;
mod overlay;
mod patch;
mod qemu;
mod raw;
mod relaid;
mod vmdk;

use std::path::PathBuf;

use vmnetx_format::limits::LEAF_BLOCKS;
use vmnetx_format::{BLOCK_BYTES, Geometry, Name};

pub use self::chain::{ChainFile, FilePart};
pub use self::error::{DiskError, NbdError};
pub use self::format::DiskFormat;
pub(crate) use self::patch::{Cut, Patch};
pub(crate) use self::relaid::{Elsewhere, Moved, Relaid};

pub(crate) use self::base::{Base, KeptDisk};
use self::chain::{Chain, Under};
use self::foreign::{Depth, ForeignDisk};
pub(crate) use self::overlay::OverlayDisk;
pub(crate) use self::raw::RawDisk;
use crate::local::LeafNode;
use crate::{Error, Progress};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of an image that one leaf covers.
const LEAF_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK;

/// A disk of a package that is to be published: its name and the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Its name in the package.
    pub name: Name,
    /// A regular file or a block device.
    pub file: PathBuf,
    /// What the file is. It is never found out by looking at the file, whose bytes are a guest's.
    pub format: DiskFormat,
}

/// An image to be packed: what of it has to be looked at, and its bytes.
pub(crate) trait Source: Send + Sync {
    /// Its size and what follows from it.
    fn geometry(&self) -> Geometry;

    /// Its leaves in order; those that hold nothing but zeros may be left out.
    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_>;

    /// Reads what a leaf says is to be read, run after run, into the front of `buffer`; behind the image's end are zeros.
    fn read(&self, leaf: &Leaf, buffer: &mut [u8]) -> Result<(), Error>;

    /// Says whether the files that it is read from are still as they were when it was opened.
    fn check_unchanged(&self) -> Result<(), Error>;
}

/// What the span of one leaf holds.
#[derive(Debug)]
pub(crate) enum Leaf {
    /// Data to be cut; the rest is zero.
    Data(LeafExtents),
    /// Changes to a published leaf.
    Patch(Patch),
    /// What a published leaf holds, and nothing else.
    Kept(LeafNode),
    /// What a published leaf holds, with some of its chunks in other packs.
    Moved(Moved),
}

/// Where one leaf's span has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafExtents {
    /// The leaf's number.
    pub(crate) leaf: u32,
    /// First block, counted from the leaf's first one, and blocks of each run of data, in order and with gaps between.
    pub(crate) runs: Vec<(u32, u32)>,
}

impl DiskFile {
    /// A disk that lies in its file as it is.
    #[must_use]
    pub const fn raw(name: Name, file: PathBuf) -> Self {
        Self { name, file, format: DiskFormat::Raw }
    }
}

impl Leaf {
    pub(crate) const fn number(&self) -> u32 {
        match self {
            Self::Data(extents) => extents.leaf,
            Self::Patch(patch) => patch.leaf(),
            Self::Kept(node) => node.leaf,
            Self::Moved(moved) => moved.leaf(),
        }
    }

    /// Bytes that are read for it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Data(extents) => extents.bytes(),
            Self::Patch(patch) => patch.bytes(),
            Self::Kept(_) => 0,
            Self::Moved(moved) => moved.bytes(),
        }
    }
}

impl LeafExtents {
    pub(crate) fn bytes(&self) -> usize {
        self.runs.iter().map(|&(_, blocks)| blocks as usize * BLOCK_BYTES).sum()
    }

    /// Takes the next run, of whole blocks, in bytes of the image.
    fn push(&mut self, run: &std::ops::Range<u64>) {
        let first_block = (run.start - u64::from(self.leaf) * LEAF_BYTES) / BLOCK;
        self.runs.push((first_block as u32, ((run.end - run.start) / BLOCK) as u32));
    }
}

/// Opens a whole disk, and gives the files that it is read from; `reads` is told of them before anything opens them.
///
/// # Errors
/// [`Error::File`], [`Error::NoDisk`], [`Error::DiskTooLarge`]; [`DiskError`] for other formats than raw.
pub(crate) fn open(
    disk: &DiskFile,
    allow_outside: bool,
    reads: impl FnOnce(&[ChainFile]),
) -> Result<(Box<dyn Source>, Vec<ChainFile>), Error> {
    if disk.format == DiskFormat::Raw {
        let file = ChainFile::raw(&disk.file);
        return Ok((Box::new(RawDisk::open(&disk.file)?), vec![file]));
    }
    let chain = Chain::walk(&disk.file, disk.format, allow_outside)?;
    if let Under::Version(bound) = chain.under() {
        return Err(DiskError::Overlay { file: disk.file.clone(), version: bound.version }.into());
    }
    let files = chain.files();
    reads(&files);
    Ok((Box::new(ForeignDisk::open(chain, Depth::Ignored)?), files))
}

/// Reads the header of an image, and those of all files that it leads to; no program sees any.
///
/// # Errors
/// As [`open`].
#[cfg(feature = "fuzzing")]
pub fn walk_chain(file: &std::path::Path, format: DiskFormat) -> Result<(), Error> {
    Chain::walk(file, format, false).map(drop)
}

/// Warns of a disk that is said to be raw and begins like an image of another format. It is read as it was said to be: what
/// stands in a raw disk is the guest's word.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn warn_of_format(disk: &DiskFile, progress: &dyn Progress) -> Result<(), Error> {
    if disk.format != DiskFormat::Raw {
        return Ok(());
    }
    if let Some(format) = header::looks_like(&disk.file)? {
        let file = disk.file.display();
        progress.warn(&format!(
            "{file} begins like a {format} image, but is read as raw: --format {format} reads the disk in it"
        ));
    }
    Ok(())
}
