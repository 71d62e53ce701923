//! Orders while packages are read: what they bring, what they count, and that a wrong one does no harm.

use std::time::Duration;

use vmnetx_format::{BLOCK_BYTES, Digest, Envelope, Order, OrderFrame, Place, Purpose, Version, order_path};
use vmnetx_store::{Error, Options, OrderCounts, Package, Piece, Store};

use crate::support::repository::{Frame, Repository};
use crate::support::source::{Source, mixed, noise};
use crate::within;

fn store(memory_bytes: u64) -> Store {
    Store::open(Options { memory_bytes, retry_for: Duration::from_secs(2), ..Options::default() }).unwrap()
}

fn frames(chunks: &[Frame]) -> Vec<OrderFrame> {
    let frame = |chunk: &Frame| OrderFrame {
        digest: chunk.wanted.digest,
        plain_len: chunk.wanted.plain_len,
        place: chunk.wanted.place.clone(),
    };
    chunks.iter().map(frame).collect()
}

/// Has the repository's version name an order of these bytes.
fn publish(repository: &Repository, bytes: &[u8]) {
    let digest = Digest::of(bytes);
    std::fs::create_dir_all(repository.root().join("orders")).unwrap();
    std::fs::write(repository.root().join(order_path(&digest)), bytes).unwrap();
    let mut link = repository.link();
    link.current = Version { orders: vec![digest], ..link.current };
    std::fs::write(repository.link_file(), Envelope::unsigned(link).unwrap().encode()).unwrap();
}

fn publish_frames(repository: &Repository, frames: Vec<OrderFrame>) {
    publish(repository, &Order::new(Purpose::Boot, Vec::new(), frames).unwrap().encode());
}

