//! What every tier must do, asked of every tier.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tower_http::services::ServeDir;
use vmnetx_format::Digest;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::origin::{DirOrigin, HttpClient, HttpOrigin, OriginTier};
use vmnetx_store::tier::{Arrivals, Found, Tier, Wanted, Why};
use vmnetx_store::{DiskCache, DiskTier, Error, MemoryCache, MemoryTier, SingleFlight};

use crate::faulty_tier::{Fate, FaultyTier};
use crate::support::repository::{Frame, Repository};
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

/// A tier under test and what must live as long as it does.
struct Rig {
    repository: Repository,
    tier: Arc<dyn Tier>,
    _held: Vec<Box<dyn Any + Send + Sync>>,
}

impl Rig {
    fn new(repository: Repository, tier: Arc<dyn Tier>) -> Self {
        Self { repository, tier, _held: Vec::new() }
    }

    fn holding(mut self, held: impl Any + Send + Sync) -> Self {
        self._held.push(Box::new(held));
        self
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.repository.chunks.iter().map(|frame| frame.wanted.clone()).collect()
    }
}

mod rigs {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Two disks, more chunks than fit the small caches, several packs.
    fn repository() -> Repository {
        Repository::of_disks(&[("disk0", &mixed()), ("disk1", &Source::of(noise(9, 700_000)))])
    }

    fn of_dir(repository: &Repository) -> Arc<dyn Tier> {
        let origin = Arc::new(DirOrigin::new(repository.root()));
        Arc::new(OriginTier::new(origin, Duration::from_secs(5)))
    }

    /// A real web server, which serves the folder until the test's runtime ends.
    async fn of_web(repository: &Repository) -> Arc<dyn Tier> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let site = axum::Router::new().fallback_service(ServeDir::new(repository.root()));
        tokio::spawn(async move { axum::serve(listener, site).await });
        let base = format!("http://{address}/").parse().unwrap();
        let origin = Arc::new(HttpOrigin::new(HttpClient::default(), base));
        Arc::new(OriginTier::new(origin, Duration::from_secs(5)))
    }

    fn before_disk(repository: Repository, max_bytes: u64, next: Arc<dyn Tier>) -> Rig {
        let dir: TempDir = tempfile::tempdir().unwrap();
        let cache = Arc::new(DiskCache::open(dir.path(), max_bytes).unwrap());
        Rig::new(repository, Arc::new(DiskTier::new(cache, next))).holding(dir)
    }

    pub(super) async fn origin_in_a_directory() -> Rig {
        let repository = repository();
        let tier = of_dir(&repository);
        Rig::new(repository, tier)
    }

    pub(super) async fn origin_on_the_web() -> Rig {
        let repository = repository();
        let tier = of_web(&repository).await;
        Rig::new(repository, tier)
    }

    pub(super) async fn memory() -> Rig {
        let repository = repository();
        let cache = Arc::new(MemoryCache::new(64 * MIB));
        let tier = Arc::new(MemoryTier::new(cache, of_dir(&repository)));
        Rig::new(repository, tier)
    }

    pub(super) async fn memory_that_is_too_small() -> Rig {
        let repository = repository();
        let cache = Arc::new(MemoryCache::new(200_000));
        let tier = Arc::new(MemoryTier::new(cache, of_dir(&repository)));
        Rig::new(repository, tier)
    }

    pub(super) async fn disk() -> Rig {
        let repository = repository();
        let next = of_dir(&repository);
        before_disk(repository, 64 * MIB, next)
    }

    pub(super) async fn disk_that_is_too_small() -> Rig {
        let repository = repository();
        let next = of_dir(&repository);
        before_disk(repository, 600_000, next)
    }

    pub(super) async fn disk_that_cannot_be_written() -> Rig {
        let repository = repository();
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(DiskCache::open(dir.path(), 64 * MIB).unwrap());
        drop(dir);
        let tier = Arc::new(DiskTier::new(cache, of_dir(&repository)));
        Rig::new(repository, tier)
    }

    pub(super) async fn single_flight() -> Rig {
        let repository = repository();
        let tier = Arc::new(SingleFlight::new(of_dir(&repository)));
        Rig::new(repository, tier)
    }

    /// The wrapper of this crate's own fault tests, frames late and out of order.
    pub(super) async fn faulty_tier() -> Rig {
        let repository = repository();
        let late = |frame: &Wanted| Fate::Late(Duration::from_millis(frame.place.offset % 7));
        let tier = Arc::new(FaultyTier::new(of_dir(&repository), late));
        Rig::new(repository, tier)
    }

    /// All tiers, as a store puts them together.
    pub(super) async fn chain() -> Rig {
        let repository = repository();
        let next = of_web(&repository).await;
        let mut rig = before_disk(repository, 64 * MIB, next);
        let memory = Arc::new(MemoryTier::new(Arc::new(MemoryCache::new(64 * MIB)), Arc::clone(&rig.tier)));
        rig.tier = Arc::new(SingleFlight::new(memory));
        rig
    }
}

/// Makes the tests of every property for one rig.
macro_rules! conforms {
    ($($rig:ident)+) => { $(
        mod $rig {
            use super::*;

            conforms!(@ $rig every_frame_arrives_once_with_its_bytes);
            conforms!(@ $rig repeated_frames_are_answered_each);
            conforms!(@ $rig an_empty_list_has_no_answers);
            conforms!(@ $rig wrong_bytes_are_never_served);
            conforms!(@ $rig a_frame_fails_alone);
            conforms!(@ $rig many_fetch_at_once);
            conforms!(@ $rig who_leaves_early_harms_nobody);
        }
    )+ };
    (@ $rig:ident $property:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $property() {
            within(60, super::$property(rigs::$rig().await)).await;
        }
    };
}

