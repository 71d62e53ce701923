//! The source's side of a postcopy migration: a guest runs when its devices are loaded, and asks for its pages.
//!
//! ```text
//! StreamWriter::<PostcopySetup>::start   the way back is opened, PING (answered: the target listens), the list of blocks
//!   page, zero_page                      pages that are to be there before the guest runs
//! run                                    which pages are missing, then in one package: devices, PING, and the guest runs
//! StreamWriter<PostcopyActive>
//!   page, zero_page                      each missing page once, those asked for first
//! finish                                 when no page is missing
//! ```
//!
//! A target with the capability `postcopy-preempt` takes pages on a second connection too, which [`UrgentWriter`] writes to: what
//! was asked for need not queue behind what is pushed.

use super::PAGE_BYTES;
use super::block::{Block, PageAt, PageRange, check};
use super::configuration::Configuration;
use super::device_state::DeviceState;
use super::error::WriteError;
use super::wire::{command, flag, part, put_command, put_name, put_u64};
use super::writer::{StreamWriter, name_of, put_record};
use crate::limits::{COMMAND_BYTES_MAX, DISCARD_RANGES_MAX, RAM_BLOCK_NAME_BYTES_MAX};

/// Writes pages to the second connection of a postcopy migration whose target has the capability `postcopy-preempt`: the
/// target's socket is connected to a second time before the first connection is written to, and pages may be sent there from
/// [`StreamWriter::run`] on. A page goes over one of both.
#[derive(Debug)]
pub struct UrgentWriter {
    blocks: Vec<Block>,
    last_block: Option<usize>,
}

/// A postcopy migration before its guest runs.
#[derive(Debug, Clone, Copy)]
pub struct PostcopySetup;

/// A postcopy migration whose guest runs.
#[derive(Debug, Clone, Copy)]
pub struct PostcopyActive;

/// The version of RAM_DISCARD's data.
const DISCARD_VERSION: u8 = 0;
const RANGE_BYTES: usize = 16;

const _: () = assert!(1 + 1 + RAM_BLOCK_NAME_BYTES_MAX + 1 + DISCARD_RANGES_MAX * RANGE_BYTES <= COMMAND_BYTES_MAX);

impl StreamWriter<PostcopySetup> {
    /// The number that the target's first PONG has: it has understood the head of the stream.
    pub const PING_STARTED: u32 = 1;
    /// The number that the PONG has which says that the devices are loaded.
    pub const PING_LOADED: u32 = 3;

    /// Begins a migration to a target with the capability `postcopy-ram`.
    ///
    /// # Errors
    /// [`WriteError`] for parts that no VM has.
    pub fn start(configuration: &Configuration, blocks: Vec<Block>, out: &mut Vec<u8>) -> Result<Self, WriteError> {
        if configuration.ignore_shared {
            return Err(WriteError::IgnoreShared);
        }
        let total_bytes = check(&blocks)?;
        configuration.write(out)?;
        put_command(out, command::OPEN_RETURN_PATH, &[]);
        put_command(out, command::PING, &Self::PING_STARTED.to_be_bytes());
        // All page sizes of the source's blocks in one word, and the guest's page size.
        let sizes = [(PAGE_BYTES as u64).to_be_bytes(), (PAGE_BYTES as u64).to_be_bytes()];
        put_command(out, command::POSTCOPY_ADVISE, sizes.as_flattened());
        Ok(Self::start_of_ram(blocks, total_bytes, false, out))
    }

    /// Lets the guest run. `missing` are all pages that were not appended yet, block by block; while the devices are loaded,
    /// the target may already ask for some.
    ///
    /// # Errors
    /// [`WriteError::NoPages`] for ranges that are not in RAM, [`WriteError::NothingMissing`] without any: QEMU, told of no
    /// missing page, takes those that follow for precopied ones and hangs (`loadvm_postcopy_handle_listen`).
    pub fn run(
        mut self,
        missing: impl IntoIterator<Item = PageRange>,
        device_state: &DeviceState,
        out: &mut Vec<u8>,
    ) -> Result<StreamWriter<PostcopyActive>, WriteError> {
        self.end_section(out);
        self.discard(missing, out)?;
        let mut package = Vec::with_capacity(device_state.sections().len() + 64);
        put_command(&mut package, command::POSTCOPY_LISTEN, &[]);
        package.extend(device_state.sections());
        put_command(&mut package, command::PING, &Self::PING_LOADED.to_be_bytes());
        put_command(&mut package, command::POSTCOPY_RUN, &[]);
        put_command(out, command::PACKAGED, &(package.len() as u32).to_be_bytes());
        out.extend(package);
        Ok(self.into_phase())
    }

    /// Tells which pages are missing, in as many commands as it takes.
    fn discard(&self, missing: impl IntoIterator<Item = PageRange>, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let mut command: Option<(usize, Vec<u8>)> = None;
        let mut any = false;
        for PageRange { block, start_bytes, length_bytes } in missing {
            let no_pages = WriteError::NoPages { block, start_bytes, length_bytes };
            let known = self.blocks().get(block).filter(|known| known.has_range(start_bytes, length_bytes));
            let name = &known.ok_or(no_pages)?.name;
            let room = name.len() + 3 + DISCARD_RANGES_MAX * RANGE_BYTES;
            let mut data = match command.take() {
                Some((of, data)) if of == block && data.len() < room => data,
                full => {
                    put_discard(full, out);
                    discard_head(name)
                }
            };
            put_u64(&mut data, start_bytes);
            put_u64(&mut data, length_bytes);
            command = Some((block, data));
            any = true;
        }
        put_discard(command, out);
        if any { Ok(()) } else { Err(WriteError::NothingMissing) }
    }
}

impl StreamWriter<PostcopyActive> {
    /// The writer for this migration's second connection.
    #[must_use]
    pub fn urgent(&self) -> UrgentWriter {
        UrgentWriter { blocks: self.blocks().to_vec(), last_block: None }
    }

    /// Ends the migration, after every missing page has been appended.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        self.end_of_ram(out);
        out.push(part::EOF);
    }
}

impl UrgentWriter {
    /// Appends a page.
    ///
    /// # Errors
    /// [`WriteError::NoPages`] when the VM has no such page.
    pub fn page(&mut self, at: PageAt, bytes: &[u8; PAGE_BYTES], out: &mut Vec<u8>) -> Result<(), WriteError> {
        put_record(name_of(&self.blocks, at)?, at, flag::PAGE, &mut self.last_block, out);
        out.extend(bytes);
        Ok(())
    }

    /// Appends a page of zeros.
    ///
    /// # Errors
    /// [`WriteError::NoPages`] when the VM has no such page.
    pub fn zero_page(&mut self, at: PageAt, out: &mut Vec<u8>) -> Result<(), WriteError> {
        put_record(name_of(&self.blocks, at)?, at, flag::ZERO, &mut self.last_block, out);
        out.push(0);
        Ok(())
    }

    /// Ends the pages of this connection; the first connection is ended after it.
    pub fn finish(self, out: &mut Vec<u8>) {
        put_u64(out, flag::EOS);
    }
}

fn discard_head(name: &str) -> Vec<u8> {
    let mut data = vec![DISCARD_VERSION];
    put_name(&mut data, name);
    data.push(0);
    data
}

fn put_discard(command: Option<(usize, Vec<u8>)>, out: &mut Vec<u8>) {
    if let Some((_, data)) = command {
        put_command(out, command::POSTCOPY_RAM_DISCARD, &data);
    }
}
