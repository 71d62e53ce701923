//! Requests over a socket: cases 27 to 42, 45, 49 and 50.

use crate::raw::number::*;
use crate::raw::{Part, request};
use crate::rig::Rig;
use crate::support::bad_http::Answer;
use crate::support::source::{LEAF_BYTES, Source, mixed, noise, prose};

const MIB: u64 = 1 << 20;

/// An image with room for the largest reads: data at both ends and in the middle, holes between.
fn large() -> Source {
    Source::zeros(80 * MIB + 77)
        .with(0, prose(1, 100_000))
        .with(40 * MIB, noise(2, 300_000))
        .with(80 * MIB, prose(3, 77))
}

#[tokio::test]
async fn case_27_a_bad_magic_closes() {
    let rig = Rig::new(mixed()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        let mut bytes = request(0, READ, 1, 0, 100);
        bytes[0] ^= 1;
        client.send_anyway(&bytes).await;
        client.expect_closed().await;
    }
    rig.expect_served(0, 100).await;
}

#[tokio::test]
async fn cases_28_29_what_is_not_known_is_refused() {
    let rig = Rig::new(mixed()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        for command in [8, 9, 255, u16::MAX] {
            client.expect_error((0, command, 0, 4096), EINVAL).await;
        }
        for flags in [0x20, 0x8000, 0xfffe, REQ_ONE, 2, 16] {
            client.expect_error((flags, READ, 0, 4096), EINVAL).await;
        }
        client.expect_error((DF, FLUSH, 0, 0), EINVAL).await;
        for flags in [DF, REQ_ONE, 0x20, 0x8000] {
            client.expect_error((flags, CACHE, 0, 4096), EINVAL).await;
        }
        // A WRITE's payload is drained, whatever is wrong with its flags.
        for flags in [0x20, 0] {
            client.request(flags, WRITE, 9, 0, 70_000).await;
            client.send(&[0x25; 70_000]).await;
            client.reply().await.expect_error(if flags == 0 { EPERM } else { EINVAL });
        }
        client.read(1, 5, 600).await;
        client.reply().await.expect_data(&rig.source, 5, 600);
    }
}

#[tokio::test]
async fn cases_30_31_ranges_past_the_end_are_refused() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes();
    let mut client = rig.client().await;
    let ranges = [
        (size, 1),
        (size - 1, 2),
        (0, size as u32 + 1),
        (size + 1, 0),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (1 << 63, 9),
    ];
    for (offset, length) in ranges {
        for command in [READ, BLOCK_STATUS, CACHE] {
            client.expect_error((0, command, offset, length), EINVAL).await;
        }
        for command in [TRIM, WRITE_ZEROES] {
            client.expect_error((0, command, offset, length), EPERM).await;
        }
    }
    client.read(1, size - 1, 1).await;
    client.reply().await.expect_data(&rig.source, size - 1, 1);
}

#[tokio::test]
async fn case_32_requests_of_no_bytes_are_answered() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes();
    let mut client = rig.client().await;
    for offset in [0, 4096, size] {
        client.read(1, offset, 0).await;
        client.reply().await.expect_nothing();
        client.request(DF, READ, 2, offset, 0).await;
        client.reply().await.expect_nothing();
        client.request(0, BLOCK_STATUS, 3, offset, 0).await;
        let reply = client.reply().await;
        assert!(matches!(reply.parts[..], [] | [Part::Error { number: EINVAL, .. }]), "{reply:?}");
        client.request(0, CACHE, 4, offset, 0).await;
        client.reply().await.expect_nothing();
        for command in [WRITE, TRIM, WRITE_ZEROES] {
            client.expect_error((0, command, offset, 0), EPERM).await;
        }
    }
    client.request(0, FLUSH, 4, 0, 0).await;
    client.reply().await.expect_nothing();
    let mut client = rig.simple_client().await;
    client.read(1, 0, 0).await;
    client.reply().await.expect_nothing();
}

