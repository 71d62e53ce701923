//! Pulling into the cache directory: every frame is read back or fetched, then the version is pinned.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use vmnetx_format::limits::{LAYOUT_BYTES_MAX, MANIFEST_BYTES_MAX, ORDER_BYTES_MAX};
use vmnetx_format::{Digest, layout_path, manifest_path, order_path};

use super::walk::Walk;
use super::{Progress, Pulled, blocking};
use crate::cache::{Hold, Pin, Pinned, RECORD_OVERHEAD_BYTES, Record, SingleFlight};
use crate::limits::{PULL_BATCH_BYTES, PULL_BATCHES_MAX};
use crate::package::{kept_name, verified};
use crate::tier::{Arrivals, Found, Source, Tier, Wanted, Why};
use crate::{DiskCache, Error, Location, Package, Store};

/// A pull under way.
struct Pull<'a> {
    store: &'a Store,
    package: &'a Package,
    disk: Arc<DiskCache>,
    hold: Hold,
    progress: &'a Arc<Progress>,
    frames: HashMap<Digest, Frame>,
    under_way: JoinSet<Result<(), Error>>,
}

/// A frame of the version.
struct Frame {
    stored_len: u32,
    /// Whether it was read back or is fetched.
    is_dealt_with: bool,
}

impl Store {
    /// Makes the version of a package complete in the cache directory and pins it. What is there already is read and
    /// compared, so a pull that was cut goes on where it was, and one that ends well is worth relying on.
    ///
    /// Takes memory for the digests of the version's frames, and for a few megabytes of them under way.
    ///
    /// # Errors
    /// [`Error::PinTooLarge`] when the cache is too small for it; [`Error::Cache`] when it cannot be written; [`Error`] when
    /// something cannot be had.
    pub async fn pull(
        &self,
        package: &Package,
        location: &Location,
        progress: &Arc<Progress>,
    ) -> Result<Pulled, Error> {
        let no_directory =
            || Error::Cache { dir: "(none)".into(), reason: "there is no directory to pull into".into() };
        let disk = Arc::clone(self.disk().ok_or_else(no_directory)?);
        let (hold, frames, under_way) = (disk.hold(), HashMap::new(), JoinSet::new());
        let mut pull = Pull { store: self, package, disk, hold, progress, frames, under_way };
        let objects = pull.objects().await?;
        let bytes = pull.count().await?;
        pull.check_room()?;
        pull.hold.keep(pull.frames.keys().copied());
        for image in package.images() {
            let mut walk = Walk::new(image);
            while let Some(frames) = walk.next().await? {
                pull.bring(frames).await?;
            }
        }
        while let Some(batch) = pull.under_way.join_next().await {
            batch.map_err(|_| Error::Closing)??;
        }
        pull.pin(location, bytes, objects).await?;
        Ok(progress.pulled())
    }
}

