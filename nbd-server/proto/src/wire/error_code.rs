//! Error numbers of replies, and how the system's errors become them (NBD spec, "Error values").

use std::fmt;
use std::io;

/// The error of a reply. A server can only make those that the protocol defines; a client keeps what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(u32);

impl ErrorCode {
    /// Operation not permitted: a write to a read-only export.
    pub const PERM: Self = Self(1);
    /// Input/output error.
    pub const IO: Self = Self(5);
    /// Out of memory.
    pub const NOMEM: Self = Self(12);
    /// The request makes no sense.
    pub const INVAL: Self = Self(22);
    /// No space left, or a write past the end.
    pub const NOSPC: Self = Self(28);
    /// An unfragmented read (`DF`) that is too large.
    pub const OVERFLOW: Self = Self(75);
    /// A `FAST_ZERO` that would not be fast.
    pub const NOTSUP: Self = Self(95);
    /// The server is going away.
    pub const SHUTDOWN: Self = Self(108);

    /// The protocol's error for a Linux error number. What the protocol has no number for becomes [`Self::IO`], and so
    /// do EOVERFLOW and ENOTSUP, which the protocol keeps for `DF` and `FAST_ZERO`.
    pub const fn from_errno(errno: i32) -> Self {
        /// Linux numbers that share one of the protocol's (asm-generic/errno-base.h and errno.h).
        const EACCES: i32 = 13;
        const EFBIG: i32 = 27;
        const EROFS: i32 = 30;
        const EDQUOT: i32 = 122;
        match errno {
            1 | EACCES | EROFS => Self::PERM,
            12 => Self::NOMEM,
            22 => Self::INVAL,
            28 | EFBIG | EDQUOT => Self::NOSPC,
            108 => Self::SHUTDOWN,
            _ => Self::IO,
        }
    }

    /// The number on the wire; never 0.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// An error as received; `None` for 0, which is success.
    pub(crate) const fn from_wire(number: u32) -> Option<Self> {
        match number {
            0 => None,
            number => Some(Self(number)),
        }
    }

    const fn text(self) -> Option<&'static str> {
        Some(match self {
            Self::PERM => "operation not permitted",
            Self::IO => "input/output error",
            Self::NOMEM => "out of memory",
            Self::INVAL => "invalid argument",
            Self::NOSPC => "no space left on device",
            Self::OVERFLOW => "value too large",
            Self::NOTSUP => "operation not supported",
            Self::SHUTDOWN => "server is shutting down",
            _ => return None,
        })
    }
}

impl From<&io::Error> for ErrorCode {
    fn from(error: &io::Error) -> Self {
        if let Some(errno) = error.raw_os_error() {
            return Self::from_errno(errno);
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::PERM,
            io::ErrorKind::OutOfMemory => Self::NOMEM,
            io::ErrorKind::InvalidInput => Self::INVAL,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::NOSPC,
            _ => Self::IO,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "unknown error {}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorCode({}: {self})", self.0)
    }
}
