//! The manifest: what a version of a package is. Its digest is the version's identity.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::limits::{
    DEVICE_STATE_BYTES_MAX, DISKS_MAX, LIBVIRT_XML_BYTES_MAX, MANIFEST_BYTES_MAX, OTHER_RAM_BYTES_MAX,
    QEMU_VERSION_BYTES_MAX, RAM_BLOCK_NAME_BYTES_MAX, RAM_BLOCKS_MAX,
};
use crate::machine::{Machine, MachineError};
use crate::name::printable;
use crate::{Chunker, Digest, FORMAT_NUMBER, Geometry, Name, TreeError, json};

/// One version of a package: machine, disks and, if it was saved running, memory. It does not say where anything is
/// stored, what it is called or when it was published: those may change without the version becoming another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    vmnetx: u32,
    /// The virtual hardware.
    pub machine: Machine,
    /// The disks, in the order of the machine's.
    pub disks: Vec<Disk>,
    /// The memory of a saved VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// A disk of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name in the package and as an export.
    pub name: Name,
    /// Its true size.
    pub size_bytes: u64,
    /// The digest of its content root.
    pub content: Digest,
    /// How it was cut into chunks: what a later version should be cut by.
    pub chunker: Chunker,
}

/// The memory of a VM that was saved while it ran, as it was when its disks were what the version's disks are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The RAM blocks, as QEMU names them and in its order.
    pub blocks: Vec<RamBlock>,
    /// What the devices were in.
    pub device_state: DeviceStateImage,
    /// What ran the guest's instructions, if it is known: CPUs under another accelerator may lack what the guest uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// The version of the QEMU that saved it, if it is known; no older one may take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// The hardware as libvirt knows it, if libvirt saved the VM: a domain XML without anything of its host, from which libvirt
    /// can make the same hardware again. Readers believe nothing of it before they have checked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<String>,
}

/// The device state of a saved VM: what follows RAM in its migration stream, as QEMU wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStateImage {
    /// Its size.
    pub size_bytes: u64,
    /// The digest of its content root.
    pub content: Digest,
    /// How it was cut into chunks.
    pub chunker: Chunker,
}

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, which translates them.
    Tcg,
}

/// One RAM block of a saved VM, for example `pc.ram`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamBlock {
    /// QEMU's name of the block: printable ASCII.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// The digest of its content root.
    pub content: Digest,
    /// How it was cut into chunks.
    pub chunker: Chunker,
}

/// An image of a version: a disk, a RAM block or the device state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestImage<'a> {
    /// Its name in records and as an export, which no other image of the version has: a disk's own, `ram:BLOCK` or
    /// [`DEVICE_STATE_IMAGE`].
    pub name: Cow<'a, str>,
    /// Its size.
    pub size_bytes: u64,
    /// The digest of its content root.
    pub content: Digest,
    /// How it was cut into chunks.
    pub chunker: Chunker,
}

/// What the names of RAM blocks as images begin with; disks have no `:` in theirs.
pub(crate) const RAM_IMAGE_PREFIX: &str = "ram:";

/// QEMU's name of the RAM block that is the guest's main memory, on the machine types that a package may have. QEMU has it full of
/// zeros before a saved VM is loaded; into others it has put ROMs.
pub const MAIN_RAM_BLOCK: &str = "pc.ram";

