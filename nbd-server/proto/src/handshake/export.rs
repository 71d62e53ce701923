//! What the handshake must know of exports, and where it learns it.

use crate::limits::MAX_READ_BYTES;
use crate::wire::TransmissionFlags;

/// The exports that a client of this connection may see.
pub trait Exports {
    /// What the caller wants back, in [`Session`](super::Session), when a client has chosen this export.
    type Handle;

    /// The export of this name; the empty name asks for the default export, if there is one.
    fn find(&self, name: &str) -> Option<(ExportInfo, Self::Handle)>;

    /// The exports to name to a client that asks for a list.
    fn list(&self) -> Vec<Listed>;
}

/// An export as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, at most [`MAX_STRING_BYTES`](crate::limits::MAX_STRING_BYTES).
    pub name: String,
    /// A text for people; empty for none.
    pub description: String,
}

/// An export as it is described before transmission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its canonical name, at most [`MAX_STRING_BYTES`](crate::limits::MAX_STRING_BYTES); a client may have used
    /// another one.
    pub name: String,
    /// A text for people; empty for none.
    pub description: String,
    /// Its size.
    pub size_bytes: u64,
    /// What it can do. `HAS_FLAGS` is added, and `SEND_DF` removed for a client without structured replies.
    pub flags: TransmissionFlags,
    /// Its block sizes, told to a client that asks.
    pub block_size: BlockSize,
    /// The metadata contexts on offer, such as [`BASE_ALLOCATION`](crate::wire::BASE_ALLOCATION). A context's id is its
    /// place here plus one.
    pub contexts: Vec<String>,
}

/// Block size constraints (NBD spec, "Block size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Requests are multiples of this: a power of two, at most 65,536.
    pub minimum_bytes: u32,
    /// Requests of multiples of this are efficient: a power of two, at least 512.
    pub preferred_bytes: u32,
    /// Longest READ and WRITE: a multiple of the minimum, or `u32::MAX` for no limit.
    pub maximum_bytes: u32,
}

impl Default for BlockSize {
    fn default() -> Self {
        Self { minimum_bytes: 1, preferred_bytes: 4096, maximum_bytes: MAX_READ_BYTES }
    }
}

/// A metadata context under the number that block status replies give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// Its number on this connection.
    pub id: u32,
    /// Its name: namespace, colon, leaf.
    pub name: String,
}
