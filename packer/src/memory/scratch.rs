//! A file that an image is put together in before it is packed: nobody else sees it, and a crash leaves nothing of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vmnetx_format::is_zero;
use vmnetx_format::migration::PAGE_BYTES;
use vmnetx_store::dir::Publisher;

use crate::Error;
use crate::disk::{RawDisk, Source};

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 1 << 20;

/// A file of a fixed size, all of it zero at first.
#[derive(Debug)]
pub(super) struct Scratch {
    file: File,
    /// A bit for each page: whether there are bytes in the file for it.
    written: Vec<u64>,
    /// Bytes that are not written yet, and where they begin.
    gathered: Vec<u8>,
    start_bytes: u64,
}

impl Scratch {
    pub(super) fn create(publisher: &Publisher, size_bytes: u64) -> Result<Self, Error> {
        let file = publisher.scratch()?;
        file.set_len(size_bytes).map_err(failed)?;
        let words = size_bytes.div_ceil(PAGE_BYTES as u64).div_ceil(u64::BITS.into());
        Ok(Self { file, written: vec![0; words as usize], gathered: Vec::new(), start_bytes: 0 })
    }

    /// Puts a page somewhere, or all that there is to be; what is zero and was zero costs nothing.
    pub(super) fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), Error> {
        if !self.is_written(offset_bytes) && is_zero(bytes) {
            return Ok(());
        }
        let next = self.start_bytes + self.gathered.len() as u64;
        if offset_bytes != next || self.gathered.len() >= GATHERED_BYTES {
            self.flush()?;
            self.start_bytes = offset_bytes;
        }
        self.gathered.extend(bytes);
        self.mark(offset_bytes);
        Ok(())
    }

    /// Makes a page zero.
    pub(super) fn zero(&mut self, offset_bytes: u64) -> Result<(), Error> {
        self.write(offset_bytes, &[0; PAGE_BYTES])
    }

    /// Bytes of the pages that were written.
    pub(super) fn data_bytes(&self) -> u64 {
        self.written.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * PAGE_BYTES as u64
    }

    /// The file as something to be packed; `path` is what it is called where it is told of.
    pub(super) fn into_source(mut self, path: PathBuf) -> Result<Box<dyn Source>, Error> {
        self.flush()?;
        Ok(Box::new(RawDisk::of(self.file, path)?))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.write_all_at(&self.gathered, self.start_bytes).map_err(failed)?;
        self.gathered.clear();
        Ok(())
    }

    fn is_written(&self, offset_bytes: u64) -> bool {
        let (word, bit) = place(offset_bytes);
        self.written.get(word).is_some_and(|word| word & bit != 0)
    }

    fn mark(&mut self, offset_bytes: u64) {
        let (word, bit) = place(offset_bytes);
        if let Some(word) = self.written.get_mut(word) {
            *word |= bit;
        }
    }
}

fn place(offset_bytes: u64) -> (usize, u64) {
    let page = offset_bytes / PAGE_BYTES as u64;
    ((page / u64::from(u64::BITS)) as usize, 1 << (page % u64::from(u64::BITS)))
}

fn failed(source: std::io::Error) -> Error {
    Error::Scratch(source)
}
