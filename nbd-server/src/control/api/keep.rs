//! What is said of packages that are made complete, and of looking after the cache directory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmnetx_store::{DiskUsage, DiskVerified, Pin, Progress, Pulled};

use super::Problem;

/// How far a pull is. The last line of a pull is complete or has a problem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullProgress {
    /// Stored bytes that make the version complete; 0 until that is known.
    pub total_bytes: u64,
    /// Bytes of these that are here and were verified.
    pub done_bytes: u64,
    /// Bytes of these that were fetched.
    pub fetched_bytes: u64,
    /// Whether all of it is here and is kept: no request is needed to read it.
    pub complete: bool,
    /// Why it will not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// How full a cache directory is, and what is kept in it for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheReport {
    /// The directory.
    pub dir: String,
    /// How full it is.
    pub usage: DiskUsage,
    /// The versions that are kept for good.
    pub pins: Vec<Pin>,
}

/// How far a verification of the cache directory is. The last line has what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyProgress {
    /// Stored bytes of chunks that were read until now.
    pub read_bytes: u64,
    /// What came of it; absent until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<DiskVerified>,
}

/// Asks to empty the cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Bytes that may be left; what is kept for good stays in any case.
    pub to_bytes: u64,
}

/// Asks to let go of what is kept for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnpinRequest {
    /// A package's name, its link, or the digest of a manifest.
    #[schema(max_length = 4096)]
    pub which: String,
}

/// What was let go of. Its chunks stay until others need room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unpinned {
    /// The directory.
    pub dir: String,
    /// The versions that are not kept for good any more.
    pub removed: Vec<Pin>,
    /// Those that still are.
    pub pins: Vec<Pin>,
}

impl PullProgress {
    /// How far it is now.
    pub(crate) fn of(progress: &Progress) -> Self {
        let (total_bytes, done_bytes) = (progress.total_bytes(), progress.done_bytes());
        Self { total_bytes, done_bytes, fetched_bytes: progress.fetched_bytes(), ..Self::default() }
    }

    /// What a pull came to that is complete.
    pub(crate) const fn pulled(&self) -> Pulled {
        Pulled { bytes: self.done_bytes, fetched_bytes: self.fetched_bytes }
    }
}
