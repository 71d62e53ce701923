//! The cache on disk: frames as the origin stores them, in append-only segments that are evicted oldest first, what was used
//! of them being moved on.

mod index;
mod off;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod tier;
mod upkeep;
mod uses;
mod writer;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use vmnetx_format::Digest;

use self::index::Entry;
use self::off::Off;
use self::segment::{Contents, Segment};
use self::state::{Located, State};
use self::uses::Uses;
use self::writer::{Job, Writer};
use super::pins;
use crate::Error;
use crate::limits::{DISK_QUEUE_BYTES_MAX, SEGMENT_BYTES_MAX, segment_bytes_max};
use crate::origin::open_frame;

pub use self::tier::DiskTier;
pub use self::upkeep::{DiskUsage, DiskVerified};

pub(crate) use self::segment::Record;
pub(crate) use self::upkeep::Hold;

/// Bytes that a record takes beside its frame.
pub(crate) const RECORD_OVERHEAD_BYTES: u64 = segment::HEAD_BYTES + index::ENTRY_BYTES;

const LOCK_FILE: &str = "lock";
/// Bytes of what its holder writes into it.
const HOLDER_BYTES_MAX: u64 = 32;

/// Frames in a directory that this process alone uses; shared by all packages of a store.
#[derive(Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max_bytes: u64,
    segment_bytes_max: u64,
    state: Mutex<State>,
    off: Off,
    /// Bytes of frames that wait to be written.
    queued_bytes: AtomicU64,
}

