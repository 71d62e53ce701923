//! The frames of an order, and what became of each: planned, brought, used.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use vmnetx_format::{Digest, OrderFrame};

use crate::tier::Source;

/// What came of an order until now.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderCounts {
    /// Frames that the order names.
    pub planned_frames: u64,
    /// Their bytes as stored.
    pub planned_bytes: u64,
    /// Frames that were brought into the memory tier ahead of their readers.
    pub prefetched_frames: u64,
    /// Their bytes as stored.
    pub prefetched_bytes: u64,
    /// Stored bytes among these that the origin was asked for; the rest came from the disk tier.
    pub origin_bytes: u64,
    /// Frames that were read after they had been brought.
    pub used_frames: u64,
    /// Their bytes as stored.
    pub used_bytes: u64,
    /// Frames that were brought and nobody has read until now.
    pub wasted_frames: u64,
    /// Their bytes as stored.
    pub wasted_bytes: u64,
    /// Frames that could not be had.
    pub failed_frames: u64,
    /// Whether all of it was gone through.
    pub done: bool,
}

/// The frames of an order and what became of each.
#[derive(Debug)]
pub(crate) struct Plan {
    frames: Vec<OrderFrame>,
    states: HashMap<Digest, State, BuildHasherDefault<DigestHasher>>,
    totals: Totals,
    /// Tells the replay that something was used.
    used: Notify,
}

#[derive(Debug)]
struct State {
    stored_len: u32,
    plain_len: u32,
    step: AtomicU8,
}

/// Steps of a frame; it only goes up.
const PLANNED: u8 = 0;
const BROUGHT: u8 = 1;
const USED: u8 = 2;

#[derive(Debug, Default)]
struct Totals {
    planned_bytes: u64,
    prefetched_frames: AtomicU64,
    prefetched_bytes: AtomicU64,
    origin_bytes: AtomicU64,
    used_frames: AtomicU64,
    used_bytes: AtomicU64,
    failed_frames: AtomicU64,
    /// Plain bytes that were brought and are not used yet.
    ahead_bytes: AtomicU64,
    done: AtomicBool,
}

