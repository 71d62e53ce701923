//! Cuts an image's blocks into chunks at places that depend on the data alone.

use serde::{Deserialize, Serialize};

use crate::limits::CHUNK_BLOCKS_MAX;
use crate::{BLOCK_BYTES, is_zero};

/// The parameters of block-aligned content-defined chunking, all in blocks of 4 KiB.
///
/// A chunk is a run of non-zero blocks that ends before a zero block, at the longest length, or, from the shortest
/// length on, after a block whose own hash (XXH3, 64 bits, seed 0) has its low bits zero. Where a chunk ends depends on
/// no more than its own blocks, so a file that moved by whole blocks is found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Fields", into = "Fields")]
pub struct Chunker {
    min_blocks: u32,
    cut_blocks: u32,
    max_blocks: u32,
}

/// Chunking parameters that no chunker can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkerError {
    /// The three numbers contradict each other or exceed what readers accept.
    #[error(
        "chunking by minimum {min_blocks}, cut {cut_blocks}, maximum {max_blocks} blocks is not possible: cut must be a \
         power of two, and 1 <= minimum <= maximum <= {CHUNK_BLOCKS_MAX}"
    )]
    Parameters {
        /// Shortest chunk that may end at a cut.
        min_blocks: u32,
        /// One block in this many ends a chunk.
        cut_blocks: u32,
        /// Longest chunk.
        max_blocks: u32,
    },
    /// No chunker has this mean.
    #[error("chunks of {mean_bytes} bytes on average are not possible: choose 8K to 1M")]
    Mean {
        /// The mean that was asked for.
        mean_bytes: u64,
    },
}

/// A chunk's place in the data that was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first block, counted from the start of the data.
    pub first_block: u32,
    /// How many blocks it has, at least one.
    pub blocks: u32,
}

impl Run {
    /// The run's bytes in the data that was cut.
    #[must_use]
    pub fn slice(self, data: &[u8]) -> Option<&[u8]> {
        data.get(self.first_block as usize * BLOCK_BYTES..)?.get(..self.blocks as usize * BLOCK_BYTES)
    }
}

/// Cuts data block by block; where it stands between two chunks, what comes next does not depend on what was before.
#[derive(Debug, Clone)]
pub struct Cutter {
    chunker: Chunker,
    next: u32,
    open: Option<Run>,
}

impl Cutter {
    /// Takes the next block; gives the chunk that ends with it, or before it.
    #[inline]
    pub fn push(&mut self, block: &[u8]) -> Option<Run> {
        let first_block = self.next;
        self.next += 1;
        if is_zero(block) {
            return self.open.take();
        }
        let run = self.open.get_or_insert(Run { first_block, blocks: 0 });
        run.blocks += 1;
        let ends = run.blocks >= self.chunker.max_blocks
            || (run.blocks >= self.chunker.min_blocks && self.chunker.is_cut(block));
        if ends { self.open.take() } else { None }
    }

    /// Whether it stands between two chunks.
    #[must_use]
    pub const fn is_between(&self) -> bool {
        self.open.is_none()
    }

    /// Says that there are no more blocks; gives the last chunk.
    #[must_use]
    pub const fn finish(self) -> Option<Run> {
        self.open
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    min_blocks: u32,
    cut_blocks: u32,
    max_blocks: u32,
}

impl Chunker {
    /// What disks are cut by unless the publisher says otherwise: 4, then one block in 8, at most 32.
    pub const DISK: Self = Self { min_blocks: 4, cut_blocks: 8, max_blocks: 32 };

    /// What saved RAM is cut by: 2, then one block in 4, at most 16. It is touched page by page, so shorter chunks bring less that
    /// nobody asked for.
    pub const RAM: Self = Self { min_blocks: 2, cut_blocks: 4, max_blocks: 16 };

    /// Takes the shortest length, the spacing of cuts after it (a power of two) and the longest length.
    ///
    /// # Errors
    /// [`ChunkerError::Parameters`] when they contradict each other.
    pub const fn new(min_blocks: u32, cut_blocks: u32, max_blocks: u32) -> Result<Self, ChunkerError> {
        if min_blocks == 0 || min_blocks > max_blocks || max_blocks > CHUNK_BLOCKS_MAX || !cut_blocks.is_power_of_two()
        {
            return Err(ChunkerError::Parameters { min_blocks, cut_blocks, max_blocks });
        }
        Ok(Self { min_blocks, cut_blocks, max_blocks })
    }

