//! How the server scales: with the disk's size, with the number of its clients, and with the reads under way.
//!
//! `benches/scale` runs the same with more reads (`VMNETX_SCALE_READS`) and prints the rows as a table.
#![allow(clippy::print_stdout, reason = "rows of a table are the tests' output")]

mod dense;
mod server;

#[path = "../../nbd-server/store/tests/support/mod.rs"]
#[allow(dead_code, reason = "the tests of other crates use other parts")]
mod support;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dense::{CHUNK_BYTES, Dense};
use server::Server;
use support::bad_http::{Answer, Asked, BadServer};
use support::repository::Repository;
use support::source::{Source, noise};
use tokio::task::JoinSet;
use vmnetx_nbd_proto::client::Client;

const GIB: u64 = 1 << 30;
const SMALL: u64 = GIB;
const LARGE: u64 = 4096 * GIB;
const READ_BYTES: u32 = 4096;
/// What as many reads may cost in resident memory, wherever on however large a disk they are.
const RESIDENT_FACTOR: f64 = 1.1;
/// How much more two runs may differ for reasons of their own: how many reads are under way together, what the allocator does.
const RESIDENT_NOISE: f64 = 0.04;
/// Reads of each disk unless `VMNETX_SCALE_READS` says otherwise.
const READS: usize = 500;

fn reads() -> usize {
    std::env::var("VMNETX_SCALE_READS").map_or(READS, |text| text.parse().expect("VMNETX_SCALE_READS is a number"))
}

/// Whole blocks all over the first `size_bytes`; the same for the same size.
fn offsets(size_bytes: u64, count: usize) -> Vec<u64> {
    let random = noise(17, count * 8);
    let numbers = random.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
    numbers.map(|number| number % (size_bytes / u64::from(READ_BYTES)) * u64::from(READ_BYTES)).collect()
}

fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Serves a dense disk; `late` is how much later than asked each answer comes.
async fn serve(disk: &Arc<Dense>, late: Duration, started: &Arc<OnceLock<Instant>>) -> BadServer {
    let (answering, started) = (Arc::clone(disk), Arc::clone(started));
    let behave = move |asked: &Asked| {
        started.get_or_init(Instant::now);
        answering.answer(asked)
    };
    BadServer::start_late(disk.root(), late, behave).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_read_of_a_large_disk_takes_one_more_request_and_one_more_round_trip() {
    // Long beside what the programs need, so that what they need makes no round trip.
    const LATE: Duration = Duration::from_millis(400);
    let mut found = Vec::new();
    for size_bytes in [SMALL, LARGE] {
        let offset = size_bytes / 5 / CHUNK_BYTES * CHUNK_BYTES;
        let disk = Arc::new(Dense::new(size_bytes, &[offset]));
        let started = Arc::default();
        let origin = serve(&disk, LATE, &started).await;
        let server = Server::start(&origin, &[]).await;
        let client = server.connect().await;
        assert_eq!(client.read(offset, READ_BYTES).await.unwrap(), disk.read(offset, READ_BYTES));
        let trips = started.get().unwrap().elapsed().as_millis() / LATE.as_millis();
        let requests = origin.log().len();
        row(&[format!("first read of {} GiB", size_bytes / GIB), format!("{requests} requests, {trips} round trips")]);
        found.push((requests, trips));
    }
    let [(small_requests, small_trips), (large_requests, large_trips)] = found[..] else { unreachable!() };
    assert!(large_requests <= small_requests + 1, "{found:?}");
    assert!(large_trips <= small_trips + 1, "{found:?}");
}

/// Resident memory after reads at these offsets of a disk of this size: now, and at most.
async fn resident_bytes(size_bytes: u64, offsets: &[u64]) -> (u64, u64) {
    let disk = Arc::new(Dense::new(size_bytes, offsets));
    let origin = serve(&disk, Duration::ZERO, &Arc::default()).await;
    let server = Server::start(&origin, &["--memory-cache", "512M"]).await;
    read_all(&server.connect().await, &disk, offsets).await;
    (server.status_bytes("VmRSS"), server.status_bytes("VmHWM"))
}

/// Reads at these offsets, some at a time, and compares what comes.
async fn read_all(client: &Client, disk: &Arc<Dense>, offsets: &[u64]) {
    for some in offsets.chunks(16) {
        let mut reads = JoinSet::new();
        for &offset in some {
            let (client, disk) = (client.clone(), Arc::clone(disk));
            reads.spawn(async move {
                let found = client.read(offset, READ_BYTES).await.unwrap();
                assert!(found == disk.read(offset, READ_BYTES), "wrong bytes at {offset}");
            });
        }
        reads.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_follows_what_is_read_and_not_the_size_of_the_disk() {
    let near = offsets(SMALL, reads());
    let far = offsets(LARGE, reads());
    let (small, small_most) = resident_bytes(SMALL, &near).await;
    for (what, offsets) in [("the same reads", &near), ("as many reads all over it", &far)] {
        let (large, large_most) = resident_bytes(LARGE, offsets).await;
        let ratio = large as f64 / small as f64;
        let mega = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let [large_now, large_most, small_now, small_most] = [large, large_most, small, small_most].map(mega);
        row(&[
            format!("resident MB (at most) after {} reads: 4 TiB, {what}; 1 GiB", reads()),
            format!("{large_now} ({large_most}); {small_now} ({small_most}): {ratio:.3}"),
        ]);
        assert!(ratio <= RESIDENT_FACTOR + RESIDENT_NOISE, "{what}: {ratio} > {RESIDENT_FACTOR}");
    }
}

/// The leaves of so many reads are more than are kept: what was read of them is, and the disk tier has all of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_memory_does_not_hold_is_asked_for_once() {
    let offsets = offsets(LARGE, reads());
    let disk = Arc::new(Dense::new(LARGE, &offsets));
    let cache = tempfile::tempdir().unwrap();
    let words = ["--cache-dir", cache.path().to_str().unwrap(), "--memory-cache", "1M"];
    read_until_nothing_is_asked_for(&disk, &offsets, "without a disk tier", &[]).await;
    read_until_nothing_is_asked_for(&disk, &offsets, "with one, and 1 MiB of memory tier", &words).await;
}

async fn read_until_nothing_is_asked_for(disk: &Arc<Dense>, offsets: &[u64], what: &str, words: &[&str]) {
    const PASSES_MAX: usize = 20;
    let origin = serve(disk, Duration::ZERO, &Arc::default()).await;
    let server = Server::start(&origin, words).await;
    let client = server.connect().await;
    for pass in 0..PASSES_MAX {
        let before = origin.ranges();
        read_all(&client, disk, offsets).await;
        let requests = origin.ranges() - before;
        row(&[format!("requests of pass {pass} of {} reads of 4 TiB {what}", reads()), requests.to_string()]);
        // What the first pass has brought may still wait to be written, or to be put away, when the second one comes to it.
        if pass > 0 && requests == 0 {
            return;
        }
    }
    panic!("what was read is asked for again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chunk_crosses_once_for_64_clients() {
    const CLIENTS: u64 = 64;
    let bytes = noise(5, 8 << 20);
    let source = Source::of(bytes);
    let repository = Repository::of(&source);
    let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
    let server = Arc::new(Server::start(&origin, &["--order", "off"]).await);
    let (source, mut clients) = (Arc::new(source), JoinSet::new());
    for which in 0..CLIENTS {
        let (server, source) = (Arc::clone(&server), Arc::clone(&source));
        clients.spawn(async move {
            let client = server.connect().await;
            let step = 128 << 10;
            let count = source.size_bytes() / step;
            // Half of them begin elsewhere.
            for number in 0..count {
                let offset = (number + which % 2 * which) % count * step;
                let found = client.read(offset, step as u32).await.unwrap();
                assert!(found == source.read(offset, step), "client {which}: wrong bytes at {offset}");
            }
        });
    }
    clients.join_all().await;
    let asked = origin.log();
    let crossings = repository.chunks.iter().map(|chunk| {
        let place = &chunk.wanted.place;
        let path = vmnetx_format::pack_path(&place.pack);
        let holds = |asked: &&Asked| {
            asked.path == path && asked.range.as_ref().is_some_and(|range| range.contains(&place.offset))
        };
        asked.iter().filter(holds).count()
    });
    let crossings: Vec<usize> = crossings.collect();
    let most = crossings.iter().max().unwrap();
    row(&[format!("{CLIENTS} clients: crossings of a chunk, at most"), most.to_string()]);
    assert!(crossings.iter().all(|&times| times == 1), "{crossings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_under_a_thousand_parallel_reads() {
    const CONNECTIONS: usize = 10;
    const READS_EACH: usize = 100;
    const BYTES_EACH: u32 = CHUNK_BYTES as u32;
    const MEMORY_CACHE: u64 = 32 << 20;
    // The cache; the replies that wait; what all requests to an origin have under way, compressed and plain; the program.
    let bound_bytes = MEMORY_CACHE
        + (CONNECTIONS * READS_EACH) as u64 * u64::from(BYTES_EACH)
        + 2 * (vmnetx_store::limits::ORIGIN_REQUESTS_MAX as u64) * vmnetx_store::limits::RANGE_BYTES_MAX
        + (64 << 20);
    let chunks = offsets(SMALL, CONNECTIONS * READS_EACH).into_iter().map(|offset| offset / CHUNK_BYTES * CHUNK_BYTES);
    let chunks: Vec<u64> = chunks.collect();
    let disk = Arc::new(Dense::new(SMALL, &chunks));
    let origin = serve(&disk, Duration::ZERO, &Arc::default()).await;
    let server = Server::start(&origin, &["--memory-cache", "32M"]).await;
    let mut reads = JoinSet::new();
    for some in chunks.chunks(READS_EACH) {
        let client = server.connect().await;
        for &offset in some {
            let (client, disk) = (client.clone(), Arc::clone(&disk));
            reads.spawn(async move {
                let found = client.read(offset, BYTES_EACH).await.unwrap();
                assert!(found == disk.read(offset, BYTES_EACH), "wrong bytes at {offset}");
            });
        }
    }
    reads.join_all().await;
    let most = server.status_bytes("VmHWM");
    let (shown, bound) = (most as f64 / 1e6, bound_bytes as f64 / 1e6);
    row(&["1000 parallel reads of 64 KiB: resident MB at most; bound".into(), format!("{shown:.1}; {bound:.1}")]);
    assert!(most <= bound_bytes, "{most} > {bound_bytes}");
}
