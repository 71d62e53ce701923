//! Sending pages to a guest that runs: what it asks for first, then what lies beside that, then what comes from the background.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::net::unix::OwnedWriteHalf;
use tokio::task::JoinSet;
use vmnetx_format::migration::{PAGE_BYTES, PageAt, PageRange, PostcopyActive, ReturnMessage, StreamWriter};

use super::activity::Activity;
use super::background::Background;
use super::{Messages, Shared, write};
use crate::resume::limits::{AROUND_BYTES, AROUNDS_MAX, BESIDE_MAX, DEMANDS_MAX, NEIGHBOURHOOD_BYTES};
use crate::resume::saved::{Page, Pages};
use crate::resume::{Error, Fill, Progress, Saved};

/// The one who writes to QEMU.
pub(super) struct Source<'a> {
    saved: Arc<Saved>,
    missing: Shared,
    activity: Arc<Activity>,
    writer: StreamWriter<PostcopyActive>,
    channel: OwnedWriteHalf,
    out: Vec<u8>,
    /// Pages that are being read because the guest waits for them: QEMU may ask again.
    asked: HashSet<PageAt>,
    /// Reads of pages that were asked for.
    demanded: JoinSet<Result<Pages, Error>>,
    /// Reads of what lies beside such pages.
    beside: JoinSet<Result<Vec<Pages>, Error>>,
    /// The same of what is brought for that.
    around: JoinSet<Result<Vec<Pages>, Error>>,
    /// What has been brought so: blocks, and numbers of pieces of [`AROUND_BYTES`] in them.
    brought: HashSet<(usize, u64)>,
    progress: &'a Progress,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        saved: Arc<Saved>,
        missing: Shared,
        activity: Arc<Activity>,
        writer: StreamWriter<PostcopyActive>,
        channel: OwnedWriteHalf,
        progress: &'a Progress,
    ) -> Self {
        Self {
            saved,
            missing,
            activity,
            writer,
            channel,
            out: Vec::new(),
            asked: HashSet::new(),
            demanded: JoinSet::new(),
            beside: JoinSet::new(),
            around: JoinSet::new(),
            brought: HashSet::new(),
            progress,
        }
    }

    /// Sends until nothing is missing, and says so.
    pub(super) async fn run(mut self, messages: &mut Messages, mut background: Background) -> Result<(), Error> {
        while self.missing.lock().pages() > 0 {
            tokio::select! {
                biased;
                message = messages.recv(), if self.demanded.len() < DEMANDS_MAX => self.hear(message.ok_or(Error::Silent)??)?,
                Some(read) = self.demanded.join_next() => {
                    let pages = read.map_err(|_| Error::Task)??;
                    self.send(&pages).await?;
                    self.look_beside(pages.range());
                }
                Some(read) = self.beside.join_next() => {
                    for pages in read.map_err(|_| Error::Task)?? {
                        self.send(&pages).await?;
                    }
                }
                Some(read) = self.around.join_next() => {
                    for pages in read.map_err(|_| Error::Task)?? {
                        self.send(&pages).await?;
                    }
                }
                pages = background.next() => self.send(&pages?).await?,
            }
        }
        self.writer.finish(&mut self.out);
        write(&mut self.channel, &mut self.out).await
    }

    fn hear(&mut self, message: ReturnMessage) -> Result<(), Error> {
        match message {
            ReturnMessage::Pages(range) => {
                let missing = self.missing.lock().reads_in(range);
                missing.into_iter().for_each(|range| self.demand(range));
                Ok(())
            }
            ReturnMessage::Pong(_) => Ok(()),
            ReturnMessage::Shut(status) => Err(Error::Shut(status)),
        }
    }

    /// Reads pages that the guest waits for, unless they are being read.
    fn demand(&mut self, range: PageRange) {
        let is_new = pages_of(range).map(|at| self.asked.insert(at)).fold(false, |any, new| any | new);
        if is_new {
            self.activity.demand();
            let saved = Arc::clone(&self.saved);
            self.demanded.spawn(async move { saved.read(range).await });
            if self.activity.is_order_done() {
                self.bring_around(range);
            }
        }
    }

    /// Has what lies around these pages brought while they are read: a guest that nothing is recorded of mostly goes on
    /// near by, and each round trip that it does not wait for is worth some bytes.
    fn bring_around(&mut self, range: PageRange) {
        let piece = range.start_bytes / AROUND_BYTES;
        if self.around.len() >= AROUNDS_MAX || !self.brought.insert((range.block, piece)) {
            return;
        }
        let size_bytes = self.saved.blocks.get(range.block).map_or(0, |block| block.size_bytes);
        let start_bytes = piece * AROUND_BYTES;
        let length_bytes = AROUND_BYTES.min(size_bytes.saturating_sub(start_bytes));
        let around = PageRange { block: range.block, start_bytes, length_bytes };
        let (saved, missing) = (Arc::clone(&self.saved), self.missing.clone());
        self.around.spawn(async move {
            // What of it cannot be had, the guest may never ask for.
            saved.bring(around).await?;
            read_here(&saved, &missing, around).await
        });
    }

    /// What the chunk of these pages has brought besides goes along: the guest will mostly want it, too.
    fn look_beside(&mut self, range: PageRange) {
        if self.activity.fill() == Fill::OnDemand || self.beside.len() >= BESIDE_MAX {
            return;
        }
        let (saved, missing) = (Arc::clone(&self.saved), self.missing.clone());
        self.beside.spawn(async move { beside(&saved, &missing, range).await });
    }

    /// Sends those of these pages that were not sent.
    async fn send(&mut self, pages: &Pages) -> Result<(), Error> {
        let block = pages.range().block;
        for (offset_bytes, page) in pages.iter() {
            let at = PageAt { block, offset_bytes };
            if !self.missing.lock().take(at) {
                continue;
            }
            self.asked.remove(&at);
            self.progress.advance(PAGE_BYTES as u64);
            match page {
                Page::Zero => self.writer.zero_page(at, &mut self.out)?,
                Page::Data(bytes) => self.writer.page(at, bytes, &mut self.out)?,
            }
        }
        self.writer.end_section(&mut self.out);
        write(&mut self.channel, &mut self.out).await
    }
}

