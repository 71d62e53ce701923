//! Changes to a published leaf, and the chunks of the result.
//!
//! Where a chunk ends depends on its own blocks and on the one behind it. So the chunks of a changed leaf are those of a full
//! build if cutting begins anew with the chunk that contains the first changed block or ends right before it, and goes
//! on until, behind a change, it stands between two chunks where the old cutting did too. All other chunks are kept,
//! and their bytes are never looked at.

use std::ops::Range;
use std::sync::Arc;

use vmnetx_format::{BLOCK_BYTES, Chunker, Digest, LeafChunk};

use super::base::Base;
use crate::Error;
use crate::local::LeafNode;

/// Changes to a leaf of a published disk.
#[derive(Debug)]
pub(crate) struct Patch {
    leaf: u32,
    /// Blocks of its span.
    blocks: u32,
    /// In order and apart.
    changes: Vec<Change>,
    /// The leaf as it was; nothing if it was zero.
    node: Option<LeafNode>,
    base: Arc<Base>,
}

/// A run of bytes that is no longer what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Counted from the leaf's first byte.
    pub(super) bytes: Range<u32>,
    /// Whether all of them are zero now; others are read.
    pub(super) zeros: bool,
}

/// A chunk of a leaf that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Counted from the leaf's first block.
    pub(crate) first_block: u32,
    pub(crate) blocks: u32,
    /// Where its bytes are in the buffer; nothing for a chunk that is published already.
    pub(crate) bytes: Option<Range<usize>>,
    pub(crate) digest: Digest,
}

impl Patch {
    pub(super) const fn new(
        leaf: u32,
        blocks: u32,
        changes: Vec<Change>,
        node: Option<LeafNode>,
        base: Arc<Base>,
    ) -> Self {
        Self { leaf, blocks, changes, node, base }
    }

    pub(crate) const fn leaf(&self) -> u32 {
        self.leaf
    }

    /// Bytes that are read for it.
    pub(crate) fn bytes(&self) -> usize {
        self.to_read().map(|range| range.len()).sum()
    }

    /// The bytes that are read for it, run after run.
    pub(super) fn to_read(&self) -> impl Iterator<Item = Range<u32>> {
        self.changes.iter().filter(|change| !change.zeros).map(|change| change.bytes.clone())
    }

    /// The chunks of the changed leaf. `buffer` holds what was read, and then the bytes of all chunks that were cut.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub(crate) fn cut(&self, buffer: &mut Vec<u8>, chunker: Chunker) -> Result<Vec<Cut>, Error> {
        let old = self.node.as_ref().map_or(Ok(Vec::new()), |node| self.base.chunks(node))?;
        let old_bytes = |chunk: &LeafChunk| self.base.chunk(self.leaf, chunk);
        let changed = ChangedBlocks::new(self.blocks, &self.changes, buffer);
        let (cuts, merged) = recut(&old, old_bytes, &changed, chunker)?;
        *buffer = merged;
        Ok(cuts)
    }
}

/// The changes to each block of a leaf.
struct ChangedBlocks<'a> {
    /// The first and the end of each block's changes in `changes`; equal where there are none.
    of_block: Vec<(u32, u32)>,
    /// Each change's place in the leaf, and the new bytes; nothing for zeros.
    changes: Vec<(Range<usize>, Option<&'a [u8]>)>,
}

impl<'a> ChangedBlocks<'a> {
    fn new(blocks: u32, changes: &[Change], read: &'a [u8]) -> Self {
        let mut of_block = vec![(0, 0); blocks as usize];
        let mut placed = Vec::with_capacity(changes.len());
        let mut rest = read;
        for (number, change) in changes.iter().enumerate() {
            let place = change.bytes.start as usize..change.bytes.end as usize;
            let touched = place.start / BLOCK_BYTES..place.end.div_ceil(BLOCK_BYTES).min(of_block.len());
            for entry in of_block.get_mut(touched).unwrap_or_default() {
                let first = if entry.1 == 0 { number as u32 } else { entry.0 };
                *entry = (first, number as u32 + 1);
            }
            let data = (!change.zeros).then(|| {
                let (data, behind) = rest.split_at(place.len());
                rest = behind;
                data
            });
            placed.push((place, data));
        }
        Self { of_block, changes: placed }
    }

    fn blocks(&self) -> u32 {
        self.of_block.len() as u32
    }

