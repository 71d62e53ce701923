//! The named limits of serving.

use std::time::Duration;

/// Connections that are served at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;

/// Time that a client has for the whole handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one connection that wait for the tiers at once; more are not read from the socket. QEMU has 16.
pub const IN_FLIGHT_MAX: usize = 128;

/// Bytes that these requests ask for together.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;

/// CACHE requests of one connection that bring something at once.
pub const CACHES_AT_ONCE_MAX: usize = 16;

/// CACHE requests of one connection that wait for their turn; more are refused.
pub const CACHES_WAITING_MAX: usize = 4096;

/// Bytes of answers that are put together before they are written.
pub const OUTPUT_BYTES: usize = 1 << 20;

/// Bytes that are read from a socket at a time: a few hundred requests.
pub const INPUT_BYTES: usize = 16 << 10;

/// Payloads up to this many bytes are copied behind their header, so that a batch of small replies is one buffer.
pub const COPY_BYTES_MAX: usize = 16 << 10;

/// Extents in one answer to BLOCK_STATUS.
pub const EXTENTS_MAX: usize = 4096;

/// Time that requests under way have to end once the server stops.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of an answer on the control socket that `stats` reads.
pub const CONTROL_BYTES_MAX: usize = 4 << 20;
