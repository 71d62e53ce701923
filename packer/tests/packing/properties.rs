//! Whatever the image and the chunker: what is built is exported again, and building it twice publishes nothing.

use proptest::prelude::*;
use vmnetx_format::{BLOCK_BYTES, Chunker};

use crate::support::{LEAF_BYTES, Scene, assert_same_content, noise, sparse, text};

/// A run of blocks of one kind.
#[derive(Debug, Clone)]
enum Run {
    Zeros(usize),
    Noise(u64, usize),
    Text(u64, usize),
    /// A piece that several runs have in common.
    Common(u64, usize),
}

fn run() -> impl Strategy<Value = Run> {
    prop_oneof![
        (1_usize..40).prop_map(Run::Zeros),
        (any::<u64>(), 1_usize..60).prop_map(|(seed, blocks)| Run::Noise(seed, blocks)),
        (any::<u64>(), 1_usize..60).prop_map(|(seed, blocks)| Run::Text(seed, blocks)),
        (0_u64..3, 1_usize..60).prop_map(|(seed, blocks)| Run::Common(seed, blocks)),
    ]
}

fn bytes(runs: &[Run]) -> Vec<u8> {
    let part = |run: &Run| match *run {
        Run::Zeros(blocks) => vec![0; blocks * BLOCK_BYTES],
        Run::Noise(seed, blocks) | Run::Common(seed, blocks) => noise(seed, blocks * BLOCK_BYTES),
        Run::Text(seed, blocks) => text(seed, blocks * BLOCK_BYTES),
    };
    runs.iter().flat_map(part).collect()
}

fn chunker() -> impl Strategy<Value = Chunker> {
    (1_u32..20, 0_u32..6, 0_u32..60).prop_map(|(min, cut, more)| Chunker::new(min, 1 << cut, min + more).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn images_survive(
        parts in proptest::collection::vec((0_u64..3, 0_u64..600, proptest::collection::vec(run(), 1..8)), 0..4),
        tail in 0_u64..5000,
        chunker in chunker(),
    ) {
        // Parts begin shortly before the end of a leaf or at its start, in some order, and may overwrite each other.
        let parts: Vec<(u64, Vec<u8>)> = parts.into_iter().map(|(leaf, before, runs)| {
            let offset = (leaf * LEAF_BYTES).saturating_sub(before * BLOCK_BYTES as u64 / 8);
            (offset, bytes(&runs))
        }).collect();
        let size = parts.iter().map(|(offset, data)| offset + data.len() as u64).max().unwrap_or(0) + tail;
        let scene = Scene::new();
        let image = scene.path("image");
        let slices: Vec<(u64, &[u8])> = parts.iter().map(|(offset, data)| (*offset, &data[..])).collect();
        sparse(&image, size, &slices);

        let first = scene.build_cut("vm", &image, chunker);
        prop_assert!(first.published);
        prop_assert_eq!(first.serial, 1);
        prop_assert_eq!(first.disk_bytes, size);
        let report = scene.verify_whole();
        prop_assert_eq!(report.chunks, first.chunks);
        prop_assert_eq!(report.unreferenced, Vec::<String>::new());
        prop_assert_eq!(report.strangers, Vec::<std::path::PathBuf>::new());
        assert_same_content(&image, &scene.export(scene.link("vm").to_str().unwrap(), "disk0"));

        let files = scene.files();
        let second = scene.build_cut("vm", &image, chunker);
        prop_assert!(!second.published);
        prop_assert_eq!((second.new_chunks, second.serial, second.version), (0, 1, first.version));
        prop_assert_eq!(scene.files(), files);
    }
}