conforms! {
    origin_in_a_directory origin_on_the_web memory memory_that_is_too_small disk disk_that_is_too_small
    disk_that_cannot_be_written single_flight faulty_tier chain
}

/// All answers, each in its place.
async fn collect(mut arrivals: Arrivals, count: usize) -> Vec<Result<Found, Error>> {
    let mut answers: Vec<Option<Result<Found, Error>>> = vec![None; count];
    while let Some(arrival) = arrivals.next().await {
        let before = answers[arrival.index].replace(arrival.result);
        assert!(before.is_none(), "frame {} was answered twice", arrival.index);
    }
    answers.into_iter().map(|answer| answer.expect("every frame is answered")).collect()
}

async fn expect_all(tier: &dyn Tier, frames: &[Frame], why: Why) {
    let arrivals = tier.fetch(frames.iter().map(|frame| frame.wanted.clone()).collect(), why);
    for (answer, frame) in collect(arrivals, frames.len()).await.into_iter().zip(frames) {
        let found = answer.unwrap();
        assert!(found.plain == frame.plain, "wrong bytes for {}", frame.wanted.digest);
        if let Some(stored) = found.stored {
            assert_eq!(stored.len(), frame.wanted.place.stored_len as usize);
        }
    }
}

async fn every_frame_arrives_once_with_its_bytes(rig: Rig) {
    assert!(rig.repository.chunks.len() > 20 && rig.repository.packs().len() > 3, "the repository is too small");
    // The second time from caches, the third from caches in another order.
    expect_all(&*rig.tier, &rig.repository.chunks, Why::Demand).await;
    expect_all(&*rig.tier, &rig.repository.chunks, Why::ReadAhead).await;
    let reversed: Vec<Frame> = rig.repository.chunks.iter().rev().cloned().collect();
    expect_all(&*rig.tier, &reversed, Why::Demand).await;
    for frame in &rig.repository.chunks {
        expect_all(&*rig.tier, std::slice::from_ref(frame), Why::Demand).await;
    }
}

async fn repeated_frames_are_answered_each(rig: Rig) {
    let [first, second, ..] = &rig.repository.chunks[..] else { panic!("too few chunks") };
    let list: Vec<Frame> = [first, second, first, first, second].into_iter().cloned().collect();
    expect_all(&*rig.tier, &list, Why::Demand).await;
    expect_all(&*rig.tier, &list, Why::Demand).await;
}

async fn an_empty_list_has_no_answers(rig: Rig) {
    assert!(rig.tier.fetch(Vec::new(), Why::Demand).next().await.is_none());
}

async fn wrong_bytes_are_never_served(rig: Rig) {
    let frame = &rig.repository.chunks[3];
    // The place holds something, but not what is asked for.
    let mut other = frame.wanted.clone();
    other.digest = Digest::of(b"something else");
    let answers = collect(rig.tier.fetch(vec![other.clone()], Why::Demand), 1).await;
    assert_eq!(answers[0].as_ref().unwrap_err().class(), Class::Integrity);
    // It was not kept under either name.
    expect_all(&*rig.tier, std::slice::from_ref(frame), Why::Demand).await;
    let answers = collect(rig.tier.fetch(vec![other], Why::Demand), 1).await;
    assert!(answers[0].is_err());
}

async fn a_frame_fails_alone(rig: Rig) {
    // Side by side in one pack, so that one range request fetches good and bad together.
    let mut list = rig.wanted();
    list.truncate(9);
    list[2].digest = Digest::of(b"no such chunk");
    list[4].place.pack = Digest::of(b"no such pack");
    list[6].digest = Digest::of(b"no such chunk either");
    let answers = collect(rig.tier.fetch(list, Why::Demand), 9).await;
    for (index, (answer, frame)) in answers.iter().zip(&rig.repository.chunks).enumerate() {
        match answer {
            Ok(found) => assert!(found.plain == frame.plain && ![2, 4, 6].contains(&index), "frame {index}"),
            Err(error) => assert!([2, 4, 6].contains(&index), "frame {index}: {error}"),
        }
    }
}

async fn many_fetch_at_once(rig: Rig) {
    let rig = Arc::new(rig);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16_usize {
        let rig = Arc::clone(&rig);
        tasks.spawn(async move {
            let mut frames = rig.repository.chunks.clone();
            let by = number * 3 % frames.len();
            frames.rotate_left(by);
            frames.truncate(frames.len() / 2);
            let why = if number % 3 == 0 { Why::ReadAhead } else { Why::Demand };
            expect_all(&*rig.tier, &frames, why).await;
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

async fn who_leaves_early_harms_nobody(rig: Rig) {
    let frames = &rig.repository.chunks;
    drop(rig.tier.fetch(rig.wanted(), Why::Demand));
    let stays = rig.tier.fetch(rig.wanted(), Why::Demand);
    drop(rig.tier.fetch(rig.wanted(), Why::Demand));
    let mut leaves_later = rig.tier.fetch(rig.wanted(), Why::Demand);
    assert!(leaves_later.next().await.is_some());
    drop(leaves_later);
    for (answer, frame) in collect(stays, frames.len()).await.into_iter().zip(frames) {
        assert!(answer.unwrap().plain == frame.plain);
    }
    expect_all(&*rig.tier, frames, Why::Demand).await;
}

#[test]
fn the_samples_are_what_they_say() {
    let source = mixed();
    assert_eq!(source.bytes().len() as u64, source.size_bytes());
    assert!(source.extents(0, source.size_bytes()).len() > 4);
    let squeeze = |data: &[u8]| vmnetx_format::Compressor::new(1).unwrap().encode(data).unwrap().len();
    assert_eq!(squeeze(&noise(1, 50_000)), 50_000);
    assert!(squeeze(&prose(1, 50_000)) < 20_000);
}
