//! One range request and what follows from it: hedging, verification, and trying again elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use vmnetx_format::{Digest, decode_frame, pack_path};

use super::ranges::{RangeRequest, coalesce};
use super::slots::Slot;
use super::tier::Inner;
use super::{Body, Retry};
use crate::Error;
use crate::limits::{
    DAMAGED_TRIES_MAX, HEDGE_AFTER_MAX, HEDGE_AFTER_MIN, HEDGE_FACTOR, HEDGE_PARTS, HEDGE_QUANTILE, ORIGIN_REQUESTS_MAX,
};
use crate::tier::{Found, Sender, Source, Wanted, Why};

/// Fetches the frames of a range request.
pub(super) struct Job {
    inner: Arc<Inner>,
    wanted: Arc<[Wanted]>,
    sender: Sender,
    why: Why,
    /// How often frames arrived damaged, by their position.
    damaged_tries: HashMap<usize, u32>,
    /// The mirror that failed last.
    failed_mirror: Option<usize>,
}

/// What came of one try.
#[derive(Default)]
struct Outcome {
    /// Frames that were delivered, whole.
    delivered: usize,
    /// Frames that arrived and are damaged.
    damaged: Vec<(usize, Error)>,
    /// What ended it before the last frame, and the frames that did not arrive.
    broken: Option<(Error, Vec<usize>)>,
}

impl Job {
    pub(super) fn new(inner: Arc<Inner>, wanted: Arc<[Wanted]>, sender: Sender, why: Why) -> Self {
        Self { inner, wanted, sender, why, damaged_tries: HashMap::new(), failed_mirror: None }
    }

    pub(super) async fn run(mut self, request: RangeRequest) {
        let pack = request.pack;
        let path = pack_path(&pack);
        let mut left = vec![request];
        let mut retry = Retry::for_as_long_as(self.inner.retry_for);
        let mut moves = 0;
        while let Some(request) = left.pop() {
            let (mirror, outcome) = self.attempt(&request, &path, &retry).await;
            if outcome.delivered > 0 {
                retry.progress(self.inner.retry_for);
            }
            let mut again = Vec::new();
            for (index, error) in outcome.damaged {
                self.judge_damaged(index, error, &mut again);
            }
            let elsewhere = self.inner.mirrors.has_other(&path, mirror);
            if let Some((error, rest)) = outcome.broken {
                if error.is_transient() || self.inner.mirrors.other_may_have(&path, mirror) {
                    tracing::debug!(%pack, %error, frames = rest.len(), "try again");
                    again.extend(rest.iter().map(|&index| (index, error.clone())));
                } else {
                    let behind = left.drain(..).flat_map(|request| request.frames);
                    rest.into_iter().chain(behind).for_each(|index| self.sender.send(index, Err(error.clone())));
                }
            }
            if again.is_empty() {
                continue;
            }
            self.failed_mirror = Some(mirror);
            // Another mirror is asked at once, each once; after that there is a pause as for one.
            moves = if elsewhere { moves + 1 } else { 0 };
            let at_once = elsewhere && moves < self.inner.mirrors.count();
            if !self.sender.is_closed() && (at_once || retry.pause().await) {
                self.inner.tally.retries.fetch_add(1, Ordering::Relaxed);
                left.extend(coalesce(&self.wanted, again.into_iter().map(|(index, _)| index).collect()));
            } else {
                again.into_iter().for_each(|(index, error)| self.sender.send(index, Err(error)));
            }
        }
    }

    /// Whether a frame that arrived damaged is worth another try: then it is put to `again`.
    fn judge_damaged(&mut self, index: usize, error: Error, again: &mut Vec<(usize, Error)>) {
        self.inner.tally.damaged_frames.fetch_add(1, Ordering::Relaxed);
        let tries = self.damaged_tries.entry(index).or_default();
        *tries += 1;
        if *tries < DAMAGED_TRIES_MAX.max(self.inner.mirrors.count() as u32) {
            again.push((index, error));
        } else {
            self.sender.send(index, Err(error));
        }
    }

    /// Waits until one more request may be under way, no longer than tries are made: the slots may all be held by
    /// requests that a dead network does not let end.
    async fn slot(&self, request: &RangeRequest, retry: &Retry) -> Result<Slot, Error> {
        let inner = &self.inner;
        let digests = request.frames.iter().filter_map(|&index| Some(self.wanted.get(index)?.digest)).collect();
        let bytes = request.bytes.end - request.bytes.start;
        // Whoever paces the background means it to take its time.
        if self.why == Why::Background {
            return Ok(inner.slots.acquire(self.why, digests, bytes).await);
        }
        retry.in_time(inner.slots.acquire(self.why, digests, bytes)).await.ok_or_else(|| {
            let seconds = inner.retry_for.as_secs();
            let reason = format_args!("{ORIGIN_REQUESTS_MAX} other requests are not answered either for {seconds} s");
            Error::network(&inner.mirrors.locate_at(0, ""), reason)
        })
    }

