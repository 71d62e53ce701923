//! What can go wrong with a launch.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use vmnetx_format::machine::{Machine, MachineError};
use vmnetx_format::{Digest, Name};
use vmnetx_store::failure::{Class, Told};

use super::limits::{SOCKET_PATH_BYTES_MAX, START_DEADLINE};

/// A launch that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed is not there.
    #[error("find {program}: not installed, or not in PATH")]
    NoProgram {
        /// What was looked for.
        program: PathBuf,
        /// The package that holds it, in Debian's words.
        package: &'static str,
    },
    /// The machine cannot have been meant.
    #[error("machine description: {0}")]
    Machine(#[from] MachineError),
    /// The machine is described but not handled.
    #[error("the machine asks for {0}, which this version of vmnetx does not handle yet")]
    NotHandled(&'static str),
    /// A serial port was asked for and the machine has none.
    #[error("the machine has no serial port")]
    NoSerial,
    /// The machine has more memory than this host: the guest could take all of it.
    #[error("field `memory_mib`: the machine has {wanted_mib} MiB of memory, this host only {host_mib} MiB")]
    Memory {
        /// What the machine has.
        wanted_mib: u64,
        /// What the host has.
        host_mib: u64,
    },
    /// KVM was demanded and does not work.
    #[error("KVM cannot run a guest here: {0}")]
    NoKvm(super::KvmObstacle),
    /// The private directory of the run.
    #[error("create a directory for this run in {}", base.display())]
    RunDir {
        /// Where.
        base: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A path that Unix sockets cannot have.
    #[error("socket path {} has more than {SOCKET_PATH_BYTES_MAX} bytes", .0.display())]
    SocketPath(PathBuf),
    /// A path that cannot be told to QEMU.
    #[error("path {} is not UTF-8, which QEMU's options must be", .0.display())]
    PathNotText(PathBuf),
    /// A socket of the run, a file or a process of ours.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// qemu-img, or QEMU asked for its abilities, failed.
    #[error("{doing}: {words}")]
    Tool {
        /// What was being done.
        doing: String,
        /// What the program said.
        words: String,
    },
    /// The overlay belongs to another version of the package.
    #[error("overlay {} was made for version {bound} of its package, not for {wanted}", file.display())]
    OtherVersion {
        /// The overlay.
        file: PathBuf,
        /// The version it belongs to.
        bound: Digest,
        /// The version that is to run.
        wanted: Digest,
    },
    /// The overlay belongs to another disk.
    #[error("overlay {} was made for the disk {bound}, not for {wanted}", file.display())]
    OtherDisk {
        /// The overlay.
        file: PathBuf,
        /// The disk it belongs to.
        bound: Name,
        /// The disk it was named for.
        wanted: Name,
    },
    /// The file is not an overlay that vmnetx made.
    #[error("{} is not an overlay made by vmnetx: {why}", file.display())]
    NotOurs {
        /// The file.
        file: PathBuf,
        /// How that shows.
        why: String,
    },
    /// Another process has the overlay open.
    #[error("overlay {} is in use by another process", .0.display())]
    OverlayBusy(PathBuf),
    /// QEMU ended before the guest did.
    #[error("QEMU ended unasked ({status}): {words}")]
    QemuDied {
        /// How it ended.
        status: ExitStatus,
        /// The last that it said.
        words: String,
    },
    /// QEMU does not have a part of the machine: it is older than that, or has dropped it.
    #[error("{} has no {what}", qemu.display())]
    NotInQemu {
        /// The QEMU.
        qemu: PathBuf,
        /// What it lacks.
        what: Part,
    },
    /// QEMU did not come up.
    #[error("QEMU did not answer within {} s of its start: {words}", START_DEADLINE.as_secs())]
    StartTimeout {
        /// The last that it said.
        words: String,
    },
    /// QEMU does not take the state that the machine was to begin in.
    #[error("QEMU cannot load the saved state: {words}")]
    NotLoaded {
        /// The last that it said.
        words: String,
    },
    /// The guest runs without all of its memory, and no more of it reaches QEMU.
    #[error("QEMU has lost the way to the rest of the guest's memory, without which the guest cannot run on")]
    MemoryLost,
    /// QEMU outlived SIGKILL.
    #[error("QEMU (process {pid}) does not end, even when killed")]
    Unkillable {
        /// Its process id.
        pid: u32,
    },
    /// QEMU's monitor does not do what it should.
    #[error("control QEMU")]
    Qmp(#[from] super::qmp::QmpError),
    /// The VM cannot be entered among those that run.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
}

/// A part of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A board, by its name.
    MachineType(String),
    /// A processor, by its name.
    CpuModel(String),
    /// A device, by QEMU's name of its driver.
    Device(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MachineType(name) => write!(f, "machine type {name}"),
            Self::CpuModel(name) => write!(f, "CPU model {name}"),
            Self::Device(name) => write!(f, "device {name}"),
        }
    }
}

impl Part {
    /// What QEMU has said of this machine that it lacks.
    fn lacking(words: &str, machine: &Machine) -> Option<Self> {
        if words.contains("unsupported machine type") {
            return Some(Self::MachineType(machine.machine.to_string()));
        }
        if words.contains("unable to find CPU model") {
            return Some(Self::CpuModel(machine.cpu.model.as_str().to_owned()));
        }
        let (before, _) = words.split_once("' is not a valid device model name")?;
        before.rsplit_once('\'').map(|(_, name)| Self::Device(name.to_owned()))
    }
}

impl Error {
    pub(super) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// The same, or what QEMU lacks if that is why it ended instead of starting this machine.
    pub(super) fn of_start(self, machine: &Machine, qemu: &Path) -> Self {
        let Self::QemuDied { words, .. } = &self else { return self };
        let Some(what) = Part::lacking(words, machine) else { return self };
        Self::NotInQemu { qemu: qemu.to_owned(), what }
    }
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::NoProgram { .. } | Self::NoKvm(_) | Self::RunDir { .. } | Self::SocketPath(_) => Class::Host,
            Self::Memory { .. } | Self::NotInQemu { .. } => Class::Host,
            Self::Registry(error) => error.class(),
            Self::NoSerial | Self::PathNotText(_) => Class::Usage,
            Self::OtherVersion { .. } | Self::OtherDisk { .. } | Self::NotOurs { .. } => Class::Usage,
            _ => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoProgram { package, .. } => {
                format!("install it (Debian: apt install {package}), or say where it is")
            }
            Self::Memory { .. } => "run it on a host with more memory".to_owned(),
            Self::NotInQemu { .. } => {
                "use another QEMU (--qemu PATH): the number of a machine type is the version that had it first, and \
                QEMU drops old ones in the end"
                    .to_owned()
            }
            Self::NoKvm(_) => {
                "use --accel tcg, which needs no KVM and is slower; `vmnetx doctor` tells what KVM needs".to_owned()
            }
            Self::SocketPath(_) => "set TMPDIR to a directory with a shorter path".to_owned(),
            Self::OtherVersion { bound, .. } => {
                format!("run the version it was made for (LINK#b3={bound}), or name a file that does not exist yet")
            }
            Self::OtherDisk { bound, file, .. } => format!("use --persist {bound}={}", file.display()),
            Self::NotOurs { .. } => "name a file that does not exist yet; it is created".to_owned(),
            Self::OverlayBusy(_) => "end the VM that uses it, or name another file".to_owned(),
            Self::Registry(error) => return error.hint(),
            Self::NoSerial => "leave out --serial, or publish the machine with `serial = true`".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_lacks_is_told_from_its_words() {
        let text = "machine = 'pc-q35-99.0'\nmemory_mib = 64\ncpu.model = 'Nobody'\n";
        let machine = Machine::from_toml(text).unwrap();
        // As 7.2 and 10.0 say it.
        for (words, part) in [
            ("qemu: unsupported machine type\nUse -machine help to list", Some("machine type pc-q35-99.0")),
            ("qemu: unsupported machine type: \"pc-q35-99.0\"", Some("machine type pc-q35-99.0")),
            ("qemu: unable to find CPU model 'Nobody'", Some("CPU model Nobody")),
            ("qemu: -device {\"id\":\"vga\"}: 'qxl-vga' is not a valid device model name", Some("device qxl-vga")),
            ("' is not a valid device model name", None),
            ("qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory", None),
        ] {
            let found = Part::lacking(words, &machine).map(|part| part.to_string());
            assert_eq!(found.as_deref(), part, "{words}");
        }
    }
}
