//! Why packages cannot be served.

use std::io;
use std::path::PathBuf;

use vmnetx_store::failure::{Class, Told};

/// Why a server, or a question to one, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package cannot be read.
    #[error(transparent)]
    Store(#[from] vmnetx_store::Error),
    /// A socket cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The path or TCP address.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Someone listens there already.
    #[error("listen on {address}: another server listens there")]
    InUse {
        /// The path.
        address: String,
    },
    /// A disk that the package does not have.
    #[error("the package has no disk {name:?}; it has {known}")]
    NoDisk {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The runtime cannot start.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// What was recorded cannot be written.
    #[error("write the record {}", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A control socket cannot be asked.
    #[error("ask the server at {socket}: {reason}")]
    Control {
        /// The control socket's path.
        socket: String,
        /// What went wrong.
        reason: String,
    },
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::Listen { .. } | Self::InUse { .. } | Self::Runtime(_) => Class::Host,
            Self::NoDisk { .. } => Class::Usage,
            Self::Control { .. } | Self::Record { .. } => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Control { .. } => Some("is it the path that the server was given with --control?".into()),
            _ => None,
        }
    }
}
