//! The disk tier: answers from a cache on disk and keeps what the next tier finds.

use std::sync::Arc;

use vmnetx_format::Digest;

use super::DiskCache;
use super::segment::Record;
use crate::tier::{Arrivals, Found, Sender, Source, Tier, Wanted, Why};

/// Answers from a [`DiskCache`] and keeps what the next tier finds.
#[derive(Debug)]
pub struct DiskTier {
    cache: Arc<DiskCache>,
    next: Arc<dyn Tier>,
}

impl DiskTier {
    /// Puts `cache` before `next`.
    #[must_use]
    pub const fn new(cache: Arc<DiskCache>, next: Arc<dyn Tier>) -> Self {
        Self { cache, next }
    }
}

impl Tier for DiskTier {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let (here, missing): (Vec<_>, Vec<_>) =
            wanted.into_iter().enumerate().partition(|(_, frame)| self.cache.contains(&frame.digest));
        let miss = Miss { cache: Arc::clone(&self.cache), next: Arc::clone(&self.next), sender, why };
        if !missing.is_empty() {
            tokio::spawn(miss.clone().forward(missing));
        }
        if !here.is_empty() {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || {
                let damaged = miss.read(here);
                if !damaged.is_empty() {
                    runtime.spawn(miss.forward(damaged));
                }
            });
        }
        arrivals
    }

    fn promote(&self, digests: &[Digest], why: Why) {
        self.next.promote(digests, why);
    }
}

/// A fetch on its way through this tier.
#[derive(Clone)]
struct Miss {
    cache: Arc<DiskCache>,
    next: Arc<dyn Tier>,
    sender: Sender,
    why: Why,
}

impl Miss {
    /// Answers what can be read; gives back what turns out to be damaged or gone.
    fn read(&self, here: Vec<(usize, Wanted)>) -> Vec<(usize, Wanted)> {
        let mut damaged = Vec::new();
        for (index, frame) in here {
            match self.cache.read(&frame.digest, self.why != Why::Background) {
                Some((plain, stored)) => {
                    self.sender.send(index, Ok(Found { plain, stored: Some(stored), source: Source::Disk }));
                }
                None => damaged.push((index, frame)),
            }
        }
        damaged
    }

    async fn forward(self, missing: Vec<(usize, Wanted)>) {
        let positions: Vec<_> = missing.iter().map(|(index, frame)| (*index, frame.digest, frame.plain_len)).collect();
        let mut inner = self.next.fetch(missing.into_iter().map(|(_, frame)| frame).collect(), self.why);
        while let Some(arrival) = inner.next().await {
            let Some(&(index, digest, plain_len)) = positions.get(arrival.index) else { continue };
            if let Ok(Found { stored: Some(stored), .. }) = &arrival.result {
                self.cache.keep(Record { digest, plain_len, stored: stored.clone() });
            }
            self.sender.send(index, arrival.result);
        }
    }
}
