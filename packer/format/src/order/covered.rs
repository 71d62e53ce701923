//! A set of ranges that tells of a new range which parts it had not covered.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of numbers, joined where they meet. What it keeps grows with the number of ranges, not with their lengths.
#[derive(Debug, Clone, Default)]
pub struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Covers `range`, and returns its parts that were not covered, in ascending order.
    pub fn insert(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let Range { mut start, mut end } = range.clone();
        let mut gaps = Vec::new();
        let mut at = range.start;
        // From the last range that begins before this one and reaches it.
        let first =
            self.0.range(..=start).next_back().filter(|&(_, &end)| end >= start).map_or(start, |(&from, _)| from);
        let met: Vec<(u64, u64)> = self.0.range(first..=end).map(|(&from, &to)| (from, to)).collect();
        for (from, to) in met {
            if at < from {
                gaps.push(at..from);
            }
            at = at.max(to);
            (start, end) = (start.min(from), end.max(to));
            self.0.remove(&from);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        self.0.insert(start, end);
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set_of_numbers(ranges in proptest::collection::vec((0_u64..60, 0_u64..12), 0..40)) {
            let mut covered = Covered::default();
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                let new: Vec<u64> = (start..start + len).filter(|&number| model.insert(number)).collect();
                let gaps = covered.insert(start..start + len);
                prop_assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(gaps.into_iter().flatten().collect::<Vec<_>>(), new);
                // Joined: no two of its ranges meet.
                let ranges: Vec<(u64, u64)> = covered.0.iter().map(|(&from, &to)| (from, to)).collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
