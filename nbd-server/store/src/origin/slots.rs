//! The right to have a request under way, given to the most urgent of those who wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use vmnetx_format::Digest;

use crate::limits::{
    BACKGROUND_LOOK, HURRIED_FRAMES_MAX, ORIGIN_BACKGROUND_REQUESTS_MAX, ORIGIN_LESSER_REQUESTS_MAX,
    ORIGIN_REQUESTS_MAX,
};
use crate::tier::Why;

/// A queue before the requests of one origin.
///
/// Demand is never behind anything but demand: some slots are for it alone, and it is first in the queue.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
    /// Bytes a second that [`Why::Background`] may take.
    background_rate: Option<u64>,
}

#[derive(Debug)]
struct State {
    /// Requests under way: all, those that nobody waits for, and those for the background among them.
    under_way: [usize; 3],
    queue: BTreeMap<Turn, Waiter>,
    next: u64,
    /// Frames that somebody more urgent has come for before their request was queued, the latest last.
    hurried: VecDeque<(Digest, Why)>,
    /// When the background may go on.
    background_from: Instant,
}

/// The most urgent first, then who came first.
type Turn = (Why, u64);

#[derive(Debug)]
struct Waiter {
    digests: Vec<Digest>,
    bytes: u64,
    grant: oneshot::Sender<Slot>,
}

/// One request's right to be under way, which ends with it.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    why: Why,
}

impl Slots {
    pub(crate) fn new(background_rate: Option<u64>) -> Arc<Self> {
        let state = State {
            under_way: [0; 3],
            queue: BTreeMap::new(),
            next: 0,
            hurried: VecDeque::new(),
            background_from: Instant::now(),
        };
        Arc::new(Self { state: Mutex::new(state), background_rate })
    }

    /// Waits until a request of `bytes` for the frames `digests` may go out.
    pub(crate) async fn acquire(self: &Arc<Self>, why: Why, digests: Vec<Digest>, bytes: u64) -> Slot {
        let (grant, mut granted) = oneshot::channel();
        {
            let mut state = self.lock();
            let turn = (state.urgency(why, &digests), state.next);
            state.next += 1;
            state.queue.insert(turn, Waiter { digests, bytes, grant });
        }
        let paced = why == Why::Background && self.background_rate.is_some();
        loop {
            self.dispatch();
            tokio::select! {
                slot = &mut granted => match slot {
                    Ok(slot) => return slot,
                    // Not before the queue is gone, which lives as long as this call.
                    Err(_) => std::future::pending().await,
                },
                // Nobody else would notice that the background's pause is over.
                () = tokio::time::sleep(BACKGROUND_LOOK), if paced => {}
            }
        }
    }

    /// Whoever waits to fetch one of `digests`, or will soon, is as urgent as `why` from now on.
    pub(crate) fn promote(self: &Arc<Self>, digests: &[Digest], why: Why) {
        let mut state = self.lock();
        state.hurry(digests, why);
        let lesser = state.queue.range((why, u64::MAX)..);
        let wanted = lesser.filter(|(_, waiter)| waiter.digests.iter().any(|digest| digests.contains(digest)));
        let turns: Vec<Turn> = wanted.map(|(turn, _)| *turn).collect();
        for turn in turns {
            if let Some(waiter) = state.queue.remove(&turn) {
                state.queue.insert((why, turn.1), waiter);
            }
        }
        drop(state);
        self.dispatch();
    }

    /// Gives slots to those whose turn it is.
    fn dispatch(self: &Arc<Self>) {
        while let Some((why, waiter)) = self.next_turn() {
            // Outside of the lock: the slot of one who does not wait any more comes back at once.
            let _ = waiter.grant.send(Slot { slots: Arc::clone(self), why });
        }
    }

    fn next_turn(&self) -> Option<(Why, Waiter)> {
        let mut state = self.lock();
        let &(why, number) = state.queue.first_key_value()?.0;
        let kinds = kinds(why);
        let limits = [ORIGIN_REQUESTS_MAX, ORIGIN_LESSER_REQUESTS_MAX, ORIGIN_BACKGROUND_REQUESTS_MAX];
        // Those behind the first one are no more urgent, so their limits are no wider.
        if (0..kinds).any(|kind| state.under_way[kind] >= limits[kind]) {
            return None;
        }
        let now = Instant::now();
        if why == Why::Background && self.background_rate.is_some() && state.background_from > now {
            return None;
        }
        let waiter = state.queue.remove(&(why, number))?;
        (0..kinds).for_each(|kind| state.under_way[kind] += 1);
        if let (Why::Background, Some(rate)) = (why, self.background_rate) {
            let pause = Duration::from_secs_f64(waiter.bytes as f64 / rate.max(1) as f64);
            state.background_from = now + pause;
        }
        Some((why, waiter))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Remembers that frames are urgent which no request waits for. Most are under way or found in a cache, and are forgotten
    /// when there are [`HURRIED_FRAMES_MAX`] later ones.
    fn hurry(&mut self, digests: &[Digest], why: Why) {
        for digest in digests {
            if !self.queue.values().any(|waiter| waiter.digests.contains(digest)) {
                self.hurried.push_back((*digest, why));
            }
        }
        let excess = self.hurried.len().saturating_sub(HURRIED_FRAMES_MAX);
        self.hurried.drain(..excess);
    }

    /// How urgent a request for these frames is that would be as urgent as `why`: as the most urgent of those who came for
    /// one of them meanwhile.
    fn urgency(&mut self, why: Why, digests: &[Digest]) -> Why {
        let mut urgency = why;
        self.hurried.retain(|(digest, hurry)| {
            let is_asked_for = digests.contains(digest);
            if is_asked_for {
                urgency = urgency.min(*hurry);
            }
            !is_asked_for
        });
        urgency
    }
}

/// Of how many of the counted kinds a request is one.
const fn kinds(why: Why) -> usize {
    match why {
        Why::Demand => 1,
        Why::Order | Why::ReadAhead => 2,
        Why::Background => 3,
    }
}

impl Slot {
    /// How urgent the request is, which may have been promoted while it waited.
    pub(crate) const fn why(&self) -> Why {
        self.why
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.slots.lock();
            (0..kinds(self.why)).for_each(|kind| state.under_way[kind] -= 1);
        }
        self.slots.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Vec<Digest> {
        vec![Digest::of(&[number])]
    }

