//! Single flight: however many wait for a frame, it is fetched once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use vmnetx_format::Digest;

use crate::Error;
use crate::tier::{Arrivals, Found, Sender, Source, Tier, Wanted, Why};

type Landing = Option<Result<Found, Error>>;

/// Joins fetches of the same frame. A waiter that leaves does not end a fetch that others wait for, or may soon.
#[derive(Debug)]
pub struct SingleFlight {
    flights: Arc<Flights>,
    next: Arc<dyn Tier>,
}

#[derive(Debug, Default)]
struct Flights(Mutex<HashMap<Digest, watch::Receiver<Landing>>>);

/// A fetch that this call starts: whoever waits hears of its end, even if it ends without an answer.
struct Flight {
    digest: Digest,
    landing: watch::Sender<Landing>,
    flights: Arc<Flights>,
}

impl SingleFlight {
    /// Puts single flight before `next`.
    #[must_use]
    pub fn new(next: Arc<dyn Tier>) -> Self {
        Self { flights: Arc::default(), next }
    }

    /// Whether the frame is being fetched now.
    #[must_use]
    pub fn is_under_way(&self, digest: &Digest) -> bool {
        self.flights.lock().contains_key(digest)
    }
}

impl Flights {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, watch::Receiver<Landing>>> {
        // The map is whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn land(self, result: Result<Found, Error>) {
        // Out of the map first: who comes from now on finds the frame in a cache, or tries anew after a failure.
        self.flights.lock().remove(&self.digest);
        self.landing.send_replace(Some(result));
    }
}

impl Tier for SingleFlight {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let mut own = Vec::new();
        let mut flights = Vec::new();
        {
            let mut map = self.flights.lock();
            for (index, frame) in wanted.into_iter().enumerate() {
                let mut joined = true;
                let landing = match map.entry(frame.digest) {
                    Entry::Occupied(entry) => entry.get().clone(),
                    Entry::Vacant(entry) => {
                        let (landing, waiter) = watch::channel(None);
                        entry.insert(waiter.clone());
                        flights.push(Some(Flight {
                            digest: frame.digest,
                            landing,
                            flights: Arc::clone(&self.flights),
                        }));
                        own.push(frame);
                        joined = false;
                        waiter
                    }
                };
                tokio::spawn(wait(landing, joined, sender.clone(), index));
            }
        }
        if own.is_empty() {
            return arrivals;
        }
        let mut inner = self.next.fetch(own, why);
        tokio::spawn(async move {
            while let Some(arrival) = inner.next().await {
                if let Some(flight) = flights.get_mut(arrival.index).and_then(Option::take) {
                    flight.land(arrival.result);
                }
            }
            for flight in flights.into_iter().flatten() {
                flight.land(Err(Error::Closing));
            }
        });
        arrivals
    }
}

async fn wait(mut landing: watch::Receiver<Landing>, joined: bool, sender: Sender, index: usize) {
    let mut result = match landing.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(Error::Closing)),
        Err(_) => Err(Error::Closing),
    };
    if let (true, Ok(found)) = (joined, &mut result) {
        found.source = Source::Joined;
    }
    sender.send(index, result);
}