    fn of(&self, block: u32) -> &[(Range<usize>, Option<&'a [u8]>)] {
        let (first, end) = self.of_block.get(block as usize).copied().unwrap_or_default();
        self.changes.get(first as usize..end as usize).unwrap_or_default()
    }

    /// The first changed block from `block` on.
    fn next(&self, block: u32) -> Option<u32> {
        (block..self.blocks()).find(|&block| !self.of(block).is_empty())
    }

    /// Whether nothing of a block is as it was.
    fn is_all_new(&self, block: u32) -> bool {
        let covered: usize = self.of(block).iter().map(|(place, _)| inside(place, block).len()).sum();
        covered == BLOCK_BYTES
    }

    /// Changes the bytes of a block from what they were to what they are.
    fn apply(&self, block: u32, bytes: &mut [u8]) {
        let start = block as usize * BLOCK_BYTES;
        for (place, data) in self.of(block) {
            let inside = inside(place, block);
            let target = &mut bytes[inside.start - start..inside.end - start];
            match data {
                Some(data) => target.copy_from_slice(&data[inside.start - place.start..inside.end - place.start]),
                None => target.fill(0),
            }
        }
    }
}

/// The part of a change that lies in a block.
fn inside(place: &Range<usize>, block: u32) -> Range<usize> {
    let start = block as usize * BLOCK_BYTES;
    place.start.max(start)..place.end.min(start + BLOCK_BYTES)
}

/// Cuts a changed leaf; gives its chunks and the bytes of those that are not old ones.
fn recut(
    old: &[LeafChunk],
    old_bytes: impl Fn(&LeafChunk) -> Result<Vec<u8>, Error>,
    changed: &ChangedBlocks<'_>,
    chunker: Chunker,
) -> Result<(Vec<Cut>, Vec<u8>), Error> {
    let mut cuts = Vec::new();
    let mut merged = Vec::new();
    let mut old = Old { chunks: old, loaded: None };
    let mut at = 0;
    while let Some(first) = changed.next(at) {
        // A chunk that ends right before a changed block may have ended because that block was zero.
        cuts.extend(old.take_while(|chunk| end(chunk) < first));
        let start = old.chunks.first().map_or(first, |chunk| chunk.first_block.min(first));
        let begin = merged.len();
        let mut cutter = chunker.cutter();
        let mut close = |run: vmnetx_format::Run, merged: &[u8]| {
            let place = begin + run.first_block as usize * BLOCK_BYTES;
            let bytes = place..place + run.blocks as usize * BLOCK_BYTES;
            let digest = Digest::of(&merged[bytes.clone()]);
            cuts.push(Cut { first_block: start + run.first_block, blocks: run.blocks, bytes: Some(bytes), digest });
        };
        at = start;
        while at < changed.blocks() {
            // What has ended is looked at no more.
            old.skip_ended(at);
            let is_settled = at > first && changed.of(at).is_empty() && cutter.is_between() && !old.is_inside(at);
            if is_settled {
                break;
            }
            let place = merged.len();
            merged.resize(place + BLOCK_BYTES, 0);
            let block = &mut merged[place..];
            if !changed.is_all_new(at) {
                old.copy(at, block, &old_bytes)?;
            }
            changed.apply(at, block);
            if let Some(run) = cutter.push(block) {
                close(run, &merged);
            }
            at += 1;
        }
        if let Some(run) = cutter.finish() {
            close(run, &merged);
        }
        old.skip_ended(at);
    }
    cuts.extend(old.take_while(|_| true));
    Ok((cuts, merged))
}

const fn end(chunk: &LeafChunk) -> u32 {
    chunk.first_block + chunk.blocks
}

/// The old chunks that were not passed yet.
struct Old<'a> {
    chunks: &'a [LeafChunk],
    /// The bytes of the first of them, if they were needed.
    loaded: Option<Vec<u8>>,
}

