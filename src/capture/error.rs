//! Why a VM cannot be captured.

use std::io;
use std::path::PathBuf;

use vmnetx_format::{Digest, Name};
use vmnetx_store::failure::{Class, Told};

use super::limits::{COPY_END_DEADLINE, GREETING_DEADLINE, STREAM_STALL};
use crate::vm::{self, QmpError};

/// A capture that failed. The VM is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens where its monitor should be.
    #[error("connect to QEMU's monitor at {}", socket.display())]
    NotThere {
        /// The QMP socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its monitor says nothing.
    #[error("QEMU's monitor at {} does not greet within {} s", .0.display(), GREETING_DEADLINE.as_secs())]
    Silent(PathBuf),
    /// Its monitor does not do what it should.
    #[error("control QEMU")]
    Qmp(#[from] QmpError),
    /// It is in a state that is no state to be saved.
    #[error("the VM is in the state {0:?}, in which it cannot be saved")]
    State(String),
    /// It is still being resumed, or is saved by somebody else.
    #[error("the VM's memory is under way already ({0})")]
    Migrating(String),
    /// QEMU cannot save it.
    #[error("QEMU cannot save this VM: {0}")]
    Blocked(String),
    /// A package cannot say what it has.
    #[error("the VM has {0}, which no package can describe")]
    NotRepresented(String),
    /// It is another machine than the one that is described.
    #[error("the VM has {has}, and its description says {says}")]
    OtherMachine {
        /// What it has.
        has: String,
        /// What the description says of that.
        says: String,
    },
    /// A disk that it was launched with is not plugged in any more.
    #[error("the VM's disk {0} is not plugged in any more")]
    Unplugged(Name),
    /// A disk cannot be copied.
    #[error("copy disk {name}: {why}")]
    Disk {
        /// Its name.
        name: Name,
        /// QEMU's words.
        why: String,
    },
    /// The rest of the disks takes too long.
    #[error("the disks were not copied to their end within {} s of the guest's stop", COPY_END_DEADLINE.as_secs())]
    DisksLate,
    /// The stream of memory cannot be kept.
    #[error("{doing}")]
    Memory {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU stops sending.
    #[error("QEMU has sent nothing of the guest's memory for {} s", STREAM_STALL.as_secs())]
    Stalled,
    /// QEMU did not save all.
    #[error("QEMU cannot save the guest's memory: {0}")]
    NotSaved(String),
    /// Nobody would let the guest go on if this process were killed.
    #[error("start the process that lets the guest go on should this one be killed")]
    Guard(#[source] io::Error),
    /// A directory or an image for what is saved.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// The version that it runs is not where it is to be published.
    #[error("{} has no package {name} with the version that the VM runs, {version}", repository.display())]
    NoBase {
        /// The repository.
        repository: PathBuf,
        /// The package's name there.
        name: Name,
        /// The version.
        version: Digest,
    },
    /// It is only about to run.
    #[error("the VM {0} is only about to start")]
    Starting(Name),
    /// The user ended it.
    #[error("interrupted: nothing was published")]
    Interrupted,
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotRepresented(_) | Self::OtherMachine { .. } | Self::NoBase { .. } => Class::Usage,
            Self::Guard(_) => Class::Host,
            Self::Memory { source, .. } => Class::of_io(source),
            Self::Vm(error) => error.class(),
            _ => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotThere { .. } => {
                "start QEMU with -qmp unix:PATH,server=on,wait=off, and run as its user".to_owned()
            }
            Self::Silent(_) => {
                "a monitor serves one program at a time; end the other one, or give QEMU another".to_owned()
            }
            Self::Migrating(_) => "wait until all of its memory is on this host".to_owned(),
            Self::Blocked(_) | Self::NotRepresented(_) => {
                "unplug it, or shut the VM down and publish its disks".to_owned()
            }
            Self::OtherMachine { .. } => "describe the VM as it is, with --machine or --domain".to_owned(),
            Self::NoBase { .. } => "publish into the repository of its package, under the package's name; \
                --whole publishes all of its disks, whatever they lie over"
                .to_owned(),
            Self::Disk { .. } | Self::Memory { .. } => {
                "TMPDIR can name a directory with more space, which QEMU may write into".to_owned()
            }
            Self::Vm(error) => return error.hint(),
            _ => return None,
        })
    }
}
