//! Origins that fail: whatever a server does, no wrong byte is given out, nothing hangs, and errors have their class.
//!
//! Time is paused: it jumps to the next deadline whenever nothing else can happen, so waits of a minute cost nothing.

mod damage;
mod outages;
mod responses;

use std::time::Duration;

use tokio::time::Instant;
use vmnetx_store::{Error, Options, Package, Piece, Store};

use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

/// For how long failing reads are tried again.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// More than any read may take: the last try may begin at the end of the time and then stall.
const DEADLINE_S: u64 = 120;

fn store() -> Store {
    Store::open(Options { memory_bytes: 64 << 20, retry_for: RETRY_FOR, ..Options::default() }).unwrap()
}

async fn open(server: &BadServer) -> Result<Package, Error> {
    within(DEADLINE_S, store().package(&server.location())).await
}

fn join(pieces: Vec<Piece>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => out.extend_from_slice(&data),
            Piece::Zeros(length) => out.resize(out.len() + length as usize, 0),
        }
    }
    out
}

/// Reads the whole first disk in pieces; what is read must be right.
async fn read_all(package: &Package, source: &Source) -> Result<(), Error> {
    const STEP: u64 = 100_000;
    for offset in (0..source.size_bytes()).step_by(STEP as usize) {
        let length = STEP.min(source.size_bytes() - offset);
        let pieces = within(DEADLINE_S, package.disks()[0].read(offset, length)).await?;
        assert!(join(pieces) == source.read(offset, length), "wrong bytes at {offset}");
    }
    Ok(())
}

/// Opens and reads everything from a server that answers like this.
async fn survives(behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> BadServer {
    let source = mixed();
    let repository = Repository::of(&source);
    let server = BadServer::start(repository.root(), behave).await;
    let package = open(&server).await.unwrap();
    read_all(&package, &source).await.unwrap();
    server
}

/// The error of the first read from a server that answers ranges like this, and how long it took.
async fn failure(behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Error, Duration, BadServer) {
    let source = mixed();
    let repository = Repository::of(&source);
    let ranges_only = move |asked: &Asked| if asked.range.is_some() { behave(asked) } else { Answer::Good };
    let server = BadServer::start(repository.root(), ranges_only).await;
    let package = open(&server).await.unwrap();
    let start = Instant::now();
    let error = within(DEADLINE_S, package.disks()[0].read(0, 4096)).await.unwrap_err();
    (error, start.elapsed(), server)
}

/// The error of opening a package from a server that answers like this.
async fn refusal(behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Error, Duration) {
    let repository = Repository::of(&mixed());
    let server = BadServer::start(repository.root(), behave).await;
    let start = Instant::now();
    (open(&server).await.unwrap_err(), start.elapsed())
}

/// That answer to the first request for each object, good answers afterwards.
fn at_first(answer: Answer) -> impl Fn(&Asked) -> Answer {
    move |asked| if asked.before == 0 { answer.clone() } else { Answer::Good }
}

fn link_is(asked: &Asked) -> bool {
    asked.path.ends_with(".vmnetx")
}

fn pack_is(asked: &Asked) -> bool {
    asked.path.ends_with(".pack")
}

#[tokio::test(start_paused = true)]
async fn a_good_server_is_asked_for_nothing_twice() {
    let server = survives(|_| Answer::Good).await;
    let ranges: Vec<_> = server.log().into_iter().filter_map(|asked| Some((asked.path, asked.range?))).collect();
    for (index, (path, range)) in ranges.iter().enumerate() {
        for (other, twice) in &ranges[..index] {
            let apart = path != other || range.end <= twice.start || twice.end <= range.start;
            assert!(apart, "{range:?} and {twice:?} of {path}");
        }
    }
    assert_eq!(server.log().iter().filter(|asked| asked.range.is_none()).count(), 3, "link, manifest, layout");
}

/// A link has no digest, so one that is cut off looks like one that is damaged.
fn at_first_but_link(answer: Answer) -> impl Fn(&Asked) -> Answer {
    move |asked| if asked.before == 0 && !link_is(asked) { answer.clone() } else { Answer::Good }
}

/// However many read, each chunk is fetched once; no more than small gaps between chunks cross the line again.
#[tokio::test(start_paused = true)]
async fn many_readers_fetch_everything_once() {
    let source = Source::of([noise(1, 400_000), prose(2, 400_000)].concat());
    let repository = Repository::of(&source);
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let package = std::sync::Arc::new(open(&server).await.unwrap());
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..64_u64 {
        let (package, source) = (std::sync::Arc::clone(&package), source.clone());
        readers.spawn(async move {
            let size = source.size_bytes();
            for step in 0..40 {
                let offset = (reader * 12_345 + step * 20_000) % size;
                let length = 20_000.min(size - offset);
                let pieces = package.disks()[0].read(offset, length).await.unwrap();
                assert!(join(pieces) == source.read(offset, length));
            }
        });
    }
    within(DEADLINE_S, async {
        while let Some(reader) = readers.join_next().await {
            reader.unwrap();
        }
    })
    .await;
    let stored: u64 = repository.packs().iter().map(|pack| pack.metadata().unwrap().len()).sum();
    let asked: u64 = server.log().iter().filter_map(|asked| asked.range.as_ref()).map(|r| r.end - r.start).sum();
    let fetched = package.disks()[0].counters().counts().origin_chunks;
    assert!(fetched <= repository.chunks.len() as u64, "{fetched} chunks of {}", repository.chunks.len());
    assert!(asked <= stored + stored / 4, "{asked} bytes of {stored}");
}
