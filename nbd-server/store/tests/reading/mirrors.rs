//! Repositories with mirrors that are dead, slow, damaged or incomplete: readers get right bytes, soon.

use std::time::Duration;

use tokio::time::Instant;
use vmnetx_format::Envelope;
use vmnetx_store::limits::{HEDGE_AFTER_MAX, HEDGE_PARTS, MIRROR_REST_MAX};
use vmnetx_store::{Error, Options, Package, Piece, Store};

use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise};
use crate::within;

/// A repository on several servers, which its link lists, and a reader of it.
struct Rig {
    source: Source,
    _repository: Repository,
    servers: Vec<BadServer>,
    package: Package,
}

type Behave = fn(&Asked) -> Answer;
type Knowing = dyn Fn(&Asked) -> Answer + Send + Sync;

async fn open(source: Source, behaviours: &[Behave], memory_bytes: u64) -> Result<Rig, Error> {
    open_each(source, behaviours.iter().map(|&behave| Box::new(behave) as Box<_>).collect(), memory_bytes).await
}

/// The same with servers that know what they have seen.
async fn open_each(source: Source, behaviours: Vec<Box<Knowing>>, memory_bytes: u64) -> Result<Rig, Error> {
    let repository = Repository::of(&source);
    let mut servers = Vec::new();
    for behave in behaviours {
        servers.push(BadServer::start(repository.root(), behave).await);
    }
    let mut link = repository.link();
    link.repositories = servers.iter().map(|server| server.url().parse().unwrap()).collect();
    std::fs::write(repository.link_file(), Envelope::unsigned(link).unwrap().encode()).unwrap();
    // The link itself is on a server of its own, which is well.
    let home = BadServer::start(repository.root(), |_| Answer::Good).await;
    let store = Store::open(Options { memory_bytes, retry_for: Duration::from_secs(20), ..Options::default() })?;
    let package = within(120, store.package(&home.location())).await?;
    Ok(Rig { source, _repository: repository, servers, package })
}

impl Rig {
    async fn of(behaviours: &[Behave]) -> Self {
        open(mixed(), behaviours, 64 << 20).await.unwrap()
    }

    async fn read(&self, offset: u64, length: u64) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for piece in within(120, self.package.disks()[0].read(offset, length)).await? {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(&data),
                Piece::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
            }
        }
        assert!(bytes == self.source.read(offset, length), "wrong bytes at {offset}");
        Ok(())
    }

    async fn read_all(&self) -> Result<(), Error> {
        const STEP: u64 = 100_000;
        for offset in (0..self.source.size_bytes()).step_by(STEP as usize) {
            self.read(offset, STEP.min(self.source.size_bytes() - offset)).await?;
        }
        Ok(())
    }

    fn asked(&self, server: usize) -> usize {
        self.servers[server].log().len()
    }
}

fn good(_: &Asked) -> Answer {
    Answer::Good
}

fn damages_packs(asked: &Asked) -> Answer {
    if asked.range.is_some() { Answer::Damaged(9) } else { Answer::Good }
}

