//! The configuration at the head of a stream: which machine was saved, and what its reader must know of how.

use std::io::Read;

use super::PAGE_BYTES;
use super::error::{StreamError, Unsupported, WriteError};
use super::input::Input;
use super::wire::{
    self, CAPABILITIES, IGNORE_SHARED, MAPPED_RAM, SUBSECTION_VERSION, TARGET_PAGE_BITS, UUID, part, put_name, put_u32,
};
use crate::limits::{CAPABILITIES_MAX, MACHINE_TYPE_BYTES_MAX};
use crate::name::printable;

/// What a stream says of the VM before its RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The machine type, for example `pc-i440fx-7.2`: printable ASCII. An alias such as `pc` is saved as what it means.
    pub machine: String,
    /// Whether the capability `x-ignore-shared` was on: each block is then sent with its guest address, and blocks that are
    /// shared mappings of files are sent without pages.
    pub ignore_shared: bool,
    /// The VM's UUID, which the capability `validate-uuid` makes the target compare with its own.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// A machine saved with no capability that its reader must know.
    #[must_use]
    pub fn new(machine: impl Into<String>) -> Self {
        Self { machine: machine.into(), ignore_shared: false, uuid: None }
    }

    pub(super) fn read(input: &mut Input<impl Read>) -> Result<Self, StreamError> {
        match input.u8("its configuration")? {
            part::CONFIGURATION => {}
            _ => return Err(Unsupported::NoConfiguration.into()),
        }
        let length = input.u32("the machine type")?;
        let too_long =
            StreamError::TooLarge { what: "a machine type", value: length.into(), max: MACHINE_TYPE_BYTES_MAX.into() };
        let length = u8::try_from(length).ok().filter(|length| *length <= MACHINE_TYPE_BYTES_MAX).ok_or(too_long)?;
        let mut configuration = Self::new(input.text(length, "the machine type")?);
        while input.peek("its first section")? == part::SUBSECTION {
            configuration.read_subsection(input)?;
        }
        Ok(configuration)
    }

    fn read_subsection(&mut self, input: &mut Input<impl Read>) -> Result<(), StreamError> {
        const WHAT: &str = "a part of the configuration";
        input.u8(WHAT)?;
        let name = input.name(WHAT)?;
        let version = input.u32(WHAT)?;
        match (name.as_str(), version) {
            (CAPABILITIES, SUBSECTION_VERSION) => self.read_capabilities(input),
            (TARGET_PAGE_BITS, SUBSECTION_VERSION) => match input.u32(WHAT)? {
                bits if bits == PAGE_BYTES.trailing_zeros() => Ok(()),
                bits => Err(Unsupported::PageBits(bits).into()),
            },
            (UUID, SUBSECTION_VERSION) => {
                self.uuid = Some(*input.array(WHAT)?);
                Ok(())
            }
            _ => Err(Unsupported::ConfigurationPart(printable(&format_args!("{name} of version {version}"))).into()),
        }
    }

    fn read_capabilities(&mut self, input: &mut Input<impl Read>) -> Result<(), StreamError> {
        const WHAT: &str = "a capability";
        let count = input.u32(WHAT)?;
        if count > CAPABILITIES_MAX {
            let (value, max) = (count.into(), CAPABILITIES_MAX.into());
            return Err(StreamError::TooLarge { what: "a number of capabilities", value, max });
        }
        for _ in 0..count {
            match input.name(WHAT)?.as_str() {
                IGNORE_SHARED => self.ignore_shared = true,
                MAPPED_RAM => return Err(Unsupported::MappedRam.into()),
                other => return Err(Unsupported::Capability(other.to_owned()).into()),
            }
        }
        Ok(())
    }

    /// Appends it, behind the stream's magic and version.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let machine = self.machine.as_bytes();
        if machine.len() > usize::from(MACHINE_TYPE_BYTES_MAX) || !wire::is_graphic(machine) {
            return Err(WriteError::Machine(printable(&self.machine)));
        }
        put_u32(out, wire::MAGIC);
        put_u32(out, wire::VERSION);
        out.push(part::CONFIGURATION);
        put_u32(out, machine.len() as u32);
        out.extend(machine);
        if self.ignore_shared {
            put_subsection(out, CAPABILITIES);
            put_u32(out, 1);
            put_name(out, IGNORE_SHARED);
        }
        if let Some(uuid) = self.uuid {
            put_subsection(out, UUID);
            out.extend(uuid);
        }
        Ok(())
    }
}

fn put_subsection(out: &mut Vec<u8>, name: &str) {
    out.push(part::SUBSECTION);
    put_name(out, name);
    put_u32(out, SUBSECTION_VERSION);
}
