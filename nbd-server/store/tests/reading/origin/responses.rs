//! Responses that HTTP allows or that are not quite HTTP: ranges, lengths, redirections, heads, pace.

use std::time::Duration;

use vmnetx_store::Error;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::limits::{REDIRECTS_MAX, SKIPPED_BYTES_MAX};
use vmnetx_store::origin::{HttpClient, HttpOrigin, Origin};

use super::{RETRY_FOR, at_first_but_link, failure, open, pack_is, read_all, survives};
use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

#[tokio::test(start_paused = true)]
async fn servers_without_ranges_serve_all_the_same() {
    survives(|asked| if pack_is(asked) { Answer::Whole } else { Answer::Good }).await;
}

#[tokio::test(start_paused = true)]
async fn a_range_far_into_a_whole_answer_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let object = [vec![0; 5 << 20], noise(1, 50_000)].concat();
    std::fs::write(dir.path().join("pack"), &object).unwrap();
    let server = BadServer::start(dir.path(), |_| Answer::Whole).await;
    let origin = HttpOrigin::new(HttpClient::default(), server.url().parse().unwrap());
    let range = (5 << 20) + 1000..(5 << 20) + 41_000;
    let mut body = within(60, origin.range("pack", range.clone())).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = within(60, body.next()).await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert!(bytes == object[range.start as usize..range.end as usize]);
    // So far in that nobody would wait for it.
    let error = within(60, origin.range("pack", SKIPPED_BYTES_MAX + 1..SKIPPED_BYTES_MAX + 2)).await.unwrap_err();
    assert!(error.to_string().contains("Range"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_range_other_than_asked_for_is_not_taken() {
    for answer in [Answer::OtherRange(1), Answer::OtherRange(64), Answer::Labelled("bytes */1000")] {
        survives({
            let answer = answer.clone();
            move |asked| if pack_is(asked) && asked.before == 0 { answer.clone() } else { Answer::Good }
        })
        .await;
        let (error, took, _server) = failure(move |_| answer.clone()).await;
        assert!(error.class() == Class::Network, "{error}");
        assert!(took <= RETRY_FOR, "{took:?}");
    }
    for label in ["", "bytes", "bytes -", "bytes 99999999999999999999-1/2", "items 0-1/2", "bytes a-b/c", "\u{e9}"] {
        let (error, _, _server) = failure(move |_| Answer::Labelled(label)).await;
        assert!(error.class() == Class::Network, "{label}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_asked_for_do_no_harm() {
    for bytes in [1, 1000, 300_000] {
        survives(move |asked| if pack_is(asked) { Answer::More(bytes) } else { Answer::Good }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lengths_that_lie_do_no_harm() {
    for by in [1, 100_000, -1, -300] {
        survives(at_first_but_link(Answer::WrongLength(by))).await;
    }
    // Bytes of packs that arrive and have their digests are taken, whatever the length says of what follows them.
    survives(|asked| if pack_is(asked) { Answer::WrongLength(50) } else { Answer::Good }).await;
    let (error, took, _server) = failure(|_| Answer::WrongLength(-30)).await;
    assert!(error.class() == Class::Network && took <= RETRY_FOR, "{error}: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn redirections_are_followed() {
    let source = mixed();
    let repository = Repository::of(&source);
    let other = BadServer::start(repository.root(), |_| Answer::Good).await;
    let target = other.url();
    let server = BadServer::start(repository.root(), move |asked| Answer::Redirect(format!("{target}{}", asked.path)));
    let server = server.await;
    let package = open(&server).await.unwrap();
    read_all(&package, &source).await.unwrap();
    // Where an object is, is asked once and not for each range of it.
    let asked = server.log();
    assert!(asked.iter().all(|asked| asked.before == 0 && asked.authorization.is_none()), "{asked:?}");
    assert!(other.ranges() > server.ranges());
    // Relative, and as many as are allowed.
    survives(|asked| match asked.before as u32 {
        ..REDIRECTS_MAX => Answer::Redirect(format!("/{}", asked.path)),
        _ => Answer::Good,
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn redirections_to_nowhere_are_refused() {
    let targets = ["/round/and/round", "ftp://127.0.0.1/x", "file:///etc/passwd", "", "http://", "vmnetx+http://h/"];
    for target in targets {
        // A page that redirects to itself, for the target is below the same server.
        let (error, took, server) = failure(move |_| Answer::Redirect(target.to_owned())).await;
        assert!(matches!(error, Error::Refused { .. }) && error.class() == Class::Network, "{target}: {error}");
        assert!(took < Duration::from_secs(1));
        assert!(server.ranges() <= REDIRECTS_MAX as usize + 1, "{target}: {} requests", server.ranges());
    }
}

#[tokio::test(start_paused = true)]
async fn slow_responses_are_read_while_they_go_on() {
    let source = Source::zeros(1 << 20).with(4096, prose(1, 3 * 4096)).with(80_000, prose(2, 5000));
    let repository = Repository::of(&source);
    // Head and body alike; as slow as a modem with noise on its line.
    let server = BadServer::start(repository.root(), |_| Answer::Drip(0, Duration::from_millis(4))).await;
    let package = open(&server).await.unwrap();
    read_all(&package, &source).await.unwrap();
    assert!(server.log().iter().all(|asked| asked.before == 0 || pack_is(asked)));
}

#[tokio::test(start_paused = true)]
async fn large_heads_are_read_up_to_a_limit() {
    survives(|_| Answer::Headers(50_000)).await;
    let (error, took, _server) = failure(|_| Answer::Headers(20_000_000)).await;
    assert!(error.class() == Class::Network && took <= RETRY_FOR, "{error}: {took:?}");
    // A head without an end, and one with more fields than anybody needs.
    let endless = [b"HTTP/1.1 206 X\r\nX: ".to_vec(), vec![b'x'; 4 << 20]].concat();
    let many = format!("HTTP/1.1 206 X\r\n{}\r\n", "A: b\r\n".repeat(100_000)).into_bytes();
    for raw in [endless, many] {
        let (error, _, _server) = failure(move |_| Answer::Raw(raw.clone())).await;
        assert!(error.class() == Class::Network, "{error}");
    }
}
