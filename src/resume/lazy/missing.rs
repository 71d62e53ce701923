//! Which pages of a VM were not sent yet.

use vmnetx_format::migration::{Block, PAGE_BYTES, PageAt, PageRange};

use crate::resume::saved::in_pieces;

const PAGE: u64 = PAGE_BYTES as u64;
const WORD_PAGES: u64 = u64::BITS as u64;

/// A bit for each page of each block, set until the page is sent.
#[derive(Debug)]
pub(super) struct Missing {
    blocks: Vec<Bits>,
    pages: u64,
}

#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    pages: u64,
}

impl Missing {
    /// All pages of these blocks.
    pub(super) fn all(blocks: &[Block]) -> Self {
        let blocks: Vec<_> = blocks.iter().map(|block| Bits::all(block.size_bytes / PAGE)).collect();
        Self { pages: blocks.iter().map(|bits| bits.pages).sum(), blocks }
    }

    /// How many there are.
    pub(super) const fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes a page that is about to be sent; whether it was missing.
    pub(super) fn take(&mut self, at: PageAt) -> bool {
        let (word, bit) = place(at.offset_bytes);
        let Some(word) = self.blocks.get_mut(at.block).and_then(|bits| bits.words.get_mut(word)) else { return false };
        let was = *word & bit != 0;
        *word &= !bit;
        self.pages -= u64::from(was);
        was
    }

    /// The first missing pages of a range that lie together.
    pub(super) fn first_in(&self, range: PageRange) -> Option<PageRange> {
        let PageRange { block, start_bytes, length_bytes } = range;
        let bits = self.blocks.get(block)?;
        let end = ((start_bytes + length_bytes) / PAGE).min(bits.pages);
        let start = bits.next(start_bytes / PAGE, end, true)?;
        let stop = bits.next(start, end, false).unwrap_or(end);
        Some(PageRange { block, start_bytes: start * PAGE, length_bytes: (stop - start) * PAGE })
    }

    /// The missing pages of a range, those that lie together as one.
    pub(super) fn in_range(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        let end = range.start_bytes + range.length_bytes;
        let after = move |start_bytes| PageRange { start_bytes, length_bytes: end - start_bytes, ..range };
        let first = self.first_in(range);
        std::iter::successors(first, move |found| self.first_in(after(found.start_bytes + found.length_bytes)))
    }

    /// The missing pages of a range in pieces that are read at once.
    pub(super) fn reads_in(&self, range: PageRange) -> Vec<PageRange> {
        self.in_range(range).flat_map(in_pieces).collect()
    }

    /// All missing pages.
    pub(super) fn ranges(&self) -> impl Iterator<Item = PageRange> {
        self.blocks.iter().enumerate().flat_map(|(block, bits)| {
            self.in_range(PageRange { block, start_bytes: 0, length_bytes: bits.pages * PAGE })
        })
    }
}

impl Bits {
    fn all(pages: u64) -> Self {
        let mut words = vec![u64::MAX; pages.div_ceil(WORD_PAGES) as usize];
        if let Some(last) = words.last_mut()
            && !pages.is_multiple_of(WORD_PAGES)
        {
            *last = (1 << (pages % WORD_PAGES)) - 1;
        }
        Self { words, pages }
    }

    /// The first page from `start` on and before `end` that is missing, or is not.
    fn next(&self, start: u64, end: u64, missing: bool) -> Option<u64> {
        let flip = if missing { 0 } else { u64::MAX };
        let first = start / WORD_PAGES;
        let words = self.words.iter().enumerate().take(end.div_ceil(WORD_PAGES) as usize).skip(first as usize);
        let found = words.map(|(index, word)| (index as u64, word ^ flip)).find_map(|(index, word)| {
            let word = if index == first { word & (u64::MAX << (start % WORD_PAGES)) } else { word };
            (word != 0).then(|| index * WORD_PAGES + u64::from(word.trailing_zeros()))
        });
        found.filter(|page| *page < end)
    }
}

const fn place(offset_bytes: u64) -> (usize, u64) {
    let page = offset_bytes / PAGE;
    ((page / WORD_PAGES) as usize, 1 << (page % WORD_PAGES))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The model: every missing page by itself.
    fn ranges_of(pages: &BTreeSet<(usize, u64)>) -> Vec<PageRange> {
        let mut ranges: Vec<PageRange> = Vec::new();
        for &(block, page) in pages {
            match ranges.last_mut() {
                Some(last) if last.block == block && last.start_bytes + last.length_bytes == page * PAGE => {
                    last.length_bytes += PAGE;
                }
                _ => ranges.push(PageRange { block, start_bytes: page * PAGE, length_bytes: PAGE }),
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn is_the_set_of_pages_that_were_not_taken(
            sizes in prop::collection::vec(1_u64..200, 1..4),
            taken in prop::collection::vec((0_usize..4, 0_u64..220), 0..300),
            (start, length) in (0_u64..220, 1_u64..220),
        ) {
            let blocks: Vec<_> =
                sizes.iter().enumerate().map(|(n, pages)| Block::new(n.to_string(), pages * PAGE)).collect();
            let mut missing = Missing::all(&blocks);
            let mut model: BTreeSet<_> =
                sizes.iter().enumerate().flat_map(|(block, pages)| (0..*pages).map(move |page| (block, page))).collect();
            for (block, page) in taken {
                let at = PageAt { block, offset_bytes: page * PAGE };
                prop_assert_eq!(missing.take(at), model.remove(&(block, page)));
                prop_assert!(!missing.take(at));
            }
            prop_assert_eq!(missing.pages(), model.len() as u64);
            prop_assert_eq!(missing.ranges().collect::<Vec<_>>(), ranges_of(&model));
            let range = PageRange { block: 0, start_bytes: start * PAGE, length_bytes: length * PAGE };
            model.retain(|&(block, page)| block == 0 && (start..start + length).contains(&page));
            prop_assert_eq!(missing.in_range(range).collect::<Vec<_>>(), ranges_of(&model));
            prop_assert_eq!(missing.reads_in(range), ranges_of(&model));
        }
    }
}
