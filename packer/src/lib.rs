//! Publishes disks as VMNetX packages: cuts them into chunks, writes what a repository lacks, checks and exports it.

mod build;
mod catalogue;
mod disk;
mod error;
mod export;
mod info;
mod keys;
mod local;
mod media;
mod memory;
mod order;
mod progress;
mod prune;
mod push;
mod reach;
mod remote;
mod repack;
mod repair;
mod serve;
mod signing;
mod verify;
mod versions;

pub mod cli;
pub mod domain;
pub mod limits;

pub use build::{BaseOptions, BuildOptions, BuildReport, DiskReport, LEVEL_DEFAULT, build};
pub use disk::{ChainFile, DiskError, DiskFile, DiskFormat, FilePart, NbdError};
pub use error::{Damage, Error};
pub use export::{ExportOptions, ExportReport, Output, STREAM, export};
pub use info::{DiskInfo, ListedPackage, PackageInfo, SignatureInfo, StoredInfo, VersionInfo, info, list};
pub use keys::{KeyReport, generate_key, read_key};
pub use memory::{MemoryError, MemoryFile, MemoryReport};
pub use order::{
    LaidOrder, ORDER_LEVEL_DEFAULT, OrderChoice, OrderInfo, OrderOptions, OrderReport, publish_order, read_records,
};
pub use progress::{Progress, Silent};
pub use prune::{Objects, PruneOptions, PruneReport, prune};
pub use push::{Conditions, Endpoint, PrunedObject, PushError, PushOptions, PushReport, PushedLink, Target, push};
pub use remote::Reader;
pub use repack::{RepackOptions, RepackReport, repack};
pub use repair::{Left, RepairOptions, RepairReport, RepairSource, repair};
pub use serve::Server;
pub use signing::{SignReport, Signing, sign};
pub use verify::{Affected, Depth, Finding, VerifyReport, verify_link, verify_remote, verify_repository};
pub use versions::{
    DiffReport, DiskDiff, LinkOptions, LinkReport, LogEntry, LogReport, Part, RetainOptions, State, VersionName, diff,
    log, retain, roll_back,
};

/// What fuzz targets reach, and is no part of the interface.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::disk::walk_chain;
}
