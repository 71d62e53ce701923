//! Brings a range of an image to this host before anybody reads it, in bounded steps.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Image, LEAF_BYTES, Step, Tiers};
use crate::limits::{PREFETCH_IN_FLIGHT_BLOCKS, PREFETCH_PARTS, PREFETCH_REQUEST_BLOCKS};
use crate::tier::{Tier, Wanted, Why};
use crate::{Counters, Error};

/// Requests of one prefetch.
struct Prefetch<'a> {
    tiers: &'a Tiers,
    counters: &'a Arc<Counters>,
    /// Chunks of the next request, and their blocks.
    next: Vec<Wanted>,
    next_blocks: u32,
    under_way: JoinSet<Result<(), Error>>,
    /// Bytes that it may still bring.
    room_bytes: u64,
}

impl Image {
    /// Brings what is missing of `length` bytes at `offset` into the tiers of this host, as [`Why::Background`]; ends when
    /// it is here. Dropping the future ends what nobody else waits for.
    ///
    /// It takes the index a leaf at a time and never has more than [`PREFETCH_IN_FLIGHT_BLOCKS`] under way, so a range may
    /// be of any length. It brings one part in [`PREFETCH_PARTS`] of what the disk tier keeps, or without one the memory
    /// tier, and leaves the rest of the range as it is: more would push out what it has brought itself.
    ///
    /// # Errors
    /// [`Error`] when the range leaves the image or something of it cannot be had; the rest is then not asked for.
    pub async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check(offset, length)?;
        let mut prefetch = Prefetch::new(&self.tiers, &self.counters);
        let mut at = offset;
        let end = offset + length;
        while at < end && prefetch.room_bytes > 0 {
            let stop = end.min((at / LEAF_BYTES + 1) * LEAF_BYTES);
            let leaf = self.index.leaf((at / LEAF_BYTES) as u32, Why::Background).await?;
            let mut missing = Vec::new();
            leaf.each_touch(at, stop, |step| {
                if let Step::Chunk(touch) = step
                    && !self.tiers.have(touch.chunk.digest())
                {
                    missing.push(touch.chunk);
                }
                true
            });
            for chunk in missing {
                prefetch.add(chunk.want(), chunk.blocks()).await?;
            }
            at = stop;
        }
        prefetch.finish().await
    }
}

impl<'a> Prefetch<'a> {
    fn new(tiers: &'a Tiers, counters: &'a Arc<Counters>) -> Self {
        let kept_bytes = tiers.disk.as_ref().map_or_else(|| tiers.memory.max_bytes(), |disk| disk.max_bytes());
        let room_bytes = kept_bytes / PREFETCH_PARTS;
        Self { tiers, counters, next: Vec::new(), next_blocks: 0, under_way: JoinSet::new(), room_bytes }
    }

