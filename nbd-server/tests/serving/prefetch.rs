//! CACHE: what it brings, what it never holds up, and what becomes of it when its client leaves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::in_flight::{gated, pack_starts};
use crate::raw::number::*;
use crate::rig::Rig;
use crate::support::bad_http::{Answer, Asked};
use crate::support::source::{LEAF_BYTES, Source, mixed, noise, prose};

/// More than may be under way for prefetches at once, in two leaves and many packs.
fn vast() -> Source {
    Source::of(noise(9, (LEAF_BYTES + (LEAF_BYTES / 4)) as usize))
}

/// Whether all of a range is here.
async fn is_resident(rig: &Rig, offset: u64, length: u64) -> bool {
    let mut client = rig.client_of(&["vmnetx:residency"]).await;
    client.request(0, BLOCK_STATUS, 1, offset, length as u32).await;
    client.reply().await.expect_statuses()[&2] == [(length, 0)]
}

#[tokio::test]
async fn a_cached_range_is_here_when_the_answer_is() {
    for structured in [true, false] {
        let rig = Rig::new(mixed()).await;
        let size = rig.source.size_bytes();
        let mut client = if structured { rig.client().await } else { rig.simple_client().await };
        assert!(!is_resident(&rig, 0, size).await);
        client.request(0, CACHE, 1, 4096, 200_000).await;
        client.reply().await.expect_nothing();
        assert!(is_resident(&rig, 4096, 200_000).await && !is_resident(&rig, 0, size).await);
        let counts = || rig.exports.all()[0].stats().counts;
        assert_eq!((counts().reads, counts().read_bytes, counts().read_ahead_chunks), (0, 0, 0));
        assert_eq!(counts().prefetched_chunks, counts().origin_chunks);
        // All of it, twice at once and odd ranges beside: every chunk comes once.
        for (cookie, (offset, length)) in
            (2..).zip([(0, size), (0, size), (1, 1), (size - 1, 1), (size, 0), (77, 9000)])
        {
            client.request(0, CACHE, cookie, offset, length as u32).await;
        }
        let mut cookies = Vec::new();
        for _ in 0..6 {
            let reply = client.reply().await;
            reply.expect_nothing();
            cookies.push(reply.cookie);
        }
        cookies.sort_unstable();
        assert_eq!(cookies, [2, 3, 4, 5, 6, 7]);
        assert_eq!(counts().origin_chunks as usize, rig.repository.chunks.len());
        let requests = rig.package.origin_requests();
        client.read(1, 0, size as u32).await;
        client.reply().await.expect_data(&rig.source, 0, size as u32);
        assert_eq!((rig.package.origin_requests(), counts().reads), (requests, 1));
        // What is here already is asked of nobody.
        client.request(0, CACHE, 1, 0, size as u32).await;
        client.reply().await.expect_nothing();
        assert_eq!(rig.package.origin_requests(), requests);
    }
}

#[tokio::test]
async fn reads_overtake_prefetches() {
    let (rig, gates) = gated(vast()).await;
    let starts = pack_starts(&rig);
    // Beyond what the prefetch may have under way.
    let (last, at) = (starts.len() - 1, starts[starts.len() - 1]);
    assert!(at > LEAF_BYTES + 1_000_000);
    gates.open(last);
    let mut client = rig.client().await;
    client.request(0, CACHE, 1, 0, rig.source.size_bytes() as u32).await;
    client.request(0, CACHE, 2, 5000, 1_000_000).await;
    for cookie in 3..6 {
        client.read(cookie, 10, 500).await;
        let reply = client.reply().await;
        assert_eq!(reply.cookie, cookie, "a hit waits for nothing");
        reply.expect_data(&rig.source, 10, 500);
        client.read(cookie, at + 1000 * cookie, 500).await;
        let reply = client.reply().await;
        assert_eq!(reply.cookie, cookie, "a miss waits for no prefetch");
        reply.expect_data(&rig.source, at + 1000 * cookie, 500);
    }
    gates.open_all();
    for _ in 0..2 {
        client.reply().await.expect_nothing();
    }
    assert!(is_resident(&rig, 0, rig.source.size_bytes()).await);
}

/// However many prefetches wait, reads are taken up; those beyond the limit are refused, each by itself.
#[tokio::test]
async fn a_flood_of_prefetches_is_bounded() {
    let (rig, gates) = gated(vast()).await;
    let (running, waiting, refused) = (16, 4096, 9);
    let mut client = rig.client().await;
    let all = running + waiting + refused;
    let start = pack_starts(&rig)[1];
    let flood = (0..all).flat_map(|cookie| crate::raw::request(0, CACHE, cookie, start + cookie, 200_000));
    client.send(&flood.collect::<Vec<u8>>()).await;
    for cookie in running + waiting..all {
        let reply = client.reply().await;
        assert_eq!(reply.cookie, cookie);
        reply.expect_error(EIO);
    }
    client.read(1, 10, 500).await;
    client.reply().await.expect_data(&rig.source, 10, 500);
    client.request(0, FLUSH, 1, 0, 0).await;
    client.reply().await.expect_nothing();
    gates.open_all();
    let mut answers = BTreeMap::new();
    for _ in 0..running + waiting {
        let reply = client.reply().await;
        reply.expect_nothing();
        *answers.entry(reply.cookie).or_insert(0) += 1;
    }
    assert!(answers.into_iter().eq((0..running + waiting).map(|cookie| (cookie, 1))));
}

