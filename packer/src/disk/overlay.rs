//! An overlay over a disk of a published version: only what it holds is read, and only around that is cut anew.

use std::iter::Peekable;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use vmnetx_format::{Binding, Geometry};

use super::base::Base;
use super::chain::{Chain, ChainFile, Under};
use super::error::DiskError;
use super::foreign::{Depth, ForeignDisk};
use super::nbd::State;
use super::patch::{Change, Patch};
use super::{LEAF_BYTES, Leaf, Source};
use crate::Error;
use crate::local::LeafNode;

/// An overlay over a published disk.
pub(crate) struct OverlayDisk {
    image: ForeignDisk,
    base: Arc<Base>,
}

/// A change to an image, in bytes of it.
type ImageChange = (Range<u64>, State);

impl OverlayDisk {
    /// Opens the qcow2 image `file` over `base`; gives the files that it is read from, of which `reads` is told before. With `trust`, an image whose header
    /// does not say what it lies over is taken for an overlay of `base`.
    ///
    /// # Errors
    /// [`DiskError`]; [`Error::File`], [`Error::NoDisk`], [`Error::DiskTooLarge`].
    pub(crate) fn open(
        file: &Path,
        base: Arc<Base>,
        allow_outside: bool,
        trust: bool,
        reads: impl FnOnce(&[ChainFile]),
    ) -> Result<(Self, Vec<ChainFile>), Error> {
        let chain = Chain::walk_overlay(file, allow_outside, trust)?;
        let wanted = Binding { version: base.version, disk: base.name.clone() };
        match chain.under() {
            Under::Version(found) if *found != wanted => {
                let (found, wanted) = (Box::new(found.clone()), Box::new(wanted));
                return Err(DiskError::OtherBase { file: file.to_owned(), found, wanted }.into());
            }
            Under::Version(_) => {}
            Under::Nothing | Under::Other if trust => {}
            Under::Nothing | Under::Other => {
                return Err(DiskError::Unbound { file: file.to_owned(), version: base.version }.into());
            }
        }
        let files = chain.files();
        reads(&files);
        let image = ForeignDisk::open(chain, Depth::Wanted)?;
        let [size_bytes, base_bytes] = [image.geometry(), base.geometry()].map(Geometry::size_bytes);
        if size_bytes < base_bytes {
            return Err(DiskError::Shorter { file: file.to_owned(), size_bytes, base_bytes }.into());
        }
        Ok((Self { image, base }, files))
    }

    /// The leaves of the base together with the changes to each.
    fn merged(
        &self,
        nodes: Vec<LeafNode>,
        changes: impl Iterator<Item = Result<ImageChange, Error>>,
    ) -> impl Iterator<Item = Result<Leaf, Error>> {
        let geometry = self.image.geometry();
        let mut nodes = nodes.into_iter().peekable();
        let mut changes = changes.peekable();
        let mut carried = None;
        let next = move || loop {
            let changed = next_start(&mut carried, &mut changes)?.map(|start| (start / LEAF_BYTES) as u32);
            let kept = nodes.peek().map(|node| node.leaf);
            let leaf = match (changed, kept) {
                (None, None) => return Ok(None),
                (Some(changed), Some(kept)) => changed.min(kept),
                (Some(leaf), None) | (None, Some(leaf)) => leaf,
            };
            let node = nodes.next_if(|node| node.leaf == leaf);
            if changed != Some(leaf) {
                return Ok(node.map(Leaf::Kept));
            }
            let changes = changes_of(leaf, &mut carried, &mut changes)?;
            // Zeros where nothing was before are no change.
            if node.is_some() || changes.iter().any(|change| !change.zeros) {
                let blocks = geometry.leaf_blocks(leaf);
                return Ok(Some(Leaf::Patch(Patch::new(leaf, blocks, changes, node, Arc::clone(&self.base)))));
            }
        };
        let mut next = next;
        std::iter::from_fn(move || next().transpose())
    }
}

/// Where the next change begins.
fn next_start(
    carried: &mut Option<ImageChange>,
    changes: &mut Peekable<impl Iterator<Item = Result<ImageChange, Error>>>,
) -> Result<Option<u64>, Error> {
    if carried.is_none() {
        *carried = changes.next().transpose()?;
    }
    Ok(carried.as_ref().map(|(range, _)| range.start))
}

/// The changes to a leaf; what of the last one lies in the next leaf is carried over.
fn changes_of(
    leaf: u32,
    carried: &mut Option<ImageChange>,
    changes: &mut Peekable<impl Iterator<Item = Result<ImageChange, Error>>>,
) -> Result<Vec<Change>, Error> {
    let start = u64::from(leaf) * LEAF_BYTES;
    let end = start + LEAF_BYTES;
    let mut found = Vec::new();
    while next_start(carried, changes)?.is_some_and(|start| start < end) {
        let Some((range, state)) = carried.take() else { break };
        let stop = range.end.min(end);
        found.push(Change { bytes: (range.start - start) as u32..(stop - start) as u32, zeros: state == State::Zeros });
        if range.end > end {
            *carried = Some((end..range.end, state));
        }
    }
    Ok(found)
}

impl Source for OverlayDisk {
    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_> {
        let changes = self.image.runs().filter(|run| !matches!(run, Ok((_, State::Below))));
        match self.base.nodes() {
            Ok(nodes) => Box::new(self.merged(nodes, changes)),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn read(&self, leaf: &Leaf, buffer: &mut [u8]) -> Result<(), Error> {
        let Leaf::Patch(patch) = leaf else { return Ok(()) };
        let start = u64::from(patch.leaf()) * LEAF_BYTES;
        let ranges = patch.to_read().map(|range| start + u64::from(range.start)..start + u64::from(range.end));
        self.image.read_ranges(ranges, buffer)
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        self.image.chain().check_unchanged()
    }
}