#[tokio::test(start_paused = true)]
async fn where_all_are_well_the_first_is_asked() {
    let rig = Rig::of(&[good, good]).await;
    rig.read_all().await.unwrap();
    assert_eq!(rig.asked(1), 0);
    assert_eq!(rig.package.origin_counts().retries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_mirror_costs_one_try() {
    for dead in [|_: &Asked| Answer::Reset(0), |_: &Asked| Answer::Status(503)] as [Behave; 2] {
        let rig = Rig::of(&[dead, good]).await;
        let start = Instant::now();
        rig.read_all().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert!(rig.servers[1].ranges() > 0);
        let states = rig.package.mirrors();
        assert!(states[0].failures > 0 && states[1].failures == 0 && !states[1].resting, "{states:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_lacks_objects_is_passed_over() {
    let rig = Rig::of(&[|_| Answer::Status(404), good]).await;
    rig.read_all().await.unwrap();
    let states = rig.package.mirrors();
    assert!(states[0].avoided_objects > 2 && !states[0].resting, "{states:?}");
    // Each object was asked for once.
    let log = rig.servers[0].log();
    assert!(log.iter().all(|asked| asked.before == 0), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_damages_is_asked_once_for_each_object() {
    for lie in [damages_packs as Behave, |asked| {
        // Whole frames of the same length, but not those that were asked for.
        if asked.range.is_some() { Answer::OtherRange(64) } else { Answer::Good }
    }] {
        let rig = Rig::of(&[lie, good]).await;
        let start = Instant::now();
        rig.read_all().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let states = rig.package.mirrors();
        assert!(states[0].failures > 0 && states[1].failures == 0, "{states:?}");
    }
    // Manifest and layout too.
    let rig = Rig::of(&[|_| Answer::Damaged(5), good]).await;
    rig.read_all().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_trickles_does_not_hold_its_readers_for_ever() {
    let rig = Rig::of(&[
        |asked| if asked.range.is_some() { Answer::Drip(200, Duration::from_secs(3)) } else { Answer::Good },
        good,
    ])
    .await;
    rig.read_all().await.unwrap();
    assert!(rig.servers[1].ranges() > 0);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_rules_for_outages_hold() {
    let rig = Rig::of(&[
        |asked| if asked.range.is_some() { Answer::Status(503) } else { Answer::Good },
        |_| Answer::Reset(0),
    ])
    .await;
    let start = Instant::now();
    let error = rig.read(0, 4096).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(start.elapsed() > Duration::from_secs(8) && start.elapsed() < Duration::from_secs(60));
    // One that lacks the object does not make the other's outage a definite no.
    let rig = Rig::of(&[
        |asked| match asked.before {
            ..4 if asked.range.is_some() => Answer::Status(503),
            _ => Answer::Good,
        },
        |_| Answer::Status(404),
    ])
    .await;
    rig.read_all().await.unwrap();
}

/// A damaged frame is passed over by the same request: those behind it arrive, and it alone is asked for again.
#[tokio::test(start_paused = true)]
async fn a_damaged_frame_costs_no_request_for_those_behind_it() {
    let source = Source::of(noise(1, 250_000));
    let rig = open(source, &[good], 64 << 20).await.unwrap();
    let repository = &rig._repository;
    let place = &repository.chunks[1].wanted.place;
    let pack = repository.root().join(vmnetx_format::pack_path(&place.pack));
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[place.offset as usize + 20] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    // The index first.
    rig.package.disks()[0].extents(0, 4096, 1).await.unwrap();
    let before = rig.servers[0].ranges();
    assert!(rig.read(0, 250_000).await.is_err());
    let again = rig.servers[0].log().split_off(before + 3);
    assert!(again[1..].iter().all(|asked| asked.range.as_ref().unwrap().start == place.offset), "{again:?}");
    let counts = rig.package.origin_counts();
    assert_eq!(u64::from(vmnetx_store::limits::DAMAGED_TRIES_MAX), counts.damaged_frames, "{counts:?}");
    // All others are here by now.
    let before = rig.servers[0].ranges();
    let behind = u64::from(repository.chunks[0].wanted.plain_len + repository.chunks[1].wanted.plain_len);
    rig.read(behind, 250_000 - behind).await.unwrap();
    assert_eq!(rig.servers[0].ranges(), before);
}

/// One answer in many is late: another request is sent after it and wins, and the late one is not waited for.
#[tokio::test(start_paused = true)]
async fn a_late_answer_is_overtaken() {
    const READS: u64 = 60;
    let mut source = Source::zeros(READS * (1 << 20));
    for number in 0..READS {
        source = source.with(number << 20, noise(number, 4096));
    }
    // Every response of the first server to its 45th request and some after it never comes.
    let rig = open(
        source,
        &[|asked| if asked.range.is_some() && asked.before >= 45 { Answer::Stall(0) } else { Answer::Good }, good],
        64 << 20,
    );
    let rig = rig.await.unwrap();
    let mut longest = Duration::ZERO;
    for number in 0..READS {
        let start = Instant::now();
        rig.read(number << 20, 4096).await.unwrap();
        longest = longest.max(start.elapsed());
    }
    let counts = rig.package.origin_counts();
    assert!(counts.hedges_won > 0 && counts.hedges >= counts.hedges_won, "{counts:?}");
    assert!(counts.hedges <= counts.requests / HEDGE_PARTS + 1, "{counts:?}");
    assert!(longest < HEDGE_AFTER_MAX * 20, "{longest:?}");
}

/// Where there is no other mirror, the same server is asked once more on another connection.
#[tokio::test(start_paused = true)]
async fn a_late_answer_of_the_only_server_is_overtaken_by_its_next() {
    const READS: u64 = 60;
    let mut source = Source::zeros(READS << 20);
    for number in 0..READS {
        source = source.with(number << 20, noise(number, 4096));
    }
    // Now and then one answer does not come; the next one does.
    let stalls = |asked: &Asked| asked.range.is_some() && asked.before >= 45 && asked.before.is_multiple_of(5);
    let behave = move |asked: &Asked| if stalls(asked) { Answer::Stall(0) } else { Answer::Good };
    let rig = open_each(source, vec![Box::new(behave)], 64 << 20).await.unwrap();
    let mut fastest = Duration::MAX;
    for number in 0..READS {
        let (start, before) = (Instant::now(), rig.package.origin_counts());
        rig.read(number << 20, 4096).await.unwrap();
        if rig.package.origin_counts().hedges_won > before.hedges_won {
            fastest = fastest.min(start.elapsed());
        }
    }
    assert!(fastest <= HEDGE_AFTER_MAX + Duration::from_secs(1), "{:?}", rig.package.origin_counts());
    let log = rig.servers[0].log();
    let twice = |(index, asked): (usize, &Asked)| {
        stalls(asked) && log[index + 1..].iter().any(|later| (&later.path, &later.range) == (&asked.path, &asked.range))
    };
    assert!(log.iter().enumerate().any(twice), "{log:?}");
    assert!(rig.package.mirrors().len() == 1);
}

/// A mirror that fails is asked more and more seldom, and used again soon after it is back.
#[tokio::test(start_paused = true)]
async fn a_dead_mirror_is_probed_and_taken_again_when_it_is_back() {
    const READS: u64 = 200;
    let mut source = Source::zeros(READS << 20);
    for number in 0..READS {
        source = source.with(number << 20, noise(number, 4096));
    }
    let (alive, is_alive) = tokio::sync::watch::channel(true);
    let mortal = move |_: &Asked| if *is_alive.borrow() { Answer::Good } else { Answer::Reset(0) };
    let rig = open_each(source, vec![Box::new(mortal), Box::new(good)], 64 << 20).await.unwrap();
    rig.read(0, 4096).await.unwrap();
    assert!(rig.asked(0) > 0 && rig.asked(1) == 0, "the first mirror is asked while it is well");

    alive.send(false).unwrap();
    let (start, before) = (Instant::now(), rig.asked(0));
    for number in 1..READS / 2 {
        rig.read(number << 20, 4096).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // 1 s, 2 s, 4 s and so on, then every minute.
    let probes = rig.asked(0) - before;
    let most = MIRROR_REST_MAX.as_secs().ilog2() as usize
        + 2
        + (start.elapsed().as_secs() / MIRROR_REST_MAX.as_secs()) as usize;
    assert!((4..=most).contains(&probes), "{probes} probes, at most {most}");
    assert!(rig.package.mirrors()[0].resting, "{:?}", rig.package.mirrors());

    alive.send(true).unwrap();
    tokio::time::sleep(MIRROR_REST_MAX).await;
    let (first, second) = (rig.asked(0), rig.asked(1));
    for number in READS / 2..READS {
        rig.read(number << 20, 4096).await.unwrap();
    }
    assert!(!rig.package.mirrors()[0].resting && rig.asked(0) > first, "{:?}", rig.package.mirrors());
    assert_eq!(rig.asked(1), second, "it is the first one again");
}
