//! Reads chunks of a VMNetX repository: from an origin, through cache tiers, as randomly readable images.

pub mod dir;
pub mod failure;