#[tokio::test]
async fn case_33_nothing_need_be_aligned() {
    let rig = Rig::new(mixed()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        // Around blocks, chunks, holes and the image's odd end; cold and warm.
        let size = rig.source.size_bytes();
        let ranges = [
            (1, 1),
            (511, 513),
            (5, 3),
            (4095, 2),
            (50 * 4096 - 1, 3),
            (90 * 4096 - 1, 40_961),
            (151 * 4096 - 5, 4096 + 10),
            (152 * 4096 + 4090, 30),
            (size - 1235, 1235),
            (size - 1, 1),
            (0, size as u32),
            (1, size as u32 - 2),
        ];
        for _ in 0..2 {
            for (offset, length) in ranges {
                client.read(offset, offset, length).await;
                let reply = client.reply().await;
                assert_eq!(reply.cookie, offset);
                reply.expect_data(&rig.source, offset, length);
            }
        }
    }
}

#[tokio::test]
async fn cases_34_36_writes_are_refused_and_their_payload_drained() {
    let rig = Rig::new(large()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        let payload = vec![0x25; 3 * MIB as usize];
        for length in [1, 28, 4096, 3 * MIB as u32] {
            client.request(0, WRITE, 1, 0, length).await;
            client.send(&payload[..length as usize]).await;
            client.reply().await.expect_error(EPERM);
        }
        // Without payload they may be as long as they like.
        for command in [TRIM, WRITE_ZEROES] {
            let text = client.expect_error((0, command, 0, 80 * MIB as u32), EPERM).await;
            assert!(text.is_empty() || text.contains("read-only"), "{text}");
        }
        client.expect_error((FUA, WRITE_ZEROES, 0, 4096), EPERM).await;
        client.read(2, 0, 4096).await;
        client.reply().await.expect_data(&rig.source, 0, 4096);
    }
}

#[tokio::test]
async fn case_35_reads_up_to_the_limit_work() {
    let rig = Rig::new(large()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        for (offset, length) in [(0, 32 << 20), (16 * MIB - 1, 64 << 20), (16 * MIB + 77, 64 << 20)] {
            client.read(1, offset, length).await;
            client.reply().await.expect_data(&rig.source, offset, length);
        }
        let text = client.expect_error((0, READ, 0, (64 << 20) + 1), EINVAL).await;
        assert!(text.is_empty() || text.contains("too long"), "{text}");
    }
}

#[tokio::test]
async fn cases_37_38_holes_are_answered_as_holes() {
    let rig = Rig::new(large()).await;
    let mut client = rig.client().await;
    for _ in 0..2 {
        client.read(1, 10 * MIB, 1 << 20).await;
        assert_eq!(client.reply().await.parts, [Part::Hole { offset: 10 * MIB, length: 1 << 20 }]);
        // Data, hole, data, over the border of two leaves and more.
        client.read(2, 90_000, 41 << 20).await;
        let reply = client.reply().await;
        reply.expect_data(&rig.source, 90_000, 41 << 20);
        let holes: u64 = reply
            .parts
            .iter()
            .map(|part| if let Part::Hole { length, .. } = part { u64::from(*length) } else { 0 })
            .sum();
        assert_eq!(holes, rig.source.extents(90_000, 41 << 20).iter().filter(|e| e.1).map(|e| e.0).sum::<u64>());
        assert!(reply.parts.len() <= 10, "{} chunks", reply.parts.len());
    }
}

#[tokio::test]
async fn case_40_df_asks_for_one_chunk() {
    let rig = Rig::new(large()).await;
    let mut client = rig.client().await;
    for (offset, length) in [(90_000, 65_536), (0, 1), (80 * MIB - 5, 50), (0, 64 << 20), (20 * MIB, 1000)] {
        client.request(DF, READ, 1, offset, length).await;
        let reply = client.reply().await;
        assert_eq!(reply.parts.len(), 1);
        reply.expect_data(&rig.source, offset, length);
    }
    let mut client = rig.simple_client().await;
    client.expect_error((DF, READ, 0, 4096), EINVAL).await;
}

#[tokio::test]
async fn case_41_block_status_tells_the_extents() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes();
    let mut client = rig.client().await;
    for (offset, length) in [(0, size as u32), (1, 5), (50 * 4096 - 1, 2), (95 * 4096, 100_000), (size - 1, 1)] {
        let expected = rig.source.extents(offset, length.into());
        client.request(0, BLOCK_STATUS, 1, offset, length).await;
        assert_eq!(client.reply().await.expect_status(), expected);
        client.request(REQ_ONE, BLOCK_STATUS, 2, offset, length).await;
        assert_eq!(client.reply().await.expect_status(), expected[..1]);
    }
    let mut client = rig.simple_client().await;
    client.expect_error((0, BLOCK_STATUS, 0, 4096), EINVAL).await;
}

