//! Making a version complete on this host: in the cache directory, where it is pinned, or as a repository of its own.

mod cached;
mod copy;
mod walk;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::Error;

pub use self::copy::CopyError;
pub use self::walk::ImageSurvey;

/// How far a pull is; whoever shows it looks now and then.
#[derive(Debug, Default)]
pub struct Progress {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
}

/// What a pull came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Stored bytes that are complete now.
    pub bytes: u64,
    /// Bytes of these that had to be fetched.
    pub fetched_bytes: u64,
}

impl Progress {
    /// Stored bytes that make the version complete; 0 until that is known.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of these that are here and were verified.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of these that were fetched.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    fn start(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64, is_fetched: bool) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.fetched_bytes.fetch_add(if is_fetched { bytes } else { 0 }, Ordering::Relaxed);
    }

    fn pulled(&self) -> Pulled {
        Pulled { bytes: self.done_bytes(), fetched_bytes: self.fetched_bytes() }
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closing)
}
