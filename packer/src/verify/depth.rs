//! How much of the data a verification reads.

use std::hash::{BuildHasher, RandomState};

/// How much of the data a verification reads. The index is always read whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Depth {
    /// Every byte.
    Deep,
    /// A part of the chunks, chosen anew each time: 0 reads none of them, 1 all. Packs are then not read from end to end,
    /// so their own digests are not compared.
    Part(f64),
}

impl Depth {
    pub(super) const fn is_deep(self) -> bool {
        matches!(self, Self::Deep)
    }

    /// Whether the next piece of data is read.
    pub(super) fn takes(self) -> bool {
        match self {
            Self::Deep => true,
            // The keys of a RandomState are random: good enough for a sample, and no further crate.
            Self::Part(part) => (RandomState::new().hash_one(0_u8) as f64) < part * u64::MAX as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_about_that_part() {
        let taken = |depth: Depth| (0..10_000).filter(|_| depth.takes()).count();
        assert_eq!([Depth::Deep, Depth::Part(0.0), Depth::Part(1.0)].map(taken), [10_000, 0, 10_000]);
        assert!((700..1300).contains(&taken(Depth::Part(0.1))));
    }
}
