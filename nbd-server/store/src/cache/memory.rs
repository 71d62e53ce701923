//! The memory tier: plain frames in a moka cache, bounded by their bytes.

use std::sync::Arc;

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use vmnetx_format::Digest;

use crate::tier::{Arrivals, Found, Source, Tier, Wanted, Why};

/// Plain frames by digest; shared by all packages of a store.
#[derive(Debug)]
pub struct MemoryCache(moka::sync::Cache<Digest, Bytes>);

/// Answers from a [`MemoryCache`] and keeps what the next tier finds.
#[derive(Debug)]
pub struct MemoryTier {
    cache: Arc<MemoryCache>,
    next: Arc<dyn Tier>,
}

impl MemoryCache {
    /// Keeps frames of `max_bytes` together.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        // moka's weights have 32 bits: bytes would do for one frame, and the capacity has 64.
        let weigh = |_: &Digest, plain: &Bytes| u32::try_from(plain.len()).unwrap_or(u32::MAX);
        // moka's own policy turns newcomers away in favour of what was used often, and chunks that were read ahead are
        // newcomers that were never used: they would be fetched, dropped and fetched again.
        let policy = EvictionPolicy::lru();
        let builder = moka::sync::Cache::builder().max_capacity(max_bytes).weigher(weigh);
        Self(builder.eviction_policy(policy).build())
    }

    /// The frame, if it is here; never waits.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.get(digest)
    }

    /// Whether the frame is here, without counting as a use of it.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }

    /// Keeps a frame.
    pub fn insert(&self, digest: Digest, plain: Bytes) {
        self.0.insert(digest, plain);
    }

    /// Forgets a frame.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.0.invalidate(digest);
    }

    /// Bytes that may be kept.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.0.policy().max_capacity().unwrap_or(u64::MAX)
    }

    /// Bytes of the frames that are here, about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.weighted_size()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.invalidate_all();
        self.0.run_pending_tasks();
    }
}

impl MemoryTier {
    /// Puts `cache` before `next`.
    #[must_use]
    pub const fn new(cache: Arc<MemoryCache>, next: Arc<dyn Tier>) -> Self {
        Self { cache, next }
    }
}

impl Tier for MemoryTier {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        let (sender, arrivals) = Arrivals::new(wanted.len());
        let mut missing = Vec::new();
        let mut positions = Vec::new();
        for (index, frame) in wanted.into_iter().enumerate() {
            match self.cache.get(&frame.digest) {
                Some(plain) => sender.send(index, Ok(Found { plain, stored: None, source: Source::Memory })),
                None => {
                    positions.push((index, frame.digest));
                    missing.push(frame);
                }
            }
        }
        if missing.is_empty() {
            return arrivals;
        }
        let mut inner = self.next.fetch(missing, why);
        let cache = Arc::clone(&self.cache);
        tokio::spawn(async move {
            while let Some(arrival) = inner.next().await {
                let Some(&(index, digest)) = positions.get(arrival.index) else { continue };
                if let Ok(found) = &arrival.result {
                    cache.insert(digest, found.plain.clone());
                }
                sender.send(index, arrival.result);
            }
        });
        arrivals
    }

    fn promote(&self, digests: &[Digest], why: Why) {
        self.next.promote(digests, why);
    }
}
