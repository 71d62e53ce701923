//! Pages that nobody has asked for: first those that are known to be needed, as they arrive, then all the rest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::migration::{PAGE_BYTES, PageRange};

use super::Shared;
use super::activity::Activity;
use super::source::read_here;
use crate::resume::limits::{
    BRING_SLOW, BRINGS_MAX, LACKING_PAUSE_MAX, LACKING_PAUSE_MIN, ORDER_LOOK, ORDER_STALL_MAX, PUSH_BYTES,
    PUSH_BYTES_PER_S, TIMER,
};
use crate::resume::saved::Pages;
use crate::resume::{Error, Saved};

/// The task that reads them, a piece or two ahead of who sends them.
pub(super) struct Background {
    pieces: mpsc::Receiver<Result<Pages, Error>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Background {
    /// One that reads nothing.
    pub(super) fn none() -> Self {
        Self { pieces: mpsc::channel(1).1, _task: None }
    }

    pub(super) fn start(saved: Arc<Saved>, missing: Shared, activity: Arc<Activity>) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut work = Work { saved, missing, activity, pieces: sender.clone(), next: Instant::now() };
            let done = async {
                work.push_order().await?;
                work.activity.order_is_done();
                work.push_rest().await
            };
            if let Err(error) = done.await {
                // Without a source nobody need know.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self { pieces, _task: Some(AbortOnDropHandle::new(task)) }
    }

    /// The next pages; waits for ever when there are no more.
    pub(super) async fn next(&mut self) -> Result<Pages, Error> {
        match self.pieces.recv().await {
            Some(pages) => pages,
            None => std::future::pending().await,
        }
    }
}

/// A piece that the server brings.
type Bringing = AbortOnDropHandle<Result<Brought, Error>>;

/// What came of a piece.
#[derive(Debug)]
struct Brought {
    /// Whether all of it can be had.
    is_whole: bool,
    /// How long it took to come.
    took: Duration,
}

struct Work {
    saved: Arc<Saved>,
    missing: Shared,
    activity: Arc<Activity>,
    pieces: mpsc::Sender<Result<Pages, Error>>,
    /// When the next piece may go, so that the guest has the processor in between.
    next: Instant,
}

impl Work {
    /// Pushes what is known to be needed as the server brings it, in the same sequence; it does so by itself. What does not come
    /// for a while is left to the guest's requests, and to the rest.
    async fn push_order(&mut self) -> Result<(), Error> {
        let (saved, mut last_here) = (Arc::clone(&self.saved), Instant::now());
        for &range in &saved.order {
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

    /// Pushes all that is missing. What of it is damaged or absent is tried again now and then: a repository may be repaired.
    async fn push_rest(&mut self) -> Result<(), Error> {
        let mut pause = LACKING_PAUSE_MIN;
        while !self.push_all().await? {
            if pause == LACKING_PAUSE_MIN {
                let kib = (self.missing.lock().pages() * PAGE_BYTES as u64) >> 10;
                tracing::warn!("up to {kib} KiB of the guest's memory cannot be had; it runs on until it needs them");
            }
            sleep(pause).await;
            pause = (pause * 2).min(LACKING_PAUSE_MAX);
        }
        Ok(())
    }

    /// Has all that is missing brought and pushes it; false if some of it cannot be had. So much is under way at once as comes
    /// within [`BRING_SLOW`]: what the guest asks for waits behind it on the line.
    async fn push_all(&mut self) -> Result<bool, Error> {
        let (mut under_way, mut at_once, mut is_whole) = (VecDeque::new(), 1, true);
        for range in self.saved.pieces() {
            if self.missing.lock().first_in(range).is_none() {
                continue;
            }
            while under_way.len() >= at_once {
                let brought = self.push_brought(&mut under_way).await?;
                at_once = if brought.took > BRING_SLOW { 1.max(at_once - 1) } else { BRINGS_MAX.min(at_once + 1) };
                is_whole &= brought.is_whole;
            }
            self.activity.quiet().await;
            let saved = Arc::clone(&self.saved);
            let bring = async move {
                let start = Instant::now();
                let is_whole = saved.bring(range).await?;
                Ok(Brought { is_whole, took: start.elapsed() })
            };
            under_way.push_back((range, AbortOnDropHandle::new(tokio::spawn(bring))));
        }
        while !under_way.is_empty() {
            is_whole &= self.push_brought(&mut under_way).await?.is_whole;
        }
        Ok(is_whole)
    }

    /// Pushes the piece that was asked for first, or what of it can be had.
    async fn push_brought(&mut self, under_way: &mut VecDeque<(PageRange, Bringing)>) -> Result<Brought, Error> {
        let Some((range, bringing)) = under_way.pop_front() else { return Err(Error::Task) };
        let mut brought = bringing.await.map_err(|_| Error::Task)??;
        if brought.is_whole {
            brought.is_whole = self.push(range).await?;
        } else {
            // The other chunks of the piece have come all the same.
            for pages in read_here(&self.saved, &self.missing, range).await? {
                self.hand_over(&pages).await?;
            }
        }
        Ok(brought)
    }

    /// Reads the missing pages of a range and hands them over; false if some of them cannot be had.
    async fn push(&mut self, range: PageRange) -> Result<bool, Error> {
        let wanted = self.missing.lock().reads_in(range);
        let mut is_whole = true;
        for range in wanted {
            match self.saved.read_ahead(range).await? {
                Some(pages) => self.hand_over(&pages).await?,
                None => is_whole = false,
            }
        }
        Ok(is_whole)
    }

    /// Hands pages over, in small parts, and not faster than the guest can bear.
    async fn hand_over(&mut self, pages: &Pages) -> Result<(), Error> {
        for (part, data_bytes) in pages.in_parts(PUSH_BYTES) {
            // Timers are coarse: what is not worth one is waited for together with the next.
            if self.next > Instant::now() + TIMER {
                sleep_until(self.next).await;
            }
            let nanos = data_bytes.saturating_mul(1_000_000_000) / PUSH_BYTES_PER_S;
            self.next = self.next.max(Instant::now()) + Duration::from_nanos(nanos);
            if self.pieces.send(Ok(part)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}
