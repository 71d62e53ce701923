//! The last tier: frames come out of the origin's packs, by as few range requests as will do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmnetx_format::Digest;

use super::job::Job;
use super::ranges::coalesce;
use super::slots::Slots;
use super::{Mirrors, Origin};
use crate::tier::{Arrivals, Tier, Wanted, Why};

/// Fetches frames from an origin, or from the mirrors of one.
#[derive(Debug)]
pub struct OriginTier(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) mirrors: Arc<Mirrors>,
    pub(super) retry_for: Duration,
    pub(super) slots: Arc<Slots>,
    pub(super) tally: Tally,
}

/// Counts as things happen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) damaged_frames: AtomicU64,
    /// Bytes of packs by [`Why`].
    bytes: [AtomicU64; 4],
}

/// What an origin was asked for and gave, at one moment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginCounts {
    /// Range requests that were sent, repetitions and hedges included.
    pub requests: u64,
    /// Requests among them that repeat what failed.
    pub retries: u64,
    /// Requests among them that went out because another one was late.
    pub hedges: u64,
    /// Hedges that were answered first.
    pub hedges_won: u64,
    /// Frames that arrived damaged.
    pub damaged_frames: u64,
    /// Bytes of packs that arrived because a reader waited.
    pub demand_bytes: u64,
    /// Bytes of packs that arrived because of an order.
    pub order_bytes: u64,
    /// Bytes of packs that arrived by read-ahead's own requests; what came along with a demand is demand.
    pub read_ahead_bytes: u64,
    /// Bytes of packs that arrived for the background.
    pub background_bytes: u64,
}

impl OriginTier {
    /// Wraps an origin; a fetch that fails for want of a network is tried again for `retry_for`.
    #[must_use]
    pub fn new(origin: Arc<dyn Origin>, retry_for: Duration) -> Self {
        Self::over(Arc::new(Mirrors::new(origin, [])), retry_for, None)
    }

    /// Wraps mirrors; fetches for the background take at most `background_bytes_per_s`, if that is given.
    #[must_use]
    pub fn over(mirrors: Arc<Mirrors>, retry_for: Duration, background_bytes_per_s: Option<u64>) -> Self {
        let slots = Slots::new(background_bytes_per_s);
        Self(Arc::new(Inner { mirrors, retry_for, slots, tally: Tally::default() }))
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> OriginCounts {
        let tally = &self.0.tally;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [demand_bytes, order_bytes, read_ahead_bytes, background_bytes] = tally.bytes.each_ref().map(load);
        OriginCounts {
            requests: load(&tally.requests),
            retries: load(&tally.retries),
            hedges: load(&tally.hedges),
            hedges_won: load(&tally.hedges_won),
            damaged_frames: load(&tally.damaged_frames),
            demand_bytes,
            order_bytes,
            read_ahead_bytes,
            background_bytes,
        }
    }

    /// Range requests that were sent.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counts().requests
    }

    /// Bytes of packs that arrived.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.tally.bytes.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

impl Tally {
    pub(super) fn add(&self, why: Why, bytes: usize) {
        let [demand, order, read_ahead, background] = &self.bytes;
        let counter = match why {
            Why::Demand => demand,
            Why::Order => order,
            Why::ReadAhead => read_ahead,
            Why::Background => background,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Tier for OriginTier {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let requests = coalesce(&wanted, (0..wanted.len()).collect());
        let wanted: Arc<[Wanted]> = wanted.into();
        for request in requests {
            tokio::spawn(Job::new(Arc::clone(&self.0), Arc::clone(&wanted), sender.clone(), why).run(request));
        }
        arrivals
    }

    fn promote(&self, digests: &[Digest], why: Why) {
        self.0.slots.promote(digests, why);
    }
}