/// DISC and a half-closed connection end what only this client wanted, and say so.
#[tokio::test]
async fn prefetches_end_with_their_client() {
    for polite in [true, false] {
        let (rig, gates) = gated(vast()).await;
        let size = rig.source.size_bytes();
        let mut client = rig.client().await;
        for cookie in 0..40 {
            client.request(0, CACHE, cookie, cookie, (size - cookie) as u32).await;
        }
        client.read(50, pack_starts(&rig)[1], 1000).await;
        if polite {
            client.request(0, DISC, 60, 0, 0).await;
        } else {
            client.end_sending().await;
        }
        let mut cookies = Vec::new();
        for _ in 0..40 {
            let reply = client.reply().await;
            reply.expect_error(ESHUTDOWN);
            cookies.push(reply.cookie);
        }
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq(0..40));
        gates.open_all();
        // A READ is answered before the end.
        client.reply().await.expect_data(&rig.source, pack_starts(&rig)[1], 1000);
        client.expect_closed().await;
        assert!(!is_resident(&rig, size - 4096, 4096).await, "the prefetch went on");
        rig.expect_served(size - 4096, 4096).await;
    }
}

#[tokio::test]
async fn clients_that_vanish_with_prefetches_harm_nobody() {
    let (rig, gates) = gated(vast()).await;
    for _ in 0..20 {
        let mut client = rig.client().await;
        client.request(0, CACHE, 1, 0, rig.source.size_bytes() as u32).await;
        client.read(2, 10, 500).await;
        client.reply().await.expect_data(&rig.source, 10, 500);
    }
    gates.open_all();
    let mut client = rig.client().await;
    client.request(0, CACHE, 1, 0, rig.source.size_bytes() as u32).await;
    client.reply().await.expect_nothing();
    assert!(is_resident(&rig, 0, rig.source.size_bytes()).await);
}

/// The server's end is not held up by what it prefetches.
#[tokio::test]
async fn prefetches_end_with_the_server() {
    let (rig, _gates) = gated(vast()).await;
    let mut client = rig.client().await;
    client.request(0, CACHE, 1, 0, rig.source.size_bytes() as u32).await;
    client.read(2, 10, 500).await;
    client.reply().await.expect_data(&rig.source, 10, 500);
    rig.shutdown.cancel();
    client.reply().await.expect_error(ESHUTDOWN);
    client.expect_closed().await;
}

/// A hint about more than a request could read, almost all of it holes, costs what the data in it cost.
#[tokio::test]
async fn a_range_of_four_gigabytes_is_walked() {
    let gib = 1_u64 << 30;
    let source = Source::zeros(1 << 40)
        .with(5000, prose(1, 100_000))
        .with(3 * gib + 77 * 4096, noise(2, 300_000))
        .with(600 * gib, prose(3, 5000));
    let rig = Rig::new(source).await;
    let mut client = rig.client().await;
    client.request(0, CACHE, 1, 0, u32::MAX).await;
    client.reply().await.expect_nothing();
    let requests = rig.package.origin_requests();
    rig.expect_served(0, 200_000).await;
    rig.expect_served(3 * gib + 70 * 4096, 400_000).await;
    assert_eq!(rig.package.origin_requests(), requests);
    client.request(0, CACHE, 2, 600 * gib - 5, u32::MAX).await;
    client.reply().await.expect_nothing();
    assert!(is_resident(&rig, 600 * gib - 5, 100_000).await);
}

/// A CACHE whose chunks cannot be had fails with a text, alone, and the next one tries anew.
#[tokio::test]
async fn a_prefetch_that_fails_says_so() {
    let broken = Arc::new(AtomicBool::new(true));
    let behave = {
        let broken = Arc::clone(&broken);
        move |asked: &Asked| {
            let fails = asked.path.starts_with("packs/") && broken.load(Ordering::SeqCst);
            if fails { Answer::Status(404) } else { Answer::Good }
        }
    };
    let rig = Rig::with_origin(mixed(), behave).await;
    let size = rig.source.size_bytes() as u32;
    let mut client = rig.client().await;
    let text = client.expect_error((0, CACHE, 0, size), EIO).await;
    assert!(text.contains("404"), "{text}");
    assert_eq!(rig.exports.all()[0].stats().failed, 1);
    client.request(0, CACHE, 1, u64::from(size), 0).await;
    client.reply().await.expect_nothing();
    broken.store(false, Ordering::SeqCst);
    client.request(0, CACHE, 2, 0, size).await;
    client.reply().await.expect_nothing();
    assert!(is_resident(&rig, 0, size.into()).await);
}
