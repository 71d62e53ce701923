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
    /// A package cannot be copied into a repository.
    #[error(transparent)]
    Copy(#[from] vmnetx_store::CopyError),
    /// It was told to end before its work was done.
    #[error("interrupted; the same command goes on from here")]
    Interrupted,
    /// The user has no cache directory.
    #[error("there is no cache directory: there is no home")]
    NoCacheDir,
    /// Chunks of a cache were damaged.
    #[error("{damaged} chunks in {} were damaged and are dropped", dir.display())]
    DamagedCache {
        /// The cache directory.
        dir: PathBuf,
        /// How many.
        damaged: u64,
    },
    /// A package is not kept that should be let go of.
    #[error("nothing in {} is kept for good that is called {which:?}", dir.display())]
    NoPin {
        /// The cache directory.
        dir: PathBuf,
        /// What was asked for.
        which: String,
    },
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
            Self::Copy(error) => error.class(),
            Self::DamagedCache { .. } => Class::Integrity,
            Self::NoPin { .. } => Class::Usage,
            Self::NoCacheDir => Class::Host,
            Self::Interrupted => Class::Failure,
            Self::Listen { .. } | Self::InUse { .. } | Self::Runtime(_) => Class::Host,
            Self::NoDisk { .. } => Class::Usage,
            Self::Control { .. } | Self::Record { .. } => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Copy(error) => error.hint(),
            Self::NoCacheDir => Some("give one: --cache-dir DIR".into()),
            Self::DamagedCache { .. } => Some(
                "they are fetched again when they are wanted; `vmnetx-nbd pull` completes what is to be whole".into(),
            ),
            Self::NoPin { .. } => Some("`vmnetx-nbd cache pin --list` lists what is".into()),
            Self::Control { .. } => Some("is it the path that the server was given with --control?".into()),
            _ => None,
        }
    }
}
