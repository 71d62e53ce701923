//! Numbers of the handshake (NBD spec, "Values", "Handshake phase").

use super::{codes, flags};

flags! {
    /// What the server tells of itself in its greeting.
    HandshakeFlags(u16) {
        /// The server speaks fixed newstyle.
        FIXED_NEWSTYLE = 1 << 0;
        /// The server can leave out the padding of `EXPORT_NAME`.
        NO_ZEROES = 1 << 1;
    }
}

flags! {
    /// What the client answers to the greeting. Any other bit ends the session.
    ClientFlags(u32) {
        /// The client speaks fixed newstyle.
        FIXED_NEWSTYLE = 1 << 0;
        /// The client wants no padding after `EXPORT_NAME`.
        NO_ZEROES = 1 << 1;
    }
}

flags! {
    /// What an export can do, told with its size.
    TransmissionFlags(u16) {
        /// Set in every export's flags.
        HAS_FLAGS = 1 << 0;
        /// The export takes no writes.
        READ_ONLY = 1 << 1;
        /// `FLUSH` may be sent.
        SEND_FLUSH = 1 << 2;
        /// The command flag `FUA` may be sent.
        SEND_FUA = 1 << 3;
        /// The export is a spinning disk.
        ROTATIONAL = 1 << 4;
        /// `TRIM` may be sent.
        SEND_TRIM = 1 << 5;
        /// `WRITE_ZEROES` and the command flag `NO_HOLE` may be sent.
        SEND_WRITE_ZEROES = 1 << 6;
        /// The command flag `DF` may be sent. Only with structured replies.
        SEND_DF = 1 << 7;
        /// Several connections to this export see one state.
        CAN_MULTI_CONN = 1 << 8;
        /// Reserved for the extension `RESIZE`.
        SEND_RESIZE = 1 << 9;
        /// `CACHE` may be sent.
        SEND_CACHE = 1 << 10;
        /// The command flag `FAST_ZERO` may be sent.
        SEND_FAST_ZERO = 1 << 11;
    }
}

codes! {
    /// What a client asks for during the handshake.
    OptionCode(u32) {
        /// Choose an export and start transmission; cannot answer an error.
        EXPORT_NAME = 1;
        /// Leave.
        ABORT = 2;
        /// Name the exports.
        LIST = 3;
        /// Withdrawn from the protocol.
        PEEK_EXPORT = 4;
        /// Upgrade to TLS.
        STARTTLS = 5;
        /// Describe an export.
        INFO = 6;
        /// Describe an export and start transmission.
        GO = 7;
        /// Answer with structured replies.
        STRUCTURED_REPLY = 8;
        /// Name metadata contexts.
        LIST_META_CONTEXT = 9;
        /// Select metadata contexts.
        SET_META_CONTEXT = 10;
        /// Use 64-bit headers; not spoken here.
        EXTENDED_HEADERS = 11;
    }
}

codes! {
    /// How the server answers an option.
    OptionReplyType(u32) {
        /// Done.
        ACK = 1;
        /// An export.
        SERVER = 2;
        /// A fact about an export.
        INFO = 3;
        /// A metadata context.
        META_CONTEXT = 4;
        /// The option is not known.
        ERR_UNSUP = (1 << 31) + 1;
        /// The option is known but forbidden here.
        ERR_POLICY = (1 << 31) + 2;
        /// The option makes no sense as sent.
        ERR_INVALID = (1 << 31) + 3;
        /// The option is not supported on this platform.
        ERR_PLATFORM = (1 << 31) + 4;
        /// TLS must be started first.
        ERR_TLS_REQD = (1 << 31) + 5;
        /// There is no such export.
        ERR_UNKNOWN = (1 << 31) + 6;
        /// The server is going away.
        ERR_SHUTDOWN = (1 << 31) + 7;
        /// The client must ask for the block sizes.
        ERR_BLOCK_SIZE_REQD = (1 << 31) + 8;
        /// The request or its answer is too large.
        ERR_TOO_BIG = (1 << 31) + 9;
        /// The client must use extended headers.
        ERR_EXT_HEADER_REQD = (1 << 31) + 10;
    }
}

impl OptionReplyType {
    /// Whether this is an error, known or not: bit 31.
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

codes! {
    /// Facts about an export in an `INFO` reply.
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0;
        /// The export's canonical name.
        NAME = 1;
        /// A text for people.
        DESCRIPTION = 2;
        /// Minimum, preferred and maximum block size.
        BLOCK_SIZE = 3;
    }
}
