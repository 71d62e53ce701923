//! What can go wrong while a saved VM is resumed.

use std::io;

use vmnetx_format::migration::{ReturnPathError, StreamError, WriteError};
use vmnetx_nbd::Cause;
use vmnetx_nbd_proto::client::ClientError;
use vmnetx_store::failure::{Class, Told};

use super::{Failed, Mode};
use crate::vm::{self, QmpError};

/// Why a saved VM is not resumed, or cannot run on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package has no saved memory.
    #[error("the package holds no saved memory")]
    NoMemory,
    /// The disks are not those of the saved VM any more.
    #[error("an overlay of --persist has been run before, so its disk is not the one that the saved memory belongs to")]
    OtherDisk,
    /// No mode is left to try.
    #[error("there is no mode in which the saved VM may be resumed")]
    NoMode,
    /// QEMU, or this host, has not what the mode needs.
    #[error("the mode {mode} cannot be had here")]
    Refused {
        /// The mode.
        mode: Mode,
        /// QEMU's words.
        source: QmpError,
    },
    /// The machine.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// The server cannot give a part of the saved VM.
    #[error("read {image} of the saved VM")]
    Read {
        /// The image.
        image: String,
        /// The kind of reason.
        cause: Cause,
        /// Why not.
        source: ClientError,
    },
    /// The device state is none.
    #[error("the package's device state")]
    DeviceState(#[source] StreamError),
    /// The package's RAM blocks are such as no VM has.
    #[error("the package's saved memory")]
    Parts(#[from] WriteError),
    /// QEMU's end of the channel failed.
    #[error("send the saved state to QEMU")]
    Channel(#[source] io::Error),
    /// What QEMU sends is not to be understood.
    #[error("QEMU's requests for memory")]
    Requests(#[from] ReturnPathError),
    /// QEMU does not say what it must.
    #[error("QEMU does not answer the migration")]
    Silent,
    /// QEMU has failed with what was sent.
    #[error("QEMU says that resuming failed (status {0})")]
    Shut(u32),
    /// The task that feeds QEMU has ended.
    #[error("the task that sends the guest's memory ended")]
    Task,
}

impl Error {
    /// Whether it may be no more than that QEMU has ended, or is about to: it knows better why. (Newer ones say on the channel that
    /// they have failed, before they end.)
    pub(super) const fn is_of_qemu(&self) -> bool {
        matches!(self, Self::Channel(_) | Self::Silent | Self::Shut(_))
    }

    pub(super) const fn into_failed(self) -> Failed {
        Failed { error: self, spec: None }
    }
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::NoMemory | Self::OtherDisk => Class::Usage,
            // A server that is gone is as good as a network that is.
            Self::Read { cause: Cause::Failed, .. } => Class::Network,
            Self::Read { cause, .. } => cause.class(),
            Self::Refused { .. } => Class::Host,
            Self::Vm(error) => error.class(),
            Self::DeviceState(_) | Self::Parts(_) => Class::Integrity,
            Self::Channel(_) | Self::Requests(_) | Self::Silent | Self::Shut(_) | Self::Task | Self::NoMode => {
                Class::Failure
            }
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoMemory => "leave out --resume, and it boots".to_owned(),
            Self::OtherDisk => "leave out --resume, and it boots; or name overlays that do not exist yet".to_owned(),
            Self::Refused { mode: Mode::Lazy, .. } => {
                "it needs userfaultfd for QEMU: run as root, or allow it to all users \
                (sysctl vm.unprivileged_userfaultfd=1); --resume stream and mapped do without. `vmnetx doctor` says more"
                    .to_owned()
            }
            Self::Read { cause: Cause::Damaged, .. } => {
                "the repository is damaged: tell its publisher, who can run `vmnetx-pack verify`; --resume off boots the VM"
                    .to_owned()
            }
            Self::Read { cause: Cause::Absent, .. } => {
                "the repository is incomplete: tell its publisher; --resume off boots the VM".to_owned()
            }
            Self::Vm(error) => return error.hint(),
            _ => return None,
        })
    }
}
