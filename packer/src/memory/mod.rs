//! The memory of a saved VM that is to be packed: a migration stream, or a file that libvirt saved a domain in, becomes images.
//!
//! ```text
//! file or pipe ──▶ libvirt's head? ──yes──▶ decompressor ──▶ stream ──▶ pages ──▶ a scratch file for each RAM block
//!                       └──no──────────────────────────────────┘   └──▶ device state ──▶ a scratch file
//! ```
//!
//! Of the domain XML in libvirt's head, the hardware is kept (`domain::Hardware`): QEMU takes the state back only on devices that libvirt
//! has put where they were.
//!
//! The stream is read once and may be a pipe. QEMU may send pages in any sequence and more than once, so they go through scratch
//! files, which have holes where RAM is zero, and are packed from there like raw disks.

mod error;
mod input;
mod scratch;

use std::io::Read;
use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::machine::Machine;
use vmnetx_format::migration::{Page, SaveFile, StreamReader};
use vmnetx_format::{
    Accelerator, Chunker, DEVICE_STATE_IMAGE, DeviceStateImage, Digest, MAIN_RAM_BLOCK, Memory, RamBlock, Roots,
    ram_image_name,
};
use vmnetx_store::dir::Publisher;

use self::input::Input;
use self::scratch::Scratch;
use crate::disk::Source;
use crate::domain::{Hardware, HardwareError};
use crate::{Error, Progress};

pub use error::MemoryError;

/// The saved memory of a package that is to be published, and what is known of the host that saved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFile {
    /// A migration stream or a libvirt save file, which may be a pipe; `-` is standard input.
    pub file: PathBuf,
    /// What ran the guest's instructions, if it is known.
    pub accelerator: Option<Accelerator>,
    /// The version of the QEMU that saved it, if it is known.
    pub qemu: Option<String>,
}

/// What was read of a saved VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// Bytes of all RAM blocks.
    pub ram_bytes: u64,
    /// Bytes of their pages that are not zero.
    pub data_bytes: u64,
    /// Bytes of the device state.
    pub device_state_bytes: u64,
}

/// Something to be packed, and its name.
type Named = (String, Box<dyn Source>);

/// A saved VM that was read and is ready to be packed.
pub(crate) struct SavedMemory {
    /// QEMU's names of the RAM blocks, and their pages.
    blocks: Vec<Named>,
    device_state: Box<dyn Source>,
    accelerator: Option<Accelerator>,
    qemu: Option<String>,
    libvirt: Option<String>,
    pub(crate) report: MemoryReport,
}

/// What the manifest says of a saved VM but for the content of its images.
pub(crate) struct MemoryHead {
    blocks: Vec<String>,
    accelerator: Option<Accelerator>,
    qemu: Option<String>,
    libvirt: Option<String>,
    pub(crate) report: MemoryReport,
}

impl SavedMemory {
    /// Reads a saved VM, which must be of this machine and this many disks. Its bytes are told to `progress`, over the total of RAM.
    pub(crate) fn read(
        memory: &MemoryFile,
        (machine, disks): (&Machine, usize),
        publisher: &Publisher,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let failed = |reason| Error::Memory { file: memory.file.clone(), reason };
        let Input { mut stream, decompressor, libvirt } = Input::open(&memory.file).map_err(failed)?;
        let hardware = libvirt.map(|save| hardware(&save, machine, disks)).transpose();
        let libvirt = hardware.map_err(|error| failed(error.into()))?;
        let read = Reading { machine, publisher, progress }.read(&mut stream);
        drop(stream);
        // One that fails is why its stream ends early.
        decompressor.map_or(Ok(()), input::Decompressor::wait).map_err(failed)?;
        let (blocks, device_state, report) = read.map_err(|error| match error {
            ReadError::Stream(reason) => failed(reason),
            ReadError::Scratch(error) => error,
        })?;
        let path = |name: &str| memory.file.join(name);
        let source = |name: &str, scratch: Scratch| scratch.into_source(path(name));
        let blocks = blocks.into_iter().map(|(name, scratch)| {
            let source = source(&name, scratch)?;
            Ok((name, source))
        });
        Ok(Self {
            blocks: blocks.collect::<Result<_, Error>>()?,
            device_state: source(DEVICE_STATE_IMAGE, device_state)?,
            accelerator: memory.accelerator,
            qemu: memory.qemu.clone(),
            libvirt,
            report,
        })
    }

    /// Its images, as [`Manifest::images`](vmnetx_format::Manifest::images) names them, and the rest.
    pub(crate) fn into_images(self) -> (MemoryHead, Vec<Named>) {
        let Self { blocks, device_state, accelerator, qemu, libvirt, report } = self;
        let names = blocks.iter().map(|(name, _)| name.clone()).collect();
        let images = blocks.into_iter().map(|(name, source)| (ram_image_name(&name), source));
        let images = images.chain([(DEVICE_STATE_IMAGE.to_owned(), device_state)]).collect();
        (MemoryHead { blocks: names, accelerator, qemu, libvirt, report }, images)
    }
}

