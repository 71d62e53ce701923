//! What is on this host, and bringing more of it here: memory and disk tier, limits, a model.

use std::path::Path;
use std::time::Duration;

use vmnetx_format::{BLOCK_BYTES, Chunker, Digest};
use vmnetx_store::{Error, Image, Options, Residency, Store};

use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{LEAF_BYTES, Source, mixed, noise};
use crate::within;

const MIB: u64 = 1 << 20;

async fn store(memory_bytes: u64, disk: Option<&Path>) -> Store {
    let disk = disk.map(|dir| (dir.to_owned(), 64 * MIB));
    let options = Options { memory_bytes, disk, retry_for: Duration::from_secs(5), ..Options::default() };
    // Fetches that have just ended hold the directory a moment longer than their store.
    within(20, async {
        loop {
            match Store::open(options.clone()) {
                Err(Error::CacheInUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

async fn all(image: &Image) -> Vec<Residency> {
    let runs = image.residency(0, image.size_bytes(), usize::MAX).await.unwrap();
    assert_eq!(runs.iter().map(|run| run.length).sum::<u64>(), image.size_bytes());
    runs
}

async fn is_all_here(image: &Image) -> bool {
    all(image).await == [Residency { length: image.size_bytes(), remote: false }]
}

/// The residency of a range as it must be told, from the chunks of a small image.
fn model(source: &Source, memory: &impl Fn(&Digest) -> bool, offset: u64, length: u64) -> Vec<Residency> {
    let mut data = source.bytes();
    data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
    let mut remote = vec![false; data.len() / BLOCK_BYTES];
    for run in Chunker::DISK.cut(&data) {
        let here = memory(&Digest::of(run.slice(&data).unwrap()));
        remote[run.first_block as usize..(run.first_block + run.blocks) as usize].fill(!here);
    }
    let mut runs: Vec<Residency> = Vec::new();
    for at in offset..offset + length {
        let remote = remote[at as usize / BLOCK_BYTES];
        match runs.last_mut() {
            Some(run) if run.remote == remote => run.length += 1,
            _ => runs.push(Residency { length: 1, remote }),
        }
    }
    runs
}

#[tokio::test]
async fn residency_is_that_of_the_model() {
    let source = mixed();
    let repository = Repository::of(&source);
    let store = store(64 * MIB, None).await;
    let package = store.package(&repository.location()).await.unwrap();
    let image = &package.disks()[0];
    let memory = |digest: &Digest| store.memory().contains(digest);
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    // The index comes with the first of these.
    image.prefetch(0, 1).await.unwrap();
    for round in 0..60 {
        let offset = random(source.size_bytes());
        let length = random(source.size_bytes() - offset + 1).min(1 + random(200_000));
        match round % 4 {
            0 => drop(image.read(offset, length.min(5000)).await.unwrap()),
            1 => {
                image.prefetch(offset, length).await.unwrap();
                let runs = image.residency(offset, length, 9).await.unwrap();
                assert!(runs.iter().all(|run| !run.remote), "{runs:?}");
            }
            _ => {}
        }
        // What is read ahead may arrive between the two questions: ask until nothing has changed meanwhile.
        within(20, async {
            loop {
                let before = model(&source, &memory, offset, length);
                let told = image.residency(offset, length, usize::MAX).await.unwrap();
                if before == model(&source, &memory, offset, length) {
                    assert_eq!(told, before, "{length} at {offset}");
                    break;
                }
            }
        })
        .await;
        if round == 30 {
            store.memory().clear();
        }
    }
    assert!(matches!(image.residency(source.size_bytes(), 1, 1).await, Err(Error::OutOfBounds { .. })));
    assert!(matches!(image.prefetch(1, u64::MAX).await, Err(Error::OutOfBounds { .. })));
}

/// What the disk tier keeps is resident, the index too: after a restart the question needs no request.
#[tokio::test]
async fn the_disk_tier_counts_even_after_a_restart() {
    let repository = Repository::of(&Source::zeros(20 * LEAF_BYTES).with(9 * LEAF_BYTES, noise(1, 700_000)));
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let dir = tempfile::tempdir().unwrap();
    {
        let store = store(64 * MIB, Some(dir.path())).await;
        let package = store.package(&origin.location()).await.unwrap();
        let image = &package.disks()[0];
        assert!(!is_all_here(image).await);
        image.prefetch(0, image.size_bytes()).await.unwrap();
        assert!(is_all_here(image).await);
        store.disk().unwrap().flush();
        store.memory().clear();
        assert!(is_all_here(image).await);
        let ranges = origin.ranges();
        // What is on the disk is not brought again.
        image.prefetch(0, image.size_bytes()).await.unwrap();
        assert_eq!((origin.ranges(), store.memory().bytes()), (ranges, 0));
        assert_eq!(image.counters().counts().prefetched_chunks as usize, repository.chunks.len());
    }
    let ranges = origin.ranges();
    let store = store(64 * MIB, Some(dir.path())).await;
    let package = store.package(&origin.location()).await.unwrap();
    let image = &package.disks()[0];
    assert!(is_all_here(image).await);
    assert_eq!(origin.ranges(), ranges);
}

/// Without a disk tier a prefetch does not push out what it has brought, and leaves room for others.
#[tokio::test]
async fn a_prefetch_takes_half_of_the_memory_tier() {
    let source = Source::of(noise(1, 3 * MIB as usize));
    let repository = Repository::of(&source);
    let store = store(2 * MIB, None).await;
    let package = store.package(&repository.location()).await.unwrap();
    let image = &package.disks()[0];
    image.prefetch(0, source.size_bytes()).await.unwrap();
    let runs = all(image).await;
    let here = runs.iter().find(|run| !run.remote).unwrap();
    assert_eq!(
        runs,
        [
            Residency { length: here.length, remote: false },
            Residency { length: source.size_bytes() - here.length, remote: true }
        ]
    );
    assert!(here.length <= MIB && here.length > MIB / 2, "{}", here.length);
}

/// A dropped prefetch asks for nothing more.
#[tokio::test]
async fn a_prefetch_ends_when_it_is_dropped() {
    let source = Source::of(noise(1, (LEAF_BYTES + LEAF_BYTES / 4) as usize));
    let repository = Repository::of(&source);
    let (open, gate) = tokio::sync::watch::channel(true);
    let origin = BadServer::start(repository.root(), move |_| Answer::When(gate.clone())).await;
    let store = store(256 * MIB, None).await;
    let package = store.package(&origin.location()).await.unwrap();
    let image = &package.disks()[0];
    image.read(0, 1).await.unwrap();
    image.read(LEAF_BYTES, 1).await.unwrap();
    open.send(false).unwrap();
    let prefetch = tokio::time::timeout(Duration::from_millis(300), image.prefetch(0, source.size_bytes())).await;
    assert!(prefetch.is_err());
    open.send(true).unwrap();
    image.read(source.size_bytes() - 1, 1).await.unwrap();
    let beyond = image.residency(LEAF_BYTES + MIB, 2 * MIB, 1).await.unwrap();
    assert_eq!(beyond, [Residency { length: 2 * MIB, remote: true }]);
    image.prefetch(0, source.size_bytes()).await.unwrap();
    assert!(is_all_here(image).await);
}