/// The name of the device state as an image.
pub const DEVICE_STATE_IMAGE: &str = "vm:device-state";

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by another version of the format.
    #[error("the manifest has format number {0}; this program reads number {FORMAT_NUMBER}: use a newer vmnetx")]
    FormatNumber(u64),
    /// Not the JSON that it should be, or fields that the format does not know.
    #[error("the manifest is damaged: {0}")]
    Json(String),
    /// Larger than any manifest.
    #[error("the manifest has {0} bytes, more than {MANIFEST_BYTES_MAX}")]
    TooLarge(u64),
    /// A number of disks or RAM blocks that no package has.
    #[error("the manifest has {count} {what}, which must be {min} to {max}")]
    Count {
        /// What there are too many or too few of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there must be.
        min: usize,
        /// How many there may be.
        max: usize,
    },
    /// Two disks of one name.
    #[error("the manifest names two disks {0:?}")]
    DuplicateDisk(Name),
    /// A RAM block of a name that no QEMU gives, or of one that another has.
    #[error(
        "the manifest's RAM block {0:?} must have a name of its own, 1 to {RAM_BLOCK_NAME_BYTES_MAX} bytes of printable ASCII"
    )]
    RamBlock(String),
    /// Main memory that is not the machine's.
    #[error(
        "the manifest's RAM block {MAIN_RAM_BLOCK} has {saved_bytes} bytes, and its machine has {machine_bytes} of memory"
    )]
    MainRam {
        /// What the block has; 0 if there is none.
        saved_bytes: u64,
        /// What the machine has.
        machine_bytes: u64,
    },
    /// More RAM beside it than any machine has.
    #[error("the manifest's RAM blocks beside {MAIN_RAM_BLOCK} have {0} bytes, more than {OTHER_RAM_BYTES_MAX}")]
    OtherRam(u64),
    /// A device state too large.
    #[error("the manifest's device state has {0} bytes, more than {DEVICE_STATE_BYTES_MAX}")]
    DeviceState(u64),
    /// A version of QEMU that cannot be.
    #[error("the manifest's version of QEMU must be 1 to {QEMU_VERSION_BYTES_MAX} bytes of printable ASCII")]
    Qemu,
    /// A domain XML that cannot be what is kept of one.
    #[error("the manifest's domain XML must be 1 to {LIBVIRT_XML_BYTES_MAX} bytes of printable ASCII")]
    Libvirt,
    /// A disk too large.
    #[error("disk {name}: {error}")]
    Size {
        /// Which disk or RAM block.
        name: String,
        /// What is wrong with its size.
        error: TreeError,
    },
    /// A machine that does not fit the disks.
    #[error("the manifest's machine: {0}")]
    Machine(#[from] MachineError),
}

#[derive(Deserialize)]
struct Number {
    vmnetx: u64,
}

impl Manifest {
    /// Puts a version together.
    ///
    /// # Errors
    /// [`ManifestError`] when the parts do not fit each other.
    pub fn new(machine: Machine, disks: Vec<Disk>, memory: Option<Memory>) -> Result<Self, ManifestError> {
        let manifest = Self { vmnetx: FORMAT_NUMBER, machine, disks, memory };
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as it is stored. Equal manifests have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Only a map with keys that are not text could fail, and there is none.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a manifest whose digest the caller has compared.
    ///
    /// # Errors
    /// [`ManifestError`] when the bytes are not one of this format number.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        // The number comes first: a later format may have any fields.
        let Number { vmnetx } = json::from_slice(bytes).map_err(ManifestError::Json)?;
        if vmnetx != u64::from(FORMAT_NUMBER) {
            return Err(ManifestError::FormatNumber(vmnetx));
        }
        let manifest: Self = json::from_slice(bytes).map_err(ManifestError::Json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The images, in the order of the layout object and of orders: disks, RAM blocks, device state.
    pub fn images(&self) -> impl Iterator<Item = ManifestImage<'_>> {
        let disks = self.disks.iter().map(|disk| ManifestImage {
            name: disk.name.as_str().into(),
            size_bytes: disk.size_bytes,
            content: disk.content,
            chunker: disk.chunker,
        });
        disks.chain(self.memory.iter().flat_map(Memory::images))
    }

    /// The trees' shape and the content root's digest of every image.
    ///
    /// # Errors
    /// [`ManifestError::Size`] when an image is too large, which [`Self::decode`] has ruled out.
    pub fn shapes(&self) -> Result<Vec<(Geometry, Digest)>, ManifestError> {
        self.images().map(|image| Ok((image.geometry()?, image.content))).collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        count("disks", self.disks.len(), 1, DISKS_MAX)?;
        if let Some(memory) = &self.memory {
            count("RAM blocks", memory.blocks.len(), 1, RAM_BLOCKS_MAX)?;
            memory.check()?;
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if self.disks.iter().take(index).any(|other| other.name == disk.name) {
                return Err(ManifestError::DuplicateDisk(disk.name.clone()));
            }
        }
        self.shapes()?;
        if let Some(memory) = &self.memory {
            memory.check_ram(self.machine.memory_mib.bytes())?;
        }
        let names: Vec<Name> = self.disks.iter().map(|disk| disk.name.clone()).collect();
        Ok(self.machine.validate(&names)?)
    }
}

impl ManifestImage<'_> {
    /// Its trees' shape.
    ///
    /// # Errors
    /// [`ManifestError::Size`] when it is too large.
    pub fn geometry(&self) -> Result<Geometry, ManifestError> {
        Geometry::new(self.size_bytes).map_err(|error| ManifestError::Size { name: printable(&self.name), error })
    }
}

