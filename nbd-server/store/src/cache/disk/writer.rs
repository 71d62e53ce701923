//! The disk tier's one writer: it appends, seals, moves and evicts, each beside the readers.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::Shared;
use super::index::{ENTRY_BYTES, Entry, TRAILER_BYTES};
use super::segment::{Contents, Record, Segment};
use super::uses;
use crate::limits::{EVICT_MOVED_PARTS, SEGMENT_INDEX_BYTES_MAX, SEGMENTS_MIN};

/// What the writer is asked to do.
pub(super) enum Job {
    Keep(Record),
    Do(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// Lives in a thread of its own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The segment that is written to.
    tail: Option<Tail>,
    /// The number of the next one; nothing when they are used up.
    next_number: Option<u32>,
    segment_bytes_max: u64,
}

/// The newest segment.
struct Tail {
    segment: Arc<Segment>,
    contents: Contents,
}

impl Writer {
    /// Goes on with the newest segment.
    pub(super) fn new(shared: Arc<Shared>, newest: Option<(Arc<Segment>, Contents)>, highest: Option<u32>) -> Self {
        let tail = newest.map(|(segment, contents)| Tail { segment, contents });
        let next_number = highest.map_or(Some(0), |number| number.checked_add(1));
        let segment_bytes_max = shared.segment_bytes_max;
        Self { shared, tail, next_number, segment_bytes_max }
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Keep(record) => {
                    self.shared.queued_bytes.fetch_sub(record.len(), Ordering::Relaxed);
                    self.keep(&record);
                }
                Job::Do(work) => work(&mut self),
            }
        }
        // What fails here costs a scan, or a few records, the next time.
        let sealed = self.seal().and_then(|()| self.save_uses());
        if let Err(error) = sealed {
            tracing::debug!(dir = %self.shared.dir.display(), %error, "the disk tier is not closed in good order");
        }
    }

    fn keep(&mut self, record: &Record) {
        if self.shared.off.is_off() {
            return;
        }
        match self.write(record) {
            Ok(()) => self.shared.off.succeeded(&self.shared.dir),
            Err(error) => self.shared.off.failed(&self.shared.dir, &error),
        }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let bytes = record.len() + ENTRY_BYTES;
        let fits = bytes + TRAILER_BYTES <= self.segment_bytes_max;
        if !fits || self.shared.lock().contains(&record.digest) || !self.make_room(bytes)? {
            return Ok(());
        }
        let tail = self.tail_for(bytes)?;
        let entry = tail.segment.append(tail.contents.end, record)?;
        let number = tail.push(entry);
        self.shared.lock().insert(number, &entry, false);
        Ok(())
    }

    /// The segment to which a record of so many bytes is to be written: a new one if the newest is full.
    fn tail_for(&mut self, bytes: u64) -> io::Result<&mut Tail> {
        let limit = self.segment_bytes_max;
        if self.tail.as_ref().is_some_and(|tail| tail.bytes() + bytes > limit || tail.has_full_index()) {
            self.seal()?;
            self.save_uses()?;
            self.tail = None;
        }
        match &mut self.tail {
            Some(tail) => Ok(tail),
            none => {
                let used_up = || io::Error::other("the segments' numbers are used up");
                let number = self.next_number.ok_or_else(used_up)?;
                let segment = Arc::new(Segment::create(&self.shared.dir, number)?);
                self.next_number = number.checked_add(1);
                self.shared.lock().begin(Arc::clone(&segment));
                Ok(none.insert(Tail { segment, contents: Contents::default() }))
            }
        }
    }

    fn seal(&mut self) -> io::Result<()> {
        match &mut self.tail {
            Some(tail) if !tail.contents.is_sealed => {
                tail.segment.seal(tail.contents.end, &tail.contents.entries)?;
                tail.contents.is_sealed = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn save_uses(&self) -> io::Result<()> {
        let used = self.shared.lock().used();
        uses::save(&self.shared.dir, &used)
    }

    /// Evicts until there is room for a record of `bytes` and, as long as one is evicted, for all that may be moved; says
    /// whether there is: everything else may be pinned.
    fn make_room(&mut self, bytes: u64) -> io::Result<bool> {
        let max_bytes = self.shared.max_bytes.saturating_sub(self.segment_bytes_max);
        let mut move_bytes = self.shared.max_bytes / EVICT_MOVED_PARTS;
        loop {
            let victim = {
                let state = self.shared.lock();
                // A new segment has a trailer too.
                if state.bytes() + bytes + TRAILER_BYTES <= max_bytes {
                    return Ok(true);
                }
                state.victim(self.tail_number())
            };
            match victim {
                Some(victim) => self.evict(&victim, &mut move_bytes)?,
                None => return Ok(false),
            }
        }
    }

    fn tail_number(&self) -> Option<u32> {
        self.tail.as_ref().map(|tail| tail.segment.number())
    }

    /// Moves what is worth it out of a segment, used records of `move_bytes` at most, and removes it. Whoever reads it
    /// meanwhile has it open.
    fn evict(&mut self, segment: &Arc<Segment>, move_bytes: &mut u64) -> io::Result<()> {
        let number = segment.number();
        // What cannot be read is gone already.
        let entries = segment.contents().map_or_else(|_| Vec::new(), |contents| contents.entries);
        let moving = self.shared.lock().worth_moving(number, &entries, move_bytes);
        for old in moving {
            let tail = self.tail_for(old.bytes())?;
            match tail.segment.append_copy(tail.contents.end, &old, segment) {
                Ok(new) => {
                    let to = tail.push(new);
                    self.shared.lock().moved(number, &old, to, &new);
                }
                // Damaged, or the file was cut: it is fetched again when it is wanted.
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {}
                Err(error) => return Err(error),
            }
        }
        self.remove(segment, &entries);
        Ok(())
    }

    fn remove(&mut self, segment: &Segment, entries: &[Entry]) {
        if self.tail_number() == Some(segment.number()) {
            self.tail = None;
        }
        self.shared.remove(segment, entries);
    }

    /// Removes segments, oldest first, that hold nothing pinned, until no more than `max_bytes` are left or all is pinned.
    pub(super) fn prune(&mut self, max_bytes: u64) -> io::Result<()> {
        while self.shared.lock().bytes() > max_bytes {
            let victim = {
                let state = self.shared.lock();
                state.oldest_loose().or_else(|| state.victim(None))
            };
            let Some(victim) = victim else { break };
            if self.tail_number() == Some(victim.number()) {
                self.seal()?;
                self.tail = None;
            }
            self.evict(&victim, &mut 0)?;
        }
        Ok(())
    }

    /// Writes a segment's index anew, without the records that were forgotten.
    pub(super) fn reseal(&mut self, segment: &Segment) -> io::Result<()> {
        let live = |entries: Vec<Entry>| -> Vec<Entry> {
            let state = self.shared.lock();
            entries.into_iter().filter(|entry| state.is_live(segment.number(), entry)).collect()
        };
        let mut contents = segment.contents()?;
        contents.entries = live(contents.entries);
        segment.seal(contents.end, &contents.entries)?;
        contents.is_sealed = true;
        match &mut self.tail {
            Some(tail) if tail.segment.number() == segment.number() => tail.contents = contents,
            _ => {}
        }
        Ok(())
    }

    /// Brings everything that was written to the disk itself.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.seal()?;
        let segments = self.shared.lock().segments();
        segments.iter().try_for_each(|segment| segment.sync())?;
        std::fs::File::open(&self.shared.dir)?.sync_all()
    }
}

impl Tail {
    /// Bytes of the segment when it is sealed.
    fn bytes(&self) -> u64 {
        u64::from(self.contents.end) + self.contents.entries.len() as u64 * ENTRY_BYTES + TRAILER_BYTES
    }

    fn has_full_index(&self) -> bool {
        (self.contents.entries.len() as u64 + 1) * ENTRY_BYTES + TRAILER_BYTES > SEGMENT_INDEX_BYTES_MAX
    }

    /// Takes note of a record that was written; gives the segment's number.
    fn push(&mut self, entry: Entry) -> u32 {
        self.contents.end = entry.offset + entry.stored_len;
        self.contents.entries.push(entry);
        self.contents.is_sealed = false;
        self.segment.number()
    }
}

const _: () = assert!(SEGMENTS_MIN > 2, "one segment is written, one is kept free for moving");
