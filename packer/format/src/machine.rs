//! The machine description: the closed, typed account of the hardware that a package's guest is to find.
//!
//! It says what the guest sees and nothing about the host: no field can hold a path, a device or an option of a
//! hypervisor, and an unknown field is an error. A publisher writes it as TOML ([`Machine::from_toml`]); a manifest
//! holds it as JSON through serde, always with the same bytes for the same machine.
//!
//! ```
//! # use vmnetx_format::machine::{Bus, Machine};
//! let machine = Machine::from_toml(
//!     r#"
//!     machine = "pc-q35-7.2"
//!     memory_mib = 1024
//!     disk_bus = "virtio"
//!     [cpu]
//!     model = "Nehalem"
//!     "#,
//! )?;
//! assert_eq!(machine.bus_of(&"disk0".parse()?), Bus::Virtio);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use serde::{Deserialize, Serialize};

use crate::Name;
use crate::name::printable_lines;

mod values;

pub use values::{Chipset, CpuCount, CpuModel, MacAddress, MachineType, MemorySize, ValueError};

/// Bytes of a machine description's text.
pub const MACHINE_BYTES_MAX: usize = 64 << 10;

/// Virtual CPUs of a machine.
pub const CPUS_MAX: u32 = 64;

/// MiB of a machine's memory: 4 TiB.
pub const MEMORY_MIB_MAX: u64 = 4 << 20;

/// Disks of a machine. With [`NICS_MAX`] and the single devices it stays within the 30 free slots of a PCI bus.
pub const MACHINE_DISKS_MAX: usize = 16;

/// Network cards of a machine.
pub const NICS_MAX: usize = 8;

/// Disks on IDE: two channels with two drives each.
pub const IDE_DISKS_MAX: usize = 4;

/// Disks on SATA: the ports of one AHCI controller.
pub const SATA_DISKS_MAX: usize = 6;

/// Bytes of a CPU model's name.
pub const CPU_MODEL_BYTES_MAX: usize = 64;

/// The hardware of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The board, with the version that fixes its details.
    pub machine: MachineType,
    /// Guest RAM in MiB.
    pub memory_mib: MemorySize,
    /// Processors.
    pub cpu: Cpu,
    /// What runs first.
    #[serde(default)]
    pub firmware: Firmware,
    /// The graphics card.
    #[serde(default)]
    pub vga: Vga,
    /// Whether there is a serial port (the first, COM1 or ttyS0).
    #[serde(default = "yes")]
    pub serial: bool,
    /// Whether a USB tablet points, so that the pointer follows the user's without being grabbed.
    #[serde(default)]
    pub tablet: bool,
    /// Whether a virtio device gives the guest random numbers.
    #[serde(default)]
    pub rng: bool,
    /// Whether an ACPI device (VM Generation ID) tells a guest that is resumed that it is a copy: a Linux or Windows that has the
    /// driver then draws other random numbers than those resumed from the same state.
    #[serde(default)]
    pub vmgenid: bool,
    /// Whether a virtio serial port leads to the QEMU guest agent: a guest that has it gets its clock set when it is resumed.
    #[serde(default)]
    pub guest_agent: bool,
    /// What the hardware clock holds.
    #[serde(default)]
    pub clock: Clock,
    /// The bus of every disk when `disks` is empty. Absent: the one that the board had from the start, which
    /// nearly every guest has a driver for (see [`Machine::bus_of`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<Bus>,
    /// The disks in the order in which the firmware tries them. Empty, or each of the package's disks once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MachineDisk>,
    /// Network cards, each on a user network of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// The processors of a [`Machine`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// The named model, so that the guest finds the same processor on every host.
    pub model: CpuModel,
    /// How many.
    #[serde(default)]
    pub count: CpuCount,
}

/// Where one of the package's disks is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDisk {
    /// The disk's name in the package.
    pub name: Name,
    /// Its bus.
    pub bus: Bus,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The card that the guest needs a driver for.
    pub model: NicModel,
    /// Its address. Absent: the hypervisor's choice; each card is alone on its user network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// What a machine runs first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A PC BIOS.
    #[default]
    Bios,
    /// UEFI. Described, but no launcher handles it yet.
    Uefi,
}

/// The graphics card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vga {
    /// No graphics.
    None,
    /// A VGA with VESA modes, which every guest of the last 30 years can draw on.
    #[default]
    Std,
    /// Cirrus Logic GD5446, for guests of the 1990s that have its driver.
    Cirrus,
    /// virtio-vga.
    Virtio,
    /// QXL.
    Qxl,
    /// VMware SVGA II.
    Vmware,
}

/// What the hardware clock holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// UTC, as Unix guests expect.
    #[default]
    Utc,
    /// The host's local time, as DOS and Windows expect.
    Localtime,
}

/// What a disk is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// A virtio block device.
    Virtio,
    /// Parallel ATA, on `pc-i440fx` only: at most [`IDE_DISKS_MAX`].
    Ide,
    /// Serial ATA on an AHCI controller: at most [`SATA_DISKS_MAX`].
    Sata,
    /// A virtio SCSI controller.
    Scsi,
}

/// The model of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicModel {
    /// A virtio network device.
    #[serde(rename = "virtio-net-pci")]
    VirtioNetPci,
    /// Intel 82540EM.
    #[serde(rename = "e1000")]
    E1000,
    /// Intel 82574L.
    #[serde(rename = "e1000e")]
    E1000e,
    /// Realtek 8139.
    #[serde(rename = "rtl8139")]
    Rtl8139,
    /// AMD PCnet.
    #[serde(rename = "pcnet")]
    Pcnet,
    /// NE2000 on PCI.
    #[serde(rename = "ne2k_pci")]
    Ne2kPci,
}

