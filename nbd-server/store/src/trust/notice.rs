//! What a user should know about a link that is believed.

use std::fmt;

use vmnetx_format::PublicKey;

/// Something that a user should know about a link, though it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The first signed link that was read at its URL.
    FirstUse {
        /// The URL.
        object: String,
        /// The key that is known from now on.
        key: PublicKey,
    },
    /// Another key than the known one has signed it, and the user said that this one is trusted.
    KeyReplaced {
        /// The URL.
        object: String,
        /// The key that was known.
        known: PublicKey,
        /// The key that is known from now on.
        key: PublicKey,
    },
    /// It is not signed any more, and the user said that it may be so.
    SignatureDropped {
        /// The URL.
        object: String,
        /// The key that was known.
        known: PublicKey,
    },
    /// A link without a signature has a lower serial number than before.
    SerialWentBack {
        /// The URL.
        object: String,
        /// The serial number that was read before.
        seen: u64,
        /// The serial number that was read now.
        offered: u64,
    },
    /// A link without a signature says something else than before under the same serial number.
    OtherText {
        /// The URL.
        object: String,
        /// The serial number of both.
        serial: u64,
    },
    /// It could not be remembered.
    NotRemembered {
        /// The URL.
        object: String,
        /// Why not.
        reason: String,
    },
}

impl Notice {
    /// Whether something may be wrong; if not, it is as it should be and only told once.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        !matches!(self, Self::FirstUse { .. } | Self::KeyReplaced { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstUse { object, key } => {
                write!(f, "{object} is signed with {key}; from now on no other key is taken there")
            }
            Self::KeyReplaced { object, known, key } => {
                write!(f, "{object} was signed with {known} before; from now on {key} is taken there")
            }
            Self::SignatureDropped { object, known } => {
                write!(f, "{object} was signed with {known} before and is not signed now; from now on that is taken")
            }
            Self::SerialWentBack { object, seen, offered } => write!(
                f,
                "{object} has serial {offered}, after serial {seen} before: it is old or was made anew, and it is not \
                 signed, so nobody can tell"
            ),
            Self::OtherText { object, serial } => write!(
                f,
                "{object} says something else than before with the same serial {serial}: it was made anew, and it is \
                 not signed, so nobody can tell by whom"
            ),
            Self::NotRemembered { object, reason } => write!(f, "{object} is not remembered: {reason}"),
        }
    }
}
