//! Why a disk image cannot be packed.

use std::path::PathBuf;

use vmnetx_format::{Binding, Digest};
use vmnetx_nbd_proto::client::ClientError;
use vmnetx_store::failure::Class;

use super::DiskFormat;
use crate::limits::{CHAIN_DEPTH_MAX, NBD_NEGOTIATE_S, NBD_REPLY_S};

/// Why an image of another format than raw cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The header says something else than the user.
    #[error("{} is not {format}: {why}", file.display())]
    NotThatFormat {
        /// The image.
        file: PathBuf,
        /// What it should be.
        format: DiskFormat,
        /// Why it is not.
        why: String,
    },
    /// The image is incomplete or contradicts itself.
    #[error("{} is damaged: {why}", file.display())]
    Damaged {
        /// The image.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing says how the image below is to be read.
    #[error("{} does not say of which format its backing file {backing:?} is", file.display())]
    NoBackingFormat {
        /// The image.
        file: PathBuf,
        /// The image below.
        backing: String,
    },
    /// The image below has a format that is not read.
    #[error("{} says that its backing file is {format:?}, which is no format that is read", file.display())]
    BackingFormat {
        /// The image.
        file: PathBuf,
        /// What its header says.
        format: String,
    },
    /// A header names something else than a file.
    #[error("{} names {name:?}, which is no plain name of a file here", file.display())]
    NotLocal {
        /// The image.
        file: PathBuf,
        /// What it names.
        name: String,
    },
    /// A header names a file that the user may not have meant to publish.
    #[error("{} names {}, which lies outside of {}", file.display(), named.display(), folder.display())]
    Outside {
        /// The image.
        file: PathBuf,
        /// What it names, symbolic links resolved.
        named: PathBuf,
        /// The folder of the image on top.
        folder: PathBuf,
    },
    /// An image lies over itself.
    #[error("{} lies over itself: {} is in its chain twice", file.display(), again.display())]
    Cycle {
        /// The image on top.
        file: PathBuf,
        /// What is met again.
        again: PathBuf,
    },
    /// Too many images lie over each other.
    #[error("more than {CHAIN_DEPTH_MAX} images lie below {}", .0.display())]
    TooDeep(PathBuf),
    /// The image is encrypted.
    #[error("{} is encrypted", file.display())]
    Encrypted {
        /// The image.
        file: PathBuf,
    },
    /// A path that cannot be told to QEMU.
    #[error("the path {} is not UTF-8, and QEMU takes no other", .0.display())]
    Path(PathBuf),
    /// The image holds only what differs from a published disk.
    #[error("{} holds only what differs from version {version}", file.display())]
    Overlay {
        /// The image.
        file: PathBuf,
        /// What it lies over.
        version: Digest,
    },
    /// The image is no overlay of the base, as far as it says.
    #[error("{} does not say that it lies over version {version}", file.display())]
    Unbound {
        /// The image.
        file: PathBuf,
        /// The base.
        version: Digest,
    },
    /// The image lies over something else than the base.
    #[error("{} lies over disk {} of version {}, not over disk {} of {}", file.display(), found.disk, found.version, wanted.disk, wanted.version)]
    OtherBase {
        /// The image.
        file: PathBuf,
        /// What it lies over.
        found: Box<Binding>,
        /// The base.
        wanted: Box<Binding>,
    },
    /// The overlay does not cover the disk below.
    #[error("{} has {size_bytes} bytes, and the disk under it {base_bytes}", file.display())]
    Shorter {
        /// The image.
        file: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The base's size.
        base_bytes: u64,
    },
    /// A program is missing.
    #[error("the program {program} is not there")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ended badly.
    #[error("{program} cannot read {}: {words}", file.display())]
    Program {
        /// Its name.
        program: &'static str,
        /// The image.
        file: PathBuf,
        /// What it said last.
        words: String,
    },
    /// qemu-nbd does not answer as it should.
    #[error("qemu-nbd, which reads {}", file.display())]
    Nbd {
        /// The image.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: NbdError,
    },
}

/// Why an NBD server's answers are of no use.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// No answer, or one that says no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It does not say where the holes are.
    #[error("it lacks the metadata context {0}")]
    NoContext(&'static str),
    /// An answer without an end.
    #[error("it describes nothing of what it was asked for, at byte {0}")]
    NoExtent(u64),
    /// It takes too long to begin.
    #[error("it does not answer within {NBD_NEGOTIATE_S} s")]
    Silent,
    /// It takes too long to read.
    #[error("it did not answer a request within {NBD_REPLY_S} s")]
    Stalled,
}

impl DiskError {
    pub(crate) const fn class(&self) -> Class {
        match self {
            Self::Damaged { .. } => Class::Integrity,
            Self::NoProgram { .. } => Class::Host,
            Self::Program { .. } | Self::Nbd { .. } => Class::Failure,
            _ => Class::Usage,
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotThatFormat { .. } => "say with --format what it is; `qemu-img info` knows".into(),
            Self::Damaged { .. } => "`qemu-img check` tells more; copy the image again if it may be incomplete".into(),
            Self::NoBackingFormat { file, backing } => format!(
                "if you know what it is: qemu-img rebase -u -F FORMAT -b {} {}",
                quoted(backing),
                quoted(&file.to_string_lossy())
            ),
            Self::NotLocal { .. } => "only local files are read; `qemu-img convert` makes one image of it".into(),
            Self::Outside { .. } => "say --allow-backing if that file may be published".into(),
            Self::Encrypted { .. } => {
                "the package would not be: if that is meant, `qemu-img convert` makes a plain image of it".into()
            }
            Self::Overlay { version, .. } => format!("say --base {version} to publish both as a new version"),
            Self::Unbound { .. } => {
                "`vmnetx run --persist` makes overlays that say so; --trust-base takes your word for it".into()
            }
            Self::OtherBase { found, wanted, .. } if found.version == wanted.version => {
                format!("name the disk: --disk {}=FILE", found.disk)
            }
            Self::OtherBase { found, .. } => {
                format!("say --base {} if that is the version to start from", found.version)
            }
            Self::NoProgram { package, .. } => format!("apt install {package}"),
            Self::Program { words, .. } if words.contains("lock") => {
                "shut the VM down, or publish a snapshot of its disk".into()
            }
            _ => return None,
        })
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
