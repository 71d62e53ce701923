//! How far resuming is, for whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts bytes of RAM, zeros included. Whoever shows it looks now and then.
#[derive(Debug, Default)]
pub struct Progress {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
}

impl Progress {
    /// Bytes that there are, 0 before that is known; and those that QEMU has been sent.
    pub fn bytes(&self) -> (u64, u64) {
        (self.total_bytes.load(Ordering::Relaxed), self.done_bytes.load(Ordering::Relaxed))
    }

    /// Takes over how far somebody else is.
    pub fn tell(&self, done_bytes: u64, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
    }

    pub(super) fn begin(&self, total_bytes: u64) {
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
