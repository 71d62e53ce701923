//! Groups runs of an image's bytes by the leaves that they lie in.

use std::ops::Range;

use super::{BLOCK, LEAF_BYTES, LeafExtents};
use crate::Error;

/// Groups runs of data, which come in order, into the leaves of an image of `blocks` blocks. Runs are widened to whole
/// blocks, and those that touch become one.
pub(super) fn by_leaf(
    mut data: impl Iterator<Item = Result<Range<u64>, Error>>,
    blocks: u64,
) -> impl Iterator<Item = Result<LeafExtents, Error>> {
    let image_end = blocks * BLOCK;
    let mut carried: Option<Range<u64>> = None;
    let mut next_leaf = move || {
        let mut next = |carried: &mut Option<Range<u64>>| {
            let widened = |run: Range<u64>| run.start / BLOCK * BLOCK..run.end.next_multiple_of(BLOCK).min(image_end);
            carried.take().map(Ok).or_else(|| Some(data.next()?.map(widened))).transpose()
        };
        let Some(mut run) = next(&mut carried)? else { return Ok(None) };
        let leaf = run.start / LEAF_BYTES;
        let leaf_end = ((leaf + 1) * LEAF_BYTES).min(image_end);
        let mut extents = LeafExtents { leaf: leaf as u32, runs: Vec::new() };
        while run.end < leaf_end {
            match next(&mut carried)? {
                Some(found) if found.start <= run.end => run.end = run.end.max(found.end),
                Some(found) if found.start < leaf_end => {
                    extents.push(&run);
                    run = found;
                }
                found => {
                    carried = found;
                    break;
                }
            }
        }
        if run.end > leaf_end {
            carried = Some(leaf_end..run.end);
            run.end = leaf_end;
        }
        extents.push(&run);
        Ok(Some(extents))
    };
    std::iter::from_fn(move || next_leaf().transpose())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped(runs: &[Range<u64>], blocks: u64) -> Vec<(u32, Vec<(u32, u32)>)> {
        let found = by_leaf(runs.iter().cloned().map(Ok), blocks).map(|extents| extents.map(|e| (e.leaf, e.runs)));
        found.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn runs_are_widened_joined_and_cut_at_leaves() {
        const LEAF: u64 = LEAF_BYTES;
        assert_eq!(grouped(&[], 10), []);
        assert_eq!(grouped(&[1..2, 4000..4097, 8192..8193, 16_384..16_385], 5), [(0, vec![(0, 3), (4, 1)])]);
        // A run over three leaves, and one that begins in the block in which it ended.
        let long = [LEAF - 1..2 * LEAF + 1, 2 * LEAF + 5..2 * LEAF + 6, 2 * LEAF + 20_000..2 * LEAF + 20_001];
        let expected = [(0, vec![(4095, 1)]), (1, vec![(0, 4096)]), (2, vec![(0, 1), (4, 1)])];
        assert_eq!(grouped(&long, 3 * 4096), expected);
        assert_eq!(
            grouped(&[LEAF - 1..LEAF, 5 * LEAF..5 * LEAF + 1], 5 * 4096 + 1),
            [(0, vec![(4095, 1)]), (5, vec![(0, 1)])]
        );
    }
}