impl MemoryHead {
    /// The memory as the manifest has it; `images` are the size, the chunker and the roots of each image.
    pub(crate) fn memory(&self, images: &[(u64, Chunker, &Roots)]) -> Result<Memory, Error> {
        let mut images = images.iter().map(|&(size_bytes, chunker, roots)| {
            let content = Digest::of(&roots.content.encode());
            (size_bytes, content, chunker)
        });
        let blocks = self.blocks.iter().zip(&mut images).map(|(name, (size_bytes, content, chunker))| RamBlock {
            name: name.clone(),
            size_bytes,
            content,
            chunker,
        });
        let blocks = blocks.collect();
        let (size_bytes, content, chunker) = images.next().ok_or(Error::Stopped)?;
        let device_state = DeviceStateImage { size_bytes, content, chunker };
        let Self { accelerator, qemu, libvirt, .. } = self;
        Ok(Memory { blocks, device_state, accelerator: *accelerator, qemu: qemu.clone(), libvirt: libvirt.clone() })
    }
}

/// The hardware that libvirt has saved, for the manifest. Its disks must be those of the package.
fn hardware(save: &SaveFile, machine: &Machine, disks: usize) -> Result<String, HardwareError> {
    let hardware = Hardware::of_saved(&save.xml, save.cookie.as_deref())?;
    hardware.targets(machine, disks)?;
    Ok(hardware.to_xml())
}

/// What reading a stream needs.
struct Reading<'a> {
    machine: &'a Machine,
    publisher: &'a Publisher,
    progress: &'a dyn Progress,
}

/// What went wrong: the stream, or the files that it goes through.
enum ReadError {
    Stream(MemoryError),
    Scratch(Error),
}

impl<E: Into<MemoryError>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Stream(error.into())
    }
}

/// The RAM blocks by their names, and the device state.
type Spooled = (Vec<(String, Scratch)>, Scratch, MemoryReport);

impl Reading<'_> {
    fn read(&self, stream: &mut dyn Read) -> Result<Spooled, ReadError> {
        let mut reader = StreamReader::new(stream)?;
        self.check(&reader)?;
        let names: Vec<(String, u64)> =
            reader.blocks().iter().map(|block| (block.name.clone(), block.size_bytes)).collect();
        let ram_bytes = names.iter().map(|(_, size_bytes)| size_bytes).sum();
        self.progress.total(ram_bytes);
        let scratch = |size_bytes| Scratch::create(self.publisher, size_bytes).map_err(ReadError::Scratch);
        let mut blocks = Vec::new();
        for (name, size_bytes) in names {
            blocks.push((name, scratch(size_bytes)?));
        }
        while let Some(page) = reader.next_page()? {
            let (Page::Zero(at) | Page::Data(at, _)) = page;
            // The reader knows no others.
            let Some((_, block)) = blocks.get_mut(at.block) else { continue };
            match page {
                Page::Zero(_) => block.zero(at.offset_bytes),
                Page::Data(_, bytes) => block.write(at.offset_bytes, bytes),
            }
            .map_err(ReadError::Scratch)?;
            self.progress.advance(vmnetx_format::migration::PAGE_BYTES as u64);
        }
        let state = reader.finish()?;
        let bytes = state.as_bytes();
        let mut device_state = scratch(bytes.len() as u64)?;
        device_state.write(0, bytes).map_err(ReadError::Scratch)?;
        let data_bytes = blocks.iter().map(|(_, block)| block.data_bytes()).sum();
        let report = MemoryReport { ram_bytes, data_bytes, device_state_bytes: bytes.len() as u64 };
        Ok((blocks, device_state, report))
    }

    /// Whether the stream is of the machine that is published with it, as far as it says.
    fn check<R: Read>(&self, reader: &StreamReader<R>) -> Result<(), MemoryError> {
        let (saved, described) = (&reader.configuration().machine, self.machine.machine.to_string());
        if *saved != described {
            return Err(MemoryError::Machine { saved: saved.clone(), described });
        }
        if reader.configuration().ignore_shared {
            return Err(MemoryError::IgnoreShared);
        }
        let described_bytes = self.machine.memory_mib.mib() << 20;
        match reader.blocks().iter().find(|block| block.name == MAIN_RAM_BLOCK) {
            Some(block) if block.size_bytes == described_bytes => Ok(()),
            found => Err(MemoryError::Ram { saved_bytes: found.map_or(0, |block| block.size_bytes), described_bytes }),
        }
    }
}