/// The pages around a range that are on this host and were not sent.
async fn beside(saved: &Saved, missing: &Shared, range: PageRange) -> Result<Vec<Pages>, Error> {
    let PageRange { block, start_bytes, length_bytes } = range;
    let size_bytes = saved.blocks.get(block).map_or(0, |block| block.size_bytes);
    let start = start_bytes.saturating_sub(NEIGHBOURHOOD_BYTES);
    let end = (start_bytes + length_bytes + NEIGHBOURHOOD_BYTES).min(size_bytes);
    let around = PageRange { block, start_bytes: start, length_bytes: end.saturating_sub(start) };
    if missing.lock().first_in(around).is_none() {
        return Ok(Vec::new());
    }
    read_here(saved, missing, around).await
}

/// Those of these pages that are on this host and were not sent.
pub(super) async fn read_here(saved: &Saved, missing: &Shared, range: PageRange) -> Result<Vec<Pages>, Error> {
    let mut read = Vec::new();
    for run in saved.residency(range).await?.into_iter().filter(|run| run.is_here) {
        let here = PageRange { start_bytes: run.start_bytes, length_bytes: run.length_bytes, ..range };
        read.extend(read_missing(saved, missing, here).await?);
    }
    Ok(read)
}

/// Those of these pages that were not sent and can be had.
async fn read_missing(saved: &Saved, missing: &Shared, range: PageRange) -> Result<Vec<Pages>, Error> {
    let wanted = missing.lock().reads_in(range);
    let mut read = Vec::new();
    for range in wanted {
        read.extend(saved.read_ahead(range).await?);
    }
    Ok(read)
}

fn pages_of(PageRange { block, start_bytes, length_bytes }: PageRange) -> impl Iterator<Item = PageAt> {
    let offsets = (start_bytes..start_bytes + length_bytes).step_by(PAGE_BYTES);
    offsets.map(move |offset_bytes| PageAt { block, offset_bytes })
}