async fn until(package: &Package, what: impl Fn(&OrderCounts) -> bool) -> OrderCounts {
    within(20, async {
        loop {
            if let Some(counts) = package.order_counts().filter(&what) {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

fn data(pieces: &[Piece]) -> Vec<u8> {
    let bytes = |piece: &Piece| match piece {
        Piece::Data(data) => data.to_vec(),
        Piece::Zeros(length) => vec![0; *length as usize],
    };
    pieces.iter().flat_map(bytes).collect()
}

#[tokio::test]
async fn what_an_order_names_is_here_before_anybody_reads_it() {
    let source = mixed();
    let repository = Repository::of(&source);
    publish_frames(&repository, frames(&repository.chunks));
    let store = store(64 << 20);
    let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
    let counts = until(&package, |counts| counts.done).await;
    let all = repository.chunks.len() as u64;
    assert_eq!((counts.planned_frames, counts.prefetched_frames, counts.used_frames), (all, all, 0));
    assert_eq!((counts.wasted_frames, counts.failed_frames), (all, 0));
    assert_eq!(counts.origin_bytes, counts.prefetched_bytes);
    let before = package.origin_bytes();
    let image = &package.disks()[0];
    let pieces = image.read(0, source.size_bytes()).await.unwrap();
    assert!(data(&pieces) == source.bytes());
    let counts = package.order_counts().unwrap();
    assert_eq!((counts.used_frames, counts.wasted_bytes), (all, 0));
    // Nothing but the index had to come.
    assert_eq!(image.counters().counts().origin_chunks, 0);
    assert_eq!(package.origin_bytes() - before, image.counters().counts().index_bytes);
}

#[tokio::test]
async fn nothing_is_fetched_ahead_unasked() {
    let repository = Repository::of(&mixed());
    publish_frames(&repository, frames(&repository.chunks));
    let store = store(64 << 20);
    let package = store.package(&repository.location()).await.unwrap();
    package.disks()[0].read(0, 1).await.unwrap();
    assert_eq!(package.order_counts(), None);
    assert!(package.origin_bytes() < 1 << 20);
}

#[tokio::test]
async fn a_wrong_order_wastes_bytes_and_does_nothing_else() {
    let source = mixed();
    let repository = Repository::of(&source);
    let mut wrong = frames(&repository.chunks);
    // Not what lies there, not a pack, not within the pack, not of that length.
    wrong[0].digest = Digest::of(b"something else");
    wrong[1].place.pack = Digest::of(b"no pack");
    wrong[2].place.offset = 1 << 29;
    wrong[3].plain_len += BLOCK_BYTES as u32;
    let stranger = Place { offset: 0, ..wrong[4].place.clone() };
    wrong.push(OrderFrame { digest: Digest::of(b"a stranger"), plain_len: 1 << 20, place: stranger });
    publish_frames(&repository, wrong);
    let store = store(64 << 20);
    let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
    let counts = until(&package, |counts| counts.done).await;
    assert_eq!(counts.failed_frames, 5);
    let pieces = package.disks()[0].read(0, source.size_bytes()).await.unwrap();
    assert!(data(&pieces) == source.bytes());
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_done_without() {
    let source = mixed();
    let good = Order::new(Purpose::Boot, Vec::new(), Vec::new()).unwrap().encode();
    for bytes in [&b"VMNXORD0 and then nonsense"[..], b"", &good[..good.len() - 1]] {
        let repository = Repository::of(&source);
        publish(&repository, bytes);
        let store = store(64 << 20);
        let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
        let pieces = package.disks()[0].read(0, source.size_bytes()).await.unwrap();
        assert!(data(&pieces) == source.bytes());
        assert_eq!(package.order_counts(), None);
    }
    // Nor is one that is missing, or of something else than a boot.
    let repository = Repository::of(&source);
    let resume = Order::new(Purpose::Resume, Vec::new(), frames(&repository.chunks)).unwrap().encode();
    publish(&repository, &resume);
    for missing in [false, true] {
        if missing {
            std::fs::remove_file(repository.root().join(order_path(&Digest::of(&resume)))).unwrap();
        }
        let store = store(64 << 20);
        let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
        let pieces = package.disks()[0].read(0, source.size_bytes()).await.unwrap();
        assert!(data(&pieces) == source.bytes());
        assert_eq!(package.order_counts(), None);
    }
}

#[tokio::test]
async fn an_order_fills_no_more_than_its_part_of_the_memory_until_it_is_read() {
    // 16 MiB that do not compress, against a memory tier of 8.
    let source = Source::of(noise(1, 16 << 20));
    let repository = Repository::of(&source);
    publish_frames(&repository, frames(&repository.chunks));
    let memory_bytes = 8 << 20;
    let store = store(memory_bytes);
    let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
    // It stops by itself, with what was asked for before it saw that there is enough.
    let most = memory_bytes / 2 + (5 << 20);
    let counts = until(&package, |counts| counts.prefetched_bytes > memory_bytes / 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = package.order_counts().unwrap();
    assert!(!after.done && after.prefetched_bytes <= most, "{counts:?} {after:?}");
    // A reader that comes along makes room, up to the end.
    let image = &package.disks()[0];
    for at in (0..source.size_bytes()).step_by(64 << 10) {
        let pieces = within(20, image.read(at, 64 << 10)).await.unwrap();
        assert!(data(&pieces) == source.read(at, 64 << 10));
    }
    until(&package, |counts| counts.done).await;
}

#[tokio::test]
async fn a_package_that_is_closed_ends_its_replay() {
    let source = Source::of(noise(1, 16 << 20));
    let repository = Repository::of(&source);
    publish_frames(&repository, frames(&repository.chunks));
    let store = store(4 << 20);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let package = store.package_in_order(&repository.location(), Purpose::Boot).await.unwrap();
    until(&package, |counts| counts.prefetched_bytes > 2 << 20).await;
    assert!(tasks() > before, "it waits for readers");
    drop(package);
    within(20, async {
        while tasks() > before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_run_is_recorded_and_what_was_recorded_can_be_ordered() {
    let source = mixed();
    let repository = Repository::of_disks(&[("disk0", &source), ("data", &source)]);
    let store = store(64 << 20);
    let package = store.package(&repository.location()).await.unwrap();
    let recorder = package.record();
    let [first, second] = [&package.disks()[0], &package.disks()[1]];
    second.read(8192, 4096).await.unwrap();
    first.read(0, 5000).await.unwrap();
    // From memory, and again.
    let mut pieces = Vec::new();
    assert!(first.read_now(0, 4096, &mut pieces) && second.read_now(8192, 4096, &mut pieces));
    // A chunk that came along is touched when it is read, not before.
    assert!(first.read_now(12288, 1, &mut pieces));
    let error = first.read(source.size_bytes(), 1).await.unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { .. }));
    let record = recorder.record().unwrap();
    let touches: Vec<_> =
        record.touches.iter().map(|touch| (touch.image.as_str(), touch.first_block, touch.blocks)).collect();
    assert_eq!(touches, [("data", 2, 1), ("disk0", 0, 2), ("disk0", 3, 1)]);
    assert_eq!(record.manifest, repository.version.manifest);
}
