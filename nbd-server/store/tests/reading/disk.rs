//! The disk tier when things go wrong: torn and damaged segments, no space, two owners.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::origin::{DirOrigin, OriginTier};
use vmnetx_store::tier::{Source as From, Tier, Why};
use vmnetx_store::{DiskCache, DiskTier, Error, Options, Store};

use crate::faulty_tier::{Fate, FaultyTier};
use crate::support::repository::{Frame, Repository};
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

const MIB: u64 = 1 << 20;
/// Bytes of a record before its frame.
const HEAD_BYTES: u64 = 52;
/// Bytes of a record in the index at its segment's end, and of that index's end.
const ENTRY_BYTES: u64 = 44;
const TRAILER_BYTES: u64 = 24;

/// Fetches every chunk through a cache in `dir`, compares, and flushes; gives back how many had to be fetched again.
async fn read_all(repository: &Repository, dir: &Path, max_bytes: u64) -> usize {
    let cache = Arc::new(DiskCache::open(dir, max_bytes).unwrap());
    let fetched = read_all_with(repository, &cache).await;
    cache.flush();
    assert!(cache.bytes() <= max_bytes, "{} bytes in a cache of {max_bytes}", cache.bytes());
    // The tasks of a fetch end a moment after its last answer, and the directory has one user at a time.
    let released = async {
        while Arc::strong_count(&cache) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(30, released).await;
    fetched
}

async fn read_all_with(repository: &Repository, cache: &Arc<DiskCache>) -> usize {
    let origin = Arc::new(DirOrigin::new(repository.root()));
    let counted = Arc::new(OriginTier::new(origin, Duration::from_secs(5)));
    let counted = Arc::new(FaultyTier::new(counted, |_| Fate::Pass));
    let tier = DiskTier::new(Arc::clone(cache), Arc::<FaultyTier>::clone(&counted));
    let mut arrivals = tier.fetch(repository.chunks.iter().map(|frame| frame.wanted.clone()).collect(), Why::Demand);
    let mut from_disk = 0;
    while let Some(arrival) = within(30, arrivals.next()).await {
        let found = arrival.result.unwrap();
        assert!(found.plain == repository.chunks[arrival.index].plain, "wrong bytes from {:?}", found.source);
        from_disk += usize::from(found.source == From::Disk);
    }
    assert_eq!(from_disk + counted.asked(), repository.chunks.len());
    counted.asked()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|is| is == "segment")).collect();
    segments.sort();
    segments
}

fn dir_bytes(dir: &Path) -> u64 {
    segments(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

fn copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for segment in segments(dir) {
        std::fs::copy(&segment, copy.path().join(segment.file_name().unwrap())).unwrap();
    }
    copy
}

#[tokio::test]
async fn what_was_read_is_found_after_reopening() {
    let repository = Repository::of(&mixed());
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_all(&repository, dir.path(), 64 * MIB).await, repository.chunks.len());
    let record = |frame: &Frame| u64::from(frame.wanted.place.stored_len) + HEAD_BYTES + ENTRY_BYTES;
    let stored = repository.chunks.iter().map(record).sum::<u64>() + TRAILER_BYTES;
    assert_eq!(dir_bytes(dir.path()), stored);
    for _ in 0..2 {
        assert_eq!(read_all(&repository, dir.path(), 64 * MIB).await, 0);
        assert_eq!(dir_bytes(dir.path()), stored, "what is there was written again");
    }
}

/// A writer that is killed leaves a part of its last record, of any length.
#[tokio::test]
async fn a_torn_last_record_is_fetched_again_and_nothing_else() {
    let source = Source::zeros(64 * 4096).with(0, noise(1, 8 * 4096)).with(30 * 4096, prose(2, 4096));
    let repository = Repository::of(&source);
    let dir = tempfile::tempdir().unwrap();
    read_all(&repository, dir.path(), 64 * MIB).await;
    let [segment] = &segments(dir.path())[..] else { panic!("one segment") };
    let index = repository.chunks.len() as u64 * ENTRY_BYTES + TRAILER_BYTES;
    let sealed = segment.metadata().unwrap().len();
    let whole = sealed - index;
    let name = segment.file_name().unwrap();
    // Without a good index the records are looked at.
    for cut in (0..=index).step_by(7) {
        let cut_dir = copy(dir.path());
        File::options().write(true).open(cut_dir.path().join(name)).unwrap().set_len(whole + cut).unwrap();
        assert_eq!(read_all(&repository, cut_dir.path(), 64 * MIB).await, 0, "{cut} bytes of the index are left");
        assert_eq!(dir_bytes(cut_dir.path()), sealed);
    }
    // Read in order, so the last one is the small chunk.
    let last = HEAD_BYTES + u64::from(repository.chunks.last().unwrap().wanted.place.stored_len);
    assert!((HEAD_BYTES + 10..2000).contains(&last), "{last}");
    for torn in 0..last {
        let torn_dir = copy(dir.path());
        let file = File::options().write(true).open(torn_dir.path().join(name)).unwrap();
        file.set_len(whole - last + torn).unwrap();
        assert_eq!(read_all(&repository, torn_dir.path(), 64 * MIB).await, 1, "cut to {torn} bytes");
        // What was appended behind the torn record is found.
        assert_eq!(read_all(&repository, torn_dir.path(), 64 * MIB).await, 0, "cut to {torn} bytes, reopened");
        assert_eq!(dir_bytes(torn_dir.path()), sealed);
    }
}

