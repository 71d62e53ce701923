//! The tiers before the origin: single flight, memory and disk; and what else the cache directory keeps.

mod disk;
mod files;
mod flight;
mod memory;
mod objects;
mod pins;
mod touched;

pub use disk::{DiskCache, DiskTier, DiskUsage, DiskVerified};
pub use flight::{Flights, SingleFlight};
pub use memory::{MemoryCache, MemoryTier};
pub use pins::Pin;

pub(crate) use disk::{Hold, RECORD_OVERHEAD_BYTES, Record};
pub(crate) use files::Files;
pub(crate) use objects::ObjectCache;
pub(crate) use pins::Pinned;
pub(crate) use touched::{Ahead, Touched};
