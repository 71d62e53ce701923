//! The places of one repository, and which of them is asked: the best one, elsewhere after a failure.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Body, Meter, Origin, Pace, Promise};
use crate::Error;
use crate::limits::{MIRROR_AVOIDED_MAX, MIRROR_PROBE_PARTS, MIRROR_REST_MAX, MIRROR_REST_MIN};
use crate::tier::Why;

/// Mirrors of one repository, in the order in which its link lists them.
#[derive(Debug)]
pub struct Mirrors {
    all: Vec<Mirror>,
    /// Requests that nobody waits for, to probe with some of them.
    unhurried: AtomicU64,
}

#[derive(Debug)]
struct Mirror {
    origin: Arc<dyn Origin>,
    pace: Pace,
    meter: Meter,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    requests: u64,
    failures: u64,
    failures_in_a_row: u32,
    /// Until when it is not asked if another can be.
    rests_until: Option<Instant>,
    /// Objects that it lacks or has damaged.
    avoided: HashSet<String>,
}

/// How a mirror does.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorState {
    /// Where it is, to be shown.
    pub place: String,
    /// Requests that it was sent.
    pub requests: u64,
    /// Requests of these that failed, damage included.
    pub failures: u64,
    /// Whether it is left alone for a while because it failed.
    pub resting: bool,
    /// Objects that it is known to lack or to have damaged.
    pub avoided_objects: u64,
    /// The time within which half of its latest responses began, in microseconds; nothing while few are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
}

impl Mirrors {
    /// The mirrors `first` and `others`; where nothing else is known, the earlier ones are asked.
    #[must_use]
    pub fn new(first: Arc<dyn Origin>, others: impl IntoIterator<Item = Arc<dyn Origin>>) -> Self {
        let all = std::iter::once(first).chain(others);
        let mirror =
            |origin| Mirror { origin, pace: Pace::default(), meter: Meter::default(), health: Mutex::default() };
        Self { all: all.map(mirror).collect(), unhurried: AtomicU64::new(0) }
    }

    /// How each of them does.
    #[must_use]
    pub fn states(&self) -> Vec<MirrorState> {
        let state = |mirror: &Mirror| {
            let health = mirror.health();
            MirrorState {
                place: mirror.origin.locate(""),
                requests: health.requests,
                failures: health.failures,
                resting: health.rests(),
                avoided_objects: health.avoided.len() as u64,
                first_byte_us: mirror.pace.quantile(0.5).map(|time| time.as_micros() as u64),
            }
        };
        self.all.iter().map(state).collect()
    }

    /// The number of mirrors, at least one.
    pub(crate) const fn count(&self) -> usize {
        self.all.len()
    }

    /// Bytes that the link to the best mirror could bring during a round trip.
    pub(crate) fn round_trip_bytes(&self) -> Option<u64> {
        self.all.get(self.best("", None)).and_then(|mirror| mirror.meter.round_trip_bytes())
    }

    /// Which mirror to ask for the object at `path`, not `except` if there is another that may have it.
    pub(crate) fn choose(&self, path: &str, why: Why, except: Option<usize>) -> usize {
        let best = self.best(path, except);
        if why == Why::Demand || self.all.len() == 1 {
            return best;
        }
        let number = self.unhurried.fetch_add(1, Ordering::Relaxed);
        if number % MIRROR_PROBE_PARTS != MIRROR_PROBE_PARTS - 1 {
            return best;
        }
        // In turn, those of which nothing bad is known.
        let turn = (number / MIRROR_PROBE_PARTS) as usize % self.all.len();
        let fit = self.all.get(turn).is_some_and(|mirror| except != Some(turn) && mirror.health().is_fit(path));
        if fit { turn } else { best }
    }

    /// Whether another mirror than `mirror` may have the object at `path` and is not known to fail.
    pub(crate) fn has_other(&self, path: &str, mirror: usize) -> bool {
        let other = |(index, other): (usize, &Mirror)| index != mirror && other.health().is_fit(path);
        self.all.iter().enumerate().any(other)
    }

    /// Whether another mirror than `mirror` may have the object at `path`, if only later.
    pub(crate) fn other_may_have(&self, path: &str, mirror: usize) -> bool {
        let other = |(index, other): (usize, &Mirror)| index != mirror && !other.health().avoided.contains(path);
        self.all.iter().enumerate().any(other)
    }

    fn best(&self, path: &str, except: Option<usize>) -> usize {
        let rank = |(index, mirror): (usize, &Mirror)| {
            let health = mirror.health();
            let pace = mirror.pace.quantile(0.5).unwrap_or_default();
            let known = health.requests > 0 && mirror.pace.quantile(0.5).is_some();
            (
                health.avoided.contains(path),
                except == Some(index),
                health.rests_until(),
                Estimate { pace, known },
                index,
            )
        };
        let mut ranked = self.all.iter().enumerate().map(rank);
        let Some(mut best) = ranked.next() else { return 0 };
        for other in ranked {
            let worse = (best.0, best.1, best.2).cmp(&(other.0, other.1, other.2));
            // The later one must be clearly faster: ties are decided by the order.
            if worse.is_gt() || (worse.is_eq() && other.3.clearly_beats(best.3)) {
                best = other;
            }
        }
        best.4
    }

