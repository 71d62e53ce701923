//! Makes one sequence of several recorded runs.

use std::collections::HashMap;

use super::{Record, RecordTouch};
use crate::limits::ORDER_TOUCHES_MAX;

/// Runs from which on a block that most of them did not touch is taken for an accident of one.
const MAJORITY_RUNS: usize = 3;

/// When the runs have touched one block.
#[derive(Debug, Default)]
struct Touched {
    /// How many blocks each of the runs had touched before, in millionths of all that it touched: the pace of a run
    /// depends on the host, its sequence hardly does.
    ranks: Vec<u64>,
    times_ms: Vec<u64>,
}

/// A block in the merged sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merged {
    /// Whether most runs did without it.
    is_rare: bool,
    rank: u64,
    image: usize,
    block: u64,
    time_ms: u64,
}

impl Record {
    /// The first touches of several runs as one sequence: each block once, where it stands in the median run. Blocks that
    /// less than half of three or more runs have touched come last.
    #[must_use]
    pub fn merge(records: &[Self]) -> Vec<RecordTouch> {
        if let [record] = records {
            return record.touches.clone();
        }
        let mut images: Vec<&str> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut blocks: HashMap<(usize, u64), Touched> = HashMap::new();
        for record in records {
            let all: u64 = record.touches.iter().map(|touch| u64::from(touch.blocks)).sum();
            let mut before = 0;
            for touch in &record.touches {
                let image = *numbers.entry(&touch.image).or_insert_with(|| {
                    images.push(&touch.image);
                    images.len() - 1
                });
                for block in touch.first_block..touch.first_block + u64::from(touch.blocks) {
                    let touched = blocks.entry((image, block)).or_default();
                    touched.ranks.push(before * 1_000_000 / all.max(1));
                    touched.times_ms.push(touch.after_ms);
                    before += 1;
                }
            }
        }
        let merged = |((image, block), mut touched): ((usize, u64), Touched)| Merged {
            is_rare: records.len() >= MAJORITY_RUNS && touched.ranks.len() * 2 < records.len(),
            rank: median(&mut touched.ranks),
            image,
            block,
            time_ms: median(&mut touched.times_ms),
        };
        let mut merged: Vec<Merged> = blocks.into_iter().map(merged).collect();
        merged.sort_unstable();
        join(&merged, &images)
    }
}

/// Puts blocks that follow one another together.
fn join(merged: &[Merged], images: &[&str]) -> Vec<RecordTouch> {
    let mut touches: Vec<RecordTouch> = Vec::new();
    let mut now_ms = 0;
    for next in merged {
        let Some(image) = images.get(next.image) else { continue };
        if let Some(last) = touches.last_mut()
            && last.image == *image
            && last.first_block + u64::from(last.blocks) == next.block
            && next.time_ms <= now_ms
        {
            last.blocks += 1;
            continue;
        }
        if touches.len() == ORDER_TOUCHES_MAX as usize {
            break;
        }
        now_ms = next.time_ms.max(now_ms);
        let image = (*image).to_owned();
        touches.push(RecordTouch { after_ms: now_ms, image, first_block: next.block, blocks: 1 });
    }
    touches
}

/// The median, the lower one of two; 0 of nothing.
fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Digest, Purpose};

    fn record(touches: &[(u64, &str, u64, u32)]) -> Record {
        let touch = |&(after_ms, image, first_block, blocks): &(u64, &str, u64, u32)| RecordTouch {
            after_ms,
            image: image.to_owned(),
            first_block,
            blocks,
        };
        let touches = touches.iter().map(touch).collect();
        Record { manifest: Digest::of(b"manifest"), purpose: Purpose::Boot, touches }
    }

    fn merged(records: &[Record]) -> Vec<(String, u64, u32)> {
        Record::merge(records).into_iter().map(|touch| (touch.image, touch.first_block, touch.blocks)).collect()
    }

    #[test]
    fn a_slow_run_counts_like_a_fast_one() {
        let fast = record(&[(0, "a", 0, 2), (10, "a", 10, 2), (20, "b", 0, 4)]);
        let slow = record(&[(0, "a", 0, 2), (5000, "a", 10, 2), (9000, "b", 0, 4)]);
        let expected = [("a".to_owned(), 0, 2), ("a".to_owned(), 10, 2), ("b".to_owned(), 0, 4)];
        assert_eq!(merged(&[fast.clone(), slow.clone()]), expected);
        assert_eq!(merged(&[slow, fast.clone(), fast]), expected);
    }

    #[test]
    fn what_one_of_three_runs_touched_comes_last() {
        let usual = record(&[(0, "a", 0, 1), (10, "a", 9, 1)]);
        let odd = record(&[(0, "a", 5, 1), (10, "a", 0, 1), (20, "a", 9, 1)]);
        let [zero, five, nine] = [0, 5, 9].map(|block| ("a".to_owned(), block, 1));
        assert_eq!(merged(&[usual.clone(), odd.clone(), usual.clone()]), [zero.clone(), nine.clone(), five.clone()]);
        // Two runs have no majority.
        assert_eq!(merged(&[usual, odd])[0].1, 0);
    }

    proptest! {
        #[test]
        fn no_block_is_lost_or_doubled(
            runs in proptest::collection::vec(proptest::collection::vec((0..40_u64, 1..4_u32), 0..20), 0..5),
        ) {
            let mut all = std::collections::BTreeSet::new();
            let records: Vec<Record> = runs.iter().map(|run| {
                let mut seen = std::collections::BTreeSet::new();
                let mut touches = Vec::new();
                for &(first, blocks) in run {
                    for block in first..first + u64::from(blocks) {
                        if seen.insert(block) {
                            touches.push((touches.len() as u64, "a", block, 1));
                        }
                    }
                }
                all.extend(seen);
                record(&touches)
            }).collect();
            let merged = Record { touches: Record::merge(&records), ..record(&[]) };
            let blocks: Vec<u64> = merged.touches.iter()
                .flat_map(|touch| touch.first_block..touch.first_block + u64::from(touch.blocks)).collect();
            prop_assert_eq!(blocks.len(), all.len());
            prop_assert_eq!(blocks.into_iter().collect::<std::collections::BTreeSet<_>>(), all);
            prop_assert_eq!(Record::decode(&merged.encode()), Ok(merged));
        }
    }
}
