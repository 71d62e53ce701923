//! Numbers of the transmission phase (NBD spec, "Values", "Transmission phase").

use super::{codes, flags};

/// The number by which a client knows its request again; the server echoes it (the protocol calls it handle or cookie).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub u64);

codes! {
    /// What a request asks for.
    Command(u16) {
        /// Read bytes.
        READ = 0;
        /// Write bytes.
        WRITE = 1;
        /// End the session; has no reply.
        DISC = 2;
        /// Make what was written last.
        FLUSH = 3;
        /// The range is not needed any more.
        TRIM = 4;
        /// The range will be read soon.
        CACHE = 5;
        /// Write zeros.
        WRITE_ZEROES = 6;
        /// Tell the metadata of a range.
        BLOCK_STATUS = 7;
        /// Reserved for the extension `RESIZE`.
        RESIZE = 8;
    }
}

flags! {
    /// How a request is to be done.
    CommandFlags(u16) {
        /// Answer only when the data is on stable storage.
        FUA = 1 << 0;
        /// `WRITE_ZEROES` makes no hole.
        NO_HOLE = 1 << 1;
        /// `READ` is answered by one data chunk at most.
        DF = 1 << 2;
        /// `BLOCK_STATUS` is answered by one extent per context.
        REQ_ONE = 1 << 3;
        /// `WRITE_ZEROES` fails if it is no faster than `WRITE`.
        FAST_ZERO = 1 << 4;
        /// The request has a payload; only with extended headers.
        PAYLOAD_LEN = 1 << 5;
    }
}

flags! {
    /// Flags of a structured reply chunk.
    ChunkFlags(u16) {
        /// The last chunk of its reply.
        DONE = 1 << 0;
    }
}

codes! {
    /// What a structured reply chunk holds.
    ChunkType(u16) {
        /// Nothing; only the last chunk.
        NONE = 0;
        /// An offset and bytes.
        OFFSET_DATA = 1;
        /// An offset and a length that read as zeros.
        OFFSET_HOLE = 2;
        /// The extents of one metadata context.
        BLOCK_STATUS = 5;
        /// An error and its text.
        ERROR = (1 << 15) + 1;
        /// An error, its text and the offset where it happened.
        ERROR_OFFSET = (1 << 15) + 2;
    }
}

impl ChunkType {
    /// Whether this is an error, known or not: bit 15.
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

flags! {
    /// The status of an extent. The names are those of `base:allocation`, in which flags are told too; other contexts
    /// give the bits their own sense.
    StatusFlags(u32) {
        /// The extent is not allocated.
        HOLE = 1 << 0;
        /// The extent reads as zeros.
        ZERO = 1 << 1;
    }
}

impl StatusFlags {
    /// In [`RESIDENCY`](super::RESIDENCY): the server would have to fetch the extent. Clear: it has the extent at hand, or
    /// the extent is a hole.
    pub const REMOTE: Self = Self(1 << 0);
}
