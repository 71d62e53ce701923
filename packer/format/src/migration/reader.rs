//! Reading a saved VM: one pass over a precopy stream, from its configuration over its RAM to its device state.

use std::io::Read;

use super::PAGE_BYTES;
use super::block::{Block, PageAt, check};
use super::configuration::Configuration;
use super::device_state::DeviceState;
use super::error::{StreamError, Unsupported};
use super::input::Input;
use super::wire::{MAGIC, RAM_SECTION, RAM_VERSION, VERSION, command, flag, part};
use crate::limits::RAM_BLOCKS_MAX;

/// Reads a stream that QEMU's `migrate` wrote to a file or a pipe, or that follows the head of a libvirt save file
/// ([`SaveFile`](super::SaveFile)).
///
/// Holds no more than its buffer until RAM has ended, and then the device state, which `limits` bounds. The source may
/// answer with as few bytes as it likes; it is read to its end, which must be the stream's.
#[derive(Debug)]
pub struct StreamReader<R> {
    input: Input<R>,
    configuration: Configuration,
    blocks: Vec<Block>,
    /// QEMU's number for the section `ram` in this stream.
    section: u32,
    /// The block of the last record, which records may go on with.
    last_block: Option<usize>,
    place: Place,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Records of a section, the last one with RAM or not.
    Records { last: bool },
    /// The start of a section.
    Sections,
    /// The device state.
    DeviceState,
}

/// A page of guest RAM. QEMU sends each page of a VM at least once, and again after the guest has written to it: what comes
/// later counts. Pages that never come are zeros (ballooned, for example), unless RAM is shared with a file and
/// [`ignore_shared`](Configuration::ignore_shared) was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page<'a> {
    /// All of it is zeros.
    Zero(PageAt),
    /// Its bytes, which may also be zeros.
    Data(PageAt, &'a [u8; PAGE_BYTES]),
}

/// What the next record or section says.
enum Record {
    Zero(PageAt),
    Data(PageAt),
    Other,
    RamEnd,
}

impl<R: Read> StreamReader<R> {
    /// Reads up to the first page: the configuration and the list of RAM blocks.
    ///
    /// # Errors
    /// [`StreamError`] when the source fails, is no stream, or one that cannot be packaged.
    pub fn new(source: R) -> Result<Self, StreamError> {
        let mut input = Input::new(source);
        match input.u32("its first bytes")? {
            MAGIC => {}
            other => return Err(StreamError::NotAStream(other)),
        }
        match input.u32("its version")? {
            VERSION => {}
            other => return Err(StreamError::Version(other)),
        }
        let configuration = Configuration::read(&mut input)?;
        let section = start_of_ram(&mut input)?;
        let blocks = read_blocks(&mut input, &configuration)?;
        Ok(Self { input, configuration, blocks, section, last_block: None, place: Place::Records { last: false } })
    }

    /// What was saved.
    pub const fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The RAM blocks, in the order by which [`PageAt::block`] counts.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Bytes of the stream read so far.
    pub const fn position_bytes(&self) -> u64 {
        self.input.at_bytes()
    }

    /// The next page of RAM, in whatever order QEMU sent them; `None` when RAM has ended.
    ///
    /// # Errors
    /// [`StreamError`], after which nothing sensible can be read.
    pub fn next_page(&mut self) -> Result<Option<Page<'_>>, StreamError> {
        loop {
            let record = match self.place {
                Place::Records { last } => self.record(last)?,
                Place::Sections => self.section()?,
                Place::DeviceState => Record::RamEnd,
            };
            match record {
                Record::Zero(at) => return Ok(Some(Page::Zero(at))),
                Record::Data(at) => return Ok(Some(Page::Data(at, self.input.array("a page")?))),
                Record::Other => {}
                Record::RamEnd => return Ok(None),
            }
        }
    }

    /// Reads the rest: pages that nobody wanted, and the device state to the source's end.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn finish(mut self) -> Result<DeviceState, StreamError> {
        while self.next_page()?.is_some() {}
        DeviceState::decode(self.input.rest()?)
    }

    /// A record of the section `ram`, without the bytes of its page.
    fn record(&mut self, last: bool) -> Result<Record, StreamError> {
        let word = self.input.u64("a record of RAM")?;
        let (offset_bytes, flags) = (word & !flag::MASK, word & flag::MASK);
        let continues = flags & flag::CONTINUE != 0;
        match flags & !flag::CONTINUE {
            flag::ZERO => {
                let at = self.page_at(offset_bytes, continues)?;
                match self.input.u8("a page of zeros")? {
                    0 => Ok(Record::Zero(at)),
                    other => Err(self.input.damaged(format!("a page of zeros is of {other:#04x}"))),
                }
            }
            flag::PAGE => Ok(Record::Data(self.page_at(offset_bytes, continues)?)),
            flag::EOS if !continues && offset_bytes == 0 => {
                self.footer()?;
                self.place = if last { Place::DeviceState } else { Place::Sections };
                Ok(Record::Other)
            }
            other => Err(self.refuse_flags(other)),
        }
    }

    fn page_at(&mut self, offset_bytes: u64, continues: bool) -> Result<PageAt, StreamError> {
        let block = if continues {
            self.last_block.ok_or_else(|| self.input.damaged("a page goes on with no block"))?
        } else {
            let name = self.input.name("a RAM block's name")?;
            let known = self.blocks.iter().position(|block| block.name == name);
            known.ok_or_else(|| {
                self.input.damaged(format!("a page is of the RAM block {name:?}, which is not listed"))
            })?
        };
        self.last_block = Some(block);
        if self.blocks.get(block).is_some_and(|block| block.has_page(offset_bytes)) {
            return Ok(PageAt { block, offset_bytes });
        }
        Err(self.input.damaged(format!("a page is at {offset_bytes:#x}, behind the end of its RAM block")))
    }

    /// Why flags that are none of this stream's were set.
    fn refuse_flags(&self, flags: u64) -> StreamError {
        let named = [
            (flag::MULTIFD_FLUSH, Unsupported::Multifd),
            (flag::COMPRESS_PAGE, Unsupported::Compress),
            (flag::XBZRLE, Unsupported::Xbzrle),
            (flag::HOOK, Unsupported::Rdma),
        ];
        match named.into_iter().find(|(bit, _)| flags & bit != 0) {
            Some((_, unsupported)) => unsupported.into(),
            None => self.input.damaged(format!("a record of RAM has the flags {flags:#05x}")),
        }
    }

    /// What comes between two sections, and the start of the second.
    fn section(&mut self) -> Result<Record, StreamError> {
        const WHAT: &str = "a section";
        match self.input.u8(WHAT)? {
            kind @ (part::SECTION_PART | part::SECTION_END) => {
                let section = self.input.u32(WHAT)?;
                if section != self.section {
                    return Err(self.input.damaged(format!("section {section} goes on and never began")));
                }
                self.place = Place::Records { last: kind == part::SECTION_END };
            }
            part::COMMAND => take_command(&mut self.input)?,
            kind => return Err(refuse_section(&mut self.input, kind)),
        }
        Ok(Record::Other)
    }

    fn footer(&mut self) -> Result<(), StreamError> {
        const WHAT: &str = "the end of a section";
        match (self.input.u8(WHAT)?, self.input.u32(WHAT)?) {
            (part::FOOTER, section) if section == self.section => Ok(()),
            _ => Err(self.input.damaged("a section of RAM does not end as it should")),
        }
    }
}

