//! The cache on disk beside a plain model: what is kept, what is evicted, what a crash leaves.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MAX_BYTES: u64 = 400_000;

/// Frame number `number`, of 1 to 9 kB, stored plain; made once.
fn record(number: u32) -> Record {
    static MADE: Mutex<BTreeMap<u32, Record>> = Mutex::new(BTreeMap::new());
    let make = || {
        let mut plain = vec![0; 1000 + number as usize % 9 * 1000];
        let mut seed = u64::from(number) + 1;
        plain.fill_with(|| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (seed >> 56) as u8
        });
        Record { digest: Digest::of(&plain), plain_len: plain.len() as u32, stored: plain.into() }
    };
    MADE.lock().unwrap().entry(number).or_insert_with(make).clone()
}

fn digest(number: u32) -> Digest {
    record(number).digest
}

fn open(dir: &Path) -> DiskCache {
    DiskCache::open(dir, MAX_BYTES).unwrap()
}

fn read(cache: &DiskCache, number: u32) -> bool {
    let found = cache.read(&digest(number), true);
    assert!(found.as_ref().is_none_or(|(found, _)| *found == record(number).stored), "wrong bytes of {number}");
    found.is_some()
}

/// The directory as a process leaves it that is killed now.
fn killed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// A cache of the same size that drops what was written first.
#[derive(Default)]
struct Fifo {
    queue: std::collections::VecDeque<u32>,
    bytes: u64,
}

impl Fifo {
    /// Whether it has a record, which it keeps from now on.
    fn read(&mut self, number: u32) -> bool {
        if self.queue.contains(&number) {
            return true;
        }
        self.queue.push_back(number);
        self.bytes += record(number).len();
        while self.bytes > MAX_BYTES {
            let oldest = self.queue.pop_front().unwrap();
            self.bytes -= record(oldest).len();
        }
        false
    }
}

#[test]
fn what_boots_use_survives_a_scan_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let boot = 0..20_u32;
    let is_there = |cache: &DiskCache| boot.clone().filter(|&number| cache.contains(&digest(number))).count();
    let cache = open(dir.path());
    cache.insert(boot.clone().map(record).collect());
    // Booted once more, by another process; a third one is killed in the middle of a backup.
    drop(cache);
    let cache = open(dir.path());
    assert!(boot.clone().all(|number| read(&cache, number)));
    drop(cache);
    let cache = open(dir.path());
    let mut fifo = Fifo::default();
    assert!(!boot.clone().any(|number| fifo.read(number)));
    let (mut hits, mut fifo_hits) = (0, 0);
    for round in 0..10_u32 {
        // Five times the cache together: each round pushes the boot's segments half a cache towards the oldest.
        for number in 1000 + round * 40..1000 + (round + 1) * 40 {
            cache.insert(vec![record(number)]);
            fifo.read(number);
        }
        for number in boot.clone() {
            fifo_hits += usize::from(fifo.read(number));
            if read(&cache, number) {
                hits += 1;
            } else {
                cache.insert(vec![record(number)]);
            }
        }
    }
    assert!(hits >= 190 && fifo_hits < 130, "{hits} of 200, and {fifo_hits} where the oldest goes");
    let left = killed(dir.path());
    assert!(is_there(&open(left.path())) >= 19);
    // Nobody boots any more: it goes.
    for round in 0..4_u32 {
        cache.insert((5000 + round * 40..5000 + (round + 1) * 40).map(record).collect());
    }
    assert!(is_there(&cache) < 5, "{}", is_there(&cache));
    assert!(cache.bytes() <= MAX_BYTES);
}

#[test]
fn pinned_frames_stay_and_the_rest_has_room() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let pinned: Vec<u32> = (0..50).collect();
    cache.shared.lock().pin(pinned.iter().map(|&number| digest(number)));
    // Among others, so that all segments have some.
    for &number in &pinned {
        assert!(cache.insert(vec![record(number), record(1000 + number), record(2000 + number)]));
    }
    for number in 3000..3300 {
        assert!(cache.insert(vec![record(number)]), "{number}: there is room");
        assert!(cache.bytes() <= MAX_BYTES);
    }
    assert!(pinned.iter().all(|&number| read(&cache, number)));
    let bytes: u64 = pinned.iter().map(|&number| record(number).len() + 44).sum();
    assert_eq!(cache.usage().pinned_bytes, bytes);
    cache.prune(0).unwrap();
    assert!(pinned.iter().all(|&number| read(&cache, number)));
    assert_eq!(cache.usage().records, 50);
    cache.shared.lock().pin_versions(Vec::new());
    cache.prune(0).unwrap();
    assert_eq!((cache.usage().records, cache.bytes()), (0, 0));
}

