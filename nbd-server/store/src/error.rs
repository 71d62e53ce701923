//! Why a repository cannot be read.

use std::sync::Arc;

use vmnetx_format::{Digest, FrameError, LinkError, ManifestError, OrderError, TreeError};

use crate::failure::{Class, Told};
use crate::origin::{AccessError, BadCertificate};
use crate::trust::TrustError;

/// Why an object or a chunk cannot be read. One failed request can fail many chunks, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The origin cannot be reached, or broke off, for as long as was tried.
    #[error("fetch {object}: {reason}")]
    Network {
        /// The URL, without secrets.
        object: String,
        /// What happened last.
        reason: String,
    },
    /// The origin answers that it will not give the object.
    #[error("fetch {object}: the server answers {status}")]
    Refused {
        /// The URL, without secrets.
        object: String,
        /// The HTTP status.
        status: String,
    },
    /// The origin does not show that it is the host that was meant.
    #[error("fetch {object}: the server's certificate is not believed: {reason}")]
    Certificate {
        /// The URL, without secrets.
        object: String,
        /// What is wrong with the certificate.
        reason: BadCertificate,
    },
    /// A proxy does not let a request through.
    #[error("fetch {object}: the proxy {proxy} answers {status}")]
    Proxy {
        /// The URL, without secrets.
        object: String,
        /// The proxy's URL, without secrets.
        proxy: String,
        /// The HTTP status.
        status: String,
    },
    /// The environment names a proxy that cannot be one.
    #[error("the variable {variable} names no proxy of the kind http://[USER:PASSWORD@]HOST:PORT")]
    ProxyVariable {
        /// The variable.
        variable: &'static str,
    },
    /// A file of a local repository cannot be read.
    #[error("read {object}")]
    Local {
        /// The file.
        object: String,
        /// What the system says.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// An object is larger than it may be.
    #[error("{object} is larger than the {max_bytes} bytes it may have")]
    TooLarge {
        /// URL or file.
        object: String,
        /// The limit.
        max_bytes: u64,
    },
    /// An object that another one names is not in a local repository.
    #[error("{object} is missing")]
    Missing {
        /// The file.
        object: String,
    },
    /// An object ends before what its index says it holds.
    #[error("{object} is damaged: it is shorter than its index says")]
    Short {
        /// URL or file.
        object: String,
    },
    /// An object's bytes do not have the digest that names it.
    #[error("{object} is damaged: its bytes do not have the digest {expected}")]
    Digest {
        /// URL or file, with the range where it is a part.
        object: String,
        /// The digest that names it.
        expected: Digest,
    },
    /// A frame does not decompress.
    #[error("{object} is damaged")]
    Frame {
        /// URL or file, with the range.
        object: String,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// A node of an index is damaged.
    #[error("the index of {image} is damaged")]
    Tree {
        /// Which image.
        image: String,
        /// What is wrong with it.
        #[source]
        source: TreeError,
    },
    /// A link is damaged or of another format.
    #[error("{object}")]
    Link {
        /// URL or file.
        object: String,
        /// What is wrong with it.
        #[source]
        source: LinkError,
    },
    /// A manifest is damaged or of another format.
    #[error("{object}")]
    Manifest {
        /// URL or file.
        object: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// An order is damaged.
    #[error("{object}")]
    Order {
        /// URL or file.
        object: String,
        /// What is wrong with it.
        #[source]
        source: OrderError,
    },
    /// A link is whole, but not to be believed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Credentials or authorities cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The version that was asked for is not in the link.
    #[error("{link} has no version {version}")]
    NoVersion {
        /// The link's URL or file.
        link: String,
        /// The version's digest.
        version: Digest,
    },
    /// The text is no link.
    #[error("{text:?} is not a link: {reason}")]
    Location {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache directory cannot be used.
    #[error("cache directory {dir}: {reason}")]
    Cache {
        /// The directory.
        dir: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something is wanted offline that the cache directory does not have.
    #[error("{object} is not in the cache directory, and this is offline")]
    Offline {
        /// The URL, without secrets.
        object: String,
    },
    /// A version is too large to be kept whole.
    #[error(
        "{name} has {bytes} bytes to be kept, and {pinned_bytes} are pinned already: together more than the {max_bytes} that a \
         cache of this size may pin"
    )]
    PinTooLarge {
        /// The package's name.
        name: String,
        /// Bytes of its frames that are not pinned yet.
        bytes: u64,
        /// Bytes that other pins keep.
        pinned_bytes: u64,
        /// Bytes that pins may keep together.
        max_bytes: u64,
    },
    /// Another process uses the cache directory.
    #[error("cache directory {dir}: {holder} uses it")]
    CacheInUse {
        /// The directory.
        dir: String,
        /// Which process, as far as it is known.
        holder: String,
    },
    /// The read leaves the image.
    #[error("a read of {length} bytes at {offset} leaves the image of {size_bytes} bytes")]
    OutOfBounds {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
        /// The image's size.
        size_bytes: u64,
    },
    /// The store is being closed.
    #[error("the store is closing")]
    Closing,
}

impl Error {
    pub(crate) fn network(object: &str, reason: impl ToString) -> Self {
        Self::Network { object: object.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn local(object: impl ToString, source: std::io::Error) -> Self {
        Self::Local { object: object.to_string(), source: Arc::new(source) }
    }

    /// What the error means for an object that another one names: one that is not there is damage.
    pub(crate) fn of_object(self) -> Self {
        match self {
            Self::Local { object, source } if source.kind() == std::io::ErrorKind::NotFound => Self::Missing { object },
            error => error,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) const fn is_transient(&self) -> bool {
        matches!(self, Self::Network { .. })
    }

    /// Whether the host or the way to it is at fault, whatever is asked for, and for longer than a little.
    pub(crate) const fn is_of_host(&self) -> bool {
        matches!(self, Self::Certificate { .. } | Self::Proxy { .. } | Self::ProxyVariable { .. })
    }

    /// Whether bytes arrived, but the wrong ones.
    pub(crate) const fn is_damage(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::Frame { .. })
    }
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::Network { .. } | Self::Refused { .. } | Self::Offline { .. } => Class::Network,
            // No byte of the repository was read, so nothing of it is damaged.
            Self::Certificate { .. } | Self::Proxy { .. } => Class::Network,
            Self::Digest { .. } | Self::Frame { .. } | Self::Tree { .. } | Self::TooLarge { .. } => Class::Integrity,
            Self::Missing { .. }
            | Self::Short { .. }
            | Self::Link { .. }
            | Self::Manifest { .. }
            | Self::Order { .. } => Class::Integrity,
            Self::Trust(error) => error.class(),
            Self::Location { .. } | Self::NoVersion { .. } | Self::ProxyVariable { .. } => Class::Usage,
            Self::Cache { .. } | Self::CacheInUse { .. } | Self::PinTooLarge { .. } | Self::Access(_) => Class::Host,
            Self::Local { .. } | Self::OutOfBounds { .. } | Self::Closing => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Trust(error) => return error.hint(),
            Self::Network { .. } => "check the network and that the web server runs, then try again".into(),
            Self::Certificate { reason, .. } => reason.hint().into(),
            // Some proxies mean a wrong login by 401.
            Self::Proxy { status, .. } if status.starts_with("407") || status.starts_with("401") => {
                "put the login into the proxy's URL: https_proxy=http://USER:PASSWORD@HOST:PORT, and http_proxy".into()
            }
            Self::Proxy { .. } => "ask who runs the proxy; no_proxy lists hosts that are reached without it".into(),
            Self::ProxyVariable { .. } => "set it to such a URL, or to nothing for no proxy".into(),
            Self::Refused { status, .. } if status.starts_with("404") => {
                "check the link for typing errors; if it is right, the repository is incomplete: tell its publisher"
                    .into()
            }
            Self::Refused { status, .. } if status.starts_with("401") || status.starts_with("403") => {
                "the server wants to know who asks: put a login for its host into ~/.netrc, which works over https, or ask the \
                 publisher"
                    .into()
            }
            Self::Offline { .. } => "run `vmnetx-nbd pull LINK` while there is a network".into(),
            Self::PinTooLarge { .. } => "give a larger --disk-cache, or remove pins: `vmnetx-nbd cache pin --list`".into(),
            Self::CacheInUse { .. } => "end that first, or give this one a --cache-dir of its own".into(),
            Self::Missing { .. }
            | Self::Short { .. }
            | Self::Digest { .. }
            | Self::Frame { .. }
            | Self::Tree { .. } => {
                "the repository is damaged: tell its publisher, who can run `vmnetx-pack verify`".into()
            }
            _ => return None,
        })
    }
}
