//! The mode `stream`: all of the saved VM goes through the channel before the guest runs, in order, as it comes from the server.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::MAIN_RAM_BLOCK;
use vmnetx_format::migration::{Configuration, PageAt, PageRange, Precopy, StreamWriter};

use super::limits::{SECTION_BYTES, STREAM_READS_MAX};
use super::saved::{Page, Pages};
use super::{Error, Progress, Saved};

/// Where a guest's main memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainRam {
    /// The stream.
    Sent,
    /// A mapping that QEMU has of it: the stream is of all other RAM.
    Mapped,
}

/// Writes a saved VM to QEMU's incoming migration, or to libvirt's restore behind a head of its own. Of its RAM,
/// a fixed number of reads is in memory at most, however slowly the channel takes them.
///
/// # Errors
/// [`Error`] when the saved VM cannot be read, or the channel fails.
pub async fn send(
    saved: &Arc<Saved>,
    channel: impl AsyncWrite + Unpin,
    main: MainRam,
    progress: &Progress,
) -> Result<(), Error> {
    let mut sending = Sending { channel, out: Vec::with_capacity(2 * SECTION_BYTES) };
    let Configuration { machine, .. } = &saved.configuration;
    let mut writer =
        StreamWriter::<Precopy>::start(&Configuration::new(machine), saved.blocks.clone(), &mut sending.out)?;
    let is_main = |block: usize| saved.blocks.get(block).is_some_and(|block| block.name == MAIN_RAM_BLOCK);
    let mut ranges = saved.pieces();
    ranges.retain(|range| main == MainRam::Sent || !is_main(range.block));
    progress.begin(ranges.iter().map(|range| range.length_bytes).sum());
    let mut reads = Reads { saved, ranges: ranges.into_iter(), under_way: VecDeque::new() };
    while let Some(pages) = reads.next().await? {
        let PageRange { block, length_bytes, .. } = pages.range();
        for (offset_bytes, page) in pages.iter() {
            let at = PageAt { block, offset_bytes };
            match page {
                // QEMU has zeros there by itself.
                Page::Zero if is_main(block) => {}
                Page::Zero => writer.zero_page(at, &mut sending.out)?,
                Page::Data(bytes) => writer.page(at, bytes, &mut sending.out)?,
            }
        }
        if sending.out.len() >= SECTION_BYTES {
            writer.end_section(&mut sending.out);
            sending.flush().await?;
        }
        progress.advance(length_bytes);
    }
    writer.finish(&saved.device_state, &mut sending.out);
    sending.flush().await?;
    sending.channel.shutdown().await.map_err(Error::Channel)
}

/// What is on its way to the channel.
struct Sending<W> {
    channel: W,
    out: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Sending<W> {
    async fn flush(&mut self) -> Result<(), Error> {
        self.channel.write_all(&self.out).await.map_err(Error::Channel)?;
        self.out.clear();
        Ok(())
    }
}

/// Reads of all RAM, a few at once, whose results come in order.
struct Reads<'a, R> {
    saved: &'a Arc<Saved>,
    ranges: R,
    under_way: VecDeque<AbortOnDropHandle<Result<Pages, Error>>>,
}

impl<R: Iterator<Item = PageRange>> Reads<'_, R> {
    async fn next(&mut self) -> Result<Option<Pages>, Error> {
        while self.under_way.len() < STREAM_READS_MAX
            && let Some(range) = self.ranges.next()
        {
            let saved = Arc::clone(self.saved);
            self.under_way.push_back(AbortOnDropHandle::new(tokio::spawn(async move { saved.read(range).await })));
        }
        match self.under_way.pop_front() {
            Some(read) => read.await.map_err(|_| Error::Task)?.map(Some),
            None => Ok(None),
        }
    }
}
