//! Objects that are not what they should be: damaged, cut, of another kind, or made to mislead.

use std::time::Duration;

use tokio::time::Instant;
use vmnetx_format::Digest;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_store::Error;
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::limits::DAMAGED_TRIES_MAX;

use super::{DEADLINE_S, RETRY_FOR, failure, join, link_is, open, pack_is, refusal, store, survives};
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise, prose};
use crate::within;

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
