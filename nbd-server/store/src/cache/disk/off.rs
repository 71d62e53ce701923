//! Whether the disk tier writes: after a failure, most likely for want of space, it lets some time pass.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::limits::DISK_OFF_PAUSE;

/// Turns writing off for [`DISK_OFF_PAUSE`] at a time. Times are those of a clock that nobody sets.
#[derive(Debug)]
pub(super) struct Off {
    start: Instant,
    /// Until when, in milliseconds since the start; 0 when the last write succeeded.
    until_ms: AtomicU64,
}

impl Off {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), until_ms: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Whether nothing should be written now.
    pub(super) fn is_off(&self) -> bool {
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        until_ms > 0 && self.now_ms() < until_ms
    }

    pub(super) fn succeeded(&self, dir: &Path) {
        if self.until_ms.load(Ordering::Relaxed) > 0 && self.until_ms.swap(0, Ordering::Relaxed) > 0 {
            tracing::info!(dir = %dir.display(), "the disk tier is written to again");
        }
    }

    pub(super) fn failed(&self, dir: &Path, error: &io::Error) {
        let pause_ms = DISK_OFF_PAUSE.as_millis() as u64;
        let before = self.until_ms.swap((self.now_ms() + pause_ms).max(1), Ordering::Relaxed);
        // One warning, however long it lasts.
        if before == 0 {
            let pause_s = DISK_OFF_PAUSE.as_secs();
            tracing::warn!(dir = %dir.display(), %error, "the disk tier keeps nothing new, and tries again every {pause_s} s");
        }
    }
}
