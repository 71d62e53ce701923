//! VMs that never ran, and the streams of them.

use std::collections::BTreeMap;
use std::io::Read;

use crate::migration::{
    Block, Configuration, DeviceState, PAGE_BYTES, Page, PageAt, Precopy, StreamError, StreamReader, StreamWriter,
};

pub(super) const PAGE: u64 = PAGE_BYTES as u64;

/// All that a stream says, with the last that it says of each page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vm {
    pub(super) configuration: Configuration,
    pub(super) blocks: Vec<Block>,
    /// `None` for pages sent as zeros.
    pub(super) pages: BTreeMap<PageAt, Option<Bytes>>,
    pub(super) device_state: DeviceState,
}

/// A page's bytes, which nobody wants to see when a test fails.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bytes(Box<[u8; PAGE_BYTES]>);

impl Bytes {
    pub(super) fn filled(byte: u8) -> Self {
        Self(Box::new([byte; PAGE_BYTES]))
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", crate::Digest::of(&self.0[..]))
    }
}

pub(super) const fn at(block: usize, page: u64) -> PageAt {
    PageAt { block, offset_bytes: page * PAGE }
}

impl Vm {
    /// A VM of a few pages and devices.
    pub(super) fn small() -> Self {
        let blocks =
            vec![Block::new("pc.ram", 5 * PAGE), Block::new("pc.bios", PAGE), Block::new("vga.vram", 2 * PAGE)];
        let filled = |byte| Some(Bytes::filled(byte));
        let pages =
            [(at(0, 0), filled(1)), (at(0, 1), None), (at(0, 4), filled(2)), (at(1, 0), filled(3)), (at(2, 1), None)];
        Self {
            configuration: Configuration::new("pc-i440fx-7.2"),
            blocks,
            pages: pages.into_iter().collect(),
            device_state: DeviceState::decode(tail(&DEVICES)).unwrap(),
        }
    }

    pub(super) fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = StreamWriter::<Precopy>::start(&self.configuration, self.blocks.clone(), &mut out).unwrap();
        for (number, (at, bytes)) in self.pages.iter().enumerate() {
            match bytes {
                Some(Bytes(bytes)) => writer.page(*at, bytes, &mut out).unwrap(),
                None => writer.zero_page(*at, &mut out).unwrap(),
            }
            if number % 3 == 2 {
                writer.end_section(&mut out);
            }
        }
        writer.finish(&self.device_state, &mut out);
        out
    }

    pub(super) fn read(source: impl Read) -> Result<Self, StreamError> {
        let mut reader = StreamReader::new(source)?;
        let mut pages = BTreeMap::new();
        while let Some(page) = reader.next_page()? {
            match page {
                Page::Zero(at) => pages.insert(at, None),
                Page::Data(at, bytes) => pages.insert(at, Some(Bytes(Box::new(*bytes)))),
            };
        }
        let (configuration, blocks) = (reader.configuration().clone(), reader.blocks().to_vec());
        Ok(Self { configuration, blocks, pages, device_state: reader.finish()? })
    }

    /// The error of a stream that cannot be read.
    pub(super) fn refused(stream: &[u8]) -> StreamError {
        Self::read(stream).expect_err("such a stream is not read")
    }
}

/// A section: name, instance, version, body.
pub(super) type Section<'a> = (&'a str, u32, u32, &'a [u8]);

pub(super) const DEVICES: [Section<'_>; 3] =
    [("timer", 0, 2, b"ticks"), ("cpu", 0, 12, b"\0\x06\0\0\0\x01{\x7e"), ("0000:00:02.0/vga", 0, 2, b"")];

/// Device sections as QEMU writes them, without what follows.
pub(super) fn sections(sections: &[Section<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for ((name, instance, version, body), number) in sections.iter().zip(7_u32..) {
        out.push(4);
        out.extend(number.to_be_bytes());
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
        out.extend(instance.to_be_bytes());
        out.extend(version.to_be_bytes());
        out.extend(*body);
        out.push(0x7e);
        out.extend(number.to_be_bytes());
    }
    out
}

/// A description that lists such sections.
pub(super) fn description(sections: &[Section<'_>]) -> String {
    let device = |(name, instance, version, _): &Section<'_>| {
        format!(r#"{{"name":"{name}","instance_id":{instance},"vmsd_name":"x","version":{version},"fields":[]}}"#)
    };
    let devices: Vec<String> = sections.iter().map(device).collect();
    format!(r#"{{"page_size":4096,"devices":[{}]}}"#, devices.join(","))
}

/// Sections and a description, put together as at a stream's end.
pub(super) fn ended(mut sections: Vec<u8>, description: &str) -> Vec<u8> {
    sections.extend([0, 6]);
    sections.extend((description.len() as u32).to_be_bytes());
    sections.extend(description.as_bytes());
    sections
}

/// All that follows RAM in the stream of a VM with these devices.
pub(super) fn tail(of: &[Section<'_>]) -> Vec<u8> {
    ended(sections(of), &description(of))
}

/// A source that answers with as few bytes as may be, and is interrupted in between.
pub(super) struct Slow<'a>(pub(super) &'a [u8], pub(super) bool);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = !self.1;
        match (self.1, self.0.split_first(), buffer) {
            (true, ..) => Err(std::io::ErrorKind::Interrupted.into()),
            (false, Some((first, rest)), [room, ..]) => {
                (*room, self.0) = (*first, rest);
                Ok(1)
            }
            _ => Ok(0),
        }
    }
}
