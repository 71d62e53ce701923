//! Random access to an image: an offset is looked up in the index, and its chunks are fetched through the tiers.

mod index;
mod leaf;
mod prefetch;
mod read_ahead;
mod residency;

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;
use vmnetx_format::limits::LEAF_BLOCKS;
use vmnetx_format::{BLOCK_BYTES, Geometry, Roots};

use self::index::Index;
use self::leaf::{Chunk, Leaf, Step, Touch};
use self::read_ahead::ReadAhead;
pub use self::residency::Residency;
use crate::cache::{DiskCache, MemoryCache, SingleFlight, Touched};
use crate::limits::DISK_INLINE_BYTES_MAX;
use crate::order::{Plan, Recorder};
use crate::origin::Mirrors;
use crate::tier::{Arrivals, Tier, Wanted, Why};
use crate::{Counters, Error};

/// Bytes of an image that one leaf of its index covers.
const LEAF_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK_BYTES as u64;

/// An image of a package, read through the tiers. Every byte that it gives out was verified.
#[derive(Debug)]
pub struct Image {
    name: String,
    index: Index,
    tiers: Tiers,
    counters: Arc<Counters>,
    read_ahead: Mutex<ReadAhead>,
    watch: Watch,
}

/// Who wants to hear of reads.
#[derive(Debug)]
struct Watch {
    /// Records them, as those of the image of this number.
    recorder: OnceLock<(Arc<Recorder>, usize)>,
    /// Counts which frames of an order are read, once there is one.
    plan: Arc<OnceLock<Plan>>,
    /// Takes note of what is read first.
    touched: OnceLock<Arc<Touched>>,
}

/// A part of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Data, shared with the memory tier.
    Data(Bytes),
    /// So many zeros, which the package does not store.
    Zeros(u64),
}

/// A run of an image that is stored or is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the run.
    pub length: u64,
    /// Whether it is a hole, which reads as zeros.
    pub hole: bool,
}

/// How the tiers are put together for an image.
#[derive(Debug, Clone)]
pub(crate) struct Tiers {
    /// The memory tier's cache, asked first and without waiting.
    pub(crate) memory: Arc<MemoryCache>,
    /// The outermost tier, before all others.
    pub(crate) flights: Arc<SingleFlight>,
    /// Where the package comes from, and what is known of the link to there.
    pub(crate) mirrors: Arc<Mirrors>,
    /// The disk tier's cache, if there is one.
    pub(crate) disk: Option<Arc<DiskCache>>,
    /// Blocks that may be under way as [`Why::Background`].
    pub(crate) background: Arc<Semaphore>,
}

impl Touch<'_> {
    /// The wanted part of the chunk, whose bytes have its digest. Nothing when the index gives the chunk another length
    /// than it has: another index may have told the caches the true one.
    fn cut(&self, plain: &Bytes) -> Option<Piece> {
        let range = self.skip as usize..(self.skip + self.length) as usize;
        (plain.len() == self.chunk.plain_len() as usize).then(|| Piece::Data(plain.slice(range)))
    }
}

impl Piece {
    /// Bytes of the piece.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(length) => *length,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Image {
    pub(crate) fn new(name: String, geometry: Geometry, roots: Roots, tiers: Tiers, plan: Arc<OnceLock<Plan>>) -> Self {
        let counters = Arc::new(Counters::default());
        let index = Index::new(name.clone(), geometry, roots, tiers.clone(), Arc::clone(&counters));
        let read_ahead = Mutex::default();
        let watch = Watch { recorder: OnceLock::new(), plan, touched: OnceLock::new() };
        Self { name, index, tiers, counters, read_ahead, watch }
    }

    /// Has `recorder` take note of all reads from now on, as reads of the image of this number. The first one stays.
    pub(crate) fn record(&self, recorder: &Arc<Recorder>, number: usize) {
        self.watch.recorder.get_or_init(|| (Arc::clone(recorder), number));
    }

