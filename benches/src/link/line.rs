//! One direction of a link: a virtual clock that says when each packet leaves and arrives.
//!
//! The clock is `free_at`, the moment the line has sent all that was given to it. A packet starts at the latest of
//! `free_at`, its own arrival at the queue and its connection's opening, whatever the time is when the thread looks
//! at it: waking late delays no packet but those due in between, and never the ones after. A thread, not tokio's timer,
//! because that one counts in milliseconds.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Packet;

/// What a connection sends before it is another's turn: one Ethernet frame.
const QUANTUM_BYTES: usize = 1500;
/// Packets that arrive closer together than this are handed over together, to wake less often.
const TICK: Duration = Duration::from_micros(200);

/// A direction with its thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Line {
    shared: Arc<Shared>,
}

impl Line {
    /// An idle line of `rate_bits_per_s` (not zero) on which a packet is under way for `delay`.
    pub(super) fn start(name: &str, rate_bits_per_s: u64, delay: Duration) -> io::Result<Self> {
        let state = State {
            free_at: Instant::now(),
            flows: HashMap::new(),
            opening: VecDeque::new(),
            ready: VecDeque::new(),
            flying: VecDeque::new(),
            next_id: 0,
            carried_bytes: 0,
            closed: false,
        };
        let shared = Arc::new(Shared { rate_bits_per_s, delay, state: Mutex::new(state), changed: Condvar::new() });
        let line = Self { shared: Arc::clone(&shared) };
        thread::Builder::new().name(name.to_owned()).spawn(move || shared.run())?;
        Ok(line)
    }

    /// Adds a connection that may send from `opens_at` on, and returns its two ends. The receiving end is over after the
    /// last packet of a finished flow; its channel is bounded by the shares of the connection's window in the packets.
    pub(super) fn open(&self, opens_at: Instant) -> (Flow, mpsc::UnboundedReceiver<Packet>) {
        let (output, arrivals) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        let queue = Queue { opens_at, open: false, waiting: VecDeque::new(), output };
        state.flows.insert(id, queue);
        state.opening.push_back(id);
        drop(state);
        self.shared.changed.notify_one();
        (Flow { shared: Arc::clone(&self.shared), id, finished: false }, arrivals)
    }

    /// Bytes that were put on the line, those under way included.
    pub(super) fn carried_bytes(&self) -> u64 {
        self.shared.lock().carried_bytes
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// The sending end of a connection. Dropped without [`finish`](Self::finish), what waits is forgotten.
#[derive(Debug)]
pub(super) struct Flow {
    shared: Arc<Shared>,
    id: u64,
    finished: bool,
}

impl Flow {
    /// Queues a packet (of at least one byte).
    pub(super) fn send(&self, packet: Packet) {
        self.push(Some(packet));
    }

    /// Ends the stream after what was sent; the receiver sees the end as late as it would a packet.
    pub(super) fn finish(mut self) {
        self.finished = true;
        self.push(None);
    }

    fn push(&self, packet: Option<Packet>) {
        let arrived = Instant::now();
        let mut state = self.shared.lock();
        let Some(queue) = state.flows.get_mut(&self.id) else {
            return;
        };
        queue.waiting.push_back(Waiting { arrived, packet });
        if queue.open && queue.waiting.len() == 1 {
            state.ready.push_back(self.id);
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.finished {
            let mut state = self.shared.lock();
            state.flows.remove(&self.id);
            state.ready.retain(|id| *id != self.id);
            state.opening.retain(|id| *id != self.id);
        }
    }
}

#[derive(Debug)]
struct Shared {
    rate_bits_per_s: u64,
    delay: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let now = Instant::now();
            state.open_due(now);
            state.transmit(now, self);
            state.deliver(now);
            state = match state.next_event_at() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let pause = at.max(now + TICK).saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.flows.clear();
        state.flying.clear();
    }

    /// How long `bytes` keep the line busy.
    fn busy(&self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 8_000_000_000 / u128::from(self.rate_bits_per_s);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Every change of the state is complete before anything that could panic, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    free_at: Instant,
    flows: HashMap<u64, Queue>,
    /// Connections that may not send yet, soonest first: all wait equally long.
    opening: VecDeque<u64>,
    /// Open connections with something to send, in turn.
    ready: VecDeque<u64>,
    /// What was sent and has not arrived, soonest first: all are under way equally long.
    flying: VecDeque<Flying>,
    next_id: u64,
    carried_bytes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Queue {
    opens_at: Instant,
    open: bool,
    waiting: VecDeque<Waiting>,
    output: mpsc::UnboundedSender<Packet>,
}

/// A packet before the line, or without one the end of its stream.
#[derive(Debug)]
struct Waiting {
    arrived: Instant,
    packet: Option<Packet>,
}

/// A packet under way, or without one the end of its stream.
#[derive(Debug)]
struct Flying {
    arrives: Instant,
    packet: Option<Packet>,
    output: mpsc::UnboundedSender<Packet>,
}

impl State {
    fn open_due(&mut self, now: Instant) {
        while let Some(id) = self.opening.front().copied() {
            if let Some(queue) = self.flows.get_mut(&id) {
                if queue.opens_at > now {
                    return;
                }
                queue.open = true;
                if !queue.waiting.is_empty() {
                    self.ready.push_back(id);
                }
            }
            self.opening.pop_front();
        }
    }

    /// Sends what should have been started by now, a quantum of each connection in turn.
    fn transmit(&mut self, now: Instant, line: &Shared) {
        while self.free_at <= now {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(queue) = self.flows.get_mut(&id) else {
                continue;
            };
            let Some(Waiting { arrived, packet }) = queue.next_quantum() else {
                continue;
            };
            let length = packet.as_ref().map_or(0, |packet| packet.bytes.len());
            self.free_at = self.free_at.max(arrived).max(queue.opens_at) + line.busy(length);
            self.carried_bytes += length as u64;
            let ended = packet.is_none();
            self.flying.push_back(Flying { arrives: self.free_at + line.delay, packet, output: queue.output.clone() });
            if ended {
                self.flows.remove(&id);
            } else if !queue.waiting.is_empty() {
                self.ready.push_back(id);
            }
        }
    }

    fn deliver(&mut self, now: Instant) {
        while let Some(flying) = self.flying.pop_front_if(|flying| flying.arrives <= now) {
            if let Some(packet) = flying.packet {
                // The receiver is gone when its connection has failed.
                let _ = flying.output.send(packet);
            }
        }
    }

    fn next_event_at(&self) -> Option<Instant> {
        let opens_at = self.opening.front().and_then(|id| self.flows.get(id)).map(|queue| queue.opens_at);
        let sends_at = self.ready.front().map(|_| self.free_at);
        let arrives_at = self.flying.front().map(|flying| flying.arrives);
        [opens_at, sends_at, arrives_at].into_iter().flatten().min()
    }
}

impl Queue {
    /// Takes up to a quantum from the head.
    fn next_quantum(&mut self) -> Option<Waiting> {
        let head = self.waiting.front_mut()?;
        if let Some(packet) = &mut head.packet
            && packet.bytes.len() > QUANTUM_BYTES
            && let Some(share) = packet.share.split(QUANTUM_BYTES)
        {
            let packet = Packet { bytes: packet.bytes.split_to(QUANTUM_BYTES), share };
            return Some(Waiting { arrived: head.arrived, packet: Some(packet) });
        }
        self.waiting.pop_front()
    }
}
