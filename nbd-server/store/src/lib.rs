//! Reads chunks of a VMNetX repository: from an origin, through cache tiers, as randomly readable images.

mod cache;
mod counters;
mod error;
mod file;
mod image;
#[cfg(feature = "clap")]
mod link_args;
mod location;
mod offline;
mod order;
mod package;
mod pull;
mod store;

pub mod dir;
pub mod failure;
pub mod interrupt;
pub mod limits;
pub mod origin;
pub mod size;
pub mod tier;
pub mod trust;

pub use cache::{DiskCache, DiskTier, DiskUsage, DiskVerified, Flights, MemoryCache, MemoryTier, Pin, SingleFlight};
pub use counters::{Counters, Counts};
pub use error::Error;
pub use image::{Extent, Image, Piece, Residency};
#[cfg(feature = "clap")]
pub use link_args::LinkArgs;
pub use location::{Location, Place};
pub use order::{OrderCounts, Recorder};
pub use package::Package;
pub use pull::{CopyError, ImageSurvey, Progress, Pulled};
pub use store::{Options, Reader, Store, default_cache_dir};
