//! The metadata context `vmnetx:residency`: what of an image is on this host. Cases 25, 32 and 41 with two contexts.

use std::collections::BTreeSet;

use tokio::net::UnixStream;
use tokio::sync::watch;
use vmnetx_format::{BLOCK_BYTES, Chunker};
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions};
use vmnetx_nbd_proto::reply::Extent;
use vmnetx_nbd_proto::wire::{StatusFlags, TransmissionFlags};

use crate::raw::number::*;
use crate::raw::{Raw, info, meta};
use crate::rig::Rig;
use crate::support::bad_http::{Answer, Asked};
use crate::support::source::{LEAF_BYTES, Source, mixed, noise, prose};

const ALLOCATION: &str = "base:allocation";
const RESIDENCY: &str = "vmnetx:residency";
const BOTH: [&str; 2] = [ALLOCATION, RESIDENCY];
/// The ids of the contexts, and the flag of what is remote.
const ALLOCATION_ID: u32 = 1;
const RESIDENCY_ID: u32 = 2;
const REMOTE: u32 = 1;

/// Length and flags of the extents of the residency of a range.
async fn residency(client: &mut Raw, flags: u16, offset: u64, length: u64) -> Vec<(u64, u32)> {
    client.request(flags, BLOCK_STATUS, 3, offset, length as u32).await;
    let extents = client.reply().await.expect_statuses().remove(&RESIDENCY_ID).unwrap();
    assert!(extents.iter().all(|(_, flags)| [0, REMOTE].contains(flags)), "{extents:?}");
    extents
}

/// Where chunks of an image begin and end, and its own ends.
fn borders(source: &Source) -> BTreeSet<u64> {
    let mut borders = BTreeSet::from([0, source.size_bytes()]);
    for leaf in source.leaves() {
        let start = u64::from(leaf) * LEAF_BYTES;
        let mut data = source.read(start, LEAF_BYTES.min(source.size_bytes() - start));
        data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
        for run in Chunker::DISK.cut(&data) {
            let ends = [run.first_block, run.first_block + run.blocks];
            let ends = ends.map(|block| start + u64::from(block) * BLOCK_BYTES as u64);
            borders.extend(ends.map(|end| end.min(source.size_bytes())));
        }
    }
    borders
}

/// An image whose origin answers as long as the value is true.
async fn with_switch(source: Source) -> (Rig, watch::Sender<bool>) {
    let (open, gate) = watch::channel(true);
    let behave = move |_: &Asked| if *gate.borrow() { Answer::Good } else { Answer::When(gate.clone()) };
    (Rig::with_origin(source, behave).await, open)
}

#[tokio::test]
async fn both_contexts_are_told_each_in_a_chunk_of_its_own() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes();
    let mut client = rig.client_of(&[RESIDENCY, ALLOCATION]).await;
    for (offset, length) in [(0, size), (1, 5), (50 * 4096 - 1, 2), (95 * 4096, 100_000), (size - 1, 1)] {
        for (flags, most) in [(0, usize::MAX), (REQ_ONE, 1)] {
            let mut expected = rig.source.extents(offset, length);
            expected.truncate(most);
            client.request(flags, BLOCK_STATUS, 1, offset, length as u32).await;
            let told = client.reply().await.expect_statuses();
            assert_eq!(told.keys().copied().collect::<Vec<_>>(), [ALLOCATION_ID, RESIDENCY_ID]);
            let allocation = expected.iter().map(|&(length, hole)| (length, if hole { 3 } else { 0 }));
            assert_eq!(told[&ALLOCATION_ID], allocation.collect::<Vec<_>>());
            // Nothing was read: what is no hole is remote.
            let remote = expected.iter().map(|&(length, hole)| (length, u32::from(!hole)));
            assert_eq!(told[&RESIDENCY_ID], remote.collect::<Vec<_>>());
        }
    }
    client.request(0, BLOCK_STATUS, 2, 77, 0).await;
    client.reply().await.expect_nothing();
    client.expect_error((0, BLOCK_STATUS, size - 1, 2), EINVAL).await;
    client.expect_error((DF, BLOCK_STATUS, 0, 1), EINVAL).await;
}

/// Where the index is not here, all is remote, and nobody goes and fetches it; what the roots call a hole is one.
#[tokio::test]
async fn asking_for_residency_alone_fetches_nothing() {
    let source =
        Source::zeros(20 * LEAF_BYTES).with(3 * LEAF_BYTES + 8192, prose(1, 9000)).with(5 * LEAF_BYTES, noise(1, 5));
    let rig = Rig::new(source).await;
    let mut client = rig.client_of(&[RESIDENCY]).await;
    let all = 20 * LEAF_BYTES;
    let unknown =
        [(3 * LEAF_BYTES, 0), (LEAF_BYTES, REMOTE), (LEAF_BYTES, 0), (LEAF_BYTES, REMOTE), (14 * LEAF_BYTES, 0)];
    assert_eq!(residency(&mut client, 0, 0, all).await, unknown);
    assert_eq!(residency(&mut client, REQ_ONE, 3 * LEAF_BYTES + 9, 100).await, [(100, REMOTE)]);
    assert_eq!(rig.package.origin_requests(), 0);
    // A read brings the leaf, and with it what was not known.
    client.read(1, 3 * LEAF_BYTES, 100).await;
    client.reply().await.expect_data(&rig.source, 3 * LEAF_BYTES, 100);
    let known = [(3 * LEAF_BYTES + 8192, 0), (12288, REMOTE), (2 * LEAF_BYTES - 20480, 0), (LEAF_BYTES, REMOTE)];
    assert_eq!(residency(&mut client, 0, 0, all).await[..4], known);
}

