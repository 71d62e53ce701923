//! What the benchmark programs share: a shaped network link, the replay of a boot's reads, the cost of fixed chunks.

pub mod fixed_chunks;
pub mod link;
pub mod replay;
pub mod units;