/// Nobody has written so many segments: someone has named a file so.
#[tokio::test]
async fn a_segment_of_the_last_number_turns_the_tier_off_and_does_no_harm() {
    let repository = Repository::of(&Source::of(noise(1, 8 * 4096)));
    let dir = tempfile::tempdir().unwrap();
    let planted = dir.path().join(format!("{}.segment", u32::MAX));
    File::create(&planted).unwrap().set_len(1 << 20).unwrap();
    // It is cut off where no record is, and then it is the one that is written to, until it is full.
    let big = Repository::of(&Source::of(noise(2, 8 << 20)));
    for repository in [repository, big] {
        let fetched = read_all(&repository, dir.path(), 16 * MIB).await;
        assert_eq!(fetched, repository.chunks.len());
    }
    assert_eq!(segments(dir.path()), [planted]);
}

#[test]
fn the_directory_is_made_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("cache/vmnetx");
    drop(DiskCache::open(&made, MIB).unwrap());
    assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

/// Something that happens to a segment.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: prop::sample::Index, by: u8 },
    Zero { at: prop::sample::Index, bytes: usize },
    Cut { at: prop::sample::Index },
    Append { seed: u64, bytes: usize },
    Remove,
}

impl Damage {
    fn happen(&self, segment: &Path) {
        let mut bytes = std::fs::read(segment).unwrap();
        match self {
            Self::Flip { .. } | Self::Zero { .. } if bytes.is_empty() => {}
            Self::Flip { at, by } => {
                let at = at.index(bytes.len());
                bytes[at] ^= by;
            }
            Self::Zero { at, bytes: count } => {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + count);
                bytes[at..end].fill(0);
            }
            Self::Cut { at } => bytes.truncate(at.index(bytes.len() + 1)),
            Self::Append { seed, bytes: count } => bytes.extend(noise(*seed, *count)),
            Self::Remove => return std::fs::remove_file(segment).unwrap(),
        }
        std::fs::write(segment, bytes).unwrap();
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        6 => (at(), 1_u8..=255).prop_map(|(at, by)| Damage::Flip { at, by }),
        2 => (at(), 1_usize..9000).prop_map(|(at, bytes)| Damage::Zero { at, bytes }),
        1 => at().prop_map(|at| Damage::Cut { at }),
        1 => (any::<u64>(), 1_usize..3000).prop_map(|(seed, bytes)| Damage::Append { seed, bytes }),
        1 => Just(Damage::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_never_served(damages in proptest::collection::vec((any::<prop::sample::Index>(), damage()), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let source = Source::of([noise(1, 300_000), prose(2, 300_000)].concat());
            let repository = Repository::of(&source);
            let dir = tempfile::tempdir().unwrap();
            // Several segments: a cache is divided into eight.
            let max_bytes = 8 * 100_000;
            read_all(&repository, dir.path(), max_bytes).await;
            let segments = segments(dir.path());
            prop_assert!(segments.len() > 2);
            for (which, damage) in &damages {
                let segment = which.get(&segments);
                if segment.exists() {
                    damage.happen(segment);
                }
            }
            read_all(&repository, dir.path(), max_bytes).await;
            // What was repaired stays repaired.
            let again = read_all(&repository, dir.path(), max_bytes).await;
            prop_assert_eq!(again, 0, "{} chunks were lost again", again);
            Ok(())
        })?;
    }
}

/// Damage while the cache is open, as a failing disk does it.
#[tokio::test]
async fn damage_under_an_open_cache_is_never_served() {
    let repository = Repository::of(&mixed());
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(DiskCache::open(dir.path(), 64 * MIB).unwrap());
    read_all_with(&repository, &cache).await;
    cache.flush();
    let file = File::options().write(true).open(&segments(dir.path())[0]).unwrap();
    let bytes = file.metadata().unwrap().len();
    for at in (0..bytes).step_by(5000) {
        file.write_all_at(&[0xaa; 64], at).unwrap();
    }
    let fetched = read_all_with(&repository, &cache).await;
    assert!(fetched > 3, "{fetched}");
    cache.flush();
    assert_eq!(read_all_with(&repository, &cache).await, 0);
    // Even where the file became shorter than what is known of it.
    file.set_len(1000).unwrap();
    assert!(read_all_with(&repository, &cache).await > 3);
}