impl Pull<'_> {
    /// Keeps link, manifest, layout and orders; gives the digests of the objects among them.
    async fn objects(&self) -> Result<Vec<Digest>, Error> {
        let version = self.package.version();
        let objects = [
            (manifest_path(&version.manifest), version.manifest, MANIFEST_BYTES_MAX),
            (layout_path(&version.layout), version.layout, LAYOUT_BYTES_MAX),
        ];
        let orders = version.orders.iter().map(|digest| (order_path(digest), *digest, ORDER_BYTES_MAX));
        let mut digests = Vec::new();
        for (path, digest, max_bytes) in objects.into_iter().chain(orders) {
            self.hold.keep([digest]);
            let object = verified(self.store, &**self.package.repository(), &path, max_bytes, digest).await?;
            let Some(cache) = self.store.objects().cloned() else { continue };
            let kept = blocking(move || {
                // It may be being written already, and twice does no harm.
                cache.put(&digest, &object.bytes);
                cache.get(&digest, max_bytes).is_some()
            });
            if !kept.await? {
                return Err(self.cannot_keep());
            }
            digests.push(digest);
        }
        if let (Some(links), Some(url), false) = (self.store.links(), self.package.url(), self.store.is_offline()) {
            let (links, name, link) = (Arc::clone(links), kept_name(url), self.package.envelope().encode());
            blocking(move || links.put(&name, &link)).await?;
        }
        Ok(digests)
    }

    /// Walks the version once to know its frames; gives their stored bytes.
    async fn count(&mut self) -> Result<u64, Error> {
        let mut bytes = 0;
        for image in self.package.images() {
            let mut walk = Walk::new(image);
            while let Some(frames) = walk.next().await? {
                for frame in frames {
                    let stored_len = frame.place.stored_len;
                    if self.frames.insert(frame.digest, Frame { stored_len, is_dealt_with: false }).is_none() {
                        bytes += u64::from(stored_len);
                    }
                }
            }
        }
        self.progress.start(bytes);
        Ok(bytes)
    }

    /// Whether the version may be pinned beside those that are.
    fn check_room(&self) -> Result<(), Error> {
        let pinned_bytes = self.disk.usage().pinned_bytes;
        let new = self.frames.iter().filter(|(digest, _)| !self.disk.is_pinned(digest));
        let bytes: u64 = new.map(|(_, frame)| u64::from(frame.stored_len) + RECORD_OVERHEAD_BYTES).sum();
        let max_bytes = self.disk.pinned_bytes_max();
        if pinned_bytes.saturating_add(bytes) <= max_bytes {
            return Ok(());
        }
        let name = self.package.link().name.to_string();
        Err(Error::PinTooLarge { name, bytes, pinned_bytes, max_bytes })
    }

    /// Reads back those of `frames` that are here and fetches the others.
    async fn bring(&mut self, mut frames: Vec<Wanted>) -> Result<(), Error> {
        frames.retain(|frame| {
            let known = self.frames.get_mut(&frame.digest);
            known.is_some_and(|known| !std::mem::replace(&mut known.is_dealt_with, true))
        });
        let (disk, progress) = (Arc::clone(&self.disk), Arc::clone(self.progress));
        let mut missing = blocking(move || {
            // What others have fetched may wait to be written.
            disk.flush();
            let is_missing = |frame: &Wanted| match disk.read(&frame.digest, false) {
                Some((_, stored)) => {
                    progress.add(stored.len() as u64, false);
                    false
                }
                None => true,
            };
            frames.into_iter().filter(is_missing).collect::<Vec<_>>()
        })
        .await?;
        // Neighbours in a pack become one request.
        missing.sort_unstable_by_key(|frame| (frame.place.pack, frame.place.offset));
        let mut missing = missing.into_iter().peekable();
        while missing.peek().is_some() {
            let mut bytes = 0;
            let batch = std::iter::from_fn(|| {
                let frame = missing.next_if(|_| bytes < PULL_BATCH_BYTES)?;
                bytes += u64::from(frame.place.stored_len);
                Some(frame)
            });
            let batch = batch.collect();
            while self.under_way.len() >= PULL_BATCHES_MAX
                && let Some(batch) = self.under_way.join_next().await
            {
                batch.map_err(|_| Error::Closing)??;
            }
            let (origin, disk) = (Arc::clone(self.package.origin()), Arc::clone(&self.disk));
            let tier = self.store.past_memory(origin, Arc::clone(&disk));
            self.under_way.spawn(fetch(tier, disk, batch, Arc::clone(self.progress)));
        }
        Ok(())
    }

    /// Flushes everything to the disk itself, looks once more whether it is all there, and writes the pin.
    async fn pin(&self, location: &Location, bytes: u64, objects: Vec<Digest>) -> Result<(), Error> {
        let pin = Pin {
            name: self.package.link().name.to_string(),
            manifest: self.package.version().manifest,
            link: location.to_string(),
            pinned_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            bytes,
            objects,
        };
        let pinned = Pinned { pin, frames: self.frames.keys().copied().collect() };
        let disk = Arc::clone(&self.disk);
        let is_whole = blocking(move || {
            disk.sync()?;
            let is_whole = pinned.frames.iter().all(|digest| disk.contains(digest));
            if is_whole { disk.pin(&pinned).map(|()| true) } else { Ok(false) }
        });
        if is_whole.await?? { Ok(()) } else { Err(self.cannot_keep()) }
    }

    fn cannot_keep(&self) -> Error {
        self.disk.error(&"it does not keep all that was fetched; is the disk full?")
    }
}

/// Fetches frames and has them written.
async fn fetch(
    tier: SingleFlight,
    disk: Arc<DiskCache>,
    batch: Vec<Wanted>,
    progress: Arc<Progress>,
) -> Result<(), Error> {
    let mut records = Vec::with_capacity(batch.len());
    // Whom it has joined may have found a frame in memory, where it is not as it is stored.
    let plain_alone = add_records(tier.fetch(batch.clone(), Why::Background), &batch, &mut records, &progress).await?;
    let left = add_records(tier.alone(plain_alone.clone()), &plain_alone, &mut records, &progress).await?;
    let cannot_keep = disk.error(&"it does not keep all that was fetched; is the disk full?");
    let is_kept = blocking(move || disk.insert(records)).await?;
    if is_kept && left.is_empty() { Ok(()) } else { Err(cannot_keep) }
}

/// Adds the frames of `batch` as they arrive; gives back those that come without their stored bytes.
async fn add_records(
    mut arrivals: Arrivals,
    batch: &[Wanted],
    records: &mut Vec<Record>,
    progress: &Progress,
) -> Result<Vec<Wanted>, Error> {
    let mut left = Vec::new();
    for _ in batch {
        let arrival = arrivals.next().await.ok_or(Error::Closing)?;
        let Found { stored, source, .. } = arrival.result?;
        let wanted = batch.get(arrival.index).ok_or(Error::Closing)?;
        match stored {
            Some(stored) => {
                progress.add(stored.len() as u64, source != Source::Disk);
                records.push(Record { digest: wanted.digest, plain_len: wanted.plain_len, stored });
            }
            None => left.push(wanted.clone()),
        }
    }
    Ok(left)
}
