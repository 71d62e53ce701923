//! Why publishing, checking or exporting a package fails.

use std::io;
use std::path::{Path, PathBuf};

use vmnetx_format::machine::MachineError;
use vmnetx_format::migration::{StreamError, WriteError};
use vmnetx_format::{
    Digest, KeyError, LinkError, ManifestError, MergeError, Name, OrderError, PublicKey, RecordError, SignatureError,
    TreeError,
};
use vmnetx_store::dir::DirError;
use vmnetx_store::failure::{Class, Told};

use crate::disk::DiskError;
use crate::domain::DomainError;
use crate::memory::MemoryError;

/// Why a command of the packer fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be read or written.
    #[error(transparent)]
    Repository(#[from] DirError),
    /// A published package cannot be read.
    #[error(transparent)]
    Read(#[from] vmnetx_store::Error),
    /// A repository cannot be pushed to a bucket.
    #[error(transparent)]
    Push(#[from] crate::push::PushError),
    /// A file outside the repository cannot be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried, as a verb: "read disk image".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A disk in another format than raw cannot be read, or must not be.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A saved VM cannot be packed.
    #[error("saved memory {}", file.display())]
    Memory {
        /// Where it is.
        file: PathBuf,
        /// Why not.
        #[source]
        reason: MemoryError,
    },
    /// A file that is needed for a while cannot be written.
    #[error("write a scratch file in the repository")]
    Scratch(#[source] io::Error),
    /// A base version refers to something that the repository does not have any more.
    #[error("disk {disk} of the base version: no whole pack of the repository has {digest}")]
    Lost {
        /// Which disk.
        disk: String,
        /// The chunk or node.
        digest: Digest,
    },
    /// Something that can hold no disk image.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NoDisk {
        /// Which file.
        path: PathBuf,
    },
    /// A disk image was written to while it was read.
    #[error("disk image {} changed while it was read: {change}", path.display())]
    DiskChanged {
        /// Which file.
        path: PathBuf,
        /// What is not as it was.
        change: &'static str,
    },
    /// A disk image is too large.
    #[error("disk image {}", path.display())]
    DiskTooLarge {
        /// Which file.
        path: PathBuf,
        /// How large it may be.
        #[source]
        source: TreeError,
    },
    /// Two disks were given one name.
    #[error("two disks are named {0}")]
    DuplicateDisk(Name),
    /// The machine description cannot be taken.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The file with the machine description cannot be taken.
    #[error("{}", path.display())]
    MachineFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MachineError,
    },
    /// The file with the domain XML cannot be taken.
    #[error("{}", path.display())]
    DomainFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DomainError,
    },
    /// A disk of a domain is in a format that cannot be read.
    #[error("the domain's disk {target:?}, {}, is in the format {format:?}", file.display())]
    DomainDisk {
        /// The domain's name for the disk.
        target: String,
        /// Which file.
        file: PathBuf,
        /// Its format.
        format: String,
    },
    /// What was built is no manifest, for example because it has too many disks.
    #[error("describe the package")]
    Manifest(#[from] ManifestError),
    /// What is to be published is no link, for example because of a URL.
    #[error("write the link")]
    Link(#[from] LinkError),
    /// The link is signed, and what would be published is not.
    #[error("the link of {0} is signed, and publishing would drop its signature")]
    Signed(Name),
    /// Another key has signed the link before.
    #[error("the link of {name} is signed with {known}, and would be signed with {offered}")]
    OtherKey {
        /// The package.
        name: Name,
        /// The key that has signed it.
        known: PublicKey,
        /// The key that was to sign.
        offered: PublicKey,
    },
    /// The link that was published has a signature that is none over it.
    #[error("the link of {name} is forged or damaged")]
    BadSignature {
        /// The package.
        name: Name,
        /// What is wrong with it.
        #[source]
        source: SignatureError,
    },
    /// What is to be published says something else than the link, with no higher serial number.
    #[error("the serial number of the link of {0} cannot be higher than it is")]
    Serial(Name),
    /// A key file that is none.
    #[error("{}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// A key file that is not its owner's alone.
    #[error("the key file {} has mode {mode:03o}: others can read or change it", path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A key was to be made where there is a file already.
    #[error("{} exists already, and a key is never replaced", .0.display())]
    KeyExists(PathBuf),
    /// The system has no random numbers.
    #[error("take random numbers from the system")]
    Random(#[source] io::Error),
    /// An index cannot be put together.
    #[error("write an index")]
    Tree(#[from] TreeError),
    /// zstd fails, which in practice is a lack of memory.
    #[error("compress")]
    Compress(#[source] io::Error),
    /// More chunks than are counted.
    #[error("the repository and these disks have more than {} chunks", crate::limits::CHUNKS_MAX)]
    TooManyChunks,
    /// A thread of the packer ended without a result.
    #[error("a thread of the packer ended early")]
    Stopped,
    /// A package has no disk of that name.
    #[error("{link} has no disk {disk:?}; it has {disks}")]
    NoSuchDisk {
        /// The link.
        link: String,
        /// What was asked for.
        disk: String,
        /// What there is.
        disks: String,
    },
    /// What a package holds of a saved VM is not one.
    #[error("read the saved VM of {link}")]
    SavedVm {
        /// The link.
        link: String,
        /// What is wrong.
        source: StreamError,
    },
    /// Its RAM has no form in a migration stream.
    #[error("write a saved VM as a migration stream")]
    Stream(#[from] WriteError),
    /// A version was cut otherwise than its manifest says.
    #[error("the version {version} was cut otherwise than its manifest says: it cannot be laid out anew from its data")]
    OtherContent {
        /// The version.
        version: Digest,
    },
    /// An order cannot be put together.
    #[error("write an order")]
    Order(#[from] OrderError),
    /// Records do not make one sequence.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A file with a record that is none.
    #[error("{}", path.display())]
    RecordFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A link has no such version.
    #[error("{link} has no version {version}")]
    NoSuchVersion {
        /// The link.
        link: String,
        /// What was asked for.
        version: Digest,
    },
    /// A repository has no such package.
    #[error("{} has no package {name}", repository.display())]
    NoSuchPackage {
        /// The repository.
        repository: PathBuf,
        /// What was asked for.
        name: Name,
    },
    /// A version is not named so.
    #[error("{name} is not a version of {link}: {reason}")]
    VersionName {
        /// The package.
        link: Name,
        /// What was given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// An index leads to bytes that are not what it says.
    #[error("disk {disk}, bytes {start} to {end}")]
    Damaged {
        /// Which disk.
        disk: String,
        /// The first byte that cannot be had.
        start: u64,
        /// The byte behind the last one.
        end: u64,
        /// What is wrong.
        #[source]
        source: Box<Damage>,
    },
    /// An object of the repository is not as it should be.
    #[error("{object}")]
    Object {
        /// Its path in the repository.
        object: String,
        /// What is wrong with it.
        #[source]
        source: Box<Damage>,
    },
    /// The manifest or the index of a version cannot be read.
    #[error("read the package {link}")]
    Version {
        /// The link.
        link: String,
        /// What is wrong.
        #[source]
        source: Box<Damage>,
    },
    /// No file can be written under that name.
    #[error("{} is not a regular file", .0.display())]
    NoExportFile(PathBuf),
    /// The asynchronous runtime does not start.
    #[error("start the asynchronous runtime")]
    Runtime(#[source] io::Error),
    /// The file to be written is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// `verify` found damage.
    #[error("{0} found")]
    Findings(String),
    /// The address to serve at cannot be used.
    #[error("listen on {address}")]
    Listen {
        /// Which address.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
}

/// What is wrong with a frame or a node.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It cannot be read.
    #[error(transparent)]
    Repository(#[from] DirError),
    /// It does not decompress.
    #[error(transparent)]
    Frame(#[from] vmnetx_format::FrameError),
    /// It decompresses to something else.
    #[error("a frame's bytes do not have the digest {0}")]
    Digest(Digest),
    /// It is no node.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is no order.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// A link whose signature is none over it.
    #[error("it is forged or damaged")]
    Signature(#[from] SignatureError),
    /// A link that no publisher has written so.
    #[error("it is not laid out as a publisher writes it")]
    Form,
    /// A link that is wrong about an object.
    #[error("it says that {object} has {promised} bytes, but it has {actual}")]
    Size {
        /// The object.
        object: String,
        /// The bytes that the link says.
        promised: u64,
        /// The bytes that there are.
        actual: u64,
    },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    pub(crate) fn lost(disk: &str, digest: Digest) -> Self {
        Self::Lost { disk: disk.to_owned(), digest }
    }
}

impl Damage {
    fn class(&self) -> Class {
        match self {
            // An object that is missing is damage too; a disk that fails or a forbidden file is not.
            Self::Repository(error) if !error.is_not_found() => error.class(),
            _ => Class::Integrity,
        }
    }
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::Repository(error) => error.class(),
            Self::Read(error) => error.class(),
            Self::Disk(error) => error.class(),
            Self::Memory { reason, .. } => reason.class(),
            Self::Scratch(source) => Class::of_io(source),
            Self::Push(error) => error.class(),
            Self::File { source, .. } => Class::of_io(source),
            Self::NoDisk { .. } | Self::DuplicateDisk(_) | Self::Machine(_) | Self::Usage(_) => Class::Usage,
            Self::DomainFile { .. } | Self::DomainDisk { .. } => Class::Usage,
            Self::MachineFile { .. } | Self::DiskTooLarge { .. } | Self::Manifest(_) | Self::Link(_) => Class::Usage,
            Self::NoSuchPackage { .. } | Self::VersionName { .. } => Class::Usage,
            Self::NoSuchDisk { .. } | Self::NoSuchVersion { .. } | Self::Exists(_) | Self::NoExportFile(_) => {
                Class::Usage
            }
            Self::Damaged { source, .. } | Self::Object { source, .. } | Self::Version { source, .. } => source.class(),
            Self::Key { .. } | Self::KeyExposed { .. } | Self::KeyExists(_) => Class::Usage,
            Self::Merge(_) | Self::RecordFile { .. } => Class::Usage,
            Self::SavedVm { .. } | Self::Stream(_) => Class::Integrity,
            Self::Findings(_) | Self::BadSignature { .. } | Self::Lost { .. } => Class::Integrity,
            Self::Listen { .. } | Self::Runtime(_) | Self::Random(_) => Class::Host,
            Self::OtherKey { .. } | Self::Serial(_) | Self::OtherContent { .. } => Class::Failure,
            Self::DiskChanged { .. } | Self::Signed(_) | Self::Tree(_) | Self::Compress(_) => Class::Failure,
            Self::TooManyChunks | Self::Order(_) | Self::Stopped => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Repository(error) => return error.hint(),
            Self::Read(error) => return error.hint(),
            Self::Disk(error) => return error.hint(),
            Self::Memory { reason, .. } => return reason.hint(),
            Self::Push(error) => return error.hint(),
            Self::DiskChanged { .. } => "shut the VM down, or publish a snapshot of its disk".into(),
            Self::NoDisk { .. } => "give the file that holds the disk, or the block device".into(),
            Self::DomainFile { source: DomainError::Refused(_), .. } => {
                "--drop PATH publishes the machine without what lies at PATH; or write the machine yourself, starting \
                 from `vmnetx-pack describe-domain`, and give it with --machine"
                    .into()
            }
            Self::DomainDisk { .. } => {
                "convert it with `qemu-img convert -O raw` and give every disk with --disk, in the domain's order"
                    .into()
            }
            Self::DuplicateDisk(_) => "name each disk: --disk NAME=FILE".into(),
            Self::VersionName { .. } => "`vmnetx-pack log` lists the versions".into(),
            Self::NoSuchPackage { .. } => "`vmnetx-pack list` shows the packages".into(),
            Self::Exists(_) => "say --force to replace it".into(),
            Self::RecordFile { .. } => "give the files that `vmnetx-nbd serve --record-order` writes".into(),
            Self::Order(OrderError::Count { .. }) => "record a shorter part of what the VM does".into(),
            Self::Object { object, .. } if object.starts_with("orders/") => {
                "bring it back from a mirror with `vmnetx-pack repair`, or publish the version's order anew with \
                 `vmnetx-pack order`"
                    .into()
            }
            Self::Damaged { .. } | Self::Object { .. } | Self::Version { .. } | Self::Lost { .. } => {
                "`vmnetx-pack verify` finds all damage; bring it back from a mirror".into()
            }
            Self::Signed(_) => {
                "say --sign-key with the key's file; to publish without a signature from now on, take it off first: \
                 `vmnetx-pack sign REPO NAME --remove`"
                    .into()
            }
            Self::OtherKey { .. } => {
                "say --replace-key if that is so; readers who know the other key will have to be told".into()
            }
            Self::BadSignature { .. } => {
                "somebody has changed the link: compare what it says with a mirror or a backup; --replace-key signs what \
                 it says now"
                    .into()
            }
            Self::KeyExposed { path, .. } => {
                format!("if nobody else has seen it: chmod 600 {}; if somebody may have, make another key", path.display())
            }
            Self::KeyExists(_) => "give the name of a file that does not exist".into(),
            _ => return None,
        })
    }
}
