//! Images as tests know them: runs of data in a sea of zeros, and the plain answer to any question about them.

use std::collections::BTreeMap;

use vmnetx_format::BLOCK_BYTES;
use vmnetx_format::limits::LEAF_BLOCKS;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes of an image that one leaf of its index covers.
pub(crate) const LEAF_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK;

/// An image: the model that everything read is compared with.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    size_bytes: u64,
    /// Data by offset; runs do not overlap.
    runs: BTreeMap<u64, Vec<u8>>,
}

impl Source {
    /// An image of zeros.
    pub(crate) fn zeros(size_bytes: u64) -> Self {
        Self { size_bytes, runs: BTreeMap::new() }
    }

    /// An image of just these bytes.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { size_bytes: bytes.len() as u64, runs: BTreeMap::from([(0, bytes)]) }
    }

    /// The same with `data` at `offset`, where there was none.
    pub(crate) fn with(mut self, offset: u64, data: Vec<u8>) -> Self {
        assert!(offset + data.len() as u64 <= self.size_bytes);
        assert!(self.runs.range(..offset).next_back().is_none_or(|(at, run)| at + run.len() as u64 <= offset));
        assert!(self.runs.range(offset..offset + data.len() as u64).next().is_none());
        self.runs.insert(offset, data);
        self
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What a read must answer.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = offset + length;
        let mut out = vec![0; length as usize];
        let first = self.runs.range(..=offset).next_back().map_or(0, |(at, _)| *at);
        for (&at, run) in self.runs.range(first..end) {
            let (from, to) = (at.max(offset), (at + run.len() as u64).min(end));
            if from < to {
                out[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&run[(from - at) as usize..(to - at) as usize]);
            }
        }
        out
    }

    /// All of it; for small images.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.read(0, self.size_bytes)
    }

    /// Length and whether it is a hole of each extent between two offsets: blocks of zeros are holes.
    pub(crate) fn extents(&self, offset: u64, length: u64) -> Vec<(u64, bool)> {
        let mut out: Vec<(u64, bool)> = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let start = at / BLOCK * BLOCK;
            let stop = end.min(start + BLOCK);
            let block = self.read(start, BLOCK.min(self.size_bytes - start));
            let hole = block.iter().all(|&byte| byte == 0);
            match out.last_mut() {
                Some(last) if last.1 == hole => last.0 += stop - at,
                _ => out.push((stop - at, hole)),
            }
            at = stop;
        }
        out
    }

    /// Numbers of the leaves that hold data.
    pub(crate) fn leaves(&self) -> Vec<u32> {
        let numbers = self.runs.iter().filter(|(_, run)| !run.is_empty()).flat_map(|(&at, run)| {
            let last = at + run.len() as u64 - 1;
            (at / LEAF_BYTES) as u32..=(last / LEAF_BYTES) as u32
        });
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.dedup();
        numbers
    }
}

/// Pseudo-random bytes that do not compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Bytes that compress, none of them zero.
pub(crate) fn prose(seed: u64, bytes: usize) -> Vec<u8> {
    let words = noise(seed, bytes / 16 + 1);
    words.iter().flat_map(|&word| [word | 1; 16]).take(bytes).collect()
}

/// An image of one leaf with everything in it: data that does and does not compress, a hole, repeated data, an odd end.
pub(crate) fn mixed() -> Source {
    let block = BLOCK_BYTES;
    let repeated = prose(7, 40 * block);
    Source::zeros(300 * BLOCK + 1234)
        .with(0, noise(1, 50 * block))
        .with(50 * BLOCK, repeated.clone())
        // A hole of ten blocks, then the same data again.
        .with(100 * BLOCK, repeated)
        .with(150 * BLOCK, prose(2, block))
        .with(152 * BLOCK, noise(3, block + 17))
        .with(200 * BLOCK, prose(4, 100 * block + 1234))
}