#[tokio::test]
async fn its_size_is_bounded() {
    let repository = Repository::of(&Source::of(noise(1, 3_000_000)));
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 1_600_000;
    for _ in 0..3 {
        let cache = Arc::new(DiskCache::open(dir.path(), max_bytes).unwrap());
        read_all_with(&repository, &cache).await;
        cache.flush();
        assert!(cache.bytes() <= max_bytes && cache.bytes() > max_bytes / 2, "{}", cache.bytes());
        assert!(dir_bytes(dir.path()) <= cache.bytes());
        let bytes = cache.bytes();
        cache.close();
        assert_eq!(dir_bytes(dir.path()), bytes);
        let released = async {
            while Arc::strong_count(&cache) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(30, released).await;
    }
    // A smaller bound counts from the start, before anything is written.
    let cache = DiskCache::open(dir.path(), max_bytes / 2).unwrap();
    assert!(cache.bytes() <= max_bytes / 2, "{}", cache.bytes());
    assert!(dir_bytes(dir.path()) <= max_bytes / 2);
    drop(cache);
    let cache = DiskCache::open(dir.path(), 0).unwrap();
    assert_eq!((cache.bytes(), dir_bytes(dir.path())), (0, 0));
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(Options { disk: Some((dir.path().to_owned(), MIB)), ..Options::default() });
    let first = open().unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, Error::CacheInUse { .. }) && error.class() == Class::Host, "{error}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    drop(first);
    open().unwrap();
}

#[test]
fn what_cannot_be_a_cache_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/cache".into()] {
        let error = DiskCache::open(&path, MIB).unwrap_err();
        assert!(matches!(error, Error::Cache { .. }) && error.class() == Class::Host, "{error}");
    }
}

/// Other files in the directory are neither read nor removed.
#[tokio::test]
async fn strangers_are_left_alone() {
    let repository = Repository::of(&mixed());
    let dir = tempfile::tempdir().unwrap();
    let strangers = ["notes.txt", "x.segment", "99999999999999999999.segment", "-1.segment", ".segment"];
    for name in strangers {
        std::fs::write(dir.path().join(name), noise(1, 3000)).unwrap();
    }
    read_all(&repository, dir.path(), 100_000).await;
    read_all(&repository, dir.path(), 64 * MIB).await;
    for name in strangers {
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), noise(1, 3000), "{name}");
    }
}

/// A link in the place of a segment leads to a file of somebody who would not want it to be cut.
#[tokio::test]
async fn what_is_no_segment_is_passed_over() {
    let repository = Repository::of(&mixed());
    let dir = tempfile::tempdir().unwrap();
    read_all(&repository, dir.path(), 64 * MIB).await;
    let [segment] = &segments(dir.path())[..] else { panic!("one segment") };
    let precious = dir.path().join("precious");
    std::fs::rename(segment, &precious).unwrap();
    let before = std::fs::read(&precious).unwrap();
    symlink(&precious, segment).unwrap();
    std::fs::create_dir(dir.path().join("000000000001.segment")).unwrap();
    symlink("/dev/full", dir.path().join("000000000002.segment")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("000000000003.segment"), 0o600.into()).unwrap();
    let huge = File::create(dir.path().join("000000000004.segment")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert_eq!(read_all(&repository, dir.path(), 64 * MIB).await, repository.chunks.len());
    assert_eq!(read_all(&repository, dir.path(), 64 * MIB).await, 0);
    assert!(std::fs::read(&precious).unwrap() == before);
    assert!(huge.metadata().unwrap().len() < MIB, "it is the newest, and cut to what is in it");
}

/// Opening looks at indexes alone: with them whole, the heads of records are not missed.
#[tokio::test]
async fn opening_reads_no_records() {
    let repository = Repository::of(&mixed());
    let dir = tempfile::tempdir().unwrap();
    read_all(&repository, dir.path(), 64 * MIB).await;
    let file = File::options().read(true).write(true).open(&segments(dir.path())[0]).unwrap();
    let mut at = 0;
    for _ in &repository.chunks {
        let mut head = [0; HEAD_BYTES as usize];
        file.read_exact_at(&mut head, at).unwrap();
        file.write_all_at(&[0; HEAD_BYTES as usize], at).unwrap();
        at += HEAD_BYTES + u64::from(u32::from_le_bytes(head[4..8].try_into().unwrap()));
    }
    assert_eq!(read_all(&repository, dir.path(), 64 * MIB).await, 0);
}

#[tokio::test]
async fn a_directory_that_vanishes_is_no_failure() {
    let repository = Repository::of(&Source::of(noise(1, 600_000)));
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(DiskCache::open(dir.path(), 8 * 200_000).unwrap());
    std::fs::remove_dir_all(dir.path()).unwrap();
    for _ in 0..2 {
        read_all_with(&repository, &cache).await;
        cache.flush();
    }
}