impl Old<'_> {
    /// Keeps chunks as they are.
    fn take_while(&mut self, kept: impl Fn(&LeafChunk) -> bool) -> Vec<Cut> {
        let count = self.chunks.iter().take_while(|chunk| kept(chunk)).count();
        let (taken, rest) = self.chunks.split_at(count);
        if count > 0 {
            self.loaded = None;
        }
        self.chunks = rest;
        let cut = |&LeafChunk { first_block, blocks, digest, .. }: &LeafChunk| Cut {
            first_block,
            blocks,
            bytes: None,
            digest,
        };
        taken.iter().map(cut).collect()
    }

    fn skip_ended(&mut self, block: u32) {
        while let Some((_, rest)) = self.chunks.split_first().filter(|(chunk, _)| end(chunk) <= block) {
            self.chunks = rest;
            self.loaded = None;
        }
    }

    /// Whether a chunk has begun before `block` and goes on.
    fn is_inside(&self, block: u32) -> bool {
        self.chunks.first().is_some_and(|chunk| chunk.first_block < block && block < end(chunk))
    }

    /// Copies the old bytes of a block; they stay zero where there is no chunk.
    fn copy(
        &mut self,
        block: u32,
        out: &mut [u8],
        bytes: impl Fn(&LeafChunk) -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        let Some(chunk) = self.chunks.first().filter(|chunk| chunk.first_block <= block) else { return Ok(()) };
        let loaded = match &mut self.loaded {
            Some(loaded) => loaded,
            empty => empty.insert(bytes(chunk)?),
        };
        let place = (block - chunk.first_block) as usize * BLOCK_BYTES;
        if let Some(plain) = loaded.get(place..place + BLOCK_BYTES) {
            out.copy_from_slice(plain);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnetx_format::Place;

    use super::*;

    /// Each block is zero or full of one byte, so that blocks are equal often and some are cuts.
    fn image(blocks: &[u8]) -> Vec<u8> {
        blocks.iter().flat_map(|&fill| [fill; BLOCK_BYTES]).collect()
    }

    fn published(data: &[u8], chunker: Chunker) -> Vec<LeafChunk> {
        let place = Place { pack: Digest::of(b""), offset: 0, stored_len: 0 };
        let chunk = |run: vmnetx_format::Run| LeafChunk {
            first_block: run.first_block,
            blocks: run.blocks,
            digest: Digest::of(run.slice(data).unwrap()),
            place: place.clone(),
        };
        chunker.cut(data).into_iter().map(chunk).collect()
    }

    /// Changes in order and apart, in units of 512 bytes, with what each writes.
    fn changes(gaps: &[(u32, u32, u8)], sectors: u32) -> Vec<(Range<u32>, u8)> {
        let mut at = 0;
        let mut found = Vec::new();
        for &(gap, length, fill) in gaps {
            let range = (at + gap).min(sectors)..(at + gap + length).min(sectors);
            at = range.end;
            if !range.is_empty() {
                found.push((range.start * 512..range.end * 512, fill));
            }
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn a_changed_leaf_is_cut_like_a_new_one(
            blocks in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 1..120),
            grown in 0_usize..10,
            gaps in proptest::collection::vec((prop_oneof![0_u32..9, 0_u32..300], 1_u32..40, prop_oneof![Just(0_u8), any::<u8>()]), 0..8),
            (min, cut, more) in (1_u32..6, 0_u32..5, 0_u32..20),
        ) {
            let chunker = Chunker::new(min, 1 << cut, min + more).unwrap();
            let before = image(&blocks);
            let old = published(&before, chunker);
            let mut after = before.clone();
            after.resize(before.len() + grown * BLOCK_BYTES, 0);
            let changes = changes(&gaps, (after.len() / 512) as u32);
            let mut read = Vec::new();
            for (range, fill) in &changes {
                after[range.start as usize..range.end as usize].fill(*fill);
                // Zeros are told, and sometimes read.
                if *fill != 0 || range.start % 1024 == 0 {
                    read.resize(read.len() + range.len(), *fill);
                }
            }
            let told: Vec<Change> = changes.iter().map(|(range, fill)| {
                Change { bytes: range.clone(), zeros: *fill == 0 && range.start % 1024 != 0 }
            }).collect();
            let changed = ChangedBlocks::new((after.len() / BLOCK_BYTES) as u32, &told, &read);
            let loaded = std::cell::RefCell::new(Vec::new());
            let bytes = |chunk: &LeafChunk| {
                loaded.borrow_mut().push(chunk.first_block);
                let start = chunk.first_block as usize * BLOCK_BYTES;
                Ok(before[start..start + chunk.plain_len() as usize].to_vec())
            };
            let (cuts, merged) = recut(&old, bytes, &changed, chunker).unwrap();
            let wanted = published(&after, chunker);
            let shape = |cut: &Cut| (cut.first_block, cut.blocks, cut.digest);
            let found: Vec<_> = cuts.iter().map(shape).collect();
            prop_assert_eq!(found, wanted.iter().map(|c| (c.first_block, c.blocks, c.digest)).collect::<Vec<_>>());
            for cut in &cuts {
                match &cut.bytes {
                    Some(bytes) => prop_assert_eq!(Digest::of(&merged[bytes.clone()]), cut.digest),
                    None => prop_assert!(old.iter().any(|chunk| chunk.digest == cut.digest)),
                }
            }
            // No chunk is read that is kept, and none twice.
            let loaded = loaded.into_inner();
            prop_assert!(loaded.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", loaded);
            let kept = |first: &u32| cuts.iter().any(|cut| cut.bytes.is_none() && cut.first_block == *first);
            prop_assert!(!loaded.iter().any(kept));
            if changes.is_empty() {
                prop_assert!(loaded.is_empty() && merged.is_empty());
            }
        }
    }

    #[test]
    fn a_change_is_cut_up_to_the_next_old_cut_and_no_further() {
        // Chunks of exactly 4 blocks.
        let chunker = Chunker::new(4, 1, 4).unwrap();
        let before = image(&(1..=40).collect::<Vec<u8>>());
        let old = published(&before, chunker);
        let changed = [9; 512];
        let told = [Change { bytes: 17 * 4096..17 * 4096 + 512, zeros: false }];
        let changed = ChangedBlocks::new(40, &told, &changed);
        let bytes = |chunk: &LeafChunk| {
            assert_eq!(chunk.first_block, 16);
            Ok(before[16 * BLOCK_BYTES..20 * BLOCK_BYTES].to_vec())
        };
        let (cuts, _) = recut(&old, bytes, &changed, chunker).unwrap();
        let new: Vec<_> =
            cuts.iter().filter(|cut| cut.bytes.is_some()).map(|cut| (cut.first_block, cut.blocks)).collect();
        assert_eq!((cuts.len(), new), (10, vec![(16, 4)]));
    }
}
