//! Writing a saved VM: the stream that QEMU's incoming migration reads, with its pages in any order.

use std::marker::PhantomData;

use super::PAGE_BYTES;
use super::block::{Block, PageAt, check};
use super::configuration::Configuration;
use super::device_state::DeviceState;
use super::error::WriteError;
use super::wire::{RAM_SECTION, RAM_VERSION, flag, part, put_footer, put_name, put_u32, put_u64};

/// The number of the section `ram` in streams that are written. Any would do: the device state's own begin where QEMU
/// counted when it saved, but numbers are compared with footers alone.
const SECTION: u32 = 2;

/// A migration whose guest runs when all of it has come.
#[derive(Debug, Clone, Copy)]
pub struct Precopy;

/// Writes a stream to QEMU, by appending to a vector that the caller sends and empties.
///
/// `Phase` says what kind of migration it is, and how far it has come: [`Precopy`], or of a migration whose guest runs before
/// its pages are there, [`PostcopySetup`](super::PostcopySetup) and [`PostcopyActive`](super::PostcopyActive). Pages may come in
/// any order; those that a precopy stream leaves out are zeros, or what a file has that is mapped for their block.
#[derive(Debug)]
pub struct StreamWriter<Phase> {
    blocks: Vec<Block>,
    /// The block of the last record, while a section is open.
    open: Option<usize>,
    phase: PhantomData<Phase>,
}

impl StreamWriter<Precopy> {
    /// Begins a stream: its configuration and the list of RAM blocks, which must be those of the target's VM. With
    /// [`ignore_shared`](Configuration::ignore_shared) the target must have that capability too.
    ///
    /// # Errors
    /// [`WriteError`] for parts that no VM has.
    pub fn start(configuration: &Configuration, blocks: Vec<Block>, out: &mut Vec<u8>) -> Result<Self, WriteError> {
        let total_bytes = check(&blocks)?;
        configuration.write(out)?;
        Ok(Self::start_of_ram(blocks, total_bytes, configuration.ignore_shared, out))
    }

    /// Ends the stream. The guest may run as soon as QEMU has read it.
    pub fn finish(mut self, device_state: &DeviceState, out: &mut Vec<u8>) {
        self.end_of_ram(out);
        out.extend(device_state.as_bytes());
    }
}

impl<Phase> StreamWriter<Phase> {
    /// The RAM blocks, by whose positions pages are known.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Appends a page.
    ///
    /// # Errors
    /// [`WriteError::NoPages`] when the VM has no such page.
    pub fn page(&mut self, at: PageAt, bytes: &[u8; PAGE_BYTES], out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.record(at, flag::PAGE, out)?;
        out.extend(bytes);
        Ok(())
    }

    /// Appends a page of zeros.
    ///
    /// # Errors
    /// [`WriteError::NoPages`] when the VM has no such page.
    pub fn zero_page(&mut self, at: PageAt, out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.record(at, flag::ZERO, out)?;
        out.push(0);
        Ok(())
    }

    /// Ends the section that pages are written to, if one is open; the next page opens another. QEMU looks at its monitor
    /// between sections, so end one every few MiB.
    pub fn end_section(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            put_u64(out, flag::EOS);
            put_footer(out, SECTION);
        }
    }

    pub(super) fn start_of_ram(blocks: Vec<Block>, total_bytes: u64, addresses: bool, out: &mut Vec<u8>) -> Self {
        put_section(out, part::SECTION_START);
        put_name(out, RAM_SECTION);
        put_u32(out, 0);
        put_u32(out, RAM_VERSION);
        put_u64(out, total_bytes | flag::MEM_SIZE);
        for block in &blocks {
            put_name(out, &block.name);
            put_u64(out, block.size_bytes);
            if addresses {
                put_u64(out, block.guest_address);
            }
        }
        put_u64(out, flag::EOS);
        put_footer(out, SECTION);
        Self::of(blocks)
    }

    pub(super) fn end_of_ram(&mut self, out: &mut Vec<u8>) {
        self.end_section(out);
        put_section(out, part::SECTION_END);
        put_u64(out, flag::EOS);
        put_footer(out, SECTION);
    }

    /// The same migration in its next phase.
    pub(super) fn into_phase<Next>(self) -> StreamWriter<Next> {
        StreamWriter::of(self.blocks)
    }

    const fn of(blocks: Vec<Block>) -> Self {
        Self { blocks, open: None, phase: PhantomData }
    }

    /// Appends a page's record up to its bytes.
    fn record(&mut self, at: PageAt, kind: u64, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let name = name_of(&self.blocks, at)?;
        if self.open.is_none() {
            put_section(out, part::SECTION_PART);
        }
        put_record(name, at, kind, &mut self.open, out);
        Ok(())
    }
}

/// The name of the block that has this page.
pub(super) fn name_of(blocks: &[Block], at: PageAt) -> Result<&str, WriteError> {
    let PageAt { block, offset_bytes } = at;
    let no_page = WriteError::NoPages { block, start_bytes: offset_bytes, length_bytes: PAGE_BYTES as u64 };
    blocks.get(block).filter(|known| known.has_page(offset_bytes)).map(|known| known.name.as_str()).ok_or(no_page)
}

/// Appends a page's record up to its bytes; its block is named unless the last record was of the same one.
pub(super) fn put_record(name: &str, at: PageAt, kind: u64, last_block: &mut Option<usize>, out: &mut Vec<u8>) {
    if *last_block == Some(at.block) {
        put_u64(out, at.offset_bytes | kind | flag::CONTINUE);
    } else {
        put_u64(out, at.offset_bytes | kind);
        put_name(out, name);
    }
    *last_block = Some(at.block);
}

fn put_section(out: &mut Vec<u8>, kind: u8) {
    out.push(kind);
    put_u32(out, SECTION);
}
