//! Images against a plain model: random images, random reads, whatever the caches hold.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use tokio::runtime::Runtime;
use vmnetx_format::BLOCK_BYTES;
use vmnetx_store::{Error, Image, Options, Package, Piece, Store};

use crate::support::repository::Repository;
use crate::support::source::{LEAF_BYTES, Source, mixed, noise, prose};
use crate::within;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// One for all cases of a property.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Memory that holds everything these tests read.
const PLENTY: u64 = 64 << 20;
/// Memory that holds two or three chunks.
const LITTLE: u64 = 300_000;

/// A store; waits for its directory, which chunks that are still read ahead keep a moment longer than the store before.
async fn store(memory_bytes: u64, cache_dir: Option<&Path>) -> Store {
    let disk = cache_dir.map(|dir| (dir.to_owned(), 64 << 20));
    let options = Options { memory_bytes, disk, retry_for: Duration::from_secs(5), ..Options::default() };
    within(20, async {
        loop {
            match Store::open(options.clone()) {
                Err(Error::CacheInUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await
}

async fn open(store: &Store, repository: &Repository) -> Package {
    store.package(&repository.location()).await.unwrap()
}

fn join(pieces: &[Piece]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        assert!(!piece.is_empty(), "an empty piece");
        match piece {
            Piece::Data(data) => out.extend_from_slice(data),
            Piece::Zeros(length) => out.resize(out.len() + *length as usize, 0),
        }
    }
    out
}

/// Asks everything that can be asked about a range and compares with the model.
async fn compare(image: &Image, source: &Source, offset: u64, length: u64) {
    let expected = source.read(offset, length);
    let at = format!("{length} bytes at {offset}");
    let mark = Piece::Zeros(1);
    let mut now = vec![mark.clone()];
    if image.read_now(offset, length, &mut now) {
        assert!(join(&now[1..]) == expected, "read_now gives wrong bytes: {at}");
    } else {
        assert_eq!(now, [mark], "read_now fails and leaves something behind: {at}");
    }
    let pieces = image.read(offset, length).await.unwrap();
    assert!(join(&pieces) == expected, "read gives wrong bytes: {at}");
    let extents = source.extents(offset, length);
    for max in [1, 2, 1000] {
        let told = image.extents(offset, length, max).await.unwrap();
        let told: Vec<(u64, bool)> = told.iter().map(|extent| (extent.length, extent.hole)).collect();
        assert_eq!(told, extents[..extents.len().min(max)], "extents: {at}, at most {max}");
    }
}

/// Parts of an image: none, or data of one of a few seeds, so that data repeats.
fn part() -> impl Strategy<Value = (u8, u64, usize)> {
    (0_u8..5, 0_u64..4, 1_usize..40)
}

/// Images that begin anywhere in a leaf, may reach into the next one and end anywhere in a block.
fn images() -> impl Strategy<Value = Source> {
    let start = prop_oneof![Just(0), (1..300_u64).prop_map(|before| LEAF_BYTES / BLOCK - before)];
    (start, proptest::collection::vec(part(), 0..12), 0..BLOCK).prop_map(|(start, parts, odd)| {
        let blocks: usize = parts.iter().map(|(_, _, blocks)| blocks).sum();
        let mut source = Source::zeros((start + blocks as u64) * BLOCK + odd);
        let mut at = start * BLOCK;
        for (kind, seed, blocks) in parts {
            let bytes = blocks * BLOCK_BYTES;
            source = match kind {
                0 => source,
                1 => source.with(at, noise(seed, bytes)),
                _ => source.with(at, prose(seed, bytes)),
            };
            at += bytes as u64;
        }
        if odd > 0 { source.with(at, noise(5, odd as usize)) } else { source }
    })
}

/// An image and ranges in it: mostly short ones, mostly where there is data.
fn questions() -> impl Strategy<Value = (Source, Vec<(u64, u64)>)> {
    let range = (any::<prop::sample::Index>(), any::<bool>(), prop_oneof![0..20_u64, 0..40_000_u64, 0..3_000_000_u64]);
    (images(), proptest::collection::vec(range, 1..12)).prop_map(|(source, ranges)| {
        let size = source.size_bytes();
        let ranges = ranges.into_iter().map(|(index, late, length)| {
            let first = if late { size.saturating_sub(2_000_000) } else { 0 };
            let offset = first + index.index((size - first) as usize + 1) as u64;
            (offset, length.min(size - offset))
        });
        let ranges = ranges.collect();
        (source, ranges)
    })
}

async fn compare_all(image: &Image, source: &Source, ranges: &[(u64, u64)]) {
    assert_eq!(image.size_bytes(), source.size_bytes());
    for &(offset, length) in ranges {
        compare(image, source, offset, length).await;
    }
    let size = source.size_bytes();
    for (offset, length) in [(size, 1), (0, size + 1), (u64::MAX, 2), (1, u64::MAX)] {
        let error = image.read(offset, length).await.unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
        assert!(!image.read_now(offset, length, &mut Vec::new()));
        assert!(image.extents(offset, length, 1).await.is_err());
    }
    compare(image, source, size, 0).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn images_read_as_they_were((source, ranges) in questions(), warm: bool) {
        let repository = Repository::of(&source);
        RUNTIME.block_on(within(60, async {
            let store = store(PLENTY, None).await;
            let package = open(&store, &repository).await;
            if warm {
                package.disks()[0].warm_index();
            }
            compare_all(&package.disks()[0], &source, &ranges).await;
        }));
    }

    #[test]
    fn images_read_as_they_were_while_memory_is_short((source, ranges) in questions()) {
        let repository = Repository::of(&source);
        RUNTIME.block_on(within(60, async {
            let store = store(LITTLE, None).await;
            let package = open(&store, &repository).await;
            compare_all(&package.disks()[0], &source, &ranges).await;
            compare_all(&package.disks()[0], &source, &ranges).await;
        }));
    }

    #[test]
    fn images_read_as_they_were_from_a_disk_that_was_reopened((source, ranges) in questions()) {
        let repository = Repository::of(&source);
        let cache = tempfile::tempdir().unwrap();
        RUNTIME.block_on(within(60, async {
            for _ in 0..2 {
                let store = store(LITTLE, Some(cache.path())).await;
                let package = open(&store, &repository).await;
                compare_all(&package.disks()[0], &source, &ranges).await;
            }
            // Nothing is left to be fetched.
            let store = store(PLENTY, Some(cache.path())).await;
            let package = open(&store, &repository).await;
            let image = &package.disks()[0];
            for &(offset, length) in &ranges {
                compare(image, &source, offset, length).await;
            }
            prop_assert_eq!(image.counters().counts().failed_chunks, 0);
            Ok(())
        }))?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_of_one_package_share_chunks_and_keep_their_bytes_apart() {
    let (one, two) = (mixed(), Source::of(prose(7, 40 * BLOCK_BYTES)));
    let repository = Repository::of_disks(&[("disk0", &one), ("disk1", &two)]);
    let store = store(PLENTY, None).await;
    let package = open(&store, &repository).await;
    compare(package.image("disk0").unwrap(), &one, 0, one.size_bytes()).await;
    let before = package.origin_bytes();
    compare(package.image("disk1").unwrap(), &two, 0, two.size_bytes()).await;
    // Only its index: the other disk holds the same data.
    let more = package.origin_bytes() - before;
    assert!(more < 2000, "{more} bytes came again");
    assert!(package.image("disk2").is_none());
}

/// An image larger than 8 GiB, whose trees have inner nodes, with a little data here and there.
fn huge() -> Source {
    let gib = 1 << 30;
    Source::zeros(33 * gib + 5 * BLOCK + 1)
        .with(0, prose(1, 3 * BLOCK_BYTES))
        .with(LEAF_BYTES - BLOCK, noise(2, 2 * BLOCK_BYTES))
        // On both sides of the border between two inner nodes.
        .with(8 * gib - 5 * BLOCK, noise(3, 10 * BLOCK_BYTES))
        .with(25 * gib + 123 * BLOCK, prose(4, 7 * BLOCK_BYTES))
        .with(33 * gib + 5 * BLOCK, vec![9])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_images_are_read_through_inner_nodes() {
    let source = huge();
    let repository = Repository::of(&source);
    let gib = 1_u64 << 30;
    assert!(vmnetx_format::Geometry::new(source.size_bytes()).unwrap().has_inner());
    for memory_bytes in [PLENTY, LITTLE] {
        let store = store(memory_bytes, None).await;
        let package = open(&store, &repository).await;
        let image = &package.disks()[0];
        for offset in [0, LEAF_BYTES - BLOCK - 7, 8 * gib - 100_000, 25 * gib, source.size_bytes() - 200_000] {
            within(60, compare(image, &source, offset, 200_000)).await;
        }
        // Where the root has no child, and where only an inner node has none.
        within(60, compare(image, &source, 17 * gib, 50_000)).await;
        within(60, compare(image, &source, 25 * gib + 3 * LEAF_BYTES, 50_000)).await;
        within(60, compare(image, &source, 8 * gib - 2 * LEAF_BYTES, 4 * LEAF_BYTES)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_hole_is_told_without_fetching_anything() {
    let source = huge();
    let repository = Repository::of(&source);
    let store = store(PLENTY, None).await;
    let package = open(&store, &repository).await;
    let gib = 1_u64 << 30;
    let extents = within(60, package.disks()[0].extents(17 * gib, 6 * gib, 8)).await.unwrap();
    assert_eq!((extents[0].length, extents[0].hole, extents.len()), (6 * gib, true, 1));
    assert_eq!(package.origin_requests(), 0);
    let mut pieces = Vec::new();
    assert!(package.disks()[0].read_now(17 * gib, 3 * gib, &mut pieces));
    assert_eq!(pieces, [Piece::Zeros(3 * gib)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_below_a_known_inner_node_are_answered_at_once() {
    let repository = Repository::of(&huge());
    let store = store(PLENTY, None).await;
    let package = open(&store, &repository).await;
    let image = &package.disks()[0];
    let hole = 25 * (1 << 30) + 3 * LEAF_BYTES;
    assert!(!image.read_now(hole, 100, &mut Vec::new()), "nothing is known of this range yet");
    within(60, image.read(hole, 100)).await.unwrap();
    let mut pieces = Vec::new();
    assert!(image.read_now(hole, 100, &mut pieces));
    assert_eq!(pieces, [Piece::Zeros(100)]);
    // Nor do such holes count among the leaves that one question about extents looks at.
    let extents = within(60, image.extents(26 * (1 << 30), 5 << 30, 8)).await.unwrap();
    assert_eq!((extents[0].length, extents[0].hole), (5 << 30, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_image_is_an_image() {
    let source = Source::zeros(0);
    let repository = Repository::of(&source);
    let store = store(PLENTY, None).await;
    let package = open(&store, &repository).await;
    compare_all(&package.disks()[0], &source, &[(0, 0)]).await;
}

/// A chunk's length follows from its digest. An index that says otherwise is damaged, or made by an enemy; the same
/// chunk may be cached already under its true length.
#[tokio::test(start_paused = true)]
async fn an_index_that_lies_about_a_chunk_fails_reads_and_nothing_else() {
    // Disk1 holds the data of disk0, but its index says that each chunk is a block shorter or longer than it is.
    // It compresses well: a chunk that is said to be shorter than it is stored would be seen before it is looked at.
    let source =
        Source::zeros(64 * BLOCK).with(0, prose(1, 20 * BLOCK_BYTES)).with(30 * BLOCK, prose(2, 20 * BLOCK_BYTES));
    for longer in [false, true] {
        let mut first = true;
        let repository = Repository::edited(&[("disk0", &source), ("disk1", &source)], |leaf| {
            if !std::mem::take(&mut first) {
                let next: Vec<u32> = leaf.chunks.iter().skip(1).map(|chunk| chunk.0).chain([64]).collect();
                for (chunk, next) in leaf.chunks.iter_mut().zip(next) {
                    let room = chunk.0 + chunk.1 < next;
                    chunk.1 = if longer { chunk.1 + u32::from(room) } else { chunk.1 - u32::from(chunk.1 > 1) };
                }
            }
        });
        let cache = tempfile::tempdir().unwrap();
        // The liar alone; both at once; the liar when the chunk is in memory; the liar when it is on the disk.
        for (honest_first, keep_memory) in [(false, true), (true, true), (true, false)] {
            let store = store(PLENTY, Some(cache.path())).await;
            let package = open(&store, &repository).await;
            let [honest, liar] = package.disks() else { panic!("two disks") };
            if honest_first {
                compare(honest, &source, 0, source.size_bytes()).await;
                store.disk().unwrap().flush();
            }
            if !keep_memory {
                store.memory().clear();
            }
            let mut failures = 0;
            for block in 0..64 {
                let mut now = Vec::new();
                if liar.read_now(block * BLOCK, BLOCK, &mut now) {
                    assert_eq!(join(&now).len() as u64, BLOCK);
                }
                match within(60, liar.read(block * BLOCK, BLOCK)).await {
                    // Right bytes, or zeros where the index says that there is no chunk.
                    Ok(pieces) => assert_eq!(join(&pieces).len() as u64, BLOCK),
                    Err(error) => {
                        failures += 1;
                        let class = vmnetx_store::failure::Told::class(&error);
                        assert_eq!(class, vmnetx_store::failure::Class::Integrity, "{error}");
                    }
                }
            }
            assert!((1..64).contains(&failures), "longer {longer}, honest first {honest_first}, kept {keep_memory}");
            compare(honest, &source, 0, source.size_bytes()).await;
        }
    }
}
