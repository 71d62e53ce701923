//! Many requests under way: replies out of order, hits that overtake misses, clients that leave. Cases 46 to 48.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::raw::number::*;
use crate::raw::request;
use crate::rig::Rig;
use crate::support::bad_http::{Answer, Asked};
use crate::support::source::{LEAF_BYTES, Source, noise, prose};
use crate::within;

/// Requests for ranges of packs wait behind gates, one for each pack, until the test opens them.
pub(crate) struct Gates(Vec<(String, watch::Sender<bool>)>);

/// An image of several packs whose chunks wait behind gates; its index and its first chunks are in memory.
pub(crate) async fn gated(source: Source) -> (Rig, Gates) {
    let closed = Arc::new(std::sync::OnceLock::<Vec<(String, watch::Receiver<bool>)>>::new());
    let behave = {
        let closed = Arc::clone(&closed);
        move |asked: &Asked| {
            let gate = closed.get().and_then(|gates| gates.iter().find(|(path, _)| *path == asked.path));
            gate.map_or(Answer::Good, |(_, gate)| Answer::When(gate.clone()))
        }
    };
    let rig = Rig::with_origin(source, behave).await;
    rig.expect_served(0, 1000).await;
    let mut paths: Vec<String> = Vec::new();
    for frame in &rig.repository.chunks {
        let path = vmnetx_format::pack_path(&frame.wanted.place.pack);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let gates = paths.iter().map(|path| (path.clone(), watch::channel(false)));
    let (senders, receivers) =
        gates.map(|(path, (open, gate))| ((path.clone(), open), (path, gate))).unzip::<_, _, Vec<_>, Vec<_>>();
    closed.set(receivers).unwrap();
    (rig, Gates(senders))
}

impl Gates {
    pub(crate) fn open(&self, number: usize) {
        self.0[number].1.send(true).unwrap();
    }

    pub(crate) fn open_all(&self) {
        (0..self.0.len()).for_each(|number| self.open(number));
    }
}

/// Where the first chunk of each pack stands in an image that has no hole and no repetition.
pub(crate) fn pack_starts(rig: &Rig) -> Vec<u64> {
    let mut starts = Vec::new();
    let (mut at, mut last) = (0, None);
    for frame in &rig.repository.chunks {
        if last != Some(frame.wanted.place.pack) {
            starts.push(at);
            last = Some(frame.wanted.place.pack);
        }
        at += u64::from(frame.wanted.plain_len);
    }
    starts
}

/// Twelve packs: as many as an origin is asked for at once.
fn dense() -> Source {
    Source::of(noise(1, 3_200_000))
}

#[tokio::test]
async fn case_46_replies_come_as_chunks_arrive() {
    let (rig, gates) = gated(dense()).await;
    let starts = pack_starts(&rig);
    assert!(starts.len() >= 10, "{} packs", starts.len());
    let mut client = rig.client().await;
    for (number, start) in starts.iter().enumerate().skip(1) {
        client.read(number as u64, *start, 1000).await;
    }
    for number in (1..starts.len()).rev() {
        gates.open(number);
        let reply = client.reply().await;
        assert_eq!(reply.cookie, number as u64);
        reply.expect_data(&rig.source, starts[number], 1000);
    }
}

#[tokio::test]
async fn case_46_duplicate_cookies_are_harmless() {
    let (rig, gates) = gated(dense()).await;
    let start = pack_starts(&rig)[2];
    let mut client = rig.client().await;
    client.read(7, start, 1000).await;
    client.request(0, FLUSH, 7, 0, 0).await;
    client.reply().await.expect_nothing();
    client.read(7, 0, 500).await;
    client.reply().await.expect_data(&rig.source, 0, 500);
    gates.open_all();
    client.reply().await.expect_data(&rig.source, start, 1000);
}

#[tokio::test]
async fn case_47_hits_overtake_misses() {
    for structured in [true, false] {
        let (rig, gates) = gated(dense()).await;
        let starts = pack_starts(&rig);
        let mut client = if structured { rig.client().await } else { rig.simple_client().await };
        // As many misses as QEMU has requests, more than the origin is asked for at once.
        let miss = |number: u64| starts[1 + number as usize % 5] + 5000 * number;
        for number in 0..16 {
            client.read(100 + number, miss(number), 1000).await;
        }
        for number in 0..50 {
            client.read(number, number * 10, 500).await;
            let reply = client.reply().await;
            assert_eq!(reply.cookie, number);
            reply.expect_data(&rig.source, number * 10, 500);
        }
        client.expect_error((0, WRITE_ZEROES, 0, 1), EPERM).await;
        // Misses of the other connection do not matter either.
        rig.expect_served(100, 500).await;
        gates.open_all();
        for _ in 0..16 {
            let reply = client.reply().await;
            reply.expect_data(&rig.source, miss(reply.cookie - 100), 1000);
        }
    }
}

/// Questions about extents wait for the index; however much they ask about, they hold nothing else up.
#[tokio::test]
async fn questions_about_extents_do_not_hold_up_reads() {
    let leaves = 40;
    let mut source = Source::zeros(leaves * LEAF_BYTES);
    for leaf in 0..leaves {
        source = source.with(leaf * LEAF_BYTES, prose(leaf, 9000));
    }
    let (open, gate) = watch::channel(true);
    let behave = move |_: &Asked| if *gate.borrow() { Answer::Good } else { Answer::When(gate.clone()) };
    let rig = Rig::with_origin(source, behave).await;
    let mut client = rig.client().await;
    client.read(1, 0, 5000).await;
    client.reply().await.expect_data(&rig.source, 0, 5000);
    open.send(false).unwrap();
    let all = (leaves * LEAF_BYTES) as u32;
    for number in 0..3 {
        client.request(0, BLOCK_STATUS, 100 + number, 0, all).await;
    }
    client.read(2, 100, 1000).await;
    let reply = client.reply().await;
    assert_eq!(reply.cookie, 2);
    reply.expect_data(&rig.source, 100, 1000);
    open.send(true).unwrap();
    let expected = rig.source.extents(0, all.into());
    for _ in 0..3 {
        assert_eq!(client.reply().await.expect_status(), expected);
    }
}

#[tokio::test]
async fn case_48_disc_completes_what_is_under_way() {
    let (rig, gates) = gated(dense()).await;
    let starts = pack_starts(&rig);
    let mut client = rig.client().await;
    for number in 1..6 {
        client.read(number, starts[number as usize], 1000).await;
    }
    client.request(0, DISC, 9, 0, 0).await;
    // What comes behind it is not a request any more.
    client.send_anyway(&request(0, READ, 10, 0, 100)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    gates.open_all();
    let mut seen: Vec<u64> = Vec::new();
    for _ in 1..6 {
        let reply = client.reply().await;
        reply.expect_data(&rig.source, starts[reply.cookie as usize], 1000);
        seen.push(reply.cookie);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    client.expect_closed().await;
}

/// A client that only says that it sends no more is answered too.
#[tokio::test]
async fn a_half_closed_connection_is_still_answered() {
    let (rig, gates) = gated(dense()).await;
    let start = pack_starts(&rig)[3];
    let mut client = rig.client().await;
    client.read(1, start, 1000).await;
    client.end_sending().await;
    gates.open_all();
    client.reply().await.expect_data(&rig.source, start, 1000);
    client.expect_closed().await;
}

#[tokio::test]
async fn case_48_clients_that_vanish_harm_nobody() {
    let (rig, gates) = gated(dense()).await;
    let starts = pack_starts(&rig);
    let whole = request(0, WRITE, 1, 0, 100_000);
    for cut in [1, 4, 27, 28, 29] {
        let mut client = rig.client().await;
        client.read(1, starts[4], 1000).await;
        client.send(&[&whole[..], &[1; 5000]].concat()[..cut]).await;
        drop(client);
    }
    // In the middle of a payload.
    let mut client = rig.client().await;
    client.send(&[&whole[..], &[1; 50_000]].concat()).await;
    drop(client);
    rig.expect_served(0, 1000).await;
    gates.open_all();
    rig.expect_served(starts[4], 100_000).await;
    rig.shutdown.cancel();
    within(20, async {
        while !rig.serving.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// More requests than are taken up at once, and a client that does not read: memory stays bounded, nothing is lost.
#[tokio::test]
async fn a_flood_of_requests_is_answered_in_full() {
    let rig = Rig::new(dense()).await;
    let (requests, length) = (600_u64, 60_000_u32);
    let offset = |number: u64| number * 5009 % (rig.source.size_bytes() - u64::from(length));
    let mut client = rig.client().await;
    // In one piece: whoever sends without receiving must not fill the socket.
    let flood = (0..requests).flat_map(|number| request(0, READ, number, offset(number), length));
    client.send(&flood.collect::<Vec<u8>>()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut seen = vec![false; requests as usize];
    for _ in 0..requests {
        let reply = client.reply().await;
        reply.expect_data(&rig.source, offset(reply.cookie), length);
        assert!(!std::mem::replace(&mut seen[reply.cookie as usize], true));
    }
}

/// The origin fails, the requests under way fail, and once it is well again so are requests.
#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_the_outage() {
    let (well, is_well) = watch::channel(true);
    let behave = move |_: &Asked| if *is_well.borrow() { Answer::Good } else { Answer::Status(503) };
    let rig = Rig::with_origin(dense(), behave).await;
    rig.expect_served(0, 1000).await;
    well.send(false).unwrap();
    for mut client in [rig.client().await, rig.simple_client().await] {
        for number in 1..5_u64 {
            client.read(number, number * 500_000, 1000).await;
        }
        // Hits are served meanwhile.
        client.read(9, 0, 1000).await;
        let reply = client.reply().await;
        assert_eq!(reply.cookie, 9);
        for _ in 1..5 {
            let text = client.reply().await.expect_error(EIO);
            assert!(text.is_empty() || text.contains("503"), "{text}");
        }
        well.send(true).unwrap();
        for number in 1..5_u64 {
            client.read(number, number * 500_000, 1000).await;
            client.reply().await.expect_data(&rig.source, number * 500_000, 1000);
        }
        rig.store.memory().clear();
        rig.expect_served(0, 1000).await;
        well.send(false).unwrap();
    }
}

/// A short outage is not seen at all.
#[tokio::test(start_paused = true)]
async fn a_short_outage_only_delays() {
    let (well, is_well) = watch::channel(true);
    let behave = move |_: &Asked| if *is_well.borrow() { Answer::Good } else { Answer::Reset(0) };
    let rig = Rig::with_origin(dense(), behave).await;
    let mut client = rig.client().await;
    well.send(false).unwrap();
    client.read(1, 500_000, 100_000).await;
    tokio::time::sleep(crate::rig::RETRY_FOR / 3).await;
    well.send(true).unwrap();
    client.reply().await.expect_data(&rig.source, 500_000, 100_000);
}
