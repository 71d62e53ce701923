//! The device state: what follows guest RAM in a saved VM, up to the stream's end.
//!
//! ```text
//! sections      u8 4, u32 number, u8 length, name, u32 instance, u32 version, body, u8 0x7e, u32 number
//! end           u8 0
//! description   u8 6, u32 length, JSON
//! ```
//!
//! The bodies have no length, and need none: they are kept as they are. The sections end where the end and the description fill
//! the rest exactly. The description lists the sections, which is compared with their heads and footers.

use serde::Deserialize;

use super::PAGE_BYTES;
use super::error::{StreamError, Unsupported, device_state_too_large};
use super::wire::{RAM_SECTION, is_graphic, part};
use crate::json;
use crate::limits::{DEVICE_STATE_BYTES_MAX, DEVICES_MAX, VM_DESCRIPTION_BYTES_MAX};
use crate::name::printable;

/// Bytes between the sections and the description.
const END_BYTES: usize = 6;
/// Bytes of a section's footer.
const FOOTER_BYTES: usize = 5;

/// The device state of a saved VM.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceState {
    bytes: Vec<u8>,
    /// Bytes of the sections, with which `bytes` begins.
    sections_bytes: usize,
    devices: Vec<Device>,
}

/// What a section of the device state is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// QEMU's name, which has the device's place in it: `0000:00:02.0/vga`, `cpu`, `timer`.
    pub name: String,
    /// Which one of several that have this name.
    pub instance: u32,
    /// The version of the section's layout.
    pub version: u32,
}

/// The description, as far as it is read: what each section holds is QEMU's business.
#[derive(Deserialize)]
struct Description {
    #[serde(default)]
    page_size: Option<u64>,
    devices: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    instance_id: u32,
}

impl DeviceState {
    /// Reads all that follows guest RAM in a stream; also the form in which it is stored.
    ///
    /// # Errors
    /// [`StreamError`] when the bytes do not end in a description, or in one that is not of what is before it.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, StreamError> {
        if bytes.len() as u64 > DEVICE_STATE_BYTES_MAX {
            return Err(device_state_too_large(bytes.len() as u64));
        }
        let (sections, description) = split(&bytes)?;
        let devices = check_sections(sections, &described(description)?)?;
        let sections_bytes = sections.len();
        Ok(Self { bytes, sections_bytes, devices })
    }

    /// All of it, as it was saved.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sections alone: what a target loads.
    #[must_use]
    pub fn sections(&self) -> &[u8] {
        self.bytes.get(..self.sections_bytes).unwrap_or_default()
    }

    /// The description: JSON of QEMU's own, for people and tools.
    #[must_use]
    pub fn description(&self) -> &[u8] {
        self.bytes.get(self.sections_bytes + END_BYTES..).unwrap_or_default()
    }

    /// Whose sections there are, in their order: what a resuming VM must have.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }
}

impl std::fmt::Debug for DeviceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, devices) = (self.bytes.len(), &self.devices);
        f.debug_struct("DeviceState").field("bytes", &bytes).field("devices", devices).finish_non_exhaustive()
    }
}

/// Finds where the sections end. From behind, because JSON has no byte 0 and so the first place that fits is the right one.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), StreamError> {
    let last = bytes.len().saturating_sub(END_BYTES);
    let first = last.saturating_sub(VM_DESCRIPTION_BYTES_MAX);
    for place in (first..=last).rev() {
        let Some((sections, end)) = bytes.split_at_checked(place) else { break };
        if let [part::EOF, part::DESCRIPTION, a, b, c, d, description @ ..] = end
            && u32::from_be_bytes([*a, *b, *c, *d]) as usize == description.len()
        {
            return Ok((sections, description));
        }
    }
    match bytes {
        [] => Err(StreamError::DeviceState("there is none".to_owned())),
        [.., part::FOOTER, _, _, _, _, part::EOF] => Err(Unsupported::NoDescription.into()),
        _ => Err(StreamError::DeviceState("it does not end in a description of the VM".to_owned())),
    }
}

fn described(description: &[u8]) -> Result<Vec<Described>, StreamError> {
    let damaged = |why| StreamError::DeviceState(format!("the description of the VM: {why}"));
    let Description { page_size, devices } = json::from_slice(description).map_err(damaged)?;
    if page_size.is_some_and(|bytes| bytes != PAGE_BYTES as u64) {
        return Err(damaged("its page_size is not that of x86".to_owned()));
    }
    if devices.len() > DEVICES_MAX {
        let (value, max) = (devices.len() as u64, DEVICES_MAX as u64);
        return Err(StreamError::TooLarge { what: "a number of devices", value, max });
    }
    Ok(devices)
}

/// Compares the sections with what the description says they are, in the same order. What is looked for is a footer with the
/// number of the section before, and the head of the next one.
fn check_sections(sections: &[u8], described: &[Described]) -> Result<Vec<Device>, StreamError> {
    let mut left = sections;
    let mut devices = Vec::with_capacity(described.len());
    let mut number: Option<[u8; 4]> = None;
    for device in described {
        if device.name == RAM_SECTION {
            return Err(StreamError::DeviceState("it has a section of RAM, which is stored apart from it".to_owned()));
        }
        let (found, version, behind) = match number {
            None => head(left, device),
            Some(number) => ends(left, number).find_map(|behind| head(behind, device)),
        }
        .ok_or_else(|| missing(device))?;
        number = Some(found);
        left = behind;
        devices.push(Device { name: device.name.clone(), instance: device.instance_id, version });
    }
    let whole = match number {
        None => left.is_empty(),
        Some(number) => left.ends_with(&footer(number)),
    };
    match whole {
        true => Ok(devices),
        false => Err(StreamError::DeviceState("its last section does not end as it should".to_owned())),
    }
}

/// The number and the version in the head of a device's section, if the bytes begin with it, and what is behind it.
fn head<'a>(bytes: &'a [u8], device: &Described) -> Option<([u8; 4], u32, &'a [u8])> {
    let [part::SECTION_FULL, a, b, c, d, length, rest @ ..] = bytes else { return None };
    let name = device.name.as_bytes();
    if !is_graphic(name) || usize::from(*length) != name.len() {
        return None;
    }
    let rest = rest.strip_prefix(name)?.strip_prefix(&device.instance_id.to_be_bytes())?;
    let (version, rest) = rest.split_first_chunk()?;
    Some(([*a, *b, *c, *d], u32::from_be_bytes(*version), rest))
}

/// What is behind each footer with this number, or what looks like one.
fn ends(bytes: &[u8], number: [u8; 4]) -> impl Iterator<Item = &[u8]> {
    let looks = bytes.windows(FOOTER_BYTES).enumerate().filter(move |(_, window)| *window == footer(number));
    looks.filter_map(move |(place, _)| bytes.get(place + FOOTER_BYTES..))
}

fn footer([a, b, c, d]: [u8; 4]) -> [u8; FOOTER_BYTES] {
    [part::FOOTER, a, b, c, d]
}

fn missing(device: &Described) -> StreamError {
    let what = format!("its description lists {:?}, which has no section in its place", printable(&device.name));
    StreamError::DeviceState(what)
}
