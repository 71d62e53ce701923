//! Pages that nobody has asked for: first those that are known to be needed, as they arrive, then all the rest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::migration::PageRange;

use super::Shared;
use crate::resume::limits::{BRING_BYTES, BRINGS_MAX, ORDER_LOOK, ORDER_STALL_MAX, PUSH_BYTES, PUSH_BYTES_PER_S};
use crate::resume::saved::Pages;
use crate::resume::{Error, Saved};

/// The task that reads them, a piece or two ahead of who sends them.
pub(super) struct Background {
    pieces: mpsc::Receiver<Result<Pages, Error>>,
    _task: AbortOnDropHandle<()>,
}

impl Background {
    pub(super) fn start(saved: Arc<Saved>, missing: Shared, order: Vec<PageRange>) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut work = Work { saved, missing, pieces: sender.clone(), next: Instant::now() };
            let done = async {
                work.push_order(order).await?;
                work.push_rest().await
            };
            if let Err(error) = done.await {
                // Without a source nobody need know.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self { pieces, _task: AbortOnDropHandle::new(task) }
    }

    /// The next pages; waits for ever when there are no more.
    pub(super) async fn next(&mut self) -> Result<Pages, Error> {
        match self.pieces.recv().await {
            Some(pages) => pages,
            None => std::future::pending().await,
        }
    }
}

struct Work {
    saved: Arc<Saved>,
    missing: Shared,
    pieces: mpsc::Sender<Result<Pages, Error>>,
    /// When the next piece may go, so that the guest has the processor in between.
    next: Instant,
}

impl Work {
    /// Pushes what is known to be needed as the server brings it, in the same sequence; it does so by itself. What does not come
    /// for a while is left to the guest's requests, and to the rest.
    async fn push_order(&mut self, order: Vec<PageRange>) -> Result<(), Error> {
        let mut last_here = Instant::now();
        for range in order {
            while !self.is_here(range).await? {
                if last_here.elapsed() > ORDER_STALL_MAX {
                    return Ok(());
                }
                sleep(ORDER_LOOK).await;
            }
            last_here = Instant::now();
            self.push(range).await?;
        }
        Ok(())
    }

    /// Whether pages are on this host, or need not be.
    async fn is_here(&self, range: PageRange) -> Result<bool, Error> {
        if self.missing.lock().first_in(range).is_none() {
            return Ok(true);
        }
        Ok(self.saved.residency(range).await?.iter().all(|run| run.is_here))
    }

    /// Has all that is missing brought, several pieces at once, and pushes it.
    async fn push_rest(&mut self) -> Result<(), Error> {
        let mut under_way = VecDeque::new();
        let pieces: Vec<_> = self.pieces_of_ram().collect();
        for range in pieces {
            if under_way.len() >= BRINGS_MAX {
                self.push_brought(&mut under_way).await?;
            }
            let (saved, missing) = (Arc::clone(&self.saved), self.missing.clone());
            let bring = async move {
                let is_wanted = missing.lock().first_in(range).is_some();
                if is_wanted { saved.bring(range).await } else { Ok(()) }
            };
            under_way.push_back((range, AbortOnDropHandle::new(tokio::spawn(bring))));
        }
        while !under_way.is_empty() {
            self.push_brought(&mut under_way).await?;
        }
        Ok(())
    }

    async fn push_brought(
        &mut self,
        under_way: &mut VecDeque<(PageRange, AbortOnDropHandle<Result<(), Error>>)>,
    ) -> Result<(), Error> {
        let Some((range, brought)) = under_way.pop_front() else { return Ok(()) };
        brought.await.map_err(|_| Error::Task)??;
        self.push(range).await
    }

    fn pieces_of_ram(&self) -> impl Iterator<Item = PageRange> + use<> {
        let sizes: Vec<_> = self.saved.blocks.iter().map(|block| block.size_bytes).collect();
        sizes.into_iter().enumerate().flat_map(|(block, size_bytes)| {
            (0..size_bytes).step_by(BRING_BYTES as usize).map(move |start_bytes| {
                let length_bytes = BRING_BYTES.min(size_bytes - start_bytes);
                PageRange { block, start_bytes, length_bytes }
            })
        })
    }

    /// Hands the missing pages of a range over.
    async fn push(&mut self, mut range: PageRange) -> Result<(), Error> {
        loop {
            let Some(found) = self.missing.lock().first_in(range) else { return Ok(()) };
            let length_bytes = found.length_bytes.min(PUSH_BYTES);
            let pages = self.saved.read(PageRange { length_bytes, ..found }).await?;
            sleep_until(self.next).await;
            let nanos = length_bytes.saturating_mul(1_000_000_000) / PUSH_BYTES_PER_S;
            self.next = self.next.max(Instant::now()) + Duration::from_nanos(nanos);
            if self.pieces.send(Ok(pages)).await.is_err() {
                return Ok(());
            }
            let stop = found.start_bytes + length_bytes;
            range =
                PageRange { start_bytes: stop, length_bytes: range.start_bytes + range.length_bytes - stop, ..range };
        }
    }
}
