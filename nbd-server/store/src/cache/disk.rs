//! The disk tier: frames as the origin stores them, in append-only segments that are evicted whole, oldest first.

mod segment;

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use vmnetx_format::Digest;

use self::segment::{Record, Segment};
use crate::Error;
use crate::limits::{DISK_QUEUE_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MIN};
use crate::origin::open_frame;
use crate::tier::{Arrivals, Found, Sender, Source, Tier, Wanted, Why};

/// Frames in a directory that this process alone uses; shared by all packages of a store.
#[derive(Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    _lock: std::fs::File,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    /// Writing failed, most likely for want of space: reading goes on.
    off: AtomicBool,
    /// Bytes of frames that wait to be written.
    queued_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    index: HashMap<Digest, Slot>,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Arc<Segment>>,
}

/// What the writer is asked to do.
#[derive(Debug)]
enum Job {
    Keep(Record),
    /// Say when everything asked for before is done.
    Flush(mpsc::Sender<()>),
}

#[derive(Debug, Clone)]
struct Slot {
    segment: Arc<Segment>,
    offset: u64,
    stored_len: u32,
    plain_len: u32,
}

/// Answers from a [`DiskCache`] and keeps what the next tier finds.
#[derive(Debug)]
pub struct DiskTier {
    cache: Arc<DiskCache>,
    next: Arc<dyn Tier>,
}

impl DiskCache {
    /// Opens the cache in `dir`, which is made if it is absent, and keeps it below `max_bytes`.
    ///
    /// # Errors
    /// [`Error::Cache`] when the directory cannot be used or another process uses it.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, Error> {
        let cannot = |reason: String| Error::Cache { dir: dir.display().to_string(), reason };
        let io = |error: std::io::Error| cannot(error.to_string());
        // What is fetched is no business of other users.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let lock =
            std::fs::File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(io)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| cannot("another process uses it; give this one a --cache-dir of its own".to_owned()))?;
        let mut state = State::default();
        for segment in segment::list(dir).map_err(io)? {
            state.adopt(segment);
        }
        // It may have been larger the last time.
        state.evict(max_bytes);
        let shared = Shared {
            dir: dir.to_owned(),
            max_bytes,
            state: Mutex::new(state),
            off: AtomicBool::new(false),
            queued_bytes: AtomicU64::new(0),
        };
        let shared = Arc::new(shared);
        let (queue, jobs) = mpsc::channel();
        let writer = std::thread::Builder::new().name("disk-tier".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.work(&jobs)
        });
        let writer = Mutex::new(Some(writer.map_err(io)?));
        Ok(Self { shared, queue: Mutex::new(Some(queue)), writer, _lock: lock })
    }

    /// Bytes that may be kept.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.shared.max_bytes
    }

    /// Bytes of the frames that are here.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.lock().segments.iter().map(|segment| segment.len()).sum()
    }

    /// Whether the frame is here, which says nothing of whether it can still be read; does not read the disk.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.shared.lock().index.contains_key(digest)
    }

    /// The verified plain bytes of a frame and its stored bytes, if it is here. Reads the disk: not for async code.
    fn read(&self, digest: &Digest) -> Option<(Bytes, Bytes)> {
        let slot = self.shared.lock().index.get(digest).cloned()?;
        let locate = || slot.segment.path().display().to_string();
        let found = slot.segment.read(slot.offset, slot.stored_len).map_err(|error| Error::local(locate(), error));
        let found = found
            .map(Bytes::from)
            .and_then(|stored| Ok((open_frame(&stored, slot.plain_len, digest, locate)?, stored)));
        match found {
            Ok(found) => Some(found),
            Err(error) => {
                // Dropped and fetched again: what is on the disk is only a copy.
                tracing::warn!(%error, "cached chunk is damaged, fetching it again");
                self.shared.lock().index.remove(digest);
                None
            }
        }
    }

    /// Queues a frame to be written; a full queue drops it, for readers do not wait for the disk.
    fn keep(&self, record: Record) {
        if self.shared.off.load(Ordering::Relaxed) || self.contains(&record.digest) {
            return;
        }
        let bytes = record.len();
        if self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > DISK_QUEUE_BYTES_MAX {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        self.ask(Job::Keep(record));
    }

    /// Waits until everything that was found before is written. Not for async code.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        self.ask(Job::Flush(done));
        // An error says that the writer has ended: there is nothing left to wait for.
        let _ = wait.recv();
    }

    fn ask(&self, job: Job) {
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = queue.send(job);
        }
    }

    /// Writes what is queued and ends the writer.
    pub fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, jobs: &mpsc::Receiver<Job>) {
        for job in jobs {
            let record = match job {
                Job::Keep(record) => record,
                Job::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
            };
            self.queued_bytes.fetch_sub(record.len(), Ordering::Relaxed);
            if self.off.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = self.write(&record) {
                tracing::warn!(dir = %self.dir.display(), %error, "disk tier is off: cannot write");
                self.off.store(true, Ordering::Relaxed);
            }
        }
    }

    fn write(&self, record: &Record) -> std::io::Result<()> {
        let segment_max = (self.max_bytes / SEGMENTS_MIN).min(SEGMENT_BYTES_MAX);
        if record.len() > segment_max || self.lock().index.contains_key(&record.digest) {
            return Ok(());
        }
        let last = self.lock().segments.back().cloned();
        let segment = match last {
            Some(segment) if segment.len() + record.len() <= segment_max => segment,
            last => {
                let number = last.map_or(Some(0), |segment| segment.number().checked_add(1));
                let number = number.ok_or_else(|| std::io::Error::other("the segments' numbers are used up"))?;
                let segment = Arc::new(Segment::create(&self.dir, number)?);
                self.lock().segments.push_back(Arc::clone(&segment));
                segment
            }
        };
        let offset = segment.append(record)?;
        let (stored_len, plain_len) = (record.stored.len() as u32, record.plain_len);
        let mut state = self.lock();
        state.index.insert(record.digest, Slot { segment, offset, stored_len, plain_len });
        state.evict(self.max_bytes);
        Ok(())
    }
}

impl State {
    fn adopt(&mut self, segment: Segment) {
        let segment = Arc::new(segment);
        for (digest, offset, stored_len, plain_len) in segment.scan() {
            self.index.insert(digest, Slot { segment: Arc::clone(&segment), offset, stored_len, plain_len });
        }
        self.segments.push_back(segment);
    }

    fn evict(&mut self, max_bytes: u64) {
        let mut bytes: u64 = self.segments.iter().map(|segment| segment.len()).sum();
        while bytes > max_bytes {
            let Some(oldest) = self.segments.pop_front() else { return };
            bytes -= oldest.len();
            self.index.retain(|_, slot| slot.segment.number() != oldest.number());
            if let Err(error) = oldest.remove() {
                tracing::warn!(segment = %oldest.path().display(), %error, "cannot remove an evicted segment");
            }
        }
    }
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
            match self.cache.read(&frame.digest) {
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
