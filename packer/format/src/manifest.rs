//! The manifest: what a version of a package is. Its digest is the version's identity.

use serde::{Deserialize, Serialize};

use crate::limits::{DEVICE_STATE_BYTES_MAX, DISKS_MAX, MANIFEST_BYTES_MAX, RAM_BLOCK_NAME_BYTES_MAX, RAM_BLOCKS_MAX};
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

/// The memory of a VM that was saved while it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The RAM blocks, as QEMU names them.
    pub blocks: Vec<RamBlock>,
    /// The digest of the saved device state.
    pub device_state: Digest,
    /// Bytes of the saved device state.
    pub device_state_bytes: u64,
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
    /// A device state too large.
    #[error("the manifest's device_state_bytes is {0}, more than {DEVICE_STATE_BYTES_MAX}")]
    DeviceState(u64),
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

    /// The trees' shape and the content root's digest of every image, in the order of the layout object.
    ///
    /// # Errors
    /// [`ManifestError::Size`] when an image is too large, which [`Self::decode`] has ruled out.
    pub fn images(&self) -> Result<Vec<(Geometry, Digest)>, ManifestError> {
        let disks = self.disks.iter().map(|disk| (disk.name.as_str(), disk.size_bytes, disk.content));
        let blocks = self.memory.iter().flat_map(|memory| &memory.blocks);
        let blocks = blocks.map(|block| (block.name.as_str(), block.size_bytes, block.content));
        let shape = |(name, size_bytes, content): (&str, u64, Digest)| {
            let geometry = Geometry::new(size_bytes);
            Ok((geometry.map_err(|error| ManifestError::Size { name: printable(&name), error })?, content))
        };
        disks.chain(blocks).map(shape).collect()
    }

    /// The names of the images, in the order of [`Self::images`]. A RAM block may be called as a disk is: a name means the
    /// first image that has it.
    pub fn image_names(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().map(|disk| disk.name.as_str());
        disks.chain(self.memory.iter().flat_map(|memory| &memory.blocks).map(|block| block.name.as_str()))
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
        self.images()?;
        let names: Vec<Name> = self.disks.iter().map(|disk| disk.name.clone()).collect();
        Ok(self.machine.validate(&names)?)
    }
}

impl Memory {
    fn check(&self) -> Result<(), ManifestError> {
        for (index, block) in self.blocks.iter().enumerate() {
            let name = &block.name;
            let good =
                (1..=RAM_BLOCK_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
            if !good || self.blocks.iter().take(index).any(|other| other.name == *name) {
                return Err(ManifestError::RamBlock(printable(name)));
            }
        }
        match self.device_state_bytes {
            bytes if bytes > DEVICE_STATE_BYTES_MAX => Err(ManifestError::DeviceState(bytes)),
            _ => Ok(()),
        }
    }
}

const fn count(what: &'static str, count: usize, min: usize, max: usize) -> Result<(), ManifestError> {
    if count < min || count > max { Err(ManifestError::Count { what, count, min, max }) } else { Ok(()) }
}
