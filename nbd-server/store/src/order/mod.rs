//! Orders: recording in which sequence a boot first touches its images, and fetching ahead of the next boot in a recorded one.

mod plan;
mod read;
mod record;
mod replay;

pub use plan::OrderCounts;
pub use record::Recorder;

pub(crate) use plan::{DigestHasher, Plan};
pub(crate) use replay::OrderReplay;
