//! The last tier: frames come out of the origin's packs, by as few range requests as will do, and are verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use vmnetx_format::{Digest, decode_frame, pack_path};

use super::ranges::{RangeRequest, coalesce};
use super::{Meter, Origin, Retry};
use crate::Error;
use crate::limits::{DAMAGED_TRIES_MAX, ORIGIN_BACKGROUND_REQUESTS_MAX, ORIGIN_REQUESTS_MAX};
use crate::tier::{Arrivals, Found, Sender, Source, Tier, Wanted, Why};

/// Fetches frames from an origin.
#[derive(Debug)]
pub struct OriginTier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Arc<dyn Origin>,
    retry_for: Duration,
    slots: Semaphore,
    background_slots: Semaphore,
    meter: Arc<Meter>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl OriginTier {
    /// Wraps an origin; a fetch that fails for want of a network is tried again for `retry_for`.
    #[must_use]
    pub fn new(origin: Arc<dyn Origin>, retry_for: Duration) -> Self {
        Self(Arc::new(Inner {
            origin,
            retry_for,
            slots: Semaphore::new(ORIGIN_REQUESTS_MAX),
            background_slots: Semaphore::new(ORIGIN_BACKGROUND_REQUESTS_MAX),
            meter: Arc::default(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    }

    /// What is known of the origin's line.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.0.meter
    }

    /// Range requests that were sent.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Bytes of packs that arrived.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl Tier for OriginTier {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let requests = coalesce(&wanted, (0..wanted.len()).collect());
        let wanted: Arc<[Wanted]> = wanted.into();
        for request in requests {
            let job = Job { inner: Arc::clone(&self.0), wanted: Arc::clone(&wanted), sender: sender.clone(), why };
            tokio::spawn(job.run(request));
        }
        arrivals
    }
}

/// The right to have a request under way.
type Slots<'a> = [Option<SemaphorePermit<'a>>; 2];

/// One range request and its repetitions.
struct Job {
    inner: Arc<Inner>,
    wanted: Arc<[Wanted]>,
    sender: Sender,
    why: Why,
}

impl Job {
    async fn run(self, request: RangeRequest) {
        let pack = request.pack;
        let mut left = vec![request];
        let mut retry = Retry::for_as_long_as(self.inner.retry_for);
        let mut damaged_tries = 0;
        while let Some(request) = left.pop() {
            let mut done = 0;
            let result = match self.slots(&retry).await {
                Ok(slots) => self.attempt(&request, slots, &mut done).await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { continue };
            if done > 0 {
                retry.progress(self.inner.retry_for);
                damaged_tries = 0;
            }
            damaged_tries += u32::from(error.is_damage());
            let again = error.is_transient() || (error.is_damage() && damaged_tries < DAMAGED_TRIES_MAX);
            let rest = request.frames[done..].to_vec();
            if again && !self.sender.is_closed() && retry.pause().await {
                tracing::debug!(%pack, %error, frames = rest.len(), "try again");
                left.extend(coalesce(&self.wanted, rest));
            } else if error.is_damage() {
                // Damage fails one frame: those behind it may be whole.
                damaged_tries = 0;
                retry.next();
                self.sender.send(rest[0], Err(error));
                left.extend(coalesce(&self.wanted, rest[1..].to_vec()));
            } else {
                for index in rest.into_iter().chain(left.drain(..).flat_map(|request| request.frames)) {
                    self.sender.send(index, Err(error.clone()));
                }
            }
        }
    }

    /// Waits until one more request may be under way, no longer than tries are made: the slots may all be held by
    /// requests that a dead network does not let end.
    async fn slots(&self, retry: &Retry) -> Result<Slots<'_>, Error> {
        let inner = &self.inner;
        let acquire = async {
            // Neither semaphore is ever closed.
            let background = match self.why {
                Why::Demand => None,
                Why::Order | Why::ReadAhead | Why::Background => inner.background_slots.acquire().await.ok(),
            };
            [background, inner.slots.acquire().await.ok()]
        };
        retry.in_time(acquire).await.ok_or_else(|| {
            let seconds = inner.retry_for.as_secs();
            let reason = format_args!("{ORIGIN_REQUESTS_MAX} other requests are not answered either for {seconds} s");
            Error::network(&inner.origin.locate(""), reason)
        })
    }

    /// Tries once; counts in `done` the frames that were delivered, in the request's order.
    async fn attempt(&self, request: &RangeRequest, _slots: Slots<'_>, done: &mut usize) -> Result<(), Error> {
        let inner = &self.inner;
        let path = pack_path(&request.pack);
        inner.requests.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let mut body = inner.origin.range(&path, request.bytes.clone()).await?;
        let mut buffer = BytesMut::new();
        // Where in the pack the buffer begins.
        let mut at = request.bytes.start;
        for &index in &request.frames {
            let place = &self.wanted[index].place;
            let skip = (place.offset - at) as usize;
            let need = skip + place.stored_len as usize;
            while buffer.len() < need {
                let Some(piece) = body.next().await else {
                    let object = inner.origin.locate(&path);
                    return Err(Error::network(&object, "the response ended before its range did"));
                };
                let piece = piece?;
                inner.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                buffer.extend_from_slice(&piece);
            }
            let stored = buffer.split_to(need).freeze().slice(skip..);
            at += need as u64;
            let locate = || format!("{} at byte {}", inner.origin.locate(&path), place.offset);
            let plain = open_frame(&stored, self.wanted[index].plain_len, &self.wanted[index].digest, locate)?;
            let found = Found { plain, stored: Some(stored), source: Source::Origin };
            self.sender.send(index, Ok(found));
            *done += 1;
        }
        if self.why == Why::Demand {
            // Requests that nobody waits for go on beside each other, and take longer for that.
            inner.meter.add(request.bytes.end - request.bytes.start, start.elapsed());
        }
        Ok(())
    }
}

/// Decompresses a frame and compares its digest: nothing enters the process unverified.
pub(crate) fn open_frame(
    stored: &[u8],
    plain_len: u32,
    digest: &Digest,
    locate: impl Fn() -> String,
) -> Result<Bytes, Error> {
    let plain = decode_frame(stored, plain_len).map_err(|source| Error::Frame { object: locate(), source })?;
    if Digest::of(&plain) != *digest {
        return Err(Error::Digest { object: locate(), expected: *digest });
    }
    Ok(plain.into())
}
