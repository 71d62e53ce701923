//! Origins that fail: whatever a server does, no wrong byte is given out, nothing hangs, and errors have their class.
//!
//! Time is paused: it jumps to the next deadline whenever nothing else can happen, so waits of a minute cost nothing.

use std::time::Duration;

use tokio::time::Instant;
use vmnetx_format::Digest;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::limits::{DAMAGED_TRIES_MAX, ORIGIN_REQUESTS_MAX, REDIRECTS_MAX, SKIPPED_BYTES_MAX};
use vmnetx_store::origin::{HttpClient, HttpOrigin, Origin};
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

#[tokio::test(start_paused = true)]
async fn bytes_that_are_wrong_once_are_fetched_again() {
    for position in [0, 1, 100, 7_000, 40_000] {
        survives(move |asked| match asked.before {
            0 if !link_is(asked) => Answer::Damaged(position),
            _ => Answer::Good,
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_stay_wrong_are_an_integrity_failure() {
    let (error, took, server) =
        failure(|asked| Answer::Damaged(asked.range.as_ref().map_or(0, |r| r.start as usize + 9))).await;
    assert_eq!(error.class(), Class::Integrity, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("vmnetx-pack verify")));
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The pair of index nodes is tried so often, and each of the two may fail.
    assert!((DAMAGED_TRIES_MAX as usize..=2 * DAMAGED_TRIES_MAX as usize).contains(&server.ranges()));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_damaged_at_the_origin_fails_alone() {
    let source = Source::of([noise(1, 200_000), prose(2, 200_000)].concat());
    let repository = Repository::of(&source);
    for frame in [&repository.chunks[1], repository.chunks.last().unwrap()] {
        let pack = repository.root().join(vmnetx_format::pack_path(&frame.wanted.place.pack));
        let whole = std::fs::read(&pack).unwrap();
        let mut bytes = whole.clone();
        bytes[frame.wanted.place.offset as usize + 20] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
        let server = BadServer::start(repository.root(), |_| Answer::Good).await;
        let package = open(&server).await.unwrap();
        let image = &package.disks()[0];
        let mut failed = 0;
        for offset in (0..source.size_bytes()).step_by(4096) {
            let length = 4096.min(source.size_bytes() - offset);
            match within(DEADLINE_S, image.read(offset, length)).await {
                Ok(pieces) => assert!(join(pieces) == source.read(offset, length), "wrong bytes at {offset}"),
                Err(error) => {
                    assert_eq!(error.class(), Class::Integrity, "{error}");
                    failed += 4096;
                }
            }
        }
        assert_eq!(failed, frame.wanted.plain_len);
        std::fs::write(&pack, whole).unwrap();
    }
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

/// A link has no digest, so one that is cut off looks like one that is damaged.
fn at_first_but_link(answer: Answer) -> impl Fn(&Asked) -> Answer {
    move |asked| if asked.before == 0 && !link_is(asked) { answer.clone() } else { Answer::Good }
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

#[tokio::test(start_paused = true)]
async fn a_link_that_is_too_large_is_refused() {
    let large = vec![b' '; LINK_BYTES_MAX as usize + 1];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.len());
    let honest = [head.into_bytes(), large.clone()].concat();
    // Without a length the body goes on until the connection ends.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), large.repeat(3)].concat();
    let claims = b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx".to_vec();
    for (raw, expected) in [(honest, Class::Integrity), (endless, Class::Integrity), (claims, Class::Network)] {
        let (error, took) = refusal(move |_| Answer::Raw(raw.clone())).await;
        assert!(error.class() == expected && took <= RETRY_FOR, "{error}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn links_that_are_none_are_refused() {
    let texts: [&[u8]; 7] = [
        b"",
        b"<html>Welcome to nginx!</html>",
        b"{}",
        b"{\"vmnetx\":0}",
        b"{\"vmnetx\":0,\"link\":{\"name\":\"vm\",\"serial\":1}}",
        b"\xff\xfe\x00",
        b"{\"vmnetx\":1e400}",
    ];
    for text in texts {
        let repository = Repository::of(&mixed());
        std::fs::write(repository.link_file(), text).unwrap();
        let server = BadServer::start(repository.root(), |_| Answer::Good).await;
        let error = open(&server).await.unwrap_err();
        assert!(matches!(error, Error::Link { .. }) && error.class() == Class::Integrity, "{error}");
        assert!(error.to_string().contains(&server.url()), "{error}");
        // The same from a file.
        let error = store().package(&repository.location()).await.unwrap_err();
        assert!(matches!(error, Error::Link { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_format_is_told_by_its_number() {
    let repository = Repository::of(&mixed());
    std::fs::write(repository.link_file(), b"{\"vmnetx\":7,\"whatever\":[]}").unwrap();
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let error = open(&server).await.unwrap_err();
    let told = vmnetx_store::failure::tell(&error);
    assert!(told.contains("format number 7") && told.contains("newer"), "{told}");
    assert_eq!(error.class(), Class::Integrity);
}

#[tokio::test(start_paused = true)]
async fn objects_that_differ_from_their_digests_are_refused() {
    let repository = Repository::of(&mixed());
    let version = &repository.version;
    let root = repository.root();
    let objects = [
        root.join(vmnetx_format::manifest_path(&version.manifest)),
        root.join(vmnetx_format::layout_path(&version.layout)),
    ];
    for object in objects {
        let whole = std::fs::read(&object).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        let longer = [&whole[..], b" "].concat();
        let shorter = whole[..whole.len() - 1].to_vec();
        for bytes in [changed, longer, shorter, Vec::new()] {
            std::fs::write(&object, bytes).unwrap();
            let server = BadServer::start(root, |_| Answer::Good).await;
            let start = Instant::now();
            for location in [server.location(), repository.location()] {
                let error = within(DEADLINE_S, store().package(&location)).await.unwrap_err();
                assert_eq!(error.class(), Class::Integrity, "{error}");
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        }
        std::fs::remove_file(&object).unwrap();
        let server = BadServer::start(root, |_| Answer::Good).await;
        assert!(matches!(open(&server).await.unwrap_err(), Error::Refused { .. }));
        let error = store().package(&repository.location()).await.unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{error}");
        std::fs::write(&object, whole).unwrap();
    }
    let server = BadServer::start(root, |_| Answer::Good).await;
    open(&server).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_version_that_the_link_lacks_is_told() {
    let repository = Repository::of(&mixed());
    let server = BadServer::start(repository.root(), |_| Answer::Good).await;
    let pin = |digest: &Digest| format!("{}vm.vmnetx#b3={digest}", server.url()).parse().unwrap();
    store().package(&pin(&repository.version.manifest)).await.unwrap();
    let error = store().package(&pin(&Digest::of(b"another"))).await.unwrap_err();
    assert!(matches!(error, Error::NoVersion { .. }) && error.class() == Class::Usage, "{error}");
}

/// An upload that broke off, or a layout that points behind the end of its pack: no amount of waiting helps.
#[tokio::test(start_paused = true)]
async fn packs_that_are_too_short_are_an_integrity_failure() {
    let source = Source::of(noise(1, 200_000));
    let repository = Repository::of(&source);
    let cut_at = &repository.chunks[2].wanted.place;
    let pack = repository.root().join(vmnetx_format::pack_path(&cut_at.pack));
    let file = std::fs::File::options().write(true).open(&pack).unwrap();
    for more in [0, 10] {
        file.set_len(cut_at.offset + more).unwrap();
        let whole = |asked: &Asked| if pack_is(asked) { Answer::Whole } else { Answer::Good };
        let ranges = BadServer::start(repository.root(), |_| Answer::Good).await;
        let whole = BadServer::start(repository.root(), whole).await;
        for location in [ranges.location(), whole.location(), repository.location()] {
            let package = within(DEADLINE_S, store().package(&location)).await.unwrap();
            let image = &package.disks()[0];
            // A read of everything asks for the good and the missing in one range.
            let start = Instant::now();
            let error = within(DEADLINE_S, image.read(0, source.size_bytes())).await.unwrap_err();
            assert_eq!(error.class(), Class::Integrity, "{location}: {error}");
            assert!(start.elapsed() < Duration::from_secs(5), "{location}: {:?}", start.elapsed());
            // What lies before the end is there.
            let good = u64::from(repository.chunks[0].wanted.plain_len + repository.chunks[1].wanted.plain_len);
            let pieces = within(DEADLINE_S, image.read(0, good)).await.unwrap();
            assert!(join(pieces) == source.read(0, good));
            let error = within(DEADLINE_S, image.read(good, 1)).await.unwrap_err();
            assert_eq!(error.class(), Class::Integrity, "{location}: {error}");
        }
    }
}

/// A layout is not what identifies a version: wrong places make digests fail and nothing worse.
#[tokio::test(start_paused = true)]
async fn hostile_layouts_only_fail_reads() {
    let source = mixed();
    let edits: [fn(usize, &mut vmnetx_format::Place); 5] = [
        |_, place| place.offset = (1 << 30) - 4096,
        |_, place| place.pack = Digest::of(b"nowhere"),
        |_, place| place.stored_len = 0,
        |_, place| place.offset = 0,
        |index, place| place.offset = if index % 2 == 0 { 8 } else { 5000 },
    ];
    for edit in edits {
        let repository = Repository::edited(&[("disk0", &source)], |leaf| {
            leaf.places.iter_mut().enumerate().for_each(|(index, place)| edit(index, place));
        });
        let server = BadServer::start(repository.root(), |_| Answer::Good).await;
        for location in [server.location(), repository.location()] {
            let package = within(DEADLINE_S, store().package(&location)).await.unwrap();
            for offset in (0..source.size_bytes()).step_by(20_000) {
                let length = 20_000.min(source.size_bytes() - offset);
                let start = Instant::now();
                if let Ok(pieces) = within(DEADLINE_S, package.disks()[0].read(offset, length)).await {
                    assert!(join(pieces) == source.read(offset, length), "wrong bytes at {offset}");
                }
                assert!(start.elapsed() < Duration::from_secs(10), "{:?} at {offset}", start.elapsed());
            }
        }
    }
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
