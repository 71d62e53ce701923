//! Publishes disks as VMNetX packages: cuts them into chunks, writes what a repository lacks, checks and exports it.

mod build;
mod catalogue;
mod disk;
mod error;
mod progress;

pub mod cli;
pub mod limits;

pub use build::{BuildOptions, BuildReport, LEVEL_DEFAULT, build};
pub use disk::RawDisk;
pub use error::{Damage, Error};
pub use progress::{Progress, Silent};
