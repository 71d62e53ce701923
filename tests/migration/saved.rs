//! A guest that was saved: what the codec makes of its stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmnetx_format::migration::{
    Block, Configuration, DeviceState, PAGE_BYTES, Page, PageAt, Precopy, StreamError, StreamReader, StreamWriter,
};

pub(crate) struct Saved {
    pub(crate) configuration: Configuration,
    pub(crate) blocks: Vec<Block>,
    /// What was said last of each page; `None` if it is zeros.
    pub(crate) pages: BTreeMap<PageAt, Option<Box<[u8; PAGE_BYTES]>>>,
    pub(crate) device_state: DeviceState,
}

impl Saved {
    pub(crate) fn read(stream: impl Read) -> Result<Self, StreamError> {
        let mut reader = StreamReader::new(stream)?;
        let mut pages = BTreeMap::new();
        while let Some(page) = reader.next_page()? {
            match page {
                Page::Zero(at) => pages.insert(at, None),
                Page::Data(at, bytes) => pages.insert(at, Some(Box::new(*bytes))),
            };
        }
        let (configuration, blocks) = (reader.configuration().clone(), reader.blocks().to_vec());
        Ok(Self { configuration, blocks, pages, device_state: reader.finish()? })
    }

    /// The position of the block that is the guest's main memory.
    pub(crate) fn main_block(&self) -> usize {
        self.blocks.iter().position(|block| block.name == "pc.ram").unwrap()
    }

    /// Pages of all blocks.
    pub(crate) fn page_count(&self) -> usize {
        self.blocks.iter().map(|block| block.size_bytes as usize / PAGE_BYTES).sum()
    }

    /// The stream again, with the pages of these blocks.
    pub(crate) fn write(&self, configuration: &Configuration, of: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = StreamWriter::<Precopy>::start(configuration, self.blocks.clone(), &mut out).unwrap();
        for (number, at) in self.pages.keys().filter(|at| of(at.block)).enumerate() {
            self.put(&mut writer, *at, &mut out);
            if number % 1000 == 999 {
                writer.end_section(&mut out);
            }
        }
        writer.finish(&self.device_state, &mut out);
        out
    }

    /// Appends a page to a stream of any kind.
    pub(crate) fn put<Phase>(&self, writer: &mut StreamWriter<Phase>, at: PageAt, out: &mut Vec<u8>) {
        match &self.pages[&at] {
            Some(bytes) => writer.page(at, bytes, out).unwrap(),
            None => writer.zero_page(at, out).unwrap(),
        }
    }

    /// Writes a block as a sparse file.
    pub(crate) fn write_ram(&self, block: usize, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.blocks[block].size_bytes).unwrap();
        for (at, bytes) in self.pages.iter().filter(|(at, _)| at.block == block) {
            if let Some(bytes) = bytes {
                file.write_all_at(&bytes[..], at.offset_bytes).unwrap();
            }
        }
    }
}
