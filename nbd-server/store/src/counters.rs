//! What was read of an image and where it came from.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::tier::{Found, Source};

/// Counts as things happen.
#[derive(Debug, Default)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    memory_chunks: AtomicU64,
    disk_chunks: AtomicU64,
    origin_chunks: AtomicU64,
    origin_bytes: AtomicU64,
    joined_chunks: AtomicU64,
    read_ahead_chunks: AtomicU64,
    prefetched_chunks: AtomicU64,
    index_bytes: AtomicU64,
    failed_chunks: AtomicU64,
}

/// The counts at one moment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Reads that were answered.
    pub reads: u64,
    /// Plain bytes of these reads, zeros included.
    pub read_bytes: u64,
    /// Chunks that reads found in the memory tier.
    pub memory_chunks: u64,
    /// Chunks that came from the disk tier.
    pub disk_chunks: u64,
    /// Chunks that came from the origin.
    pub origin_chunks: u64,
    /// Chunks that another fetch was bringing already.
    pub joined_chunks: u64,
    /// Stored bytes of the chunks and index nodes that came from the origin.
    pub origin_bytes: u64,
    /// Chunks among all of these that were read ahead.
    pub read_ahead_chunks: u64,
    /// Chunks among all of these that were asked for ahead of any read.
    pub prefetched_chunks: u64,
    /// Stored bytes of index nodes among `origin_bytes`.
    pub index_bytes: u64,
    /// Chunks that could not be had.
    pub failed_chunks: u64,
}

impl Counters {
    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: load(&self.reads),
            read_bytes: load(&self.read_bytes),
            memory_chunks: load(&self.memory_chunks),
            disk_chunks: load(&self.disk_chunks),
            origin_chunks: load(&self.origin_chunks),
            joined_chunks: load(&self.joined_chunks),
            origin_bytes: load(&self.origin_bytes),
            read_ahead_chunks: load(&self.read_ahead_chunks),
            prefetched_chunks: load(&self.prefetched_chunks),
            index_bytes: load(&self.index_bytes),
            failed_chunks: load(&self.failed_chunks),
        }
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn hits(&self, chunks: u64) {
        self.memory_chunks.fetch_add(chunks, Ordering::Relaxed);
    }

    /// A reader took a chunk from the disk tier itself.
    pub(crate) fn disk_hit(&self) {
        self.disk_chunks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn chunk<E>(&self, result: &Result<Found, E>, ahead: bool) {
        let Ok(found) = result else {
            self.failed_chunks.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let counter = match found.source {
            Source::Memory => &self.memory_chunks,
            Source::Disk => &self.disk_chunks,
            Source::Origin => &self.origin_chunks,
            Source::Joined => &self.joined_chunks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.read_ahead_chunks.fetch_add(u64::from(ahead), Ordering::Relaxed);
        self.origin_bytes.fetch_add(origin_bytes(found), Ordering::Relaxed);
    }

    pub(crate) fn prefetched<E>(&self, result: &Result<Found, E>) {
        self.chunk(result, false);
        self.prefetched_chunks.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
    }

    pub(crate) fn node(&self, found: &Found) {
        self.origin_bytes.fetch_add(origin_bytes(found), Ordering::Relaxed);
        self.index_bytes.fetch_add(origin_bytes(found), Ordering::Relaxed);
    }
}

fn origin_bytes(found: &Found) -> u64 {
    match (found.source, &found.stored) {
        (Source::Origin, Some(stored)) => stored.len() as u64,
        _ => 0,
    }
}
