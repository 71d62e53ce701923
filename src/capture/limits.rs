//! The longest waits of a capture, and its sizes.

use std::time::Duration;

/// For a monitor's greeting: it greets one at a time, so another program may have it.
pub(super) const GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at the copying of disks, and at a migration that is about to end.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// For what is left of copying the disks once the guest stands still.
pub(super) const COPY_END_DEADLINE: Duration = Duration::from_secs(120);

/// For QEMU to connect to the socket that it is to save memory to.
pub(super) const STREAM_START_DEADLINE: Duration = Duration::from_secs(10);

/// Without a byte of the stream of memory.
pub(super) const STREAM_STALL: Duration = Duration::from_secs(30);

/// From the stream's last byte until QEMU says that all was saved.
pub(super) const STREAM_END_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of the stream that are moved at a time.
pub(super) const STREAM_BUFFER_BYTES: usize = 1 << 20;

/// Bytes per second at which QEMU may save memory while the guest stands still: more than any host does. Its default is 128 MiB.
pub(super) const SAVE_RATE: u64 = 1 << 40;

/// For a VM to be as it was before: it may be busy with ending what was begun.
pub(super) const UNDO_DEADLINE: Duration = Duration::from_secs(60);

/// Between two attempts at that.
pub(super) const UNDO_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that a guard is told.
pub(super) const GUARD_ORDER_BYTES_MAX: u64 = 64 << 10;
