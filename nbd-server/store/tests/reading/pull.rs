//! Pulling packages, and reading them when the origin is gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use vmnetx_format::Purpose;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::origin::Access;
use vmnetx_store::trust::Trust;
use vmnetx_store::{DiskCache, Error, Location, Options, Package, Piece, Progress, Pulled, Reader, Store};

use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

const MIB: u64 = 1 << 20;

async fn store(dir: &Path, disk_bytes: u64, offline: bool) -> Store {
    let disk = Some((dir.to_owned(), disk_bytes));
    let retry_for = std::time::Duration::from_millis(300);
    let options = Options { disk, offline, retry_for, ..Options::default() };
    // The tasks of the store before end a moment after it, and the directory has one user at a time.
    within(20, async {
        loop {
            match Store::open(options.clone()) {
                Err(Error::CacheInUse { .. }) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

async fn pull(store: &Store, location: &Location) -> Result<Pulled, Error> {
    let package = store.package(location).await?;
    let progress = Arc::<Progress>::default();
    let pulled = within(60, store.pull(&package, location, &progress)).await?;
    assert_eq!((progress.done_bytes(), progress.total_bytes()), (pulled.bytes, pulled.bytes));
    Ok(pulled)
}

async fn expect_image(package: &Package, disk: usize, source: &Source) {
    let pieces = package.disks()[disk].read(0, source.size_bytes()).await.unwrap();
    let bytes: Vec<u8> = pieces
        .into_iter()
        .flat_map(|piece| match piece {
            Piece::Data(data) => data.to_vec(),
            Piece::Zeros(length) => vec![0; length as usize],
        })
        .collect();
    assert!(bytes == source.bytes());
}

fn two_disks() -> (Source, Source) {
    // The second has more leaves than one, holes among them.
    let large = Source::zeros(70 * MIB).with(0, noise(1, 300_000)).with(50 * MIB, prose(2, 400_000));
    (mixed(), large)
}

#[tokio::test]
async fn a_pulled_package_is_served_offline_without_a_request() {
    let (first, second) = two_disks();
    let repository = Repository::of_disks(&[("disk0", &first), ("disk1", &second)]);
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    let online = store(dir.path(), 64 * MIB, false).await;
    let pulled = pull(&online, &origin.location()).await.unwrap();
    // All but the index, which was fetched to know what there is.
    assert!(pulled.fetched_bytes > pulled.bytes * 9 / 10, "{pulled:?}");
    drop(online);
    let asked = origin.log().len();
    let offline = store(dir.path(), 64 * MIB, true).await;
    let package = offline.package(&origin.location()).await.unwrap();
    expect_image(&package, 0, &first).await;
    expect_image(&package, 1, &second).await;
    for survey in offline.survey(&package).await.unwrap() {
        assert!(survey.bytes > 0 && survey.resident_bytes == survey.bytes, "{survey:?}");
    }
    // It can be looked at again, too.
    assert_eq!(pull(&offline, &origin.location()).await.unwrap(), Pulled { fetched_bytes: 0, ..pulled });
    assert_eq!(origin.log().len(), asked, "something was asked for");
    // And without any server at that address.
    let location = origin.location();
    drop((package, offline, origin));
    let offline = store(dir.path(), 64 * MIB, true).await;
    expect_image(&offline.package(&location).await.unwrap(), 0, &first).await;
}

#[tokio::test]
async fn what_was_not_pulled_is_told_offline() {
    let repository = Repository::of(&mixed());
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    let offline = store(dir.path(), 64 * MIB, true).await;
    let error = offline.package(&origin.location()).await.unwrap_err();
    assert!(matches!(error, Error::Offline { .. }) && error.class() == Class::Network, "{error}");
    drop(offline);
    // Only opened, nothing read.
    let online = store(dir.path(), 64 * MIB, false).await;
    drop(online.package(&origin.location()).await.unwrap());
    within(20, async {
        while std::fs::read_dir(dir.path().join("objects")).map_or(0, Iterator::count) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(online);
    let asked = origin.log().len();
    let offline = store(dir.path(), 64 * MIB, true).await;
    let package = offline.package(&origin.location()).await.unwrap();
    let error = package.disks()[0].read(0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(matches!(pull(&offline, &origin.location()).await, Err(Error::Offline { .. })));
    assert_eq!(origin.log().len(), asked);
}

#[tokio::test]
async fn a_pull_that_was_cut_goes_on_where_it_was() {
    let (first, second) = two_disks();
    let repository = Repository::of_disks(&[("disk0", &first), ("disk1", &second)]);
    let is_down = Arc::<AtomicBool>::default();
    let origin = BadServer::start(repository.root(), {
        let is_down = Arc::clone(&is_down);
        move |_| if is_down.load(Ordering::Relaxed) { Answer::Reset(10) } else { Answer::Good }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let cut = store(dir.path(), 64 * MIB, false).await;
    let package = cut.package(&origin.location()).await.unwrap();
    // Some of it is here when the line goes down for good.
    package.disks()[1].read(0, 300_000).await.unwrap();
    package.disks()[1].extents(0, second.size_bytes(), 100).await.unwrap();
    package.disks()[0].extents(0, first.size_bytes(), 100).await.unwrap();
    is_down.store(true, Ordering::Relaxed);
    let progress = Arc::<Progress>::default();
    let error = within(60, cut.pull(&package, &origin.location(), &progress)).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    drop((package, cut));
    let good = BadServer::start(repository.root(), |_| Answer::Good).await;
    let again = store(dir.path(), 64 * MIB, false).await;
    assert!(again.disk().unwrap().pins().is_empty(), "what is not whole is not pinned");
    let pulled = pull(&again, &good.location()).await.unwrap();
    assert!(pulled.fetched_bytes > 0 && pulled.fetched_bytes < pulled.bytes * 9 / 10, "{pulled:?}");
    let [pin] = &again.disk().unwrap().pins()[..] else { panic!("one pin") };
    assert_eq!((pin.manifest, pin.bytes), (repository.version.manifest, pulled.bytes));
    // A chunk that was damaged since is fetched again.
    drop(again);
    damage(dir.path());
    let repaired = store(dir.path(), 64 * MIB, false).await;
    let pulled = pull(&repaired, &good.location()).await.unwrap();
    assert!(pulled.fetched_bytes > 0 && pulled.fetched_bytes < pulled.bytes / 2, "{pulled:?}");
    let offline_package = repaired.package(&good.location()).await.unwrap();
    expect_image(&offline_package, 1, &second).await;
}

/// Damages a frame in a segment.
fn damage(dir: &Path) {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let segment = files.filter(|path| path.extension().is_some_and(|is| is == "segment")).min().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(segment, bytes).unwrap();
}

#[tokio::test]
async fn pinned_packages_stay_and_too_large_ones_are_refused() {
    let pinned_source = Source::of(noise(1, 700_000));
    let (pinned, other) = (Repository::of(&pinned_source), Source::of(noise(2, 6_000_000)));
    let other = Repository::of(&other);
    let dir = tempfile::tempdir().unwrap();
    // A megabyte may be pinned.
    let kept = store(dir.path(), 4 * MIB / 3, false).await;
    pull(&kept, &pinned.location()).await.unwrap();
    let error = pull(&kept, &other.location()).await.unwrap_err();
    let Error::PinTooLarge { bytes, pinned_bytes, max_bytes, .. } = error else { panic!("{error}") };
    assert!(bytes > 6_000_000 && pinned_bytes > 700_000 && max_bytes <= MIB, "{bytes}, {pinned_bytes}, {max_bytes}");
    assert_eq!(error.class(), Class::Host);
    // Reading it pushes out what is not pinned, several times over.
    let package = kept.package(&other.location()).await.unwrap();
    package.disks()[0].read(0, 6_000_000).await.unwrap();
    drop(package);
    drop(kept);
    let offline = store(dir.path(), 4 * MIB / 3, true).await;
    assert_eq!(pull(&offline, &pinned.location()).await.unwrap().fetched_bytes, 0);
    let disk = offline.disk().unwrap();
    assert!(disk.unpin(&pinned.version.manifest).unwrap());
    assert!(disk.pins().is_empty());
    // The writer lets go of what the pull held, which may be a moment after the pull has returned.
    let let_go = async {
        while disk.usage().pinned_bytes > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), let_go).await.unwrap();
    drop(offline);
}

/// A pull that fails beside another one lets go of nothing that the other has brought.
#[tokio::test]
async fn pulls_at_the_same_time_hold_what_is_theirs() {
    let (first, second) =
        (Repository::of(&Source::of(noise(1, 400_000))), Repository::of(&Source::of(noise(2, 400_000))));
    let (open, gate) = tokio::sync::watch::channel(true);
    let behave = move |_: &_| Answer::When(gate.clone());
    let slow = BadServer::start(first.root(), behave).await;
    let quick = BadServer::start(second.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    let kept = store(dir.path(), 3 * MIB / 2, false).await;
    let location = slow.location();
    let package = kept.package(&location).await.unwrap();
    // Half of it is here, and nothing else until the gate is open again.
    package.disks()[0].read(0, 200_000).await.unwrap();
    // A read has its chunks before the disk tier does.
    within(20, async {
        while kept.disk().unwrap().usage().bytes < 200_000 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            kept.disk().unwrap().flush();
        }
    })
    .await;
    open.send(false).unwrap();
    let progress = Arc::<Progress>::default();
    let slow_pull = tokio::spawn({
        let (kept, location, progress) = (kept.clone(), location.clone(), Arc::clone(&progress));
        async move { kept.pull(&package, &location, &progress).await }
    });
    within(20, async {
        while progress.done_bytes() < 200_000 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    // Complete, let go of, and pushed out by what is read then: several times what the cache can hold.
    pull(&kept, &quick.location()).await.unwrap();
    let disk = kept.disk().unwrap();
    assert!(kept.is_complete(&second.version.manifest) && !kept.is_complete(&first.version.manifest));
    assert!(disk.unpin(&second.version.manifest).unwrap());
    assert!(!kept.is_complete(&second.version.manifest));
    let large = Repository::of(&Source::of(noise(3, 6_000_000)));
    let package = kept.package(&large.location()).await.unwrap();
    package.disks()[0].read(0, 6_000_000).await.unwrap();
    open.send(true).unwrap();
    slow_pull.await.unwrap().unwrap();
    assert!(kept.is_complete(&first.version.manifest));
    package.disks()[0].read(0, 6_000_000).await.unwrap();
    drop((package, kept));
    let offline = store(dir.path(), 3 * MIB / 2, true).await;
    assert!(offline.is_complete(&first.version.manifest), "known at the start, too");
    assert_eq!(pull(&offline, &location).await.unwrap().fetched_bytes, 0);
    // Whatever is damaged then is a part of it.
    offline.disk().unwrap().prune(0).unwrap();
    drop(offline);
    damage(dir.path());
    let damaged = store(dir.path(), 3 * MIB / 2, false).await;
    let found = tokio::task::spawn_blocking({
        let damaged = damaged.clone();
        move || damaged.disk().unwrap().verify(|_| ()).damaged
    });
    assert_eq!(found.await.unwrap(), 1);
    assert!(!damaged.is_complete(&first.version.manifest), "a part of it is gone");
    pull(&damaged, &location).await.unwrap();
    assert!(damaged.is_complete(&first.version.manifest));
}

/// One reader of a store that is online sends nothing; the others are not disturbed by it.
#[tokio::test]
async fn one_reader_of_several_can_be_offline() {
    let source = Source::of(noise(1, 900_000));
    let repository = Repository::of(&source);
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    let online = store(dir.path(), 64 * MIB, false).await;
    let reader = Reader {
        retry_for: std::time::Duration::from_millis(300),
        background_bytes_per_s: None,
        access: Access::default(),
        trust: Trust::default(),
        offline: true,
    };
    let offline = online.for_reader(reader);
    assert!(matches!(offline.package(&origin.location()).await, Err(Error::Offline { .. })));
    assert_eq!(origin.log().len(), 0);
    let there = online.package(&origin.location()).await.unwrap();
    there.disks()[0].read(0, 1000).await.unwrap();
    let here = within(20, async {
        loop {
            match offline.package(&origin.location()).await {
                Ok(package) => return package,
                // Link, manifest and layout are written by and by.
                Err(Error::Offline { .. }) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    let before = origin.log().len();
    assert!(matches!(here.disks()[0].read(500_000, 1000).await, Err(Error::Offline { .. })));
    assert_eq!(origin.log().len(), before);
    // At the same time: whoever may ask does, and whoever may not has the benefit or nothing.
    let size = source.size_bytes();
    let (online_read, offline_read) = tokio::join!(there.disks()[0].read(0, size), here.disks()[0].read(0, size));
    online_read.unwrap();
    assert!(matches!(offline_read, Ok(_) | Err(Error::Offline { .. })));
    expect_image(&here, 0, &source).await;
}

#[tokio::test]
async fn a_copy_is_a_repository() {
    let (first, second) = two_disks();
    let repository = Repository::of_disks(&[("disk0", &first), ("disk1", &second)]);
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("copy");
    let copy = async || {
        let store = Store::open(Options::default()).unwrap();
        let progress = Arc::<Progress>::default();
        within(60, store.copy(&origin.location(), &to, &progress)).await.unwrap()
    };
    let copied = copy().await;
    assert!(copied.bytes > 0 && copied.fetched_bytes == copied.bytes);
    // Byte for byte, and nothing is left to do.
    let same =
        |name: &Path| std::fs::read(repository.root().join(name)).unwrap() == std::fs::read(to.join(name)).unwrap();
    let packs: Vec<_> = repository.packs();
    assert!(packs.iter().all(|pack| same(pack.strip_prefix(repository.root()).unwrap())));
    assert!(same(Path::new(repository.link_file().file_name().unwrap())));
    assert_eq!(copy().await.fetched_bytes, 0);
    // A damaged pack is fetched again.
    let damaged = to.join(packs[0].strip_prefix(repository.root()).unwrap());
    std::fs::write(&damaged, "damaged").unwrap();
    let repaired = copy().await;
    assert!(repaired.fetched_bytes > 0 && repaired.fetched_bytes < repaired.bytes);
    let location: Location = to.join(repository.link_file().file_name().unwrap()).to_str().unwrap().parse().unwrap();
    let store = Store::open(Options::default()).unwrap();
    let package = store.package(&location).await.unwrap();
    expect_image(&package, 0, &first).await;
    expect_image(&package, 1, &second).await;
}

/// What a session has read first is in memory when the next one begins, before it reads anything.
#[tokio::test]
async fn the_next_session_finds_in_memory_what_this_one_has_read() {
    let source = Source::of(noise(1, 2_000_000));
    let repository = Repository::of(&source);
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir: TempDir = tempfile::tempdir().unwrap();
    let cold = store(dir.path(), 64 * MIB, false).await;
    let package = cold.package_in_order(&origin.location(), Purpose::Boot).await.unwrap();
    package.disks()[0].read(0, 1_000_000).await.unwrap();
    drop((package, cold));
    let warm = store(dir.path(), 64 * MIB, false).await;
    let package = warm.package_in_order(&origin.location(), Purpose::Boot).await.unwrap();
    let disk = &package.disks()[0];
    // The index alone.
    disk.extents(0, 4096, 1).await.unwrap();
    within(20, async {
        while !disk.read_now(0, 1_000_000, &mut Vec::new()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let counts = package.disks()[0].counters().counts();
    assert_eq!((counts.disk_chunks, counts.origin_chunks), (0, 0), "{counts:?}");
    // Another program may look in between and read nothing.
    drop((package, warm));
    drop(DiskCache::open_as_it_is(dir.path()));
}

/// A pull and those who read meanwhile wait for the same fetches.
#[tokio::test]
async fn nothing_is_fetched_by_a_pull_and_by_a_reader_beside_it() {
    let source = Source::of(noise(3, 4 * MIB as usize));
    let repository = Repository::of(&source);
    let (open, gate) = tokio::sync::watch::channel(true);
    let origin = BadServer::start(repository.root(), move |_| Answer::When(gate.clone())).await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 64 * MIB, false).await;
    let package = Arc::new(store.package(&origin.location()).await.unwrap());
    // The index, which then waits to be written.
    let image = &package.disks()[0];
    image.read(0, 1).await.unwrap();
    open.send(false).unwrap();
    let asked_anew = async |before: usize| {
        while origin.ranges() == before {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    let before = origin.ranges();
    let reader = tokio::spawn({
        let image = Arc::clone(image);
        async move { image.read(MIB, 2 * MIB).await.map(drop) }
    });
    within(20, asked_anew(before)).await;
    let before = origin.ranges();
    let progress = Arc::<Progress>::default();
    let location = origin.location();
    let pull = store.pull(&package, &location, &progress);
    let opens = async {
        // All that it may have under way at once can be what the reader has asked for: then it asks for nothing of its own yet.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), asked_anew(before)).await;
        open.send(true).unwrap();
    };
    let (pulled, ()) = within(60, async { tokio::join!(pull, opens) }).await;
    pulled.unwrap();
    within(20, reader).await.unwrap().unwrap();
    let asked = origin.log();
    for chunk in &repository.chunks {
        let place = &chunk.wanted.place;
        let path = vmnetx_format::pack_path(&place.pack);
        let holds = |range: &std::ops::Range<u64>| range.contains(&place.offset);
        let crossings = asked.iter().filter(|asked| asked.path == path && asked.range.as_ref().is_some_and(holds));
        assert_eq!(crossings.count(), 1, "the chunk at byte {}", place.offset);
    }
    expect_image(&package, 0, &source).await;
}
