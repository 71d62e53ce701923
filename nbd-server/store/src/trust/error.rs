//! Why a link is not believed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmnetx_format::{LINK_SUFFIX, Name, PublicKey, SignatureError};

use crate::failure::{Class, Told};

/// Why a link is not believed, or why it cannot be known whether it is to be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrustError {
    /// The link's file does not have the name of its package.
    #[error("{object} is the link of {found}, so its file must be named {found}{LINK_SUFFIX}")]
    Name {
        /// URL or file.
        object: String,
        /// The package whose link it is.
        found: Name,
    },
    /// There is a signature, but it is not one over this link.
    #[error("{object} is forged or damaged")]
    BadSignature {
        /// URL or file.
        object: String,
        /// What is wrong with it.
        #[source]
        source: SignatureError,
    },
    /// None of the keys that the user demands has signed the link.
    #[error("{object} {}: that is none of the keys that are trusted", signed(signer.as_ref()))]
    Untrusted {
        /// URL or file.
        object: String,
        /// Who has signed it.
        signer: Option<PublicKey>,
    },
    /// The link is signed with another key than the one that is known for its URL.
    #[error("{object} was signed with {known} before and is signed with {offered} now")]
    OtherKey {
        /// The URL.
        object: String,
        /// The key that is known.
        known: PublicKey,
        /// The key that has signed what was read now.
        offered: PublicKey,
    },
    /// The link is not signed, but was.
    #[error("{object} was signed with {known} before and is not signed now")]
    SignatureGone {
        /// The URL.
        object: String,
        /// The key that is known.
        known: PublicKey,
    },
    /// An older link than one that the same key has signed for the package.
    #[error("{object} is rolled back: it has serial {offered}, and serial {seen} with the same key was read before")]
    RolledBack {
        /// The URL.
        object: String,
        /// The highest serial number that was read.
        seen: u64,
        /// The serial number that was read now.
        offered: u64,
    },
    /// The same key has signed two links with one serial number.
    #[error("{object} has serial {serial}, and another link with this serial and the same key was read before")]
    TwoFaced {
        /// The URL.
        object: String,
        /// The serial number of both.
        serial: u64,
    },
    /// The file of known links cannot be read or written.
    #[error("{action} {}", path.display())]
    State {
        /// What was tried, as a verb: "read".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file of known links is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    StateDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of known links has no room for another signed link.
    #[error("{} has no room for another link", path.display())]
    StateFull {
        /// The file.
        path: PathBuf,
    },
    /// Another process holds the file of known links for too long.
    #[error("{} is held by another process", path.display())]
    StateBusy {
        /// The lock file.
        path: PathBuf,
    },
}

impl TrustError {
    pub(super) fn state(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::State { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

fn signed(signer: Option<&PublicKey>) -> String {
    signer.map_or_else(|| "is not signed".to_owned(), |key| format!("is signed with {key}"))
}

impl Told for TrustError {
    fn class(&self) -> Class {
        match self {
            Self::State { source, .. } => match Class::of_io(source) {
                Class::Failure => Class::Host,
                class => class,
            },
            Self::StateFull { .. } | Self::StateBusy { .. } => Class::Host,
            _ => Class::Integrity,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { .. } => {
                "the file was renamed, or somebody shows one package in another's place: tell the publisher".into()
            }
            Self::BadSignature { .. } => "tell the publisher; do not use what this link leads to".into(),
            Self::Untrusted { signer: Some(key), .. } => {
                format!("if the publisher tells you that this key is theirs, say --trust-key {key} too")
            }
            Self::Untrusted { signer: None, .. } => "ask the publisher to sign the link: `vmnetx-pack sign`".into(),
            Self::OtherKey { offered, .. } => format!(
                "the publisher has a new key, or somebody else publishes in their place: ask the publisher, and not by \
                 way of the same web server; if the key is theirs, say --trust-key {offered} once"
            ),
            Self::SignatureGone { .. } => {
                "somebody may have taken the signature off to change what it covered: ask the publisher; to read the link \
                 all the same, say --accept-unsigned once"
                    .into()
            }
            Self::RolledBack { .. } => {
                "a cache lags behind, or somebody wants you to use an old state: try again later; #b3=DIGEST behind the \
                 link reads one version whatever the serial is"
                    .into()
            }
            Self::TwoFaced { .. } => {
                "different readers may be shown different things: tell the publisher, who can publish again".into()
            }
            Self::State { .. } => "VMNETX_STATE_DIR can name another directory to remember links in".into(),
            Self::StateDamaged { path, .. } => format!(
                "bring it back from a backup, or remove {} to trust every link again as at its first use",
                path.display()
            ),
            Self::StateFull { .. } => "take lines out of it whose links you do not use any more".into(),
            Self::StateBusy { .. } => "try again when it has ended".into(),
        })
    }
}
