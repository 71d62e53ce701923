//! What can go wrong while libvirt runs a machine.

use std::io;

use vmnetx_format::Name;
use vmnetx_pack::domain::HardwareError;
use vmnetx_store::failure::{Class, Told};

use super::Uri;
use crate::{resume, vm};

/// Why libvirt does not run a machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libvirt is not there, or lets nobody in.
    #[error("connect to libvirt at {uri}: {words}")]
    Connect {
        /// Where it was looked for.
        uri: Uri,
        /// What libvirt says.
        words: String,
    },
    /// libvirt does not do what it is asked for.
    #[error("libvirt cannot {what}: {words}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// What it says.
        words: String,
    },
    /// libvirt's daemon has gone.
    #[error("libvirt has gone and cannot {what}: {words}")]
    Lost {
        /// What it was asked for.
        what: &'static str,
        /// What the library says.
        words: String,
    },
    /// libvirt's daemon has gone for good, and nobody knows what becomes of the domain.
    #[error("libvirt's domain {domain} is left alone, and may still run")]
    LeftAlone {
        /// The domain's name.
        domain: String,
        /// Why.
        source: Box<Self>,
    },
    /// libvirt does not answer.
    #[error("libvirt does not {what} in time")]
    Late {
        /// What it was asked for.
        what: &'static str,
    },
    /// libvirt runs machines as a user who cannot reach what this run has.
    #[error("libvirt runs machines as the user {0}, who reaches neither the overlays of this run nor its server")]
    OtherUser(u32),
    /// What the package keeps for libvirt is not to be believed.
    #[error("the package's domain XML")]
    Hardware(#[source] HardwareError),
    /// The memory of another kind of VM.
    #[error("libvirt has not saved the package's memory, so it cannot make the hardware that belongs to it")]
    NotSavedByLibvirt,
    /// An overlay, or something else that machines need here and there.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// The saved VM.
    #[error(transparent)]
    Resume(#[from] resume::Error),
    /// The XML cannot stand before the stream.
    #[error("the head of the saved domain")]
    Head(#[source] vmnetx_format::migration::SaveFileError),
    /// The pipe that libvirt restores from.
    #[error("make a pipe to libvirt")]
    Pipe(#[source] io::Error),
    /// A path that XML cannot have.
    #[error("the path {0:?} of the disk {1} has characters that no XML can have")]
    Path(std::path::PathBuf, Name),
    /// The thread that calls libvirt has ended.
    #[error("a call to libvirt ended")]
    Task,
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::Connect { .. } | Self::OtherUser(_) | Self::Pipe(_) => Class::Host,
            Self::Refused { .. }
            | Self::Lost { .. }
            | Self::LeftAlone { .. }
            | Self::Late { .. }
            | Self::Task
            | Self::Path(..) => Class::Failure,
            Self::Hardware(_) | Self::Head(_) => Class::Integrity,
            Self::NotSavedByLibvirt => Class::Usage,
            Self::Vm(error) => error.class(),
            Self::Resume(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Connect { .. } => "is libvirtd running? --connect names another of this host's".to_owned(),
            Self::OtherUser(_) => {
                "use --connect qemu:///session, or have libvirt run machines as you (user in /etc/libvirt/qemu.conf)"
                    .to_owned()
            }
            Self::LeftAlone { domain, .. } => format!("when libvirtd runs again, end it: virsh destroy {domain}"),
            Self::NotSavedByLibvirt => "leave out --backend libvirt, or boot it with --resume off".to_owned(),
            Self::Vm(error) => return error.hint(),
            Self::Resume(error) => return error.hint(),
            _ => return None,
        })
    }
}
