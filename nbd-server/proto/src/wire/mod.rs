//! The numbers of the protocol: magics, codes and flags, as they stand on the wire.
//!
//! Codes and flags are newtypes over the number, with the known values as constants. Unknown values are kept, so
//! that they can be told, logged and answered.

mod error_code;
mod negotiation;
mod transmission;

pub use error_code::ErrorCode;
pub use negotiation::{ClientFlags, HandshakeFlags, InfoType, OptionCode, OptionReplyType, TransmissionFlags};
pub use transmission::{ChunkFlags, ChunkType, Command, CommandFlags, Cookie, StatusFlags};

/// First eight bytes of the server's greeting, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;

/// Second eight bytes of a newstyle greeting and first of every option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// First eight bytes of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// First four bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// First four bytes of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Zero bytes that end the reply to `EXPORT_NAME` unless both sides set `NO_ZEROES`.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// The metadata context that the protocol defines itself: which parts are holes, which read as zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The metadata context of this project: which parts the server has at hand and which it would have to fetch
/// ([`StatusFlags::REMOTE`]). Its extents end where the server's units of fetching do.
pub const RESIDENCY: &str = "vmnetx:residency";

/// Defines a code: a number with names for the known values.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$value_meta:meta])* $value:ident = $number:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$value_meta])* pub const $value: Self = Self($number);)*

            /// The protocol's name of this number, if it is known.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

/// Defines a set of flags: a number whose known bits have names.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$value_meta:meta])* $value:ident = $number:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// No flag.
            pub const EMPTY: Self = Self(0);
            $($(#[$value_meta])* pub const $value: Self = Self($number);)*

            /// Whether all bits of `other` are set here.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits of both.
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These bits but those of `other`.
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut rest = *self;
                let mut separator = "";
                $(if self.contains(Self::$value) {
                    write!(f, "{separator}{}", stringify!($value))?;
                    rest = rest.without(Self::$value);
                    separator = "|";
                })*
                if !rest.is_empty() {
                    write!(f, "{separator}{:#x}", rest.0)?;
                } else if separator.is_empty() {
                    f.write_str("none")?;
                }
                Ok(())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

use {codes, flags};
