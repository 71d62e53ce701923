//! A leaf of an image's index in the form in which it is kept: thousands of them are, so packs are named once for each leaf and
//! not for each chunk.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use vmnetx_format::{BLOCK_BYTES, Digest, LeafChunk, Place, TreeError};

use super::LEAF_BYTES;
use crate::tier::Wanted;

/// Bytes of an image that a part of a leaf covers.
pub(super) const PART_BYTES: u64 = 1 << 20;

/// Parts of a leaf.
const PARTS: u32 = (LEAF_BYTES / PART_BYTES) as u32;

/// The chunks of one leaf's span, in order. What no chunk covers is zero.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    entries: Box<[Entry]>,
    packs: Box<[Digest]>,
    /// The parts that were read, a bit for each.
    touched: AtomicU16,
}

/// A chunk as the leaf keeps it: 48 bytes, where a [`LeafChunk`] has 88. The format's limits fit into the narrow fields.
#[derive(Debug, Clone)]
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
        Ok(Self { entries, packs: packs.into(), touched: AtomicU16::new(0) })
    }

    /// Takes note of a read between two offsets of the image.
    pub(super) fn touch(&self, at: u64, stop: u64) {
        let first = at / PART_BYTES;
        let last = stop.saturating_sub(1).max(at) / PART_BYTES;
        let bits = (first..=last).fold(0, |bits, part| bits | 1 << (part % u64::from(PARTS)));
        // Mostly they are set already, and other readers have the same line of memory.
        if self.touched.load(Ordering::Relaxed) & bits != bits {
            self.touched.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// The parts that were read, with their numbers in the leaf; each has all chunks that reach into its [`PART_BYTES`], and
    /// may be walked there and nowhere else.
    pub(super) fn touched_parts(&self) -> impl Iterator<Item = (u32, Self)> {
        let touched = self.touched.load(Ordering::Relaxed);
        (0..PARTS).filter(move |part| touched & (1 << part) != 0).map(|part| {
            let first = u64::from(part) * PART_BYTES;
            (part, self.part(first..first + PART_BYTES))
        })
    }

    fn part(&self, bytes: Range<u64>) -> Self {
        let first = self.entries.partition_point(|entry| entry.end() <= bytes.start);
        let end = self.entries.partition_point(|entry| entry.start() < bytes.end);
        let mut entries: Box<[Entry]> = self.entries.get(first..end).unwrap_or_default().into();
        let mut packs: Vec<Digest> = Vec::new();
        for entry in &mut entries {
            let pack = self.packs[usize::from(entry.pack)];
            let number = packs.iter().position(|known| *known == pack).unwrap_or_else(|| {
                packs.push(pack);
                packs.len() - 1
            });
            // No more than the leaf has.
            entry.pack = number as u16;
        }
        Self { entries, packs: packs.into(), touched: AtomicU16::new(0) }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnetx_format::limits::LEAF_BLOCKS;

    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn digest(seed: u32) -> Digest {
        Digest::of(&seed.to_le_bytes())
    }

    /// Chunks with holes between them, in some packs.
    fn chunks() -> impl Strategy<Value = Vec<LeafChunk>> {
        let part = (0_u32..40, 1_u32..40, 0_u32..5, 0_u64..1 << 30, 1_u32..4096);
        proptest::collection::vec(part, 0..200).prop_map(|parts| {
            let mut chunks = Vec::new();
            let mut at = 0;
            for (gap, blocks, pack, offset, stored_len) in parts {
                let first_block = at + gap;
                at = first_block + blocks;
                if at > LEAF_BLOCKS {
                    break;
                }
                let place = Place { pack: digest(pack), offset, stored_len };
                chunks.push(LeafChunk { first_block, blocks, digest: digest(at), place });
            }
            chunks
        })
    }

    proptest! {
        #[test]
        fn its_chunks_are_those_of_the_pair(chunks in chunks()) {
            let leaf = Leaf::new(&chunks).unwrap();
            prop_assert_eq!(leaf.is_hole(), chunks.is_empty());
            let wanted = |chunk: &LeafChunk| {
                Wanted { digest: chunk.digest, plain_len: chunk.plain_len(), place: chunk.place.clone() }
            };
            let found: Vec<Wanted> = leaf.chunks().map(Chunk::want).collect();
            prop_assert_eq!(found, chunks.iter().map(wanted).collect::<Vec<_>>());
            prop_assert!(leaf.weight_bytes() as usize >= chunks.len() * 48);
        }

        #[test]
        fn a_part_tells_the_same_as_its_leaf(chunks in chunks(), at in 0..LEAF_BYTES, length in 1..PART_BYTES) {
            let leaf = Leaf::new(&chunks).unwrap();
            let stop = (at + length).min((at / PART_BYTES + 1) * PART_BYTES);
            leaf.touch(at, stop);
            let steps = |leaf: &Leaf| {
                let mut steps = Vec::new();
                leaf.each_touch(at, stop, |step| {
                    steps.push(match step {
                        Step::Zeros(zeros) => (zeros, None),
                        Step::Chunk(touch) => (touch.length, Some((touch.skip, touch.chunk.want()))),
                    });
                    true
                });
                steps
            };
            let parts: Vec<(u32, Leaf)> = leaf.touched_parts().collect();
            prop_assert_eq!(parts.len(), 1);
            prop_assert_eq!(u64::from(parts[0].0), at / PART_BYTES);
            prop_assert_eq!(steps(&parts[0].1), steps(&leaf));
        }

        #[test]
        fn a_walk_tells_of_each_byte_once(
            chunks in chunks(),
            number in 0_u64..3,
            from in 0..LEAF_BYTES,
            length in 1..LEAF_BYTES,
        ) {
            let leaf = Leaf::new(&chunks).unwrap();
            let (at, stop) = (number * LEAF_BYTES + from, number * LEAF_BYTES + (from + length).min(LEAF_BYTES));
            let mut here = from;
            let mut mistake = None;
            let ended = leaf.each_touch(at, stop, |step| {
                let holds = |chunk: &&LeafChunk| {
                    let first = u64::from(chunk.first_block) * BLOCK;
                    (first..first + u64::from(chunk.plain_len())).contains(&here)
                };
                let known = chunks.iter().find(holds);
                let length = match step {
                    Step::Zeros(length) => {
                        let next = chunks.iter().map(|chunk| u64::from(chunk.first_block) * BLOCK).find(|first| *first > here);
                        if known.is_some() || next.is_some_and(|next| here + length > next) {
                            mistake = Some(here);
                        }
                        length
                    }
                    Step::Chunk(touch) => {
                        let first = known.map(|chunk| (u64::from(chunk.first_block) * BLOCK, chunk.digest));
                        if first != Some((here - touch.skip, *touch.chunk.digest())) {
                            mistake = Some(here);
                        }
                        touch.length
                    }
                };
                here += length;
                true
            });
            prop_assert!(ended);
            prop_assert_eq!((mistake, here), (None, stop - number * LEAF_BYTES));
        }
    }

    #[test]
    fn parts_are_those_that_were_read() {
        let leaf = Leaf::new(&[]).unwrap();
        let touched = |leaf: &Leaf| leaf.touched_parts().map(|(part, _)| part).collect::<Vec<_>>();
        assert!(touched(&leaf).is_empty());
        leaf.touch(5 * LEAF_BYTES + PART_BYTES, 5 * LEAF_BYTES + 2 * PART_BYTES);
        leaf.touch(5 * LEAF_BYTES + 4 * PART_BYTES - 1, 5 * LEAF_BYTES + 4 * PART_BYTES + 1);
        leaf.touch(6 * LEAF_BYTES - 1, 6 * LEAF_BYTES);
        assert_eq!(touched(&leaf), [1, 3, 4, 15]);
        leaf.touch(0, LEAF_BYTES);
        assert_eq!(touched(&leaf).len(), 16);
    }

    #[test]
    fn what_is_beyond_the_limits_is_refused() {
        let place = Place { pack: digest(0), offset: 1 << 40, stored_len: 1 };
        let chunk = LeafChunk { first_block: 0, blocks: 1, digest: digest(0), place };
        assert!(matches!(Leaf::new(&[chunk]), Err(TreeError::Damaged { .. })));
    }
}