impl DiskCache {
    /// Opens the cache in `dir`, which is made if it is absent, and keeps it below `max_bytes`. Reads the indexes of the
    /// segments and no records, but those of a segment whose index is missing or damaged.
    ///
    /// # Errors
    /// [`Error::Cache`] when the directory cannot be used, [`Error::CacheInUse`] when another process uses it.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, Error> {
        // What is fetched is no business of other users.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| cannot(dir, &error))?;
        Self::open_with(dir, max_bytes, segment_bytes_max(max_bytes))
    }

    /// Opens a cache that is there, to look after it; nothing is evicted before somebody says so.
    ///
    /// # Errors
    /// [`Error::Cache`] when there is none, when it cannot be used or another process uses it.
    pub fn open_as_it_is(dir: &Path) -> Result<Self, Error> {
        if !dir.join(LOCK_FILE).exists() {
            return Err(cannot(dir, &"there is no cache in it"));
        }
        Self::open_with(dir, u64::MAX, SEGMENT_BYTES_MAX)
    }

    fn open_with(dir: &Path, max_bytes: u64, segment_bytes_max: u64) -> Result<Self, Error> {
        let io = |error: std::io::Error| cannot(dir, &error);
        let lock = lock(dir)?;
        let listing = segment::list(dir).map_err(io)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            max_bytes,
            segment_bytes_max,
            state: Mutex::default(),
            off: Off::new(),
            queued_bytes: AtomicU64::new(0),
        });
        let newest = shared.adopt(listing.segments);
        shared.pin_all();
        let mut writer = Writer::new(Arc::clone(&shared), newest, listing.highest);
        // It may have been larger the last time.
        if let Err(error) = writer.prune(max_bytes) {
            tracing::warn!(dir = %dir.display(), %error, "the cache stays larger than it should be");
        }
        let (queue, jobs) = mpsc::channel();
        let thread = std::thread::Builder::new().name("disk-tier".into()).spawn(move || writer.run(&jobs));
        let writer = Mutex::new(Some(thread.map_err(io)?));
        Ok(Self { shared, queue: Mutex::new(Some(queue)), writer, _lock: lock })
    }

    /// Bytes that may be kept.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.shared.max_bytes
    }

    /// Bytes that it takes on disk when it is closed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes()
    }

    /// Whether the frame is here, which says nothing of whether it can still be read; does not read the disk.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.shared.lock().contains(digest)
    }

    /// The verified plain bytes of a frame and its stored bytes, if it is here; `is_use` says whether that counts in its
    /// favour when it comes to evicting. Reads the disk: not for async code.
    pub(crate) fn read(&self, digest: &Digest, is_use: bool) -> Option<(Bytes, Bytes)> {
        let found = self.shared.lock().find(digest, is_use)?;
        let stored = found.segment.read(found.entry.offset, found.entry.stored_len);
        self.shared.opened(&found, stored)
    }

    /// The verified plain bytes of a frame, if it is here and the system has it in memory: never waits for the disk.
    pub(crate) fn read_now(&self, digest: &Digest) -> Option<Bytes> {
        let found = self.shared.lock().find(digest, true)?;
        let stored = found.segment.read_now(found.entry.offset, found.entry.stored_len).transpose()?;
        self.shared.opened(&found, stored).map(|(plain, _)| plain)
    }

    /// Queues a frame to be written; a full queue drops it, for readers do not wait for the disk.
    pub(crate) fn keep(&self, record: Record) {
        if self.shared.off.is_off() || self.contains(&record.digest) {
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
        self.with_writer(|_| ());
    }

    /// Has the writer do something when it has done what it was asked for before; nothing when it has ended. Not for async
    /// code.
    fn with_writer<T: Send + 'static>(&self, work: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Option<T> {
        let (done, wait) = mpsc::channel();
        self.ask(Job::Do(Box::new(move |writer| {
            // Fails when nobody waits any more.
            let _ = done.send(work(writer));
        })));
        wait.recv().ok()
    }

    /// Has the writer do something some time; nobody waits for it.
    pub(crate) fn later(&self, work: impl FnOnce() + Send + 'static) {
        self.ask(Job::Do(Box::new(|_| work())));
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

fn cannot(dir: &Path, reason: &impl ToString) -> Error {
    Error::Cache { dir: dir.display().to_string(), reason: reason.to_string() }
}

/// Becomes the directory's only user, and writes into the lock who that is.
fn lock(dir: &Path) -> Result<File, Error> {
    let opened = File::options().create(true).truncate(false).read(true).write(true).open(dir.join(LOCK_FILE));
    let mut lock = opened.map_err(|error| cannot(dir, &error))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // Only to be shown.
        let _ = Read::by_ref(&mut lock).take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
        let holder = match holder.trim().parse::<u32>() {
            Ok(process) => format!("process {process}"),
            Err(_) => "another process".to_owned(),
        };
        return Err(Error::CacheInUse { dir: dir.display().to_string(), holder });
    }
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
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

    /// Takes over the segments that were found; gives back the newest, which is to be written to.
    fn adopt(&self, segments: Vec<Segment>) -> Option<(Arc<Segment>, Contents)> {
        let uses = Uses::load(&self.dir);
        let mut state = self.lock();
        let mut newest: Option<(u32, Contents)> = None;
        for segment in segments {
            let path = segment.path().to_owned();
            let found = segment.contents().and_then(|contents| {
                // Half a record is cut off, or later ones would not be found behind it.
                let torn = !contents.is_sealed && segment.file_bytes()? > u64::from(contents.end);
                if torn { segment.cut(contents.end).map(|()| contents) } else { Ok(contents) }
            });
            match found {
                Ok(contents) => {
                    let number = segment.number();
                    state.adopt(segment, &contents, &uses);
                    let older = newest.replace((number, contents)).filter(|(_, contents)| !contents.is_sealed);
                    if let Some((segment, Contents { entries, end, .. })) = older
                        && let Some(segment) = state.segment(segment)
                    {
                        // It is read to its end once, and not again the next time.
                        let _ = segment.seal(end, &entries);
                    }
                }
                Err(error) => {
                    tracing::warn!(segment = %path.display(), %error, "a segment of the cache is passed over")
                }
            }
        }
        let (number, contents) = newest?;
        Some((state.segment(number)?, contents))
    }

    /// Pins what the pins of the directory say, and what pulls hold.
    fn pin_all(&self) {
        let pins = pins::load(&self.dir);
        self.lock().pin_versions(pins);
    }

    /// The plain and the stored bytes of a frame that was read.
    fn opened(&self, found: &Located, stored: std::io::Result<Vec<u8>>) -> Option<(Bytes, Bytes)> {
        let Located { segment, entry } = found;
        let locate = || format!("{} at byte {}", segment.path().display(), entry.offset);
        let opened = stored.map_err(|error| Error::local(locate(), error)).and_then(|stored| {
            let plain = open_frame(&stored, entry.plain_len, &entry.digest, locate)?;
            Ok((plain, Bytes::from(stored)))
        });
        match opened {
            Ok(opened) => Some(opened),
            Err(error) => {
                // Dropped and fetched again: what is on the disk is only a copy.
                tracing::warn!(%error, "cached chunk is damaged, fetching it again");
                self.lock().forget(segment.number(), entry);
                None
            }
        }
    }

    /// Forgets a segment, then removes it.
    fn remove(&self, segment: &Segment, entries: &[Entry]) {
        self.lock().remove(segment.number(), entries);
        match segment.remove() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(segment = %segment.path().display(), %error, "cannot remove an evicted segment");
            }
            _ => {}
        }
    }
}
