//! Why a saved VM cannot be packed.

use std::io;

use vmnetx_format::migration::{SaveFileError, StreamError};
use vmnetx_store::failure::Class;

use crate::domain::HardwareError;

/// Why a saved VM cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It cannot be opened.
    #[error("open it")]
    Open(#[source] io::Error),
    /// It is no migration stream, or one that cannot be represented.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What libvirt wrote before the stream cannot be read.
    #[error(transparent)]
    SaveFile(#[from] SaveFileError),
    /// The hardware that libvirt describes in it cannot be kept.
    #[error("the domain that libvirt saved")]
    Hardware(#[from] HardwareError),
    /// The program that decompresses it does not run.
    #[error("run {program} to decompress it")]
    NoDecompressor {
        /// The program.
        program: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The program that decompresses it failed.
    #[error("{program} fails to decompress it: {status}")]
    Decompressor {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It is of another machine type.
    #[error("it is of the machine type {saved}, and the package's machine is {described}")]
    Machine {
        /// The machine type that was saved.
        saved: String,
        /// The one of the machine description.
        described: String,
    },
    /// It has another size of RAM.
    #[error("it has {saved_bytes} bytes of RAM, and the package's machine {described_bytes}")]
    Ram {
        /// Bytes that were saved.
        saved_bytes: u64,
        /// Bytes in the machine description.
        described_bytes: u64,
    },
    /// Its RAM is in a file of the host that saved it.
    #[error("it was saved with the capability x-ignore-shared, so most of its RAM is not in it")]
    IgnoreShared,
}

impl MemoryError {
    pub(crate) const fn class(&self) -> Class {
        match self {
            Self::Open(_) | Self::NoDecompressor { .. } => Class::Host,
            Self::Stream(_) | Self::SaveFile(_) | Self::Decompressor { .. } => Class::Failure,
            Self::Hardware(_) | Self::Machine { .. } | Self::Ram { .. } | Self::IgnoreShared => Class::Usage,
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDecompressor { program, .. } => format!("install {program}"),
            Self::Machine { .. } | Self::Ram { .. } => {
                "describe the machine that was saved, with --machine or --domain".to_owned()
            }
            Self::Hardware(HardwareError::Disks { .. }) => {
                "give --disk a file for each disk of the domain, in the order in which they boot".to_owned()
            }
            Self::Hardware(_) => "save the VM without that device, or boot it from its disks alone".to_owned(),
            Self::IgnoreShared => "save the VM again without that capability".to_owned(),
            Self::Stream(StreamError::NotAStream(_)) => {
                "give what QMP's migrate wrote to a file or a pipe, or what virsh save wrote".to_owned()
            }
            _ => return None,
        })
    }
}
