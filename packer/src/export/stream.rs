//! Exports a saved VM as the migration stream that a QEMU of the same machine goes on from (`-incoming`).

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use vmnetx_format::migration::{Block, Configuration, DeviceState, PAGE_BYTES, PageAt, Precopy, StreamWriter};
use vmnetx_format::{DEVICE_STATE_IMAGE, MAIN_RAM_BLOCK, ram_image_name};
use vmnetx_store::{Image, Package, Piece};

use super::remote::read_all;
use super::target::Target;
use super::{ExportOptions, ExportReport, STREAM, no_such_disk};
use crate::limits::{REMOTE_READS, STREAM_SECTION_BYTES};
use crate::remote::open;
use crate::{Error, Progress};

/// Exports the saved VM of a package through the store, wherever it is published.
pub(super) fn export(options: &ExportOptions, target: Target, progress: &dyn Progress) -> Result<ExportReport, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let package = open(&runtime, &options.reader.once_store()?, &options.link, progress)?;
    let manifest = package.manifest();
    let memory = manifest.memory.as_ref().ok_or_else(|| no_such_disk(manifest, options))?;
    let image = |name: &str| package.image(name).map(Arc::clone).ok_or(Error::Stopped);
    let device_state = runtime.block_on(whole(&image(DEVICE_STATE_IMAGE)?))?;
    let device_state = DeviceState::decode(device_state)
        .map_err(|source| Error::SavedVm { link: options.link.to_string(), source })?;
    let blocks: Vec<_> = memory.blocks.iter().map(|block| Block::new(&block.name, block.size_bytes)).collect();
    progress.total(blocks.iter().map(|block| block.size_bytes).sum());

    let mut out = Vec::with_capacity(2 * STREAM_SECTION_BYTES);
    let configuration = Configuration::new(manifest.machine.machine.to_string());
    let writer = StreamWriter::<Precopy>::start(&configuration, blocks.clone(), &mut out)?;
    let mut stream = Stream { writer, out, target, at: 0, data_bytes: 0, progress };
    for (number, block) in blocks.iter().enumerate() {
        stream.block(&runtime, number, block, image(&ram_image_name(&block.name))?)?;
    }
    stream.finish(&device_state, &package)
}

/// All of a small image.
async fn whole(image: &Arc<Image>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for piece in image.read(0, image.size_bytes()).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
    }
    Ok(bytes)
}

/// A stream that is being written.
struct Stream<'a> {
    writer: StreamWriter<Precopy>,
    /// What is not yet in the target.
    out: Vec<u8>,
    target: Target,
    /// Bytes that are in the target.
    at: u64,
    data_bytes: u64,
    progress: &'a dyn Progress,
}

impl Stream<'_> {
    /// Writes a block of RAM.
    fn block(&mut self, runtime: &Runtime, number: usize, block: &Block, image: Arc<Image>) -> Result<(), Error> {
        let (sender, mut reads) = mpsc::channel(REMOTE_READS);
        let reading = runtime.spawn(read_all(image, sender));
        let mut done = 0;
        while let Some((offset, pieces)) = reads.blocking_recv() {
            self.zeros(number, block, done..offset)?;
            done = offset;
            for piece in pieces {
                let end = done + piece.len();
                match piece {
                    Piece::Data(data) => self.data(number, done, &data)?,
                    Piece::Zeros(_) => self.zeros(number, block, done..end)?,
                }
                done = end;
            }
        }
        runtime.block_on(reading).unwrap_or(Err(Error::Stopped))?;
        self.zeros(number, block, done..block.size_bytes)
    }

    fn data(&mut self, block: usize, start: u64, data: &[u8]) -> Result<(), Error> {
        for (page, offset_bytes) in data.as_chunks::<PAGE_BYTES>().0.iter().zip((start..).step_by(PAGE_BYTES)) {
            self.writer.page(PageAt { block, offset_bytes }, page, &mut self.out)?;
            self.flush_if_full()?;
        }
        self.data_bytes += data.len() as u64;
        self.progress.advance(data.len() as u64);
        Ok(())
    }

    fn zeros(&mut self, number: usize, block: &Block, range: std::ops::Range<u64>) -> Result<(), Error> {
        self.progress.advance(range.end - range.start);
        // A QEMU that has just started has zeros in its main memory, but not where it keeps firmware.
        if block.name == MAIN_RAM_BLOCK {
            return Ok(());
        }
        for offset_bytes in range.step_by(PAGE_BYTES) {
            self.writer.zero_page(PageAt { block: number, offset_bytes }, &mut self.out)?;
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), Error> {
        if self.out.len() < STREAM_SECTION_BYTES {
            return Ok(());
        }
        self.writer.end_section(&mut self.out);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        match &mut self.target {
            Target::File(file) => file.write_at(&self.out, self.at)?,
            Target::Stdout(stdout) => stdout.write(&self.out)?,
        }
        self.at += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    fn finish(mut self, device_state: &DeviceState, package: &Package) -> Result<ExportReport, Error> {
        let mut last = std::mem::take(&mut self.out);
        self.writer.finish(device_state, &mut last);
        match self.target {
            Target::File(file) => {
                file.write_at(&last, self.at)?;
                file.finish()?;
            }
            Target::Stdout(mut stdout) => stdout.write(&last)?,
        }
        Ok(ExportReport {
            version: package.version().manifest,
            disk: STREAM.to_owned(),
            size_bytes: self.at + last.len() as u64,
            data_bytes: self.data_bytes,
        })
    }
}
