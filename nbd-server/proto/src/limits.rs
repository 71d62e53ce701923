//! The limits of this crate: everything whose size the other side decides has its maximum here.

/// Longest string of the protocol: export names, context names, error texts, in bytes (NBD spec, "Conventions").
pub const MAX_STRING_BYTES: usize = 4096;

/// Longest option payload that is kept in memory and understood, in bytes.
pub const MAX_OPTION_BYTES: u32 = 64 * 1024;

/// Longest option payload that is read and dropped, to answer it with an error, in bytes. A longer one ends the
/// session.
pub const MAX_DROPPED_OPTION_BYTES: u32 = 1024 * 1024;

/// Options that one client may send on a connection.
pub const MAX_OPTIONS: u32 = 64;

/// Metadata context queries in one option.
pub const MAX_QUERIES: u32 = 64;

/// Replies that the handshake collects before it asks its caller to send them, in bytes.
pub const MAX_PENDING_OUTPUT_BYTES: usize = 64 * 1024;

/// Largest READ or WRITE that is accepted unless the server says otherwise, in bytes. Clients send up to 32 MiB
/// unasked (NBD spec, "Block size constraints"), libnbd up to 64 MiB.
pub const MAX_READ_BYTES: u32 = 64 * 1024 * 1024;

/// Largest data chunk of a structured reply, in bytes: its header counts the 8 bytes of the offset too.
pub const MAX_DATA_CHUNK_BYTES: u32 = u32::MAX - 8;

/// Most extents in one block status chunk, sent or accepted.
pub const MAX_EXTENTS: usize = 1 << 20;

/// Longest payload of a structured reply chunk other than data, in bytes.
pub const MAX_CHUNK_PAYLOAD_BYTES: u32 = 4 + 8 * MAX_EXTENTS as u32;

/// Requests of one client that wait for their replies; further ones wait for their turn.
#[cfg(feature = "client")]
pub const MAX_IN_FLIGHT: usize = 1024;

/// Replies to one option that a client reads; a list of exports ends there at the latest.
#[cfg(feature = "client")]
pub const MAX_OPTION_REPLIES: usize = 10_000;

/// Buffer of a client for what the server sends, in bytes. Data that is not in it yet goes where it belongs directly.
#[cfg(feature = "client")]
pub const CLIENT_BUFFER_BYTES: usize = 128 * 1024;