impl Memory {
    fn images(&self) -> impl Iterator<Item = ManifestImage<'_>> {
        let blocks = self.blocks.iter().map(|block| ManifestImage {
            name: block.image_name().into(),
            size_bytes: block.size_bytes,
            content: block.content,
            chunker: block.chunker,
        });
        let DeviceStateImage { size_bytes, content, chunker } = self.device_state;
        blocks.chain([ManifestImage { name: DEVICE_STATE_IMAGE.into(), size_bytes, content, chunker }])
    }

    fn check(&self) -> Result<(), ManifestError> {
        for (index, block) in self.blocks.iter().enumerate() {
            let name = &block.name;
            let good = is_ascii_text(name, RAM_BLOCK_NAME_BYTES_MAX);
            if !good || self.blocks.iter().take(index).any(|other| other.name == *name) {
                return Err(ManifestError::RamBlock(printable(name)));
            }
        }
        if self.device_state.size_bytes > DEVICE_STATE_BYTES_MAX {
            return Err(ManifestError::DeviceState(self.device_state.size_bytes));
        }
        if self.qemu.as_ref().is_some_and(|version| !is_ascii_text(version, QEMU_VERSION_BYTES_MAX)) {
            return Err(ManifestError::Qemu);
        }
        let is_xml = |xml: &String| is_ascii_text(&xml.replace(' ', ""), LIBVIRT_XML_BYTES_MAX);
        match &self.libvirt {
            Some(xml) if xml.len() > LIBVIRT_XML_BYTES_MAX || !is_xml(xml) => Err(ManifestError::Libvirt),
            _ => Ok(()),
        }
    }
}

impl Memory {
    /// Whether the RAM blocks can be those of a machine with so much main memory.
    fn check_ram(&self, machine_bytes: u64) -> Result<(), ManifestError> {
        let is_main = |block: &&RamBlock| block.name == MAIN_RAM_BLOCK;
        let saved_bytes = self.blocks.iter().find(is_main).map_or(0, |block| block.size_bytes);
        if saved_bytes != machine_bytes {
            return Err(ManifestError::MainRam { saved_bytes, machine_bytes });
        }
        let others = self.blocks.iter().filter(|block| !is_main(block)).map(|block| block.size_bytes);
        match others.fold(0, u64::saturating_add) {
            0..=OTHER_RAM_BYTES_MAX => Ok(()),
            others_bytes => Err(ManifestError::OtherRam(others_bytes)),
        }
    }
}

impl RamBlock {
    /// Its name as an image.
    #[must_use]
    pub fn image_name(&self) -> String {
        ram_image_name(&self.name)
    }
}

/// The name as an image of the RAM block that QEMU calls `block`.
#[must_use]
pub fn ram_image_name(block: &str) -> String {
    format!("{RAM_IMAGE_PREFIX}{block}")
}

fn is_ascii_text(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

const fn count(what: &'static str, count: usize, min: usize, max: usize) -> Result<(), ManifestError> {
    if count < min || count > max { Err(ManifestError::Count { what, count, min, max }) } else { Ok(()) }
}
