//! What was read first of a version the last time, and bringing it from the disk tier into the memory tier before it is read
//! again.
//!
//! A boot reads what the boot before has read. Its chunks are decompressed on other cores while the link is still asked for,
//! so that the reader finds them in memory. That is a host's own knowledge: a recorded order that is published with a
//! package says it to those who boot for the first time.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmnetx_format::Digest;

use super::{DiskCache, Files, MemoryCache};
use crate::limits::{TOUCHED_BYTES_MAX, TOUCHED_FRAMES_MAX, TOUCHED_THREADS_MAX, TOUCHED_TIME};
use crate::order::DigestHasher;

const MAGIC: &[u8] = b"VXT0";
const CHECK_BYTES: usize = 8;
/// Bytes of a file.
const FILE_BYTES_MAX: u64 = (MAGIC.len() + CHECK_BYTES + TOUCHED_FRAMES_MAX * Digest::BYTES) as u64;

/// Takes note of the chunks that are read first of a version; saves them in the end.
#[derive(Debug)]
pub(crate) struct Touched {
    disk: Arc<DiskCache>,
    files: Arc<Files>,
    manifest: Digest,
    start: Instant,
    is_open: AtomicBool,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    seen: HashSet<Digest, BuildHasherDefault<DigestHasher>>,
    sequence: Vec<Digest>,
    bytes: u64,
}

/// Chunks on their way from the disk tier into the memory tier; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) manifest: Digest,
    ends: Arc<AtomicBool>,
}

impl Touched {
    /// Begins to take note.
    pub(crate) fn new(disk: Arc<DiskCache>, files: Arc<Files>, manifest: Digest) -> Self {
        let (is_open, list) = (AtomicBool::new(true), Mutex::default());
        Self { disk, files, manifest, start: Instant::now(), is_open, list }
    }

    /// Somebody reads from a chunk of `bytes`.
    pub(crate) fn note(&self, digest: &Digest, bytes: u32) {
        if !self.is_open.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.seen.insert(*digest) {
            list.sequence.push(*digest);
            list.bytes += u64::from(bytes);
            let is_full = list.sequence.len() >= TOUCHED_FRAMES_MAX || list.bytes >= TOUCHED_BYTES_MAX;
            if is_full || self.start.elapsed() > TOUCHED_TIME {
                self.save(&mut list);
            }
        }
    }

    /// Saves what was noted, once; the disk tier's writer does it.
    fn save(&self, list: &mut List) {
        if !self.is_open.swap(false, Ordering::Relaxed) {
            return;
        }
        let List { sequence, .. } = std::mem::take(list);
        let (files, manifest) = (Arc::clone(&self.files), self.manifest);
        self.disk.later(move || {
            // Somebody who only had a look does not make a boot forgotten.
            if load(&files, &manifest).len() / 2 < sequence.len() {
                files.put(&manifest, &encode(&sequence));
            }
        });
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner));
        self.save(&mut list);
    }
}

impl Ahead {
    /// Brings what was read first of the version `manifest` the last time, `max_bytes` of it at most; returns at once. Must
    /// be called within a tokio runtime.
    pub(crate) fn bring(
        disk: Arc<DiskCache>,
        memory: Arc<MemoryCache>,
        files: Arc<Files>,
        manifest: Digest,
        max_bytes: u64,
    ) -> Self {
        let ends = Arc::<AtomicBool>::default();
        tokio::task::spawn_blocking({
            let ends = Arc::clone(&ends);
            move || {
                let frames = load(&files, &manifest);
                let work =
                    Work { disk, memory, frames, next: AtomicUsize::new(0), bytes: AtomicU64::new(0), max_bytes };
                let threads =
                    std::thread::available_parallelism().map_or(1, |count| count.get().min(TOUCHED_THREADS_MAX));
                std::thread::scope(|scope| {
                    for _ in 1..threads {
                        scope.spawn(|| work.run(&ends));
                    }
                    work.run(&ends);
                });
            }
        });
        Self { manifest, ends }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Frames that several threads bring, each the next one.
struct Work {
    disk: Arc<DiskCache>,
    memory: Arc<MemoryCache>,
    frames: Vec<Digest>,
    next: AtomicUsize,
    bytes: AtomicU64,
    max_bytes: u64,
}

impl Work {
    fn run(&self, ends: &AtomicBool) {
        while !ends.load(Ordering::Relaxed) && self.bytes.load(Ordering::Relaxed) < self.max_bytes {
            let Some(digest) = self.frames.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if self.memory.contains(digest) {
                continue;
            }
            if let Some((plain, _)) = self.disk.read(digest, true) {
                self.bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
                self.memory.insert(*digest, plain);
            }
        }
    }
}

fn encode(sequence: &[Digest]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    sequence.iter().for_each(|digest| bytes.extend(digest.as_bytes()));
    let check = Digest::of(&bytes);
    bytes.extend(&check.as_bytes()[..CHECK_BYTES]);
    bytes
}

/// What was saved; nothing if it is damaged, for it is only a hint.
fn load(files: &Files, manifest: &Digest) -> Vec<Digest> {
    let bytes = files.get(manifest, FILE_BYTES_MAX).unwrap_or_default();
    decode(&bytes).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Option<Vec<Digest>> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if !Digest::of(body).as_bytes().starts_with(check) {
        return None;
    }
    let digests = body.strip_prefix(MAGIC)?.chunks_exact(Digest::BYTES);
    digests.map(|digest| Some(Digest::from_bytes(*digest.first_chunk()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_does_not_make_a_boot_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::open(dir.path(), 1 << 20).unwrap());
        let files = Arc::new(Files::new(dir.path().join("touched"), 9));
        let manifest = Digest::of(b"manifest");
        let touch = |numbers: std::ops::Range<u32>| {
            let touched = Touched::new(Arc::clone(&disk), Arc::clone(&files), manifest);
            // Twice, for only the first touch counts.
            for number in numbers.clone().chain(numbers) {
                touched.note(&Digest::of(&number.to_le_bytes()), 4096);
            }
            drop(touched);
            disk.flush();
            load(&files, &manifest).len()
        };
        assert_eq!(touch(0..100), 100);
        assert_eq!(touch(0..30), 100);
        assert_eq!(touch(500..570), 70);
        assert_eq!(touch(0..TOUCHED_FRAMES_MAX as u32 + 100), TOUCHED_FRAMES_MAX);
    }

    #[test]
    fn damaged_files_are_no_hint() {
        let sequence = [1, 2, 3].map(|number: u8| Digest::of(&[number]));
        let bytes = encode(&sequence);
        assert_eq!(decode(&bytes).as_deref(), Some(&sequence[..]));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }
}