/// Digests are their own hashes.
#[derive(Debug, Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length that arrays put before their bytes says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Plan {
    /// What `frames` say is to be brought, in their sequence.
    pub(crate) fn new(frames: Vec<OrderFrame>) -> Self {
        let state = |frame: &OrderFrame| State {
            stored_len: frame.place.stored_len,
            plain_len: frame.plain_len,
            step: AtomicU8::new(PLANNED),
        };
        let states: HashMap<_, _, _> = frames.iter().map(|frame| (frame.digest, state(frame))).collect();
        let planned_bytes = states.values().map(|state| u64::from(state.stored_len)).sum();
        let totals = Totals { planned_bytes, ..Totals::default() };
        Self { frames, states, totals, used: Notify::new() }
    }

    /// A reader has come for a frame.
    pub(crate) fn read(&self, digest: &Digest) {
        let Some(state) = self.states.get(digest) else { return };
        if state.step.load(Ordering::Relaxed) == USED || state.step.swap(USED, Ordering::Relaxed) != BROUGHT {
            return;
        }
        self.count_used(state);
    }

    pub(crate) fn counts(&self) -> OrderCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let totals = &self.totals;
        let (used_frames, used_bytes) = (load(&totals.used_frames), load(&totals.used_bytes));
        // Used is counted after brought, and was loaded before it.
        let (prefetched_frames, prefetched_bytes) = (load(&totals.prefetched_frames), load(&totals.prefetched_bytes));
        OrderCounts {
            planned_frames: self.states.len() as u64,
            planned_bytes: totals.planned_bytes,
            prefetched_frames,
            prefetched_bytes,
            origin_bytes: load(&totals.origin_bytes),
            used_frames,
            used_bytes,
            wasted_frames: prefetched_frames.saturating_sub(used_frames),
            wasted_bytes: prefetched_bytes.saturating_sub(used_bytes),
            failed_frames: load(&totals.failed_frames),
            done: totals.done.load(Ordering::Relaxed),
        }
    }

    /// A frame has come; because of this order, unless it was here already or another fetch was bringing it.
    pub(super) fn brought(&self, digest: &Digest, source: Source) {
        if !matches!(source, Source::Origin | Source::Disk) {
            return;
        }
        let Some(state) = self.states.get(digest) else { return };
        let totals = &self.totals;
        totals.prefetched_frames.fetch_add(1, Ordering::Relaxed);
        totals.prefetched_bytes.fetch_add(state.stored_len.into(), Ordering::Relaxed);
        if source == Source::Origin {
            totals.origin_bytes.fetch_add(state.stored_len.into(), Ordering::Relaxed);
        }
        totals.ahead_bytes.fetch_add(state.plain_len.into(), Ordering::Relaxed);
        let before = state.step.compare_exchange(PLANNED, BROUGHT, Ordering::Relaxed, Ordering::Relaxed);
        if before == Err(USED) {
            // Its reader came while it was on its way, and has waited for it.
            self.count_used(state);
        }
    }

    fn count_used(&self, state: &State) {
        let totals = &self.totals;
        totals.used_frames.fetch_add(1, Ordering::Relaxed);
        totals.used_bytes.fetch_add(state.stored_len.into(), Ordering::Relaxed);
        totals.ahead_bytes.fetch_sub(state.plain_len.into(), Ordering::Relaxed);
        self.used.notify_one();
    }

    /// A frame could not be had.
    pub(super) fn failed(&self) {
        self.totals.failed_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it was gone through.
    pub(super) fn done(&self) {
        self.totals.done.store(true, Ordering::Relaxed);
    }

    /// Its frames in their sequence.
    pub(super) fn frames(&self) -> &[OrderFrame] {
        &self.frames
    }

    /// Waits until no more than `max_bytes` were brought and are not used yet.
    pub(super) async fn room(&self, max_bytes: u64) {
        loop {
            let used = self.used.notified();
            if self.totals.ahead_bytes.load(Ordering::Relaxed) <= max_bytes {
                return;
            }
            used.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmnetx_format::Place;

    use super::*;

    fn frame(number: u32) -> OrderFrame {
        let place = Place { pack: Digest::of(b"pack"), offset: number.into(), stored_len: 10 };
        OrderFrame { digest: Digest::of(&number.to_le_bytes()), plain_len: 100, place }
    }

    #[test]
    fn a_frame_is_used_once_whoever_comes_first() {
        let plan = Plan::new(vec![frame(0), frame(1), frame(2), frame(3)]);
        let digest = |number| frame(number).digest;
        plan.brought(&digest(0), Source::Origin);
        plan.read(&digest(0));
        plan.read(&digest(0));
        // Its reader waits for it already.
        plan.read(&digest(1));
        plan.brought(&digest(1), Source::Disk);
        plan.brought(&digest(2), Source::Origin);
        // Somebody else has brought it.
        plan.brought(&digest(3), Source::Joined);
        plan.read(&digest(3));
        plan.read(&Digest::of(b"of no order"));
        let counts = plan.counts();
        assert_eq!((counts.planned_frames, counts.planned_bytes), (4, 40));
        assert_eq!((counts.prefetched_frames, counts.used_frames, counts.wasted_frames), (3, 2, 1));
        assert_eq!((counts.prefetched_bytes, counts.used_bytes, counts.wasted_bytes), (30, 20, 10));
        assert_eq!(counts.origin_bytes, 20);
        assert_eq!(plan.totals.ahead_bytes.load(Ordering::Relaxed), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_make_room() {
        let plan = Arc::new(Plan::new((0..3).map(frame).collect()));
        (0..3).for_each(|number| plan.brought(&frame(number).digest, Source::Origin));
        let room = tokio::spawn({
            let plan = Arc::clone(&plan);
            async move { plan.room(100).await }
        });
        tokio::task::yield_now().await;
        plan.read(&frame(0).digest);
        tokio::task::yield_now().await;
        assert!(!room.is_finished());
        plan.read(&frame(2).digest);
        room.await.unwrap();
    }
}