    /// Tries once; says which mirror it asked.
    async fn attempt(&mut self, request: &RangeRequest, path: &str, retry: &Retry) -> (usize, Outcome) {
        let broken = |error| Outcome { broken: Some((error, request.frames.clone())), ..Outcome::default() };
        let slot = match self.slot(request, retry).await {
            Ok(slot) => slot,
            Err(error) => return (0, broken(error)),
        };
        // Somebody more urgent may have joined, and does not leave when this try fails.
        self.why = slot.why();
        let mirrors = &self.inner.mirrors;
        let mirror = mirrors.choose(path, self.why, self.failed_mirror);
        let sent = Instant::now();
        let (mirror, body) = self.open(mirror, path, request).await;
        let outcome = match body {
            Ok(body) => self.read(body, mirror, path, request, sent).await,
            // The mirror's health knows already.
            Err(error) => return (mirror, broken(error)),
        };
        let damage = outcome.damaged.iter().map(|(_, error)| error).next();
        if let Some(error) = damage.or(outcome.broken.as_ref().map(|(error, _)| error)) {
            mirrors.failed(mirror, path, error);
        }
        (mirror, outcome)
    }

    /// Sends the request; if a reader waits and the answer is late, sends another one after it and takes the first.
    async fn open(&self, mirror: usize, path: &str, request: &RangeRequest) -> (usize, Result<Body, Error>) {
        let (mirrors, tally) = (&self.inner.mirrors, &self.inner.tally);
        tally.requests.fetch_add(1, Ordering::Relaxed);
        let first = mirrors.open(mirror, path, request.bytes.clone());
        tokio::pin!(first);
        let late = match (self.why, mirrors.first_byte(mirror, HEDGE_QUANTILE)) {
            (Why::Demand, Some(usual)) => (usual * HEDGE_FACTOR).clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX),
            _ => return (mirror, first.await),
        };
        tokio::select! {
            body = &mut first => return (mirror, body),
            () = tokio::time::sleep(late) => {}
        }
        if tally.hedges.load(Ordering::Relaxed) * HEDGE_PARTS >= tally.requests.load(Ordering::Relaxed) {
            return (mirror, first.await);
        }
        tally.hedges.fetch_add(1, Ordering::Relaxed);
        tally.requests.fetch_add(1, Ordering::Relaxed);
        let other = mirrors.choose(path, Why::Demand, Some(mirror));
        let second = mirrors.open(other, path, request.bytes.clone());
        tokio::pin!(second);
        // The loser is dropped, and its connection with it. One that fails leaves the other.
        tokio::select! {
            body = &mut first => if body.is_ok() { (mirror, body) } else { (other, second.await) },
            body = &mut second => {
                if body.is_err() {
                    return (mirror, first.await);
                }
                tally.hedges_won.fetch_add(1, Ordering::Relaxed);
                (other, body)
            }
        }
    }

    /// Reads the body to its end and delivers each frame as soon as its last byte is in; damaged ones are passed over.
    async fn read(&self, mut body: Body, mirror: usize, path: &str, request: &RangeRequest, sent: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let mut buffer = BytesMut::new();
        // Where in the pack the buffer begins.
        let mut at = request.bytes.start;
        for (position, &index) in request.frames.iter().enumerate() {
            let Some(wanted) = self.wanted.get(index) else { continue };
            let place = &wanted.place;
            let skip = (place.offset - at) as usize;
            let need = skip + place.stored_len as usize;
            while buffer.len() < need {
                let error = match body.next().await {
                    Some(Ok(piece)) => {
                        self.inner.tally.add(self.why, piece.len());
                        buffer.extend_from_slice(&piece);
                        continue;
                    }
                    Some(Err(error)) => error,
                    None => {
                        let object = self.inner.mirrors.locate_at(mirror, path);
                        Error::network(&object, "the response ended before its range did")
                    }
                };
                outcome.broken = Some((error, request.frames.get(position..).unwrap_or_default().to_vec()));
                return outcome;
            }
            let stored = buffer.split_to(need).freeze().slice(skip..);
            at += need as u64;
            let locate = || format!("{} at byte {}", self.inner.mirrors.locate_at(mirror, path), place.offset);
            match open_frame(&stored, wanted.plain_len, &wanted.digest, locate) {
                Ok(plain) => {
                    outcome.delivered += 1;
                    self.sender.send(index, Ok(Found { plain, stored: Some(stored), source: Source::Origin }));
                }
                Err(error) => outcome.damaged.push((index, error)),
            }
        }
        // Requests that nobody waits for go on beside each other, and take longer for that.
        let took = (self.why == Why::Demand).then(|| sent.elapsed());
        self.inner.mirrors.succeeded(mirror, request.bytes.end - request.bytes.start, took);
        outcome
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