    /// The chunker whose chunks of uninterrupted data have about `mean_bytes`, shaped like [`Self::DISK`] (48 KiB).
    ///
    /// # Errors
    /// [`ChunkerError::Mean`] outside 8 KiB to 1 MiB.
    pub fn with_mean(mean_bytes: u64) -> Result<Self, ChunkerError> {
        if !(8 << 10..=1 << 20).contains(&mean_bytes) {
            return Err(ChunkerError::Mean { mean_bytes });
        }
        // The mean is the minimum (half a cut) plus a cut: 3/2 of it. The power of two nearest to 2/3 of the mean.
        let wanted = (mean_bytes / BLOCK_BYTES as u64) as f64 * 2.0 / 3.0;
        let cut_blocks = 1_u32 << wanted.log2().round() as u32;
        let chunker = Self::new((cut_blocks / 2).max(1), cut_blocks, cut_blocks * 4);
        chunker.map_err(|_| ChunkerError::Mean { mean_bytes })
    }

    /// Cuts `data`, whole blocks of one leaf's span (the caller pads the image's last block with zeros).
    #[must_use]
    pub fn cut(&self, data: &[u8]) -> Vec<Run> {
        debug_assert_eq!(data.len() % BLOCK_BYTES, 0);
        let mut cutter = self.cutter();
        let mut runs: Vec<Run> = data.chunks_exact(BLOCK_BYTES).filter_map(|block| cutter.push(block)).collect();
        runs.extend(cutter.finish());
        runs
    }

    /// Cuts data that comes block by block.
    #[must_use]
    pub const fn cutter(&self) -> Cutter {
        Cutter { chunker: *self, next: 0, open: None }
    }

    fn is_cut(&self, block: &[u8]) -> bool {
        twox_hash::XxHash3_64::oneshot(block) & u64::from(self.cut_blocks - 1) == 0
    }
}

impl TryFrom<Fields> for Chunker {
    type Error = ChunkerError;

    fn try_from(fields: Fields) -> Result<Self, ChunkerError> {
        Self::new(fields.min_blocks, fields.cut_blocks, fields.max_blocks)
    }
}

impl From<Chunker> for Fields {
    fn from(chunker: Chunker) -> Self {
        Self { min_blocks: chunker.min_blocks, cut_blocks: chunker.cut_blocks, max_blocks: chunker.max_blocks }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks that are zero (0) or filled with pseudo-random bytes of a seed.
    fn image(seeds: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(seeds.len() * BLOCK_BYTES);
        for &seed in seeds {
            let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for _ in 0..BLOCK_BYTES / 8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(seed));
                data.extend(state.to_le_bytes());
            }
        }
        data
    }

    #[test]
    fn the_default_mean_is_the_disk_chunker() {
        assert_eq!(Chunker::with_mean(48 << 10), Ok(Chunker::DISK));
        assert!(Chunker::with_mean(4 << 10).is_err());
        assert!(Chunker::with_mean(1 << 20).is_ok());
        assert!(Chunker::new(4, 7, 32).is_err());
        assert!(Chunker::new(0, 8, 32).is_err());
        assert!(Chunker::new(64, 8, 32).is_err());
    }

    #[test]
    fn equal_data_is_cut_alike_after_a_shift() {
        let seeds: Vec<u8> = (0..400_u32).map(|i| (i * 7 % 251 + 1) as u8).collect();
        let plain = image(&seeds);
        let shifted = image(&[&[9, 17, 33], &seeds[..]].concat());
        let ends =
            |runs: Vec<Run>, by: u32| -> Vec<u32> { runs.iter().map(|r| r.first_block + r.blocks - by).collect() };
        let mut old = ends(Chunker::DISK.cut(&plain), 0);
        let new = ends(Chunker::DISK.cut(&shifted), 3);
        old.retain(|end| !new.contains(end));
        assert!(old.len() <= 3, "only the first chunks may be cut elsewhere, but {old:?} are");
    }

    proptest! {
        #[test]
        fn chunks_cover_just_the_non_zero_blocks(
            seeds in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..300),
            min in 1_u32..8, cut in 0_u32..5, extra in 0_u32..40,
        ) {
            let chunker = Chunker::new(min, 1 << cut, min + extra).unwrap();
            let data = image(&seeds);
            let mut covered = vec![false; seeds.len()];
            for run in chunker.cut(&data) {
                prop_assert!(run.blocks >= 1 && run.blocks <= min + extra);
                for block in run.first_block..run.first_block + run.blocks {
                    prop_assert!(!std::mem::replace(&mut covered[block as usize], true));
                }
            }
            let non_zero: Vec<bool> = data.chunks(BLOCK_BYTES).map(|b| b.iter().any(|&x| x != 0)).collect();
            prop_assert_eq!(covered, non_zero);
        }
    }
}