    /// Queues an acquisition and lets it run until it waits.
    async fn queue(slots: &Arc<Slots>, why: Why, number: u8) -> tokio::task::JoinHandle<Slot> {
        let slots = Arc::clone(slots);
        let task = tokio::spawn(async move { slots.acquire(why, digest(number), 1 << 20).await });
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn demand_goes_first_and_is_never_kept_out_by_others() {
        let slots = Slots::new(None);
        let mut held = Vec::new();
        let mut lesser = Vec::new();
        for number in 0..2 * ORIGIN_REQUESTS_MAX as u8 {
            lesser.push(queue(&slots, Why::Order, number).await);
        }
        assert_eq!(lesser.iter().filter(|task| task.is_finished()).count(), ORIGIN_LESSER_REQUESTS_MAX);
        for _ in ORIGIN_LESSER_REQUESTS_MAX..ORIGIN_REQUESTS_MAX {
            held.push(slots.acquire(Why::Demand, digest(0), 1).await);
        }
        let demand = queue(&slots, Why::Demand, 100).await;
        assert!(!demand.is_finished());
        drop(lesser.remove(0).await.unwrap());
        drop(demand.await.unwrap());
        drop(held);
        for task in lesser {
            drop(task.await.unwrap());
        }
        assert_eq!(slots.lock().under_way, [0; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_joined_by_a_reader_goes_before_its_likes() {
        let slots = Slots::new(None);
        let mut held = Vec::new();
        for number in 0..ORIGIN_BACKGROUND_REQUESTS_MAX as u8 {
            held.push(slots.acquire(Why::Background, digest(number), 1).await);
        }
        let first = queue(&slots, Why::Background, 100).await;
        let second = queue(&slots, Why::Background, 101).await;
        assert!(!first.is_finished() && !second.is_finished());
        slots.promote(&digest(101), Why::Demand);
        drop(second.await.unwrap());
        assert!(!first.is_finished());
        held.clear();
        drop(first.await.unwrap());
    }

    /// A reader may join a frame whose request is not queued yet.
    #[tokio::test(start_paused = true)]
    async fn who_is_joined_before_it_is_queued_goes_first_too() {
        let slots = Slots::new(None);
        let mut held = Vec::new();
        for number in 0..ORIGIN_BACKGROUND_REQUESTS_MAX as u8 {
            held.push(slots.acquire(Why::Background, digest(number), 1).await);
        }
        slots.promote(&digest(100), Why::Demand);
        let joined = queue(&slots, Why::Background, 100).await;
        let other = queue(&slots, Why::Background, 101).await;
        drop(joined.await.unwrap());
        assert!(!other.is_finished());
        held.clear();
        drop(other.await.unwrap());
        // It was asked for and is no more urgent the next time.
        assert!(slots.lock().hurried.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_are_never_asked_for_are_forgotten() {
        let slots = Slots::new(None);
        for number in 0..2 * HURRIED_FRAMES_MAX as u32 {
            slots.promote(&[Digest::of(&number.to_le_bytes())], Why::Demand);
        }
        assert_eq!(slots.lock().hurried.len(), HURRIED_FRAMES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_takes_no_slot_along() {
        let slots = Slots::new(None);
        for number in 0..3 * ORIGIN_REQUESTS_MAX as u8 {
            let task = queue(&slots, Why::ReadAhead, number).await;
            task.abort();
            let _ = task.await;
        }
        assert_eq!(slots.lock().under_way, [0; 3]);
        assert!(slots.lock().queue.len() <= ORIGIN_LESSER_REQUESTS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn the_background_keeps_to_its_rate_and_demand_does_not() {
        let slots = Slots::new(Some(1 << 20));
        let start = Instant::now();
        for number in 0..11 {
            drop(slots.acquire(Why::Background, digest(number), 1 << 20).await);
        }
        assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
        let start = Instant::now();
        drop(slots.acquire(Why::Demand, digest(0), 1 << 30).await);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
