//! Servers and networks that fail for a while or for ever: they are waited for, and given up in time.

use std::time::Duration;

use tokio::time::Instant;
use vmnetx_store::Error;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::limits::ORIGIN_REQUESTS_MAX;

use super::{
    DEADLINE_S, RETRY_FOR, at_first, failure, join, link_is, open, pack_is, read_all, refusal, store, survives,
};
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise};
use crate::within;

/// In the head, at its end, in the body.
const POSITIONS: [usize; 12] = [0, 1, 8, 40, 70, 83, 84, 100, 150, 300, 5_000, 60_000];

#[tokio::test(start_paused = true)]
async fn connections_that_are_reset_are_tried_again() {
    for position in POSITIONS {
        survives(at_first(Answer::Reset(position))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_cut_off_are_tried_again() {
    for position in POSITIONS {
        survives(at_first(Answer::Cut(position))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn responses_that_stall_are_tried_again() {
    for position in POSITIONS {
        survives(at_first(Answer::Stall(position))).await;
    }
}

/// Each response brings some of what is wanted and then breaks off: as long as there is progress, it goes on.
#[tokio::test(start_paused = true)]
async fn a_server_that_always_breaks_off_is_outlasted_while_chunks_arrive() {
    let source = Source::of(noise(1, 600_000));
    let repository = Repository::of(&source);
    // Not by a reset, which may throw away what has arrived.
    for broken in [Answer::Cut(150_000), Answer::Stall(150_000)] {
        let answer = move |asked: &Asked| if pack_is(asked) { broken.clone() } else { Answer::Good };
        let server = BadServer::start(repository.root(), answer).await;
        let package = open(&server).await.unwrap();
        let pieces = within(1000, package.disks()[0].read(0, 600_000)).await.unwrap();
        assert!(join(pieces) == source.bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_are_unwell_for_a_while_are_waited_for() {
    for status in [500, 502, 503, 504, 429, 408, 425] {
        survives(move |asked| if asked.before < 4 { Answer::Status(status) } else { Answer::Good }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_stay_unwell_are_given_up_in_time() {
    let answers = [
        Answer::Status(503),
        Answer::Status(429),
        Answer::Reset(0),
        Answer::Reset(100),
        Answer::Cut(30),
        Answer::Stall(0),
        Answer::Stall(200),
        Answer::Raw(Vec::new()),
        Answer::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        Answer::Raw(noise(1, 10_000)),
    ];
    for answer in answers {
        let shown = format!("{answer:.60?}");
        let (error, took, _server) = failure(move |_| answer.clone()).await;
        assert!(matches!(error, Error::Network { .. }) && error.class() == Class::Network, "{shown}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("network")), "{shown}");
        let longest = RETRY_FOR + Duration::from_secs(21);
        assert!(took > RETRY_FOR / 2 && took <= longest, "{shown}: {took:?}");
    }
    let (error, took) = refusal(|_| Answer::Status(503)).await;
    assert!(error.class() == Class::Network && took <= RETRY_FOR, "{error}: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_definite_no_is_told_at_once() {
    for status in [400, 401, 403, 404, 410, 451, 204, 304] {
        let (error, took, server) = failure(move |_| Answer::Status(status)).await;
        assert!(matches!(error, Error::Refused { .. }) && error.class() == Class::Network, "{status}: {error}");
        assert!(took < Duration::from_secs(1), "{status}: {took:?}");
        assert_eq!(server.ranges(), 1, "{status}");
        let (error, took) =
            refusal(move |asked| if link_is(asked) { Answer::Status(status) } else { Answer::Good }).await;
        assert!(error.class() == Class::Network && took < Duration::from_secs(1), "{status}: {error} {took:?}");
        assert!(error.to_string().contains(&status.to_string()) || status == 304, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_at_the_address_is_a_network_failure() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let start = Instant::now();
    let location = format!("http://{address}/vm.vmnetx").parse().unwrap();
    let error = within(DEADLINE_S, store().package(&location)).await.unwrap_err();
    assert!(error.class() == Class::Network && start.elapsed() <= RETRY_FOR, "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

/// A failure is not remembered: once the server is well, so is reading.
#[tokio::test(start_paused = true)]
async fn reading_recovers_with_the_server() {
    let source = mixed();
    let repository = Repository::of(&source);
    let (well, is_well) = tokio::sync::watch::channel(true);
    let server =
        BadServer::start(
            repository.root(),
            move |_| {
                if *is_well.borrow() { Answer::Good } else { Answer::Status(503) }
            },
        );
    let server = server.await;
    let package = open(&server).await.unwrap();
    well.send(false).unwrap();
    assert!(read_all(&package, &source).await.is_err());
    well.send(true).unwrap();
    read_all(&package, &source).await.unwrap();
    well.send(false).unwrap();
    // All of it is in memory by now.
    read_all(&package, &source).await.unwrap();
}

/// A byte now and then keeps no reader waiting for ever, neither for the head nor for the body.
#[tokio::test(start_paused = true)]
async fn responses_that_only_trickle_are_given_up() {
    for after in [0, 150] {
        let trickle = move || Answer::Drip(after, Duration::from_secs(3));
        let (error, took, _server) = failure(move |_| trickle()).await;
        assert!(error.class() == Class::Network, "{error}");
        assert!(took <= RETRY_FOR * 2, "{took:?}");
        let (error, took) = refusal(move |asked| if link_is(asked) { trickle() } else { Answer::Good }).await;
        assert!(error.class() == Class::Network && took <= RETRY_FOR * 2, "{error}: {took:?}");
    }
}

/// Readers that wait for others' requests to end wait no longer than those whose requests are not answered.
#[tokio::test(start_paused = true)]
async fn a_dead_network_fails_everybody_in_time() {
    const STEP: u64 = 3 << 20;
    let readers = 3 * ORIGIN_REQUESTS_MAX as u64;
    let mut source = Source::zeros(readers * STEP);
    for number in 0..readers {
        source = source.with(number * STEP, noise(number, 4096));
    }
    let repository = Repository::of(&source);
    let (cut, line) = tokio::sync::watch::channel(true);
    let behave = move |_: &Asked| if *line.borrow() { Answer::Good } else { Answer::Stall(0) };
    let server = BadServer::start(repository.root(), behave).await;
    let package = open(&server).await.unwrap();
    let image = &package.disks()[0];
    // The whole index is here then, and a chunk of each pack's neighbourhood is not.
    image.extents(0, image.size_bytes(), 1 << 10).await.unwrap();
    cut.send(false).unwrap();
    let start = Instant::now();
    let reads = (0..readers).map(|number| image.read(number * STEP, 4096));
    let errors = within(2 * DEADLINE_S, futures_util::future::join_all(reads)).await;
    assert!(errors.iter().all(|result| matches!(result, Err(error) if error.class() == Class::Network)), "{errors:?}");
    assert!(start.elapsed() < RETRY_FOR * 3 / 2, "{:?}", start.elapsed());
}
