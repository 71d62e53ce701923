//! What the benchmark programs share: a shaped network link, the replay of a boot's reads, what replays have shown, the cost of
//! ways of cutting.

pub mod chunking;
pub mod link;
pub mod links;
pub mod replay;
pub mod units;