/// Reads the head of the section `ram`, which QEMU sends before everything else.
fn start_of_ram(input: &mut Input<impl Read>) -> Result<u32, StreamError> {
    const WHAT: &str = "the start of RAM";
    loop {
        match input.u8(WHAT)? {
            part::SECTION_START => break,
            part::COMMAND => take_command(input)?,
            kind => return Err(refuse_section(input, kind)),
        }
    }
    let section = input.u32(WHAT)?;
    let name = input.name(WHAT)?;
    if name != RAM_SECTION {
        return Err(Unsupported::Section(name).into());
    }
    match (input.u32(WHAT)?, input.u32(WHAT)?) {
        (0, RAM_VERSION) => Ok(section),
        (0, other) => Err(Unsupported::RamVersion(other).into()),
        (instance, _) => Err(input.damaged(format!("it begins with RAM number {instance}"))),
    }
}

/// Reads the record MEM_SIZE: blocks until their sizes make up the total.
fn read_blocks(input: &mut Input<impl Read>, configuration: &Configuration) -> Result<Vec<Block>, StreamError> {
    const WHAT: &str = "the list of RAM blocks";
    let word = input.u64(WHAT)?;
    if word & flag::MASK != flag::MEM_SIZE {
        return Err(input.damaged("RAM does not begin with the list of its blocks"));
    }
    let mut left_bytes = word & !flag::MASK;
    let mut blocks = Vec::new();
    while left_bytes > 0 {
        if blocks.len() == RAM_BLOCKS_MAX {
            let (value, max) = (blocks.len() as u64 + 1, RAM_BLOCKS_MAX as u64);
            return Err(StreamError::TooLarge { what: "a number of RAM blocks", value, max });
        }
        let name = input.name(WHAT)?;
        let size_bytes = input.u64(WHAT)?;
        left_bytes = left_bytes
            .checked_sub(size_bytes)
            .ok_or_else(|| input.damaged("the sizes of the RAM blocks do not make up their total"))?;
        let guest_address = if configuration.ignore_shared { input.u64(WHAT)? } else { 0 };
        blocks.push(Block { name, size_bytes, guest_address });
    }
    check(&blocks).map_err(|error| input.damaged(error.to_string()))?;
    Ok(blocks)
}

/// Passes over the one command that a saved VM may have.
fn take_command(input: &mut Input<impl Read>) -> Result<(), StreamError> {
    const WHAT: &str = "a command";
    match (input.u16(WHAT)?, input.u16(WHAT)?) {
        (command::SWITCHOVER_START, 0) => Ok(()),
        (command::SWITCHOVER_START, _) => Err(input.damaged("a command has data that it cannot have")),
        (command::OPEN_RETURN_PATH..=command::PACKAGED, _) => Err(Unsupported::Postcopy.into()),
        (other, _) => Err(Unsupported::Command(other).into()),
    }
}

/// Why a part of this kind cannot be where RAM has not ended.
fn refuse_section(input: &mut Input<impl Read>, kind: u8) -> StreamError {
    const WHAT: &str = "a section";
    if !matches!(kind, part::SECTION_START | part::SECTION_FULL) {
        return input.damaged(format!("a part of kind {kind:#04x} comes before the end of RAM"));
    }
    match input.u32(WHAT).and_then(|_| input.name(WHAT)) {
        Ok(name) => Unsupported::Section(name).into(),
        Err(error) => error,
    }
}
