//! Why something of an image cannot be had, in a word that an NBD error's text begins with.
//!
//! The protocol has one error number for it all (EIO). Its text is for people, who may read the word, too; a client that knows these
//! words need not guess how long it is worth waiting for. `docs/nbd.md` lists them.

use vmnetx_store::Error;
use vmnetx_store::failure::{Class, Told, describe};

/// Why something of an image cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// What was stored is not what it should be, everywhere, or is not there in a local repository.
    Damaged,
    /// The origin answers, and says that it has not got the object.
    Absent,
    /// The origin cannot be reached, or does not answer as it should.
    Unreachable,
    /// Anything else, on the server's host.
    Failed,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Damaged, Self::Absent, Self::Unreachable, Self::Failed];

    fn of(error: &Error) -> Self {
        match (error, error.class()) {
            // Not found, and gone.
            (Error::Refused { status, .. }, _) if status.starts_with("404") || status.starts_with("410") => {
                Self::Absent
            }
            (_, Class::Integrity) => Self::Damaged,
            (_, Class::Network) => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Absent => "absent",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
        }
    }

    /// The cause that the text of an error begins with; [`Self::Failed`] if it is not one of this server.
    #[must_use]
    pub fn told(text: &str) -> Self {
        let word = text.split_once(": ").map(|(word, _)| word);
        Self::ALL.into_iter().find(|cause| Some(cause.word()) == word).unwrap_or(Self::Failed)
    }

    /// The class of a program that ends because of it.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Damaged => Class::Integrity,
            Self::Absent | Self::Unreachable => Class::Network,
            Self::Failed => Class::Failure,
        }
    }
}

/// The text of an NBD error.
pub(crate) fn tell(error: &Error) -> String {
    format!("{}: {}", Cause::of(error).word(), describe(error))
}

#[cfg(test)]
mod tests {
    use vmnetx_format::Digest;

    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let object = || "https://vms.example.org/packs/x".to_owned();
        let refused = |status: &str| Error::Refused { object: object(), status: status.to_owned() };
        let cases = [
            (Error::Digest { object: object(), expected: Digest::of(b"x") }, Cause::Damaged),
            (Error::Missing { object: object() }, Cause::Damaged),
            (refused("404 Not Found"), Cause::Absent),
            (refused("410 Gone"), Cause::Absent),
            (refused("403 Forbidden"), Cause::Unreachable),
            (Error::Network { object: object(), reason: "refused".to_owned() }, Cause::Unreachable),
            (Error::Offline { object: object() }, Cause::Unreachable),
            (Error::Closing, Cause::Failed),
        ];
        for (error, cause) in cases {
            let text = tell(&error);
            assert!(text.ends_with(&describe(&error)), "{text}");
            assert_eq!(Cause::told(&text), cause, "{text}");
        }
        for text in ["", "damaged", "damage: x", "absent:x", "something: damaged: x"] {
            assert_eq!(Cause::told(text), Cause::Failed, "{text}");
        }
    }
}