    /// Asks for one more chunk, once there is room for it.
    async fn add(&mut self, chunk: Wanted, blocks: u32) -> Result<(), Error> {
        let bytes = if self.tiers.disk.is_some() { chunk.place.stored_len } else { chunk.plain_len };
        let Some(room_bytes) = self.room_bytes.checked_sub(bytes.into()) else {
            self.room_bytes = 0;
            return Ok(());
        };
        self.room_bytes = room_bytes;
        self.next.push(chunk);
        self.next_blocks += blocks;
        if self.next_blocks >= PREFETCH_REQUEST_BLOCKS { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<(), Error> {
        let wanted = std::mem::take(&mut self.next);
        let blocks = std::mem::take(&mut self.next_blocks).min(PREFETCH_IN_FLIGHT_BLOCKS);
        if wanted.is_empty() {
            return Ok(());
        }
        // It is never closed.
        let place = Arc::clone(&self.tiers.background).acquire_many_owned(blocks).await.map_err(|_| Error::Closing)?;
        let (flights, counters) = (Arc::clone(&self.tiers.flights), Arc::clone(self.counters));
        self.under_way.spawn(async move {
            let mut arrivals = flights.fetch(wanted, Why::Background);
            let mut result = Ok(());
            while let Some(arrival) = arrivals.next().await {
                counters.prefetched(&arrival.result);
                result = result.and(arrival.result.map(drop));
            }
            drop(place);
            result
        });
        while let Some(ended) = self.under_way.try_join_next() {
            ended.map_err(|_| Error::Closing)??;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), Error> {
        self.send().await?;
        while let Some(ended) = self.under_way.join_next().await {
            ended.map_err(|_| Error::Closing)??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use bytes::Bytes;
    use tokio::sync::Semaphore;
    use vmnetx_format::{Digest, Place};

    use super::*;
    use crate::cache::{MemoryCache, SingleFlight};
    use crate::origin::{DirOrigin, Mirrors};
    use crate::tier::{Arrivals, Found, Sender, Source};

    const CHUNK_BLOCKS: u32 = 8;
    const CHUNK_BYTES: u32 = CHUNK_BLOCKS * 4096;

    /// Keeps every question until it is told to answer.
    #[derive(Debug, Default)]
    struct Silent(Mutex<Vec<(Sender, usize, Why)>>);

    impl Tier for Silent {
        fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
            let (sender, arrivals) = Arrivals::new(wanted.len());
            let asked = (0..wanted.len()).map(|index| (sender.clone(), index, why));
            self.0.lock().unwrap().extend(asked);
            arrivals
        }
    }

    impl Silent {
        /// Answers what is asked now; how many that were.
        fn answer(&self) -> u32 {
            let asked = std::mem::take(&mut *self.0.lock().unwrap());
            for (sender, index, why) in &asked {
                assert_eq!(*why, Why::Background);
                let (plain, source) = (Bytes::new(), Source::Origin);
                sender.send(*index, Ok(Found { plain, stored: None, source }));
            }
            asked.len() as u32
        }
    }

    fn tiers(silent: &Arc<Silent>, memory_bytes: u64) -> Tiers {
        Tiers {
            memory: Arc::new(MemoryCache::new(memory_bytes)),
            flights: Arc::new(SingleFlight::new(Arc::<Silent>::clone(silent))),
            mirrors: Arc::new(Mirrors::new(Arc::new(DirOrigin::new(Path::new("."))), [])),
            disk: None,
            background: Arc::new(Semaphore::new(PREFETCH_IN_FLIGHT_BLOCKS as usize)),
        }
    }

    fn chunk(number: u32) -> Wanted {
        let digest = Digest::of(&number.to_le_bytes());
        let place = Place { pack: digest, offset: 0, stored_len: 100 };
        Wanted { digest, plain_len: CHUNK_BYTES, place }
    }

    /// However many chunks are wanted, and by however many prefetches, no more than the limit are under way.
    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_bounded() {
        let silent = Arc::<Silent>::default();
        let tiers = tiers(&silent, u64::MAX);
        let counters = Arc::<Counters>::default();
        let chunks = 5 * PREFETCH_IN_FLIGHT_BLOCKS / CHUNK_BLOCKS;
        let mut prefetches = JoinSet::new();
        for first in [0, chunks] {
            let (tiers, counters) = (tiers.clone(), Arc::clone(&counters));
            prefetches.spawn(async move {
                let mut prefetch = Prefetch::new(&tiers, &counters);
                for number in first..first + chunks {
                    prefetch.add(chunk(number), CHUNK_BLOCKS).await.unwrap();
                }
                prefetch.finish().await.unwrap();
            });
        }
        let mut answered = 0;
        while answered < 2 * chunks {
            // With the clock paused it moves on only when nobody has anything to do.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let now = silent.answer();
            assert!(now > 0 && now <= PREFETCH_IN_FLIGHT_BLOCKS / CHUNK_BLOCKS, "{now} chunks under way");
            answered += now;
        }
        prefetches.join_all().await;
        assert_eq!(counters.counts().prefetched_chunks, u64::from(2 * chunks));
        assert_eq!(tiers.background.available_permits(), PREFETCH_IN_FLIGHT_BLOCKS as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prefetch_stops_where_it_would_fill_the_tier() {
        let silent = Arc::<Silent>::default();
        let tiers = tiers(&silent, 20 * u64::from(CHUNK_BYTES) + 5);
        let counters = Arc::<Counters>::default();
        let mut prefetch = Prefetch::new(&tiers, &counters);
        for number in 0..1000 {
            prefetch.add(chunk(number), CHUNK_BLOCKS).await.unwrap();
        }
        assert_eq!((prefetch.next.len(), prefetch.room_bytes), (10, 0));
    }
}
