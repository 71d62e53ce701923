//! The tiers before the origin: single flight, memory and disk.

mod disk;
mod flight;
mod memory;
mod objects;

pub use disk::{DiskCache, DiskTier, DiskUsage, DiskVerified};
pub use flight::{Flights, SingleFlight};
pub use memory::{MemoryCache, MemoryTier};

pub(crate) use objects::ObjectCache;
