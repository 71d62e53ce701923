//! Why packages cannot be served.

use std::io;
use std::path::PathBuf;

use vmnetx_format::RecordError;
use vmnetx_store::failure::{Class, Told};

use crate::TlsError;
use crate::control::api::{AttachmentId, Problem};
use crate::limits::SOCKET_PATH_BYTES_MAX;

/// Why a server, or a question to one, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package cannot be read.
    #[error(transparent)]
    Store(#[from] vmnetx_store::Error),
    /// A package cannot be copied into a repository.
    #[error(transparent)]
    Copy(#[from] vmnetx_store::CopyError),
    /// TLS cannot be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    /// An image that the package does not have.
    #[error("the package has no image {name:?}; it has {known}")]
    NoImage {
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
    /// The folder for private sockets cannot be used.
    #[error("use the folder for private sockets {}", folder.display())]
    Sockets {
        /// The folder.
        folder: PathBuf,
        /// What the system says, or what is wrong with it.
        #[source]
        source: io::Error,
    },
    /// A path that Unix sockets cannot have.
    #[error("socket path {} is not UTF-8 or has more than {SOCKET_PATH_BYTES_MAX} bytes", .0.display())]
    SocketPath(PathBuf),
    /// Nobody listens on a control socket.
    #[error("no server listens at {}", socket.display())]
    NoServer {
        /// The control socket's path.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A server says why it does not do what it was asked for.
    #[error("{}", .0.message)]
    Refused(Problem),
    /// A request to a server cannot have been meant.
    #[error("{0}")]
    BadRequest(String),
    /// The asker may not have that.
    #[error("not allowed: {0}")]
    Forbidden(&'static str),
    /// Nothing is attached under this id.
    #[error("there is no such attachment")]
    NoAttachment,
    /// Something else is attached under this id.
    #[error("the id is taken by an attachment of another package, or with other options")]
    OtherAttachment,
    /// A limit is reached.
    #[error("there are too many attachments")]
    TooManyAttachments,
    /// Somebody detached what was being pulled, or the server ends.
    #[error("what was pulled is not attached any more")]
    Detached,
    /// Only one pull of an attachment at a time makes sense.
    #[error("it is being pulled already")]
    BeingPulled,
    /// A limit is reached.
    #[error("there are too many pulls")]
    TooManyPulls,
    /// One verification at a time keeps a disk busy.
    #[error("the cache directory is being verified already")]
    BeingVerified,
    /// The server keeps nothing on disk.
    #[error("this server has no cache directory")]
    NoCache,
    /// An attachment has no saved memory, or none is served for it.
    #[error("the attachment has no saved memory that could be mapped")]
    NoMemory,
    /// Mapped RAM is made of what is here, unless it is asked for more.
    #[error("not all of the saved memory is on this host")]
    NotHere,
    /// A limit is reached.
    #[error(
        "mapping {wanted_bytes} bytes of saved memory exceeds the server's limit: {held_bytes} of {limit_bytes} are taken"
    )]
    MappedFull {
        /// What would have to be held, zero pages not counted.
        wanted_bytes: u64,
        /// What is held for others.
        held_bytes: u64,
        /// What may be held.
        limit_bytes: u64,
    },
    /// A limit is reached, of one user.
    #[error(
        "mapping {wanted_bytes} bytes of saved memory exceeds what one user may have of the server's: {own_bytes} of {limit_bytes} are \
         taken"
    )]
    MappedShare {
        /// What would have to be held, zero pages not counted.
        wanted_bytes: u64,
        /// What is held because this user had it read.
        own_bytes: u64,
        /// What may be.
        limit_bytes: u64,
    },
    /// The system does not hold RAM as it should.
    #[error("hold saved memory to be mapped")]
    Mapped(#[source] io::Error),
    /// What a server has handed over cannot be mapped.
    #[error("what the server at {socket} hands over is not saved memory that nobody can change: {reason}")]
    HandOver {
        /// The socket's path.
        socket: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server is about to end.
    #[error("the server takes no more attachments, because it ends when the last one is gone")]
    Draining,
    /// An attachment was made without `record`.
    #[error("first touches are not recorded for this attachment")]
    NotRecorded,
    /// What was recorded cannot be told.
    #[error("tell what was recorded")]
    Unrecordable(#[source] RecordError),
    /// Something cannot be put into words.
    #[error("{0} has no JSON")]
    Unspeakable(&'static str),
    /// The server or the attachment is gone.
    #[error("the attachment {0} is gone: the server has ended, or somebody else has detached it")]
    LeaseLost(AttachmentId),
    /// A server without a link needs a control socket.
    #[error("without LINK there must be a control socket: give --cache-dir or --control, or a socket from systemd")]
    NoControl,
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
            Self::NoCacheDir | Self::Tls(_) => Class::Host,
            Self::Interrupted => Class::Failure,
            Self::Listen { .. } | Self::InUse { .. } | Self::Runtime(_) => Class::Host,
            Self::Sockets { .. } | Self::SocketPath(_) => Class::Host,
            Self::NoImage { .. } | Self::BadRequest(_) | Self::Forbidden(_) | Self::OtherAttachment => Class::Usage,
            Self::NoControl | Self::NoCache => Class::Usage,
            Self::LeaseLost(_) => Class::Failure,
            Self::Refused(problem) => problem.class,
            Self::NoAttachment | Self::TooManyAttachments | Self::Draining | Self::NoServer { .. } => Class::Failure,
            Self::Detached | Self::BeingPulled | Self::TooManyPulls | Self::BeingVerified => Class::Failure,
            Self::NoMemory => Class::Usage,
            Self::MappedFull { .. } | Self::MappedShare { .. } | Self::Mapped(_) => Class::Host,
            Self::NotHere | Self::HandOver { .. } => Class::Failure,
            Self::NotRecorded | Self::Unrecordable(_) | Self::Unspeakable(_) => Class::Failure,
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
            Self::Refused(problem) => problem.hint.clone(),
            Self::TooManyPulls => Some("wait until another one has ended".into()),
            Self::NotHere => Some("`vmnetx-nbd pull` brings it; `vmnetx run --resume lazy` does without".into()),
            Self::MappedFull { .. } | Self::MappedShare { .. } => {
                Some("end VMs of other packages, or give the server a larger --mapped-memory".into())
            }
            Self::SocketPath(_) => Some("give a --cache-dir or --control with a shorter path".into()),
            Self::NoServer { .. } => {
                Some("is it the cache directory or the control socket of a server that runs?".into())
            }
            Self::Control { .. } => Some("is it the path that the server was given with --control?".into()),
            _ => None,
        }
    }
}
