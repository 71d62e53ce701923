//! What the benchmark programs share: a shaped network link, the replay of a boot's reads, the cost of ways of cutting.

pub mod chunking;
pub mod link;
pub mod replay;
pub mod units;
