//! An image of a published version that is laid out anew: chunks leave their packs, and what is damaged is replaced.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use vmnetx_format::{BLOCK_BYTES, Digest, Geometry, LeafChunk};

use super::{BLOCK, Cut, LEAF_BYTES, Leaf, LeafExtents, Source};
use crate::local::{LeafNode, Leaves, LocalImage, Packs};
use crate::{Damage, Error};

/// Another copy of an image.
pub(crate) trait Elsewhere: Send + Sync {
    /// Where the span of a leaf has data.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn extents(&self, leaf: u32) -> Result<LeafExtents, Error>;

    /// Fills `buffer` with the bytes at `offset`; behind the image's end are zeros.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error>;
}

/// An image whose chunks leave some packs.
pub(crate) struct Relaid {
    image: LocalImage,
    leaves: Leaves,
    packs: Packs,
    /// The packs to which nothing shall lead any more.
    leaving: Arc<HashSet<Digest>>,
    /// Where to take what cannot be read here.
    elsewhere: Option<Box<dyn Elsewhere>>,
}

/// A leaf with chunks that leave their packs, or that does so itself.
#[derive(Debug)]
pub(crate) struct Moved {
    leaf: u32,
    chunks: Vec<LeafChunk>,
    leaving: Arc<HashSet<Digest>>,
}

impl Moved {
    pub(crate) const fn leaf(&self) -> u32 {
        self.leaf
    }

    /// Bytes that are read for it.
    pub(crate) fn bytes(&self) -> usize {
        self.to_read().map(|chunk| chunk.plain_len() as usize).sum()
    }

    /// The chunks of the leaf, which are what they were; `bytes` of those that leave are where they were read to.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        let mut at = 0;
        let cut = |chunk: &LeafChunk| {
            let bytes = self.leaves(chunk).then(|| {
                let start = at;
                at += chunk.plain_len() as usize;
                start..at
            });
            Cut { first_block: chunk.first_block, blocks: chunk.blocks, bytes, digest: chunk.digest }
        };
        self.chunks.iter().map(cut).collect()
    }

    fn leaves(&self, chunk: &LeafChunk) -> bool {
        self.leaving.contains(&chunk.place.pack)
    }

    fn to_read(&self) -> impl Iterator<Item = &LeafChunk> {
        self.chunks.iter().filter(|chunk| self.leaves(chunk))
    }
}

impl Relaid {
    pub(crate) const fn new(
        image: LocalImage,
        leaves: Leaves,
        packs: Packs,
        leaving: Arc<HashSet<Digest>>,
        elsewhere: Option<Box<dyn Elsewhere>>,
    ) -> Self {
        Self { image, leaves, packs, leaving, elsewhere }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.image.name
    }

    fn leaf(&self, node: &LeafNode) -> Result<Leaf, Error> {
        let chunks = match self.packs.chunks(self.image.geometry, node) {
            Ok(chunks) => chunks,
            Err(damage) => return self.leaf_from_elsewhere(node.leaf, damage),
        };
        let stays = !self.leaving.contains(&node.place.pack)
            && chunks.iter().all(|chunk| !self.leaving.contains(&chunk.place.pack));
        if stays {
            return Ok(Leaf::Kept(node.clone()));
        }
        Ok(Leaf::Moved(Moved { leaf: node.leaf, chunks, leaving: Arc::clone(&self.leaving) }))
    }

    /// A leaf whose chunks are not known here: its data is cut again, as the publisher has cut it.
    fn leaf_from_elsewhere(&self, leaf: u32, damage: Damage) -> Result<Leaf, Error> {
        match &self.elsewhere {
            Some(elsewhere) => Ok(Leaf::Data(elsewhere.extents(leaf)?)),
            None => Err(self.damaged(self.span(leaf), damage)),
        }
    }

    fn read_chunk(&self, leaf: u32, chunk: &LeafChunk, out: &mut [u8]) -> Result<(), Error> {
        let start = u64::from(leaf) * LEAF_BYTES + u64::from(chunk.first_block) * BLOCK;
        let damage = match self.packs.chunk(chunk) {
            Ok(plain) => {
                out.copy_from_slice(&plain);
                return Ok(());
            }
            Err(damage) => damage,
        };
        let Some(elsewhere) = &self.elsewhere else {
            return Err(self.damaged(start..start + u64::from(chunk.plain_len()), damage));
        };
        elsewhere.read(start, out)?;
        if Digest::of(out) == chunk.digest {
            return Ok(());
        }
        Err(self.damaged(start..start + u64::from(chunk.plain_len()), Damage::Digest(chunk.digest)))
    }

    fn span(&self, leaf: u32) -> Range<u64> {
        let start = u64::from(leaf) * LEAF_BYTES;
        start..start + u64::from(self.image.geometry.leaf_blocks(leaf)) * BLOCK
    }

    fn damaged(&self, bytes: Range<u64>, damage: Damage) -> Error {
        Error::Damaged { disk: self.image.name.clone(), start: bytes.start, end: bytes.end, source: Box::new(damage) }
    }
}

impl Source for Relaid {
    fn geometry(&self) -> Geometry {
        self.image.geometry
    }

    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_> {
        // Leaves below an inner node that is lost, of which elsewhere says which hold something.
        let lost = self.leaves.lost.iter().flat_map(|(leaves, _)| leaves.clone());
        let mut numbers: Vec<(u32, Option<&LeafNode>)> = lost.map(|leaf| (leaf, None)).collect();
        numbers.extend(self.leaves.nodes.iter().map(|node| (node.leaf, Some(node))));
        numbers.sort_by_key(|(leaf, _)| *leaf);
        let leaf = |(number, node): (u32, Option<&LeafNode>)| match node {
            Some(node) => self.leaf(node),
            None => self.leaf_from_elsewhere(number, Damage::Missing),
        };
        let holds_something =
            |leaf: &Result<Leaf, Error>| !matches!(leaf, Ok(Leaf::Data(data)) if data.runs.is_empty());
        Box::new(numbers.into_iter().map(leaf).filter(holds_something))
    }

    fn read(&self, leaf: &Leaf, buffer: &mut [u8]) -> Result<(), Error> {
        let mut rest = buffer;
        match leaf {
            Leaf::Moved(moved) => {
                for chunk in moved.to_read() {
                    let (piece, behind) = rest.split_at_mut(chunk.plain_len() as usize);
                    rest = behind;
                    self.read_chunk(moved.leaf, chunk, piece)?;
                }
            }
            Leaf::Data(extents) => {
                let elsewhere = self.elsewhere.as_ref().ok_or(Error::Stopped)?;
                for &(first_block, blocks) in &extents.runs {
                    let (piece, behind) = rest.split_at_mut(blocks as usize * BLOCK_BYTES);
                    rest = behind;
                    elsewhere.read(u64::from(extents.leaf) * LEAF_BYTES + u64::from(first_block) * BLOCK, piece)?;
                }
            }
            Leaf::Kept(_) | Leaf::Patch(_) => {}
        }
        Ok(())
    }

    /// What is published never changes.
    fn check_unchanged(&self) -> Result<(), Error> {
        Ok(())
    }
}
