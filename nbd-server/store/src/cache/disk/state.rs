//! What the disk tier knows of its segments and records: some 50 bytes for each record, under one lock that is never held
//! while the disk is waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use vmnetx_format::Digest;

use super::index::{Entry, TRAILER_BYTES};
use super::segment::{Contents, Segment};
use super::uses::Uses;
use crate::cache::Pinned;
use crate::limits::EVICT_FREED_PARTS;
use crate::order::DigestHasher;

type DigestSet = HashSet<Digest, BuildHasherDefault<DigestHasher>>;

/// Set in a slot's plain length, which has 23 bits: the record was used since it was written or moved.
const USED: u32 = 1 << 31;

#[derive(Debug, Default)]
pub(super) struct State {
    index: HashMap<Digest, Slot, BuildHasherDefault<DigestHasher>>,
    /// By number: oldest first.
    segments: BTreeMap<u32, Held>,
    /// Frames that are not to be evicted, here or not.
    pinned: DigestSet,
    /// The manifests of pinned versions all of whose frames are here.
    complete: DigestSet,
    /// How many pulls keep frames from being evicted until they end.
    holds: u32,
    bytes: u64,
}

/// Where a frame is.
#[derive(Debug, Clone, Copy)]
struct Slot {
    segment: u32,
    offset: u32,
    stored_len: u32,
    plain_len_used: u32,
}

#[derive(Debug)]
struct Held {
    segment: Arc<Segment>,
    /// Bytes of its file when it is sealed.
    bytes: u64,
    /// Records that are read from it.
    live: u64,
    /// Bytes of those that are pinned.
    pinned_bytes: u64,
}

/// A frame that is here.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) segment: Arc<Segment>,
    pub(super) entry: Entry,
}

impl Slot {
    fn new(segment: u32, entry: &Entry, is_used: bool) -> Self {
        let plain_len_used = entry.plain_len | if is_used { USED } else { 0 };
        Self { segment, offset: entry.offset, stored_len: entry.stored_len, plain_len_used }
    }

    const fn is_used(self) -> bool {
        self.plain_len_used & USED != 0
    }

    fn entry(self, digest: &Digest) -> Entry {
        let Self { offset, stored_len, plain_len_used, .. } = self;
        Entry { digest: *digest, offset, stored_len, plain_len: plain_len_used & !USED }
    }

    const fn is_at(self, segment: u32, entry: &Entry) -> bool {
        self.segment == segment && self.offset == entry.offset
    }
}

impl Held {
    /// Bytes of records that an eviction would free if nothing but pinned records stayed.
    const fn loose_bytes(&self) -> u64 {
        self.bytes.saturating_sub(TRAILER_BYTES + self.pinned_bytes)
    }
}

impl State {
    /// Takes over a segment that was found; later ones are to be taken over later, for their records are newer.
    pub(super) fn adopt(&mut self, segment: Segment, contents: &Contents, uses: &Uses) {
        let number = segment.number();
        self.begin(Arc::new(segment));
        for entry in &contents.entries {
            self.insert(number, entry, uses.contains(number, entry.offset));
        }
    }

    /// A segment without records.
    pub(super) fn begin(&mut self, segment: Arc<Segment>) {
        let held = Held { segment, bytes: TRAILER_BYTES, live: 0, pinned_bytes: 0 };
        self.bytes += held.bytes;
        self.segments.insert(held.segment.number(), held);
    }

    /// A record was written.
    pub(super) fn insert(&mut self, number: u32, entry: &Entry, is_used: bool) {
        if let Some(held) = self.segments.get_mut(&number) {
            held.bytes += entry.bytes();
            self.bytes += entry.bytes();
        }
        let slot = Slot::new(number, entry, is_used);
        let before = self.index.insert(entry.digest, slot);
        self.count(slot, &entry.digest, 1);
        if let Some(before) = before {
            self.count(before, &entry.digest, -1);
        }
    }

    /// A record is read from its segment from now on, or no more.
    fn count(&mut self, slot: Slot, digest: &Digest, by: i64) {
        let Some(held) = self.segments.get_mut(&slot.segment) else { return };
        held.live = held.live.saturating_add_signed(by);
        if self.pinned.contains(digest) {
            let bytes = slot.entry(digest).bytes() as i64;
            held.pinned_bytes = held.pinned_bytes.saturating_add_signed(by * bytes);
        }
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.index.contains_key(digest)
    }

    /// The frame, which is used now if `is_use`.
    pub(super) fn find(&mut self, digest: &Digest, is_use: bool) -> Option<Located> {
        let slot = self.index.get_mut(digest)?;
        if is_use {
            slot.plain_len_used |= USED;
        }
        let slot = *slot;
        let segment = Arc::clone(&self.segments.get(&slot.segment)?.segment);
        Some(Located { segment, entry: slot.entry(digest) })
    }

    /// Whether the record of this place is the one that is read.
    pub(super) fn is_live(&self, number: u32, entry: &Entry) -> bool {
        self.index.get(&entry.digest).is_some_and(|slot| slot.is_at(number, entry))
    }

