//! The waits and sizes of finding and starting servers.

use std::time::Duration;

/// A shared server ends when nothing has been attached for so long.
pub(super) const SHARED_IDLE: Duration = Duration::from_secs(300);

/// The same for a private one, whose launcher was killed.
pub(super) const PRIVATE_IDLE: Duration = Duration::from_secs(30);

/// From the first look at a control socket until somebody must answer there. Reading the index of a large cache directory is
/// in this time.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at the control socket of a server that starts.
pub(super) const START_LOOK: Duration = Duration::from_millis(20);

/// Attempts at attaching, each of which meets a server that ends just then.
pub(super) const ATTACH_TRIES_MAX: u32 = 5;

/// Between two attempts at attaching again when the server has died. QEMU waits for `RECONNECT_DELAY_S`.
pub(super) const ATTACH_AGAIN_PAUSE: Duration = Duration::from_millis(500);

/// A server's log of more bytes begins anew with the next server.
pub(super) const LOG_BYTES_MAX: u64 = 1 << 20;

/// Bytes at the end of a log in which the reason of a server's end is looked for.
pub(super) const LOG_WORDS_BYTES_MAX: u64 = 4096;
