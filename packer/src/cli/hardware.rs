//! The virtual hardware of a package, as its publisher describes it.

use std::path::{Path, PathBuf};

use vmnetx_format::machine::{MACHINE_BYTES_MAX, Machine, MachineError};

use super::domain;
use crate::Error;
use crate::domain::{Description, DiskFiles, DropPath};

/// The machine of a package whose publisher names none.
const DEFAULT_MACHINE: &str = include_str!("../../../qemu-configs/default.toml");

/// Where a machine is described.
#[derive(Debug, clap::Args)]
pub struct HardwareArgs {
    /// The virtual hardware, in TOML. Without it: that of the version that the new one starts from, else a plain PC with one CPU
    /// and 1 GiB.
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    pub(super) machine: Option<PathBuf>,
    /// The virtual hardware, and the disks that are not given, of a libvirt domain, as `virsh dumpxml --inactive` writes it.
    /// What cannot be published ends the command; `describe-domain` shows it beforehand.
    #[arg(long, value_name = "FILE.xml")]
    pub(super) domain: Option<PathBuf>,
    /// Publish without what is refused of the domain at or below this path, such as /domain/devices/hostdev[1].
    #[arg(long, value_name = "PATH", requires = "domain")]
    drop: Vec<DropPath>,
}

impl HardwareArgs {
    /// Whether any is described.
    #[must_use]
    pub const fn is_given(&self) -> bool {
        self.machine.is_some() || self.domain.is_some()
    }

    /// The machine of a VM that runs and has so many disks, `disk0` and so on; nothing if it is not described.
    ///
    /// # Errors
    /// [`Error`] when a description cannot be read, or has parts that cannot be published.
    pub fn of_running(&self, disks: usize) -> Result<Option<Machine>, Error> {
        let Some(path) = &self.domain else { return self.machine.is_some().then(|| self.machine()).transpose() };
        let description = self.domain(path, (disks, "the VM has"))?;
        let names = description.disk_names();
        domain::tell(&description, &names);
        Ok(Some(description.machine_with(&names)))
    }

    /// The domain in a file, if all of it can be published or may be dropped, with this many disks that are not taken
    /// from it, as somebody says.
    pub(super) fn domain(&self, path: &Path, (given, says): (usize, &str)) -> Result<Description, Error> {
        let files = if given == 0 { DiskFiles::FromDomain } else { DiskFiles::Given };
        let mut description = domain::read(path, default_machine()?, files)?;
        description.drop_refused(&self.drop).map_err(domain::of_file(path))?;
        description.check().map_err(domain::of_file(path))?;
        if given != 0 && given != description.disks.len() {
            let disks = description.disks.len();
            return Err(Error::Usage(format!("the domain has places for {disks} disks, and {says} {given}")));
        }
        Ok(description)
    }

    /// The machine that is described in TOML, or the one of packages whose publishers describe none.
    pub(super) fn machine(&self) -> Result<Machine, Error> {
        let Some(path) = &self.machine else { return default_machine() };
        let mut text = String::new();
        let opened = std::fs::File::open(path).and_then(|file| {
            // One byte more than may be shows that there is more.
            std::io::Read::read_to_string(&mut std::io::Read::take(file, MACHINE_BYTES_MAX as u64 + 1), &mut text)
        });
        opened.map_err(Error::file("read machine description", path))?;
        Machine::from_toml(&text).map_err(|source: MachineError| Error::MachineFile { path: path.clone(), source })
    }
}

pub(super) fn default_machine() -> Result<Machine, Error> {
    Ok(Machine::from_toml(DEFAULT_MACHINE)?)
}
