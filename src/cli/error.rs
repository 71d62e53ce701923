//! Why a command of `vmnetx` fails.

use std::io;
use std::path::PathBuf;

use vmnetx_format::{ManifestError, Name};
use vmnetx_store::failure::{Class, Told};

use crate::doctor::Check;
use crate::{capture, registry, resume, server, vm};

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package cannot be read.
    #[error(transparent)]
    Store(#[from] vmnetx_store::Error),
    /// The package's disks cannot be served.
    #[error(transparent)]
    Nbd(#[from] vmnetx_nbd::Error),
    /// The repository cannot be published into.
    #[error(transparent)]
    Pack(#[from] vmnetx_pack::Error),
    /// There is no server to read through.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The server gives a manifest that is none.
    #[error("the server's answer")]
    Manifest(#[source] ManifestError),
    /// The machine cannot be launched.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// The saved VM cannot be resumed.
    #[error(transparent)]
    Resume(#[from] resume::Error),
    /// The VM cannot be captured.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// There is no VM of that name.
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    /// Nobody has said that memory may be published.
    #[error("nobody has said that what is in the VM's RAM may be published, and there is no terminal to ask on")]
    NotConfirmed,
    /// The user does not want it.
    #[error("nothing was done")]
    Declined,
    /// The hardware of a foreign VM is not known.
    #[error("what hardware the VM at {} has must be described", .0.display())]
    NotDescribed(PathBuf),
    /// The hardware of a VM of ours is known.
    #[error("the VM {0} was launched from a package, which says what its hardware is")]
    Described(Name),
    /// libvirt does not run the machine.
    #[cfg(feature = "libvirt")]
    #[error(transparent)]
    Libvirt(#[from] crate::libvirt::Error),
    /// An option that only QEMU's own launch has.
    #[cfg(feature = "libvirt")]
    #[error("{0} cannot be had with --backend libvirt")]
    NotWithLibvirt(&'static str),
    /// `--persist` names a disk that the package does not have.
    #[error("--persist names the disk {name}, which the package does not have; it has {known}")]
    NoDisk {
        /// What was asked for.
        name: Name,
        /// What there is.
        known: String,
    },
    /// `--persist` names a disk twice.
    #[error("--persist names the disk {0} twice")]
    RepeatedDisk(Name),
    /// The file for the serial port's output.
    #[error("create {}", file.display())]
    SerialFile {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two things on standard output.
    #[error("--json and --serial - would both write to standard output")]
    TwoOnStdout,
    /// A rehearsal has nothing to record.
    #[error("the guest has read nothing of its disks")]
    NothingRead,
    /// No VM can be run on this host.
    #[error("no VM can be run here, for want of: {}", .0.iter().map(|check| check.as_str()).collect::<Vec<_>>().join(", "))]
    NoVmHere(Vec<Check>),
    /// The package's VM cannot be run on this host.
    #[error("the package {name} cannot be run here, for want of its {}", missing.iter().map(|check| check.as_str()).collect::<Vec<_>>().join(", "))]
    NotHere {
        /// The package.
        name: Name,
        /// What it needs.
        missing: Vec<Check>,
    },
    /// The runtime cannot start.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::Nbd(error) => error.class(),
            Self::Pack(error) => error.class(),
            Self::Server(error) => error.class(),
            Self::Manifest(_) => Class::Integrity,
            Self::Vm(error) => error.class(),
            Self::Resume(error) => error.class(),
            Self::Capture(error) => error.class(),
            Self::Registry(error) => error.class(),
            Self::NotConfirmed | Self::NotDescribed(_) | Self::Described(_) => Class::Usage,
            #[cfg(feature = "libvirt")]
            Self::Libvirt(error) => error.class(),
            #[cfg(feature = "libvirt")]
            Self::NotWithLibvirt(_) => Class::Usage,
            Self::NoDisk { .. } | Self::RepeatedDisk(_) | Self::SerialFile { .. } | Self::TwoOnStdout => Class::Usage,
            Self::NothingRead | Self::Declined => Class::Failure,
            Self::Runtime(_) | Self::NoVmHere(_) | Self::NotHere { .. } => Class::Host,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Nbd(error) => error.hint(),
            Self::Pack(error) => error.hint(),
            Self::Server(error) => error.hint(),
            Self::Vm(error) => error.hint(),
            Self::Resume(error) => error.hint(),
            Self::Capture(error) => error.hint(),
            Self::Registry(error) => error.hint(),
            Self::NotConfirmed => Some("--yes says it: whoever reads the package can read the guest's RAM".to_owned()),
            Self::NotDescribed(_) => Some("use --machine FILE.toml, or --domain FILE.xml for libvirt's".to_owned()),
            Self::Described(_) => Some("leave out --machine and --domain".to_owned()),
            #[cfg(feature = "libvirt")]
            Self::Libvirt(error) => error.hint(),
            #[cfg(feature = "libvirt")]
            Self::NotWithLibvirt(option) => match *option {
                "--serial -" => Some("virsh console shows the serial port".into()),
                "--display" => Some("virt-viewer shows the domain's screen".into()),
                _ => None,
            },
            Self::NoDisk { .. } | Self::RepeatedDisk(_) | Self::SerialFile { .. } | Self::TwoOnStdout => None,
            Self::NothingRead | Self::Declined | Self::Manifest(_) | Self::Runtime(_) => None,
            // What can be done was said with each.
            Self::NoVmHere(_) | Self::NotHere { .. } => None,
        }
    }
}