/// A machine description that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The text is longer than any description.
    #[error("the machine description has {bytes} bytes, more than {MACHINE_BYTES_MAX}")]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
    },
    /// Not TOML, an unknown field, or a value that its field does not take. The text names line and field.
    #[error("{0}")]
    Syntax(String),
    /// `disks` leaves out one of the package's disks.
    #[error("field `disks` lacks the package's disk {0}; list every disk or none")]
    DiskNotListed(Name),
    /// `disks` names a disk that the package does not have.
    #[error("field `disks` names {0}, which is not a disk of the package")]
    UnknownDisk(Name),
    /// `disks` names a disk twice.
    #[error("field `disks` names {0} twice")]
    RepeatedDisk(Name),
    /// More of something than the machine has places for.
    #[error("{count} {what} are more than the limit of {limit}; change field `{field}`")]
    TooMany {
        /// The field to change.
        field: &'static str,
        /// What there is too much of.
        what: &'static str,
        /// How many were asked for.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// The board lacks the bus.
    #[error("{0} has no IDE; use `sata` or `virtio` in field `disks` or `disk_bus`")]
    NoIde(MachineType),
    /// Two cards with one address.
    #[error("field `nics` has {0} twice")]
    RepeatedMac(MacAddress),
}

impl Machine {
    /// Reads a description from TOML. [`Machine::validate`] is still to be called, with the package's disks.
    ///
    /// # Errors
    /// [`MachineError::TooLong`] and [`MachineError::Syntax`].
    pub fn from_toml(text: &str) -> Result<Self, MachineError> {
        if text.len() > MACHINE_BYTES_MAX {
            return Err(MachineError::TooLong { bytes: text.len() });
        }
        // The message shows the line that is wrong, and that line may be anything.
        toml::from_str(text).map_err(|error| MachineError::Syntax(printable_lines(&error)))
    }

    /// Writes the description as TOML that [`Machine::from_toml`] reads back.
    ///
    /// # Panics
    /// Never: every value of this type has a form in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a machine has a form in TOML")
    }

    /// Checks the description as a whole and against the names of the package's disks.
    ///
    /// # Errors
    /// The first thing that is wrong; the message names the field.
    pub fn validate(&self, disk_names: &[Name]) -> Result<(), MachineError> {
        self.check_disk_names(disk_names)?;
        self.check_buses(disk_names)?;
        within("nics", "network cards", self.nics.len(), NICS_MAX)?;
        let macs: Vec<_> = self.nics.iter().filter_map(|nic| nic.mac).collect();
        match macs.iter().enumerate().find(|(index, mac)| macs[..*index].contains(mac)) {
            Some((_, mac)) => Err(MachineError::RepeatedMac(*mac)),
            None => Ok(()),
        }
    }

    /// The bus that the disk `name` is plugged into: the one in `disks`, else `disk_bus`, else IDE on `pc-i440fx` and
    /// SATA on `pc-q35`. A guest that was not made for virtual machines has drivers for those; one that was, and
    /// lacks them, should say so with `disk_bus`.
    #[must_use]
    pub fn bus_of(&self, name: &Name) -> Bus {
        let listed = self.disks.iter().find(|disk| disk.name == *name).map(|disk| disk.bus);
        listed.or(self.disk_bus).unwrap_or(match self.machine.chipset() {
            Chipset::I440fx => Bus::Ide,
            Chipset::Q35 => Bus::Sata,
        })
    }

    /// The package's disks in the order in which the firmware tries them: as in `disks`, else as in the package.
    #[must_use]
    pub fn boot_order<'a>(&'a self, disk_names: &'a [Name]) -> Vec<&'a Name> {
        if self.disks.is_empty() {
            disk_names.iter().collect()
        } else {
            self.disks.iter().map(|disk| &disk.name).collect()
        }
    }

    fn check_disk_names(&self, disk_names: &[Name]) -> Result<(), MachineError> {
        within("disks", "disks", disk_names.len().max(self.disks.len()), MACHINE_DISKS_MAX)?;
        for (index, disk) in self.disks.iter().enumerate() {
            if self.disks[..index].iter().any(|earlier| earlier.name == disk.name) {
                return Err(MachineError::RepeatedDisk(disk.name.clone()));
            }
            if !disk_names.contains(&disk.name) {
                return Err(MachineError::UnknownDisk(disk.name.clone()));
            }
        }
        let unlisted = disk_names.iter().find(|name| self.disks.iter().all(|disk| disk.name != **name));
        match unlisted {
            Some(name) if !self.disks.is_empty() => Err(MachineError::DiskNotListed(name.clone())),
            _ => Ok(()),
        }
    }

    fn check_buses(&self, disk_names: &[Name]) -> Result<(), MachineError> {
        let field = if self.disks.is_empty() { "disk_bus" } else { "disks" };
        let count = |bus| disk_names.iter().filter(|name| self.bus_of(name) == bus).count();
        if self.machine.chipset() == Chipset::Q35 && count(Bus::Ide) > 0 {
            return Err(MachineError::NoIde(self.machine));
        }
        within(field, "disks on `ide`", count(Bus::Ide), IDE_DISKS_MAX)?;
        within(field, "disks on `sata`", count(Bus::Sata), SATA_DISKS_MAX)
    }
}

fn within(field: &'static str, what: &'static str, count: usize, limit: usize) -> Result<(), MachineError> {
    if count <= limit { Ok(()) } else { Err(MachineError::TooMany { field, what, count, limit }) }
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
