//! A tier: a place where chunks are looked for. Each tier wraps the next one; the last is an origin.

use std::fmt::Debug;

use bytes::Bytes;
use tokio::sync::mpsc;
use vmnetx_format::{Digest, Place};

use crate::Error;

/// A frame that someone wants: a chunk of an image, or a node of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The digest of its plain bytes, by which it is cached.
    pub digest: Digest,
    /// Its plain bytes' number.
    pub plain_len: u32,
    /// Where the origin stores it.
    pub place: Place,
}

/// Why frames are fetched, the most urgent first: whoever waits goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A reader waits for them.
    Demand,
    /// A recorded order says that they will be wanted soon.
    Order,
    /// A reader is expected to want them soon.
    ReadAhead,
    /// They are to be here some day, whether or not anyone reads them.
    Background,
}

/// Where a frame was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the memory tier.
    Memory,
    /// In the disk tier.
    Disk,
    /// At the origin.
    Origin,
    /// On its way: another fetch had asked for it already.
    Joined,
}

/// A frame that was found, its plain bytes verified.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its plain bytes.
    pub plain: Bytes,
    /// Its bytes as stored, where the tier had them at hand.
    pub stored: Option<Bytes>,
    /// Which tier had it.
    pub source: Source,
}

/// The answer for one of the wanted frames.
#[derive(Debug)]
pub struct Arrival {
    /// Which one, as its position in the list of the wanted.
    pub index: usize,
    /// The frame, or why it cannot be had.
    pub result: Result<Found, Error>,
}

/// The answers for a list of wanted frames, in the order in which they arrive, exactly one for each.
///
/// Dropping it says that nobody waits any more; a tier may end the fetch then.
#[derive(Debug)]
pub struct Arrivals {
    receiver: mpsc::Receiver<Arrival>,
    left: usize,
}

/// Where a tier puts its answers.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Arrival>);

/// A place where frames are looked for.
pub trait Tier: Debug + Send + Sync + 'static {
    /// Fetches `wanted`; returns at once. Must be called within a tokio runtime.
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals;

    /// Somebody more urgent waits for frames that are being fetched already: what is still queued goes out as if it had
    /// been asked for by `why`.
    fn promote(&self, _digests: &[Digest], _why: Why) {}
}

impl Arrivals {
    /// Makes both ends for a list of `count` wanted frames. There is room for every answer: sending never waits.
    #[must_use]
    pub fn new(count: usize) -> (Sender, Self) {
        let (sender, receiver) = mpsc::channel(count.max(1));
        (Sender(sender), Self { receiver, left: count })
    }

    /// The next answer; nothing after the last one. A tier that goes away without answering ends it early.
    pub async fn next(&mut self) -> Option<Arrival> {
        self.left = self.left.checked_sub(1)?;
        self.receiver.recv().await
    }
}

impl Sender {
    /// Gives one answer.
    pub fn send(&self, index: usize, result: Result<Found, Error>) {
        // Fails when nobody waits any more, which is their right, or when a tier answers more often than it was asked.
        let _ = self.0.try_send(Arrival { index, result });
    }

    /// Whether the receiver was dropped: nobody waits any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