    /// Has `touched` take note of what is read first from now on.
    pub(crate) fn note_touches(&self, touched: &Arc<Touched>) {
        self.watch.touched.get_or_init(|| Arc::clone(touched));
    }

    /// The image's name in its package.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its true size in bytes, which need not be a multiple of anything.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.index.geometry().size_bytes()
    }

    /// What was read of it so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Starts to fetch the index if it is small enough to be fetched whole; returns at once.
    pub fn warm_index(&self) {
        self.index.warm();
    }

    /// Answers a read from memory alone, or says (`false`, `out` as before) that it cannot. Never waits, but may start to
    /// fetch what comes next: to be called within a tokio runtime.
    pub fn read_now(&self, offset: u64, length: u64, out: &mut Vec<Piece>) -> bool {
        if self.check(offset, length).is_err() {
            return false;
        }
        let before = out.len();
        let mut at = offset;
        let end = offset + length;
        let mut hits = 0;
        while at < end {
            let stop = end.min((at / LEAF_BYTES + 1) * LEAF_BYTES);
            let hit = self.index.range_now(at, stop).is_some_and(|leaf| {
                leaf.touch(at, stop);
                leaf.each_touch(at, stop, |step| match step {
                    Step::Zeros(zeros) => {
                        push_zeros(out, before, zeros);
                        true
                    }
                    Step::Chunk(touch) => self.tiers.memory.get(touch.chunk.digest()).is_some_and(|plain| {
                        hits += 1;
                        self.watch.chunk(touch.chunk);
                        touch.cut(&plain).map(|piece| out.push(piece)).is_some()
                    }),
                })
            });
            if !hit {
                out.truncate(before);
                return false;
            }
            at = stop;
        }
        // A stream goes on while it is answered from memory, or its next miss would look like a new one.
        self.fetch_ahead(self.follow(offset, end, false));
        self.watch.read(offset, length);
        self.counters.read(length);
        self.counters.hits(hits);
        true
    }

    /// Reads `length` bytes at `offset`: pieces in order that add up to `length`.
    ///
    /// # Errors
    /// [`Error`] when the read leaves the image or a chunk cannot be had.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, Error> {
        self.check(offset, length)?;
        self.watch.read(offset, length);
        self.read_parts(offset, length).await
    }

    /// The same for who reads all of an image whether its guest will or not: no recorder sees it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_unrecorded(&self, offset: u64, length: u64) -> Result<Vec<Piece>, Error> {
        self.check(offset, length)?;
        self.read_parts(offset, length).await
    }

    async fn read_parts(&self, offset: u64, length: u64) -> Result<Vec<Piece>, Error> {
        let mut out = Vec::new();
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let stop = end.min((at / LEAF_BYTES + 1) * LEAF_BYTES);
            let leaf = self.index.leaf((at / LEAF_BYTES) as u32, Why::Demand).await?;
            leaf.touch(at, stop);
            self.read_leaf(&leaf, at, stop, &mut out).await?;
            at = stop;
        }
        self.counters.read(length);
        Ok(out)
    }

    /// Says which parts of `length` bytes at `offset` are holes: at most `extents_max` extents, from the first byte on,
    /// neighbours being unlike; together they may be shorter than `length`.
    ///
    /// # Errors
    /// [`Error`] when the range leaves the image or its index cannot be had.
    pub async fn extents(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>, Error> {
        /// Leaves that one question looks at, when none of them is known to be a hole: 2 GiB of image.
        const LEAVES_MAX: u32 = 128;
        self.check(offset, length)?;
        let mut out: Vec<Extent> = Vec::new();
        let mut at = offset;
        let end = offset + length;
        let mut looked = 0;
        while at < end && out.len() <= extents_max && looked < LEAVES_MAX {
            let stop = end.min((at / LEAF_BYTES + 1) * LEAF_BYTES);
            let number = (at / LEAF_BYTES) as u32;
            // Who asks for one extent asks again: what is known need not wait for the next part of the index.
            if extents_max == 1 && !out.is_empty() && self.index.leaf_now(number).is_none() {
                break;
            }
            looked += u32::from(!self.index.is_hole(number));
            let leaf = self.index.leaf(number, Why::Demand).await?;
            leaf.each_touch(at, stop, |step| {
                let (length, hole) = match step {
                    Step::Zeros(zeros) => (zeros, true),
                    Step::Chunk(touch) => (touch.length, false),
                };
                match out.last_mut() {
                    Some(last) if last.hole == hole => last.length += length,
                    _ => out.push(Extent { length, hole }),
                }
                out.len() <= extents_max
            });
            at = stop;
        }
        out.truncate(extents_max);
        Ok(out)
    }

    /// Leaves of its index, holes included.
    pub(crate) fn leaves(&self) -> u32 {
        self.index.geometry().leaves()
    }

    /// What the origin stores for a leaf: the nodes that lead to it, and its chunks.
    pub(crate) async fn frames(&self, leaf: u32, why: Why) -> Result<Vec<Wanted>, Error> {
        self.index.frames(leaf, why).await
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        let size_bytes = self.size_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(Error::OutOfBounds { offset, length, size_bytes }),
        }
    }

    /// Reads what lies in one leaf, with one fetch for all that is missing and what will be wanted next.
    async fn read_leaf(&self, leaf: &Leaf, at: u64, stop: u64, out: &mut Vec<Piece>) -> Result<(), Error> {
        let mut wanted = Vec::new();
        // Pieces in their order; those that wait for a chunk hold its position in `wanted`.
        let mut parts = Vec::new();
        leaf.each_touch(at, stop, |step| {
            parts.push(match step {
                Step::Zeros(zeros) => Part::Zeros(zeros),
                Step::Chunk(touch) => {
                    self.watch.chunk(touch.chunk);
                    match self.tiers.memory.get(touch.chunk.digest()) {
                        Some(plain) => {
                            self.counters.hits(1);
                            Part::Here(plain, touch)
                        }
                        None => match self.disk_now(touch.chunk) {
                            Some(plain) => Part::Here(plain, touch),
                            None => {
                                wanted.push(touch.chunk.want());
                                Part::Waiting(wanted.len() - 1, touch)
                            }
                        },
                    }
                }
            });
            true
        });
        let demanded = wanted.len();
        self.add_read_ahead(leaf, at, stop, &mut wanted);
        let mut plain: Vec<Option<Bytes>> = vec![None; demanded];
        if !wanted.is_empty() {
            let mut arrivals = self.tiers.flights.fetch(wanted, Why::Demand);
            let mut missing = demanded;
            while missing > 0 {
                let arrival = arrivals.next().await.ok_or(Error::Closing)?;
                self.counters.chunk(&arrival.result, arrival.index >= demanded);
                if let Some(slot) = plain.get_mut(arrival.index) {
                    *slot = Some(arrival.result?.plain);
                    missing -= 1;
                }
            }
            self.count_rest(arrivals, demanded);
        }
        for part in parts {
            let (plain, touch) = match part {
                Part::Zeros(zeros) => {
                    out.push(Piece::Zeros(zeros));
                    continue;
                }
                Part::Here(plain, touch) => (plain, touch),
                Part::Waiting(index, touch) => {
                    (plain.get_mut(index).and_then(Option::take).ok_or(Error::Closing)?, touch)
                }
            };
            out.push(touch.cut(&plain).ok_or_else(|| self.index.wrong_length())?);
        }
        Ok(())
    }

    /// A chunk of the disk tier, if that needs no waiting: going through the tiers would take longer than decompressing it.
    fn disk_now(&self, chunk: Chunk<'_>) -> Option<Bytes> {
        let disk = self.tiers.disk.as_ref().filter(|_| chunk.plain_len() <= DISK_INLINE_BYTES_MAX)?;
        let plain = disk.read_now(chunk.digest())?;
        self.tiers.memory.insert(*chunk.digest(), plain.clone());
        self.counters.disk_hit();
        Some(plain)
    }

    fn follow(&self, at: u64, stop: u64, missed: bool) -> Range<u64> {
        let line = if missed { self.tiers.mirrors.round_trip_bytes() } else { None };
        self.read_ahead.lock().unwrap_or_else(PoisonError::into_inner).window(at, stop, missed, line)
    }

    /// Adds the chunks that a sequential reader will want next, unless the memory tier has them.
    fn add_read_ahead(&self, leaf: &Leaf, at: u64, stop: u64, wanted: &mut Vec<Wanted>) {
        let missed = wanted.iter().any(|frame| !self.tiers.flights.is_under_way(&frame.digest));
        let window = self.follow(at, stop, missed);
        if missed {
            self.add_missing(leaf, window, wanted);
        } else {
            self.fetch_ahead(window);
        }
    }

    /// Starts to fetch what a reader will want next, while it goes on with what is here.
    fn fetch_ahead(&self, window: Range<u64>) {
        if window.is_empty() || window.start >= self.size_bytes() {
            return;
        }
        // A leaf that is not here is fetched by the reader who comes to it.
        let Some(leaf) = self.index.leaf_now((window.start / LEAF_BYTES) as u32) else { return };
        let mut wanted = Vec::new();
        self.add_missing(&leaf, window, &mut wanted);
        if !wanted.is_empty() {
            self.count_rest(self.tiers.flights.fetch(wanted, Why::ReadAhead), 0);
        }
    }

    /// Adds the chunks of `window`, as far as the leaf goes in which it begins, that are neither here nor on their way.
    fn add_missing(&self, leaf: &Leaf, window: Range<u64>, wanted: &mut Vec<Wanted>) {
        if window.is_empty() {
            return;
        }
        let leaf_end = (window.start / LEAF_BYTES + 1) * LEAF_BYTES;
        leaf.each_touch(window.start, window.end.min(leaf_end), |step| {
            if let Step::Chunk(touch) = step {
                let digest = touch.chunk.digest();
                let known = self.tiers.memory.contains(digest) || self.tiers.flights.is_under_way(digest);
                if !known && !wanted.iter().any(|other| other.digest == *digest) {
                    wanted.push(touch.chunk.want());
                }
            }
            true
        });
    }

    /// Chunks that nobody waits for still arrive and still count.
    fn count_rest(&self, mut arrivals: Arrivals, demanded: usize) {
        let counters = Arc::clone(&self.counters);
        tokio::spawn(async move {
            while let Some(arrival) = arrivals.next().await {
                counters.chunk(&arrival.result, arrival.index >= demanded);
            }
        });
    }
}

impl Watch {
    /// Somebody reads `length` bytes at `offset`.
    fn read(&self, offset: u64, length: u64) {
        if let Some((recorder, number)) = self.recorder.get() {
            recorder.touch(*number, offset, length);
        }
    }

    /// Somebody reads from a chunk.
    fn chunk(&self, chunk: Chunk<'_>) {
        if let Some(plan) = self.plan.get() {
            plan.read(chunk.digest());
        }
        if let Some(touched) = self.touched.get() {
            touched.note(chunk.digest(), chunk.plain_len());
        }
    }
}

/// A part of an answer in the making; a chunk that is waited for is known by its position in the list of the wanted.
enum Part<'a> {
    Zeros(u64),
    Here(Bytes, Touch<'a>),
    Waiting(usize, Touch<'a>),
}

/// Adds zeros to the pieces from `first` on, which are this answer's.
fn push_zeros(out: &mut Vec<Piece>, first: usize, zeros: u64) {
    match out.get_mut(first..).and_then(<[Piece]>::last_mut) {
        Some(Piece::Zeros(length)) => *length += zeros,
        _ => out.push(Piece::Zeros(zeros)),
    }
}
