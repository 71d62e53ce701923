//! A leaf of an image's index in the form in which it is kept: thousands of them are, so packs are named once for each leaf and
//! not for each chunk.

use std::collections::HashMap;

use vmnetx_format::{BLOCK_BYTES, Digest, LeafChunk, Place, TreeError};

use super::LEAF_BYTES;
use crate::tier::Wanted;

/// The chunks of one leaf's span, in order. What no chunk covers is zero.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    entries: Box<[Entry]>,
    packs: Box<[Digest]>,
}

/// A chunk as the leaf keeps it: 48 bytes, where a [`LeafChunk`] has 88. The format's limits fit into the narrow fields.
#[derive(Debug)]
struct Entry {
    digest: Digest,
    offset: u32,
    stored_len: u32,
    pack: u16,
    first_block: u16,
    blocks: u16,
}

/// A chunk of a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    entry: &'a Entry,
    leaf: &'a Leaf,
}

/// A chunk that a read touches: the part of it that is wanted, and where that part stands in the answer.
pub(super) struct Touch<'a> {
    pub(super) chunk: Chunk<'a>,
    /// Bytes of the chunk before the wanted part.
    pub(super) skip: u64,
    /// Bytes of the wanted part.
    pub(super) length: u64,
}

/// What comes next between two offsets of a leaf.
pub(super) enum Step<'a> {
    /// So many bytes of a hole.
    Zeros(u64),
    /// A chunk, or a part of it.
    Chunk(Touch<'a>),
}

impl Leaf {
    /// Takes what a pair of leaves says.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] for what is beyond the format's limits, which its decoders let nobody exceed.
    pub(super) fn new(chunks: &[LeafChunk]) -> Result<Self, TreeError> {
        let mut packs: Vec<Digest> = Vec::new();
        let mut numbers = HashMap::new();
        let mut last = 0;
        let entry = |chunk: &LeafChunk| {
            let place = &chunk.place;
            // Neighbours mostly lie in the same pack.
            if packs.get(last) != Some(&place.pack) {
                last = *numbers.entry(place.pack).or_insert_with(|| {
                    packs.push(place.pack);
                    packs.len() - 1
                });
            }
            Some(Entry {
                digest: chunk.digest,
                offset: place.offset.try_into().ok()?,
                stored_len: place.stored_len,
                pack: last.try_into().ok()?,
                first_block: chunk.first_block.try_into().ok()?,
                blocks: chunk.blocks.try_into().ok()?,
            })
        };
        let entries = chunks.iter().map(entry).collect::<Option<_>>().ok_or_else(|| {
            let reason = "a chunk is beyond the limits of the format".to_owned();
            TreeError::Damaged { node: "layout leaf", reason }
        })?;
        Ok(Self { entries, packs: packs.into() })
    }

    /// Bytes that it takes in memory, about.
    pub(super) fn weight_bytes(&self) -> u32 {
        /// Of the leaf itself, of three allocations and of its place in a cache.
        const OVERHEAD_BYTES: usize = 256;
        (size_of_val(&*self.entries) + size_of_val(&*self.packs) + OVERHEAD_BYTES) as u32
    }

    /// Whether it has no chunk: all of its span is zero.
    pub(super) const fn is_hole(&self) -> bool {
        self.entries.is_empty()
    }

    /// Its chunks, in order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        self.entries.iter().map(|entry| Chunk { entry, leaf: self })
    }

    /// Walks its chunks and holes between two offsets of the image until `visit` says false; gives back what it said last.
    pub(super) fn each_touch<'a>(&'a self, at: u64, stop: u64, mut visit: impl FnMut(Step<'a>) -> bool) -> bool {
        let base = at / LEAF_BYTES * LEAF_BYTES;
        let (mut at, stop) = (at - base, stop.saturating_sub(base));
        let first = self.entries.partition_point(|entry| entry.end() <= at);
        for entry in self.entries.iter().skip(first) {
            let start = entry.start();
            if at >= stop || start >= stop {
                break;
            }
            if start > at {
                if !visit(Step::Zeros(start - at)) {
                    return false;
                }
                at = start;
            }
            let end = stop.min(entry.end());
            let chunk = Chunk { entry, leaf: self };
            if !visit(Step::Chunk(Touch { chunk, skip: at - start, length: end - at })) {
                return false;
            }
            at = end;
        }
        at >= stop || visit(Step::Zeros(stop - at))
    }
}

impl Entry {
    /// Bytes from the leaf's first one.
    fn start(&self) -> u64 {
        u64::from(self.first_block) * BLOCK_BYTES as u64
    }

    fn end(&self) -> u64 {
        self.start() + u64::from(self.blocks) * BLOCK_BYTES as u64
    }
}

impl<'a> Chunk<'a> {
    pub(super) const fn digest(self) -> &'a Digest {
        &self.entry.digest
    }

    pub(super) fn blocks(self) -> u32 {
        self.entry.blocks.into()
    }

    /// Bytes of the chunk when plain.
    pub(super) fn plain_len(self) -> u32 {
        self.blocks() * BLOCK_BYTES as u32
    }

    /// What the tiers are asked for.
    pub(super) fn want(self) -> Wanted {
        let &Entry { digest, offset, stored_len, pack, .. } = self.entry;
        let place = Place { pack: self.leaf.packs[usize::from(pack)], offset: offset.into(), stored_len };
        Wanted { digest, plain_len: self.plain_len(), place }
    }
}
