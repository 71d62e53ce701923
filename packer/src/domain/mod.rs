//! A libvirt domain XML read as a machine description: what a package keeps of it, and a remark for all that it does not.
//!
//! Nothing is left out in silence. A ledger knows which elements and attributes have been dealt with, and what is left
//! over in the end becomes a remark like the others. `docs/domain.md` has the table of what becomes of what.
//!
//! ```
//! # use vmnetx_format::machine::Machine;
//! # use vmnetx_pack::domain::{DiskFiles, RemarkKind, describe};
//! # let base = Machine::from_toml("machine = 'pc-i440fx-7.2'\nmemory_mib = 1024\ncpu.model = 'Nehalem'").unwrap();
//! let xml = br#"<domain type="kvm">
//!   <memory unit="MiB">512</memory>
//!   <os><type arch="x86_64" machine="pc-q35-6.2">hvm</type></os>
//!   <features><acpi/></features>
//!   <devices><tpm model="tpm-crb"/></devices>
//! </domain>"#;
//! let description = describe(xml, base, DiskFiles::FromDomain)?;
//! assert_eq!(description.machine.memory_mib.mib(), 512);
//! let refused: Vec<_> = description.of(RemarkKind::Refused).map(|remark| &*remark.path).collect();
//! assert_eq!(refused, ["/domain/devices/tpm"]);
//! # Ok::<(), vmnetx_pack::domain::DomainError>(())
//! ```

mod devices;
mod disks;
mod error;
mod hardware;
mod ledger;
mod remark;
mod system;

use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::Name;
use vmnetx_format::machine::{Bus, Machine, MachineDisk};

use self::ledger::Ledger;

pub use error::DomainError;
pub use hardware::{Hardware, HardwareError, Part};
pub use remark::{DropPath, DropPathError, Remark, RemarkKind};

/// Where the package's disks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFiles {
    /// From the files and block devices that the domain names.
    FromDomain,
    /// From files that the publisher names in place of those; the domain only says what they are plugged into.
    Given,
}

/// What a domain is as a package's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The machine without its disks; [`Description::machine_with`] adds them.
    #[serde(skip)]
    pub machine: Machine,
    /// The disks, the one that boots first at the front.
    pub disks: Vec<DomainDisk>,
    /// Everything that is not as in the domain, in the order of the text.
    pub remarks: Vec<Remark>,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainDisk {
    /// Its element's path.
    pub path: String,
    /// The domain's name for it, such as `vda`.
    pub target: String,
    /// What it is plugged into.
    pub bus: Bus,
    /// Where its data is; nothing if the publisher says where ([`DiskFiles::Given`]).
    pub source: Option<DiskSource>,
}

/// A file or block device with a disk's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskSource {
    /// An absolute path on the host of the domain.
    pub file: PathBuf,
    /// The image format by libvirt's name, such as `raw` or `qcow2`: stated, never found out from the bytes.
    pub format: String,
}

/// Reads a domain XML of at most [`crate::limits::DOMAIN_BYTES_MAX`] bytes. `base` is the machine for what the domain does
/// not say.
///
/// Whether the domain can be published as it is, [`Description::check`] says.
///
/// # Errors
/// [`DomainError`] when this is not the XML of a domain.
pub fn describe(xml: &[u8], base: Machine, files: DiskFiles) -> Result<Description, DomainError> {
    let text = ledger::checked_text(xml)?;
    let document = ledger::parse(text)?;
    let root = document.root_element();
    let mut ledger = Ledger::new(root);
    let bare = Machine {
        serial: false,
        tablet: false,
        rng: false,
        vmgenid: false,
        guest_agent: false,
        disk_bus: None,
        disks: vec![],
        nics: vec![],
        ..base
    };
    let mut machine = bare;
    system::read(&mut ledger, root, &mut machine);
    let disks = devices::read(&mut ledger, root, &mut machine, files);
    let mut description = Description { machine, disks, remarks: ledger.finish()? };
    description.check_as_a_whole();
    Ok(description)
}

impl Description {
    /// The machine with its disks, which have these names in the package, in the order of [`Description::disks`].
    #[must_use]
    pub fn machine_with(&self, names: &[Name]) -> Machine {
        let mut machine = self.machine.clone();
        match self.disks.split_first() {
            Some((first, rest)) if rest.iter().all(|disk| disk.bus == first.bus) => machine.disk_bus = Some(first.bus),
            _ => {
                let pairs = names.iter().zip(&self.disks);
                machine.disks = pairs.map(|(name, disk)| MachineDisk { name: name.clone(), bus: disk.bus }).collect();
            }
        }
        machine
    }

    /// The names of the disks unless the publisher gives others: `disk0` and so on.
    #[must_use]
    pub fn disk_names(&self) -> Vec<Name> {
        (0..self.disks.len()).filter_map(|index| format!("disk{index}").parse().ok()).collect()
    }

    /// The remarks of one kind.
    pub fn of(&self, kind: RemarkKind) -> impl Iterator<Item = &Remark> {
        self.remarks.iter().filter(move |remark| remark.kind == kind)
    }

    /// Turns what is refused and lies at or below these paths into what is dropped.
    ///
    /// # Errors
    /// [`DomainError::NotRefused`] when a path leads to nothing that is refused: it may be misspelt.
    pub fn drop_refused(&mut self, paths: &[DropPath]) -> Result<(), DomainError> {
        // All are looked at before any remark changes: one path may lie below another.
        if let Some(path) = paths.iter().find(|path| !self.of(RemarkKind::Refused).any(|remark| path.covers(remark))) {
            return Err(DomainError::NotRefused(path.clone()));
        }
        for remark in self.remarks.iter_mut().filter(|remark| remark.kind == RemarkKind::Refused) {
            if paths.iter().any(|path| path.covers(remark)) {
                remark.kind = RemarkKind::Dropped;
            }
        }
        Ok(())
    }

    /// Says whether nothing is refused.
    ///
    /// # Errors
    /// [`DomainError::Refused`] with all that is.
    pub fn check(&self) -> Result<(), DomainError> {
        let refused: Vec<_> = self.of(RemarkKind::Refused).cloned().collect();
        if refused.is_empty() { Ok(()) } else { Err(DomainError::Refused(refused)) }
    }

    /// Refuses what no single element is to blame for, such as more disks than a bus has places.
    fn check_as_a_whole(&mut self) {
        let names = self.disk_names();
        if let Err(error) = self.machine_with(&names).validate(&names) {
            let path = "/domain/devices".to_owned();
            self.remarks.push(Remark { kind: RemarkKind::Refused, path, why: error.to_string().into() });
        }
    }
}

#[cfg(test)]
mod tests;