#[test]
fn a_reader_of_an_evicted_segment_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.insert(vec![record(1)]);
    let located = cache.shared.lock().find(&digest(1), false).unwrap();
    cache.prune(0).unwrap();
    assert!(!cache.contains(&digest(1)) && !located.segment.path().exists());
    let stored = located.segment.read(located.entry.offset, located.entry.stored_len);
    assert_eq!(cache.shared.opened(&located, stored).unwrap().0, record(1).stored);
}

#[test]
fn verifying_drops_what_is_damaged_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.insert((0..60).map(record).collect());
    assert_eq!(cache.verify(|_| ()).damaged, 0);
    for number in [3, 30, 59] {
        let located = cache.shared.lock().find(&digest(number), false).unwrap();
        let file = File::options().write(true).open(located.segment.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", u64::from(located.entry.offset) + 9).unwrap();
    }
    let verified = cache.verify(|_| ());
    assert_eq!((verified.records, verified.damaged), (60, 3));
    drop(cache);
    let cache = open(dir.path());
    assert_eq!((cache.verify(|_| ()).records, cache.usage().records), (57, 57));
    assert!(!cache.contains(&digest(30)) && read(&cache, 31));
}

/// What happens to a cache.
#[derive(Debug, Clone)]
enum Step {
    Insert(u32),
    Read(u32),
    Pin(u32),
    UnpinAll,
    Reopen,
    /// Killed; the last write of the newest file loses so many bytes.
    Crash {
        torn_bytes: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..250_u32;
    prop_oneof![
        60 => number.clone().prop_map(Step::Insert),
        20 => number.clone().prop_map(Step::Read),
        4 => number.prop_map(Step::Pin),
        1 => Just(Step::UnpinAll),
        2 => Just(Step::Reopen),
        2 => (0_u64..9000).prop_map(|torn_bytes| Step::Crash { torn_bytes }),
    ]
}

fn tear(dir: &Path, torn_bytes: u64) {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|is| is == "segment")).max();
    if let Some(newest) = newest {
        let file = File::options().write(true).open(newest).unwrap();
        file.set_len(file.metadata().unwrap().len().saturating_sub(torn_bytes)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_plain_map_does(steps in proptest::collection::vec(step(), 1..250)) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path());
        // What was written, and when last.
        let mut written: BTreeMap<u32, usize> = BTreeMap::new();
        let mut pins: Vec<u32> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert(number) => {
                    let is_new = !cache.contains(&digest(number));
                    prop_assert!(cache.insert(vec![record(number)]), "{} is not kept", number);
                    // What is here is not written again, and grows old.
                    if is_new {
                        written.insert(number, now);
                    }
                }
                Step::Read(number) => {
                    let here = read(&cache, number);
                    prop_assert_eq!(here, cache.contains(&digest(number)));
                    prop_assert!(!here || written.contains_key(&number));
                }
                // Together 125 kB at most.
                Step::Pin(number) if pins.len() < 13 && cache.contains(&digest(number)) => {
                    cache.shared.lock().pin([digest(number)]);
                    pins.push(number);
                }
                Step::Pin(_) => {}
                Step::UnpinAll => {
                    cache.shared.lock().pin_versions(Vec::new());
                    pins.clear();
                }
                Step::Reopen => {
                    let before = cache.usage();
                    drop(cache);
                    cache = open(dir.path());
                    prop_assert_eq!(cache.usage().records, before.records);
                    cache.shared.lock().pin(pins.iter().map(|&number| digest(number)));
                    prop_assert_eq!(cache.usage(), before);
                }
                Step::Crash { torn_bytes } => {
                    let left = killed(dir.path());
                    tear(left.path(), torn_bytes);
                    let before = cache.usage().records;
                    drop(cache);
                    dir = left;
                    cache = open(dir.path());
                    let lost = before - cache.usage().records;
                    prop_assert!(torn_bytes > 0 || lost == 0, "{} records were lost", lost);
                    prop_assert!(lost <= torn_bytes / 1000 + 1, "{} records were lost", lost);
                    pins.retain(|&number| cache.contains(&digest(number)));
                    written.retain(|&number, _| cache.contains(&digest(number)));
                    cache.shared.lock().pin(pins.iter().map(|&number| digest(number)));
                }
            }
            prop_assert!(cache.bytes() <= MAX_BYTES);
            prop_assert!(pins.iter().all(|&number| cache.contains(&digest(number))));
            // Not even half of the cache was written since.
            let mut recent = written.iter().filter(|&(_, &at)| now - at < 18);
            prop_assert!(recent.all(|(&number, _)| cache.contains(&digest(number))));
        }
        prop_assert_eq!(cache.verify(|_| ()).damaged, 0);
    }
}