/// Extents of an image larger than a request can be: lengths stay within 32 bits and within the request.
#[tokio::test]
async fn case_41_block_status_of_a_huge_image() {
    let gib = 1 << 30;
    let source = Source::zeros(20 * gib).with(9 * gib, prose(1, 8192)).with(17 * gib - LEAF_BYTES, noise(1, 4096));
    let rig = Rig::new(source).await;
    let mut client = rig.client().await;
    let mut at = 0;
    let mut data = Vec::new();
    let mut questions = 0;
    while at < 20 * gib {
        let length = u32::try_from(20 * gib - at).unwrap_or(u32::MAX);
        client.request(0, BLOCK_STATUS, at, at, length).await;
        let extents = client.reply().await.expect_status();
        assert!(extents.iter().map(|extent| extent.0).sum::<u64>() <= u64::from(length));
        for (length, hole) in extents {
            if !hole {
                data.push((at, length));
            }
            at += length;
        }
        questions += 1;
    }
    assert_eq!(data, [(9 * gib, 8192), (17 * gib - LEAF_BYTES, 4096)]);
    assert!(questions < 20, "{questions} questions");
    client.read(1, 9 * gib - 5, 9000).await;
    client.reply().await.expect_data(&rig.source, 9 * gib - 5, 9000);
}

#[tokio::test]
async fn case_42_flushes_and_fua_succeed() {
    let rig = Rig::new(mixed()).await;
    for mut client in [rig.client().await, rig.simple_client().await] {
        client.request(FUA, READ, 1, 3, 5000).await;
        client.reply().await.expect_data(&rig.source, 3, 5000);
        for flags in [0, FUA] {
            client.request(flags, FLUSH, 2, 0, 0).await;
            client.reply().await.expect_nothing();
        }
        client.expect_error((0, FLUSH, 0, 1), EINVAL).await;
    }
}

/// Cases 39, 49, 50: a chunk that cannot be had is an error with a text, for that request alone, and never zeros.
#[tokio::test]
async fn a_chunk_that_cannot_be_had_is_an_error_of_its_own() {
    let source = Source::of(noise(1, 1_000_000));
    let rig = Rig::with_origin(source, |_| Answer::Good).await;
    let frames = &rig.repository.chunks;
    // One pack is gone, and in another one chunk is damaged.
    let gone = frames[0].wanted.place.pack;
    let damaged = frames.iter().rev().find(|frame| frame.wanted.place.pack != gone).unwrap();
    std::fs::remove_file(rig.repository.root().join(vmnetx_format::pack_path(&gone))).unwrap();
    let pack = rig.repository.root().join(vmnetx_format::pack_path(&damaged.wanted.place.pack));
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[damaged.wanted.place.offset as usize] ^= 1;
    std::fs::write(&pack, bytes).unwrap();

    for mut client in [rig.client().await, rig.simple_client().await] {
        let mut failed = 0;
        for offset in (0..1_000_000_u64).step_by(50_000) {
            client.read(offset, offset, 50_000).await;
            let reply = client.reply().await;
            assert_eq!(reply.cookie, offset);
            match &reply.parts[..] {
                [Part::Error { number, text }] => {
                    assert_eq!(*number, EIO, "{text}");
                    assert!(text.is_empty() || text.contains("404") || text.contains("damaged"), "{text}");
                    failed += 1;
                }
                _ => reply.expect_data(&rig.source, offset, 50_000),
            }
        }
        assert!((3..15).contains(&failed), "{failed}");
        client.request(0, FLUSH, 1, 0, 0).await;
        client.reply().await.expect_nothing();
    }
    assert!(rig.exports.all()[0].stats().failed >= 6);
}

#[tokio::test]
async fn case_45_connections_see_the_same() {
    let rig = Rig::on_tcp(mixed()).await;
    let mut clients = [rig.client().await, rig.client().await, rig.simple_client().await, rig.client().await];
    for offset in (0..rig.source.size_bytes() - 70_000).step_by(70_000) {
        for client in &mut clients {
            client.read(1, offset, 70_000).await;
        }
        for client in &mut clients {
            client.reply().await.expect_data(&rig.source, offset, 70_000);
        }
    }
}