#[tokio::test]
async fn extents_end_with_chunks_and_what_is_called_resident_is() {
    let (rig, origin) = with_switch(mixed()).await;
    let size = rig.source.size_bytes();
    let borders = borders(&rig.source);
    let mut client = rig.client_of(&BOTH).await;
    for at in [60_000, 130 * 4096 + 5, 250 * 4096, size - 1] {
        client.read(1, at, 1).await;
        client.reply().await.expect_data(&rig.source, at, 1);
        // What is read ahead arrives when it likes; the answer that counts is the last before the origin goes away.
        origin.send(false).unwrap();
        for (offset, length) in [(0, size), (at, 1), (at.min(size - 9), 9), (5, size - 7)] {
            let extents = residency(&mut client, 0, offset, length).await;
            assert_eq!(extents.iter().map(|extent| extent.0).sum::<u64>(), length);
            assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "{extents:?}");
            assert_eq!(residency(&mut client, REQ_ONE, offset, length).await.len(), 1);
            let mut start = offset;
            for (bytes, flags) in extents {
                let end = start + bytes;
                assert!(end == offset + length || borders.contains(&end), "{end} is inside of a chunk");
                if flags == 0 {
                    client.read(2, start, bytes as u32).await;
                    client.reply().await.expect_data(&rig.source, start, bytes as u32);
                } else {
                    assert!(!(start..end).contains(&at), "{at} was read");
                }
                start = end;
            }
        }
        origin.send(true).unwrap();
    }
    client.read(1, 0, size as u32).await;
    client.reply().await.expect_data(&rig.source, 0, size as u32);
    assert_eq!(residency(&mut client, 0, 0, size).await, [(size, 0)]);
    rig.store.memory().clear();
    // The index is decoded still, so holes are known.
    let remote =
        rig.source.extents(0, size).iter().map(|&(length, hole)| (length, u32::from(!hole))).collect::<Vec<_>>();
    assert_eq!(residency(&mut client, 0, 0, size).await, remote);
}

/// Case 25 for our context: a selection that failed or was replaced, and one for another name.
#[tokio::test]
async fn the_last_selection_counts_for_both() {
    type Payloads<'a> = &'a [&'a [u8]];
    let rig = Rig::new(mixed()).await;
    let [base, ours, both] = [&[ALLOCATION][..], &[RESIDENCY], &BOTH].map(|names| meta("disk0", names));
    let selections: [(Payloads<'_>, &str, &[u32]); 7] = [
        (&[&both], "disk0", &[ALLOCATION_ID, RESIDENCY_ID]),
        (&[&both, &ours], "disk0", &[RESIDENCY_ID]),
        (&[&ours, &base], "disk0", &[ALLOCATION_ID]),
        (&[&ours, &both], "disk0", &[ALLOCATION_ID, RESIDENCY_ID]),
        (&[&both, b"junk"], "disk0", &[]),
        (&[&both, &meta("disk0", &["vmnetx:"])], "disk0", &[]),
        (&[&both], "", &[]),
    ];
    for (number, (payloads, export, ids)) in selections.into_iter().enumerate() {
        let mut raw = rig.connect().await;
        raw.greet(FIXED_NEWSTYLE | NO_ZEROES).await;
        raw.structured().await;
        for payload in payloads {
            raw.option(SET_META, payload).await;
            while raw.option_answer().await.kind == META_CONTEXT {}
        }
        raw.expect_option(GO, &info(export, &[]), ACK).await;
        if ids.is_empty() {
            raw.expect_error((0, BLOCK_STATUS, 0, 4096), EINVAL).await;
            continue;
        }
        raw.request(0, BLOCK_STATUS, 3, 0, 4096).await;
        let told = raw.reply().await.expect_statuses();
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), ids, "selection {number}");
        assert!(told.values().all(|extents| extents.iter().map(|extent| extent.0).sum::<u64>() == 4096));
    }
}

/// The client of this project: both contexts by name, or one of them, and prefetching.
#[tokio::test]
async fn our_client_asks_for_residency_and_prefetches() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes() as u32;
    let options = ConnectOptions::new("disk0").with_contexts(BOTH);
    let client = Client::connect(UnixStream::connect(rig.socket()).await.unwrap(), &options).await.unwrap();
    assert!(client.export().flags.contains(TransmissionFlags::SEND_CACHE));
    let told = client.block_status(0, size, false).await.unwrap();
    let names: Vec<&str> = told.iter().map(|status| &status.context[..]).collect();
    assert_eq!(names, BOTH);
    assert!(told[1].extents.iter().any(|extent| extent.flags == StatusFlags::REMOTE));
    client.cache(5, size - 5).await.unwrap();
    assert!(matches!(client.cache(6, size - 5).await, Err(ClientError::Server { .. })));

    let options = options.with_contexts([RESIDENCY]);
    let second = Client::connect(UnixStream::connect(rig.socket()).await.unwrap(), &options).await.unwrap();
    let told = second.block_status(0, size, false).await.unwrap();
    assert_eq!((told.len(), &told[0].context[..]), (1, RESIDENCY));
    assert_eq!(told[0].extents, [Extent { length: size, flags: StatusFlags::EMPTY }]);
    second.disconnect().await.unwrap();
    client.disconnect().await.unwrap();
}