    /// A record turned out to be damaged; one that has taken its place stays.
    pub(super) fn forget(&mut self, number: u32, entry: &Entry) {
        let Some(&slot) = self.index.get(&entry.digest).filter(|slot| slot.is_at(number, entry)) else { return };
        self.index.remove(&entry.digest);
        self.count(slot, &entry.digest, -1);
        if self.pinned.contains(&entry.digest) {
            // Which versions have it is not known here; the next pull says which of them are complete all the same.
            self.complete.clear();
        }
    }

    /// The segment to be evicted: the oldest from which enough is freed; records that are pinned stay. `tail` is never it.
    pub(super) fn victim(&self, tail: Option<u32>) -> Option<Arc<Segment>> {
        let frees = |held: &&Held, parts| held.loose_bytes() > 0 && held.loose_bytes() >= held.bytes / parts;
        let mut others = self.segments.values().filter(|held| Some(held.segment.number()) != tail);
        let held = others.clone().find(|held| frees(held, EVICT_FREED_PARTS / 2));
        // Copying nearly all of a segment for the sake of a few bytes is not worth it.
        let held = held.or_else(|| others.find(|held| frees(held, EVICT_FREED_PARTS)))?;
        Some(Arc::clone(&held.segment))
    }

    /// The oldest segment without pinned records.
    pub(super) fn oldest_loose(&self) -> Option<Arc<Segment>> {
        let loose = self.segments.values().find(|held| held.pinned_bytes == 0);
        loose.map(|held| Arc::clone(&held.segment))
    }

    /// Those of the records of a segment that are worth moving: the pinned ones, and used ones while `move_bytes` last.
    pub(super) fn worth_moving(&self, number: u32, entries: &[Entry], move_bytes: &mut u64) -> Vec<Entry> {
        let worth = |entry: &&Entry| {
            let Some(slot) = self.index.get(&entry.digest).filter(|slot| slot.is_at(number, entry)) else {
                return false;
            };
            let is_pinned = self.pinned.contains(&entry.digest);
            let moves = is_pinned || (slot.is_used() && entry.bytes() <= *move_bytes);
            if moves && !is_pinned {
                *move_bytes -= entry.bytes();
            }
            moves
        };
        entries.iter().filter(worth).copied().collect()
    }

    /// A record was copied; from now on it is read from there, unless another one has taken its place meanwhile.
    pub(super) fn moved(&mut self, from: u32, old: &Entry, to: u32, new: &Entry) {
        if self.is_live(from, old) {
            self.insert(to, new, false);
        } else if let Some(held) = self.segments.get_mut(&to) {
            // A dead record takes its bytes until its segment goes.
            held.bytes += new.bytes();
            self.bytes += new.bytes();
        }
    }

    /// Forgets a segment and what is still read from it.
    pub(super) fn remove(&mut self, number: u32, entries: &[Entry]) {
        for entry in entries {
            self.forget(number, entry);
        }
        if let Some(held) = self.segments.remove(&number) {
            self.bytes -= held.bytes;
            if held.live > 0 {
                // Its index on the disk was damaged since it was opened.
                self.index.retain(|_, slot| slot.segment != number);
            }
        }
    }

    /// Bytes of the segments when they are sealed.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn records(&self) -> usize {
        self.index.len()
    }

    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.values().map(|held| Arc::clone(&held.segment)).collect()
    }

    pub(super) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.get(&number).map(|held| Arc::clone(&held.segment))
    }

    /// Bytes of the records that are here and pinned.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.segments.values().map(|held| held.pinned_bytes).sum()
    }

    pub(super) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains(digest)
    }

    /// Frames that are not to be evicted from now on.
    pub(super) fn pin(&mut self, digests: impl IntoIterator<Item = Digest>) {
        for digest in digests {
            if self.pinned.insert(digest)
                && let Some(slot) = self.index.get(&digest)
                && let Some(held) = self.segments.get_mut(&slot.segment)
            {
                held.pinned_bytes += slot.entry(&digest).bytes();
            }
        }
    }

    /// Pins what `pins` say and, unless a pull holds frames, nothing else. What it holds stays pinned, whichever of its
    /// frames they are, until the last pull ends.
    pub(super) fn pin_versions(&mut self, pins: Vec<Pinned>) {
        self.complete = DigestSet::default();
        if self.holds == 0 {
            self.pinned = DigestSet::default();
            self.segments.values_mut().for_each(|held| held.pinned_bytes = 0);
        }
        for Pinned { pin, frames } in pins {
            self.pin(frames.iter().copied().chain(pin.objects));
            if frames.iter().all(|frame| self.contains(frame)) {
                self.complete.insert(pin.manifest);
            }
        }
    }

    /// Whether the version of this manifest is pinned and all of it is here.
    pub(super) fn is_complete(&self, manifest: &Digest) -> bool {
        self.complete.contains(manifest)
    }

    /// A pull begins to hold frames.
    pub(super) fn hold(&mut self) {
        self.holds += 1;
    }

    /// A pull has ended.
    pub(super) fn release(&mut self) {
        self.holds = self.holds.saturating_sub(1);
    }

    /// The records that were used, as segment and offset.
    pub(super) fn used(&self) -> Vec<(u32, u32)> {
        self.index.values().filter(|slot| slot.is_used()).map(|slot| (slot.segment, slot.offset)).collect()
    }
}
