//! Single flight: however many wait for a frame, it is fetched once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmnetx_format::Digest;

use crate::Error;
use crate::tier::{Arrivals, Found, Sender, Source, Tier, Wanted, Why};

/// The frames that are under way, whoever fetches them; shared by all packages of a store.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Digest, Flight>>);

/// Joins fetches of the same frame. A waiter that leaves does not end a fetch that others wait for, or may soon.
#[derive(Debug, Clone)]
pub struct SingleFlight {
    flights: Arc<Flights>,
    next: Arc<dyn Tier>,
}

/// A frame on its way.
#[derive(Debug)]
struct Flight {
    /// The tiers that bring it.
    by: Arc<dyn Tier>,
    /// How urgently.
    why: Why,
    /// Who started it, then who joined.
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    sender: Sender,
    index: usize,
    wanted: Wanted,
    why: Why,
    /// The tiers that the waiter would have asked.
    own: Arc<dyn Tier>,
}

/// The flights that one call started: they land whatever happens to it, so that nobody waits for ever.
struct Started {
    flights: Arc<Flights>,
    /// By position; nothing where one has landed.
    digests: Vec<Option<Digest>>,
}

impl SingleFlight {
    /// Puts single flight before `next`.
    #[must_use]
    pub fn new(next: Arc<dyn Tier>) -> Self {
        Self::shared(Arc::default(), next)
    }

    /// Puts single flight before `next`, shared with all that have the same `flights`.
    #[must_use]
    pub const fn shared(flights: Arc<Flights>, next: Arc<dyn Tier>) -> Self {
        Self { flights, next }
    }

    /// Whether the frame is being fetched now.
    #[must_use]
    pub fn is_under_way(&self, digest: &Digest) -> bool {
        self.flights.lock().contains_key(digest)
    }

    /// Fetches frames for the background, and joins nobody.
    pub(crate) fn alone(&self, wanted: Vec<Wanted>) -> Arrivals {
        self.next.fetch(wanted, Why::Background)
    }

    fn waiter(&self, sender: Sender, index: usize, wanted: Wanted, why: Why) -> Waiter {
        Waiter { sender, index, wanted, why, own: Arc::clone(&self.next) }
    }
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Flight>> {
        // The map is whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Tells everybody, and gives back those who may have more luck with their own tiers.
    fn land(self, result: &Result<Found, Error>) -> Vec<Waiter> {
        let mut others = Vec::new();
        for (position, waiter) in self.waiters.into_iter().enumerate() {
            if result.is_err() && !Arc::ptr_eq(&waiter.own, &self.by) {
                others.push(waiter);
                continue;
            }
            let mut result = result.clone();
            if let (true, Ok(found)) = (position > 0, &mut result) {
                found.source = Source::Joined;
            }
            waiter.sender.send(waiter.index, result);
        }
        others
    }
}

impl Started {
    fn land(&mut self, position: usize, result: &Result<Found, Error>) {
        let Some(digest) = self.digests.get_mut(position).and_then(Option::take) else { return };
        // Out of the map first: who comes from now on finds the frame in a cache, or tries anew after a failure.
        let flight = self.flights.lock().remove(&digest);
        for waiter in flight.map(|flight| flight.land(result)).unwrap_or_default() {
            let Waiter { sender, index, wanted, why, own } = waiter;
            let own = SingleFlight::shared(Arc::clone(&self.flights), own);
            tokio::spawn(async move {
                if let Some(arrival) = own.fetch(vec![wanted], why).next().await {
                    sender.send(index, arrival.result);
                }
            });
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for digest in self.digests.drain(..).flatten() {
            let flight = self.flights.lock().remove(&digest);
            let closing = Err(Error::Closing);
            for waiter in flight.map(|flight| flight.land(&closing)).unwrap_or_default() {
                waiter.sender.send(waiter.index, closing.clone());
            }
        }
    }
}

impl Tier for SingleFlight {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let mut own = Vec::new();
        let mut digests = Vec::new();
        let mut hurried: Vec<(Arc<dyn Tier>, Digest)> = Vec::new();
        {
            let mut map = self.flights.lock();
            for (index, frame) in wanted.into_iter().enumerate() {
                let waiter = self.waiter(sender.clone(), index, frame.clone(), why);
                match map.entry(frame.digest) {
                    Entry::Occupied(mut entry) => {
                        let flight = entry.get_mut();
                        flight.waiters.push(waiter);
                        if why < flight.why {
                            flight.why = why;
                            hurried.push((Arc::clone(&flight.by), frame.digest));
                        }
                    }
                    Entry::Vacant(entry) => {
                        entry.insert(Flight { by: Arc::clone(&self.next), why, waiters: vec![waiter] });
                        digests.push(Some(frame.digest));
                        own.push(frame);
                    }
                }
            }
        }
        for (by, digest) in hurried {
            by.promote(&[digest], why);
        }
        if own.is_empty() {
            return arrivals;
        }
        let mut started = Started { flights: Arc::clone(&self.flights), digests };
        let mut inner = self.next.fetch(own, why);
        tokio::spawn(async move {
            while let Some(arrival) = inner.next().await {
                started.land(arrival.index, &arrival.result);
            }
            // A tier may go away without answering.
            (0..started.digests.len()).for_each(|position| started.land(position, &Err(Error::Closing)));
        });
        arrivals
    }

    fn promote(&self, digests: &[Digest], why: Why) {
        self.next.promote(digests, why);
    }
}