    /// Starts to read a range of the object at `path` from one mirror and takes note of how that goes.
    pub(crate) async fn open(&self, mirror: usize, path: &str, range: Range<u64>) -> Result<Body, Error> {
        let Some(mirror) = self.all.get(mirror) else { return Err(Error::Closing) };
        mirror.health().requests += 1;
        let sent = Instant::now();
        let body = mirror.origin.range(path, range).await;
        match &body {
            Ok(_) => mirror.pace.first_byte(sent.elapsed()),
            Err(error) => mirror.failed(path, error),
        }
        body
    }

    /// A body of so many bytes, which `mirror` was asked for, came to its end; `took` is the time from the request on, where
    /// no other request was on the line for the same reader.
    pub(crate) fn succeeded(&self, mirror: usize, bytes: u64, took: Option<Duration>) {
        if let Some(mirror) = self.all.get(mirror) {
            if let Some(took) = took {
                mirror.meter.add(bytes, took);
            }
            let mut health = mirror.health();
            (health.failures_in_a_row, health.rests_until) = (0, None);
        }
    }

    /// What a mirror sent of the object at `path` was damaged or broke off.
    pub(crate) fn failed(&self, mirror: usize, path: &str, error: &Error) {
        if let Some(mirror) = self.all.get(mirror) {
            mirror.failed(path, error);
        }
    }

    /// The time within which nearly all responses of a mirror begin.
    pub(crate) fn first_byte(&self, mirror: usize, part: f64) -> Option<Duration> {
        self.all.get(mirror).and_then(|mirror| mirror.pace.quantile(part))
    }

    /// Where a mirror has the object, to be shown.
    pub(crate) fn locate_at(&self, mirror: usize, path: &str) -> String {
        self.all.get(mirror).map(|mirror| mirror.origin.locate(path)).unwrap_or_default()
    }
}

/// What is known of a mirror's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Estimate {
    pace: Duration,
    known: bool,
}

impl Estimate {
    fn clearly_beats(self, other: Self) -> bool {
        self.known && other.known && self.pace * 5 < other.pace * 4
    }
}

impl Mirror {
    fn health(&self) -> MutexGuard<'_, Health> {
        // Numbers only: whatever a panic leaves behind is as good as another estimate.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, path: &str, error: &Error) {
        let mut health = self.health();
        health.failures += 1;
        if error.is_transient() || error.is_of_host() {
            let rest = MIRROR_REST_MIN * 2_u32.saturating_pow(health.failures_in_a_row.min(16));
            health.failures_in_a_row += 1;
            health.rests_until = Some(Instant::now() + rest.min(MIRROR_REST_MAX));
        }
        if error.is_transient() {
            return;
        }
        // The object is missing there, or wrong, or will not be had soon.
        if health.avoided.len() >= MIRROR_AVOIDED_MAX {
            health.avoided.clear();
        }
        health.avoided.insert(path.to_owned());
    }
}

impl Health {
    fn rests(&self) -> bool {
        self.rests_until().is_some()
    }

    fn rests_until(&self) -> Option<Instant> {
        self.rests_until.filter(|until| *until > Instant::now())
    }

    fn is_fit(&self, path: &str) -> bool {
        !self.rests() && !self.avoided.contains(path)
    }
}

impl Origin for Mirrors {
    fn locate(&self, path: &str) -> String {
        self.locate_at(0, path)
    }

    fn object<'a>(&'a self, path: &'a str, max_bytes: u64) -> Promise<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let mut except = None;
            loop {
                let number = self.choose(path, Why::Demand, except);
                let Some(mirror) = self.all.get(number) else { return Err(Error::Closing) };
                mirror.health().requests += 1;
                let result = mirror.origin.object(path, max_bytes).await.map_err(Error::of_object);
                match &result {
                    Ok(_) => {
                        let mut health = mirror.health();
                        (health.failures_in_a_row, health.rests_until) = (0, None);
                    }
                    Err(error) => mirror.failed(path, error),
                }
                // Each failure makes a mirror unfit, so that this ends.
                if result.is_ok() || !self.has_other(path, number) {
                    return result;
                }
                except = Some(number);
            }
        })
    }

    fn range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Promise<'a, Result<Body, Error>> {
        Box::pin(async move { self.open(self.choose(path, Why::Demand, None), path, range).await })
    }

    fn distrust(&self, path: &str, error: &Error) {
        self.failed(self.choose(path, Why::Demand, None), path, error);
    }
}
