//! Trees: roots, nodes and leaves that lie about what is where, and trees that name few nodes millions of times.

use vmnetx_format::Digest;

use super::evil::{Evil, Known, Stage, chunks, varint};
use super::readers::{Reader, Scratch, Serving, says};
use super::refused_by;

type Change = fn(&mut Vec<u8>, &Known);

/// The programs that read leaves without being asked for their data.
const LEAF_READERS: [Reader; 3] = [Reader::Info, Reader::Verify, Reader::Export];

/// Cases that are found when a package is opened.
fn refused_at_once(stage: Stage, cases: &[(&str, Change, &[&str])]) {
    for (case, change, words) in cases {
        refused_by(&Reader::ALL, &Evil::at(stage, change), &format!("{stage:?}, {case}"), words);
    }
}

/// Cases that are found when a leaf is looked at: a server starts, and fails the reads that need the leaf.
fn refused_when_read(stage: Stage, cases: &[(&str, Change, &[&str])]) {
    for (case, change, words) in cases {
        let case = format!("{stage:?}, {case}");
        let evil = Evil::at(stage, change);
        refused_by(&LEAF_READERS, &evil, &case, words);
        let serving = Serving::start(&evil);
        assert!(serving.read(0, 65_536).is_err(), "{case}");
        let told = serving.stop();
        assert!(says(&told.text, words), "the server of {case} does not say {words:?}: {}", told.text);
    }
}

/// A content leaf of these gaps and lengths.
fn content_leaf(parts: &[(u64, u64)]) -> Vec<u8> {
    let mut leaf = [b"cl", &varint(parts.len() as u64)[..]].concat();
    for &(gap, blocks) in parts {
        leaf.extend([varint(gap), varint(blocks)].concat());
    }
    leaf.extend(chunks().iter().cycle().take(parts.len()).flat_map(|chunk| *Digest::of(chunk).as_bytes()));
    leaf
}

/// A layout leaf in one pack, of these pack numbers, encoded offsets and stored lengths.
fn layout_leaf(pack: &Digest, places: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut leaf = [b"ll", &varint(1)[..], pack.as_bytes(), &varint(places.len() as u64)].concat();
    for &(number, offset, stored_len) in places {
        leaf.extend([varint(number), varint(offset), varint(stored_len)].concat());
    }
    leaf
}

/// A layout root of one child: its pack, encoded offset and four lengths, and the layout leaf's digest.
fn layout_root(pack: &Digest, offset: u64, lengths: [u64; 4], leaf: &Digest) -> Vec<u8> {
    let mut root = [b"li", &varint(1)[..], pack.as_bytes(), &varint(1), &varint(0), &varint(offset)].concat();
    root.extend(lengths.into_iter().flat_map(varint));
    root.extend(leaf.as_bytes());
    root
}

#[test]
fn layout_objects_that_lie_are_refused() {
    refused_at_once(
        Stage::LayoutObject,
        &[
            ("nothing", |bytes, _| bytes.clear(), &["layout object", "too early"]),
            ("another tag", |bytes, _| bytes[0] = b'X', &["layout object", "tag"]),
            ("no image", |bytes, _| bytes[8] = 0, &["1 entries"]),
            ("two images", |bytes, _| bytes[8] = 2, &["1 entries"]),
            (
                "more images than there may be",
                |bytes, _| *bytes = [&b"VMNXLAY0"[..], &varint(u64::MAX)].concat(),
                &["the number of images"],
            ),
            (
                "a root without end",
                |bytes, _| *bytes = [&b"VMNXLAY0\x01"[..], &varint(u64::MAX)].concat(),
                &["a root's length"],
            ),
            ("a content root of another digest", |bytes, _| bytes[12] ^= 1, &["content root", "manifest"]),
            ("an end too early", |bytes, _| bytes.truncate(60), &["too early"]),
            ("bytes behind its end", |bytes, _| bytes.push(0), &["follow its end"]),
            ("zeros", |bytes, _| *bytes = vec![0; 1 << 20], &["layout object", "tag"]),
        ],
    );
}

#[test]
fn roots_that_lie_are_refused() {
    refused_at_once(
        Stage::ContentRoot,
        &[
            ("a child behind the image", |root, _| root[3] = 1, &["content node", "behind the image's end"]),
            ("children without end", |root, _| *root = [&b"ci"[..], &varint(u64::MAX)].concat(), &["children"]),
            ("a gap that wraps", |root, _| *root = [&b"ci\x01"[..], &varint(u64::MAX), &[0; 32]].concat(), &["a gap"]),
            (
                "a padded integer",
                |root, _| *root = [&b"ci\x81\0\0"[..], &[0; 32]].concat(),
                &["longer than it need be"],
            ),
            ("a leaf's tag", |root, _| root[1] = b'l', &["content node", "tag"]),
            ("an end too early", |root, _| root.truncate(20), &["too early"]),
        ],
    );
    const ALL_WELL: [u64; 4] = [100, 100, 100, 100];
    refused_at_once(
        Stage::LayoutRoot,
        &[
            ("no child", |root, _| *root = b"li\0\0".to_vec(), &["1 entries", "0"]),
            ("a child without a pack", |root, _| *root = b"li\0\x01\0\0".to_vec(), &["layout node", "too early"]),
            (
                "an offset at the end of 64 bits",
                |root, known| *root = layout_root(&known.nodes, u64::MAX - 1, ALL_WELL, &known.layout_leaf),
                &["layout node", "the end of a frame"],
            ),
            (
                "an offset before the pack",
                |root, known| *root = layout_root(&known.nodes, 1, ALL_WELL, &known.layout_leaf),
                &["layout node", "the end of a frame"],
            ),
            (
                "a place behind the largest pack",
                |root, known| *root = layout_root(&known.nodes, 2 << 30, ALL_WELL, &known.layout_leaf),
                &["layout node", "the end of a frame"],
            ),
            (
                "a node of 4 GiB",
                |root, known| *root = layout_root(&known.nodes, 16, [100, 1 << 32, 100, 100], &known.layout_leaf),
                &["layout node", "a node's length"],
            ),
            (
                "an empty node",
                |root, known| *root = layout_root(&known.nodes, 16, [0, 100, 100, 100], &known.layout_leaf),
                &["layout node", "a node's length is 0"],
            ),
            (
                "packs without end",
                |root, _| *root = [&b"li"[..], &varint(u64::MAX)].concat(),
                &["layout node", "the number of packs"],
            ),
        ],
    );
}

#[test]
fn roots_that_lead_elsewhere_only_fail_digests() {
    refused_when_read(
        Stage::LayoutRoot,
        &[
            (
                "a pack that does not exist",
                |root, known| *root = layout_root(&Digest::of(b"nothing"), 16, [70, 70, 50, 50], &known.layout_leaf),
                &["packs/"],
            ),
            (
                "a chunk in place of a leaf",
                |root, known| *root = layout_root(&known.pack, 16, [70, 70, 50, 50], &known.layout_leaf),
                &["digest"],
            ),
            (
                "the layout node in place of the content node",
                |root, known| *root = layout_root(&known.nodes, 18, [70, 70, 50, 50], &known.layout_leaf),
                &["digest"],
            ),
            (
                "a node that claims to be larger",
                |root, known| *root = layout_root(&known.nodes, 16, [70, 1 << 20, 50, 50], &known.layout_leaf),
                &["decompress"],
            ),
            (
                "a node that is stored in more than it has",
                |root, known| *root = layout_root(&known.nodes, 16, [70, 60, 50, 50], &known.layout_leaf),
                &["longer than its 60 plain bytes"],
            ),
            (
                "a place behind the pack's end",
                |root, known| *root = layout_root(&known.nodes, 1 << 20, [70, 70, 50, 50], &known.layout_leaf),
                &["packs/", "index"],
            ),
            (
                "another layout leaf",
                |root, known| *root = layout_root(&known.nodes, 16, [71, 71, 50, 50], &Digest::of(b"")),
                &["digest"],
            ),
        ],
    );
}

#[test]
fn content_leaves_that_lie_are_refused() {
    refused_when_read(
        Stage::ContentLeaf,
        &[
            (
                "chunks without end",
                |leaf, _| *leaf = [b"cl", &varint(u64::MAX)[..]].concat(),
                &["content leaf", "chunks"],
            ),
            (
                "more chunks than blocks",
                |leaf, _| *leaf = content_leaf(&[(0, 1); 257]),
                &["the number of chunks is 257"],
            ),
            ("a gap that wraps", |leaf, _| *leaf = content_leaf(&[(0, 1), (u64::MAX, 1)]), &["content leaf", "a gap"]),
            ("a length that wraps", |leaf, _| *leaf = content_leaf(&[(0, u64::MAX)]), &["a chunk's length"]),
            ("a chunk of no block", |leaf, _| *leaf = content_leaf(&[(0, 0), (0, 1)]), &["content leaf", "overlap"]),
            ("a chunk of 1025 blocks", |leaf, _| *leaf = content_leaf(&[(0, 1025)]), &["a chunk's length is 1025"]),
            (
                "a chunk behind the image",
                |leaf, _| *leaf = content_leaf(&[(250, 16), (0, 1)]),
                &["behind the image's end"],
            ),
            ("one chunk more", |leaf, _| *leaf = content_leaf(&[(0, 16), (0, 8), (0, 1)]), &["3 entries"]),
            ("an inner node's tag", |leaf, _| leaf[1] = b'i', &["content leaf", "tag"]),
            ("an end too early", |leaf, _| leaf.truncate(40), &["content leaf", "too early"]),
            ("bytes behind its end", |leaf, _| leaf.push(1), &["content leaf", "follow its end"]),
        ],
    );
}

#[test]
fn layout_leaves_that_lie_are_refused() {
    refused_when_read(
        Stage::LayoutLeaf,
        &[
            ("packs without end", |leaf, _| *leaf = [b"ll", &varint(u64::MAX)[..]].concat(), &["the number of packs"]),
            ("more packs than there may be", |leaf, _| *leaf = [b"ll", &varint(8193)[..]].concat(), &["8193"]),
            ("no pack", |leaf, _| *leaf = b"ll\0\x02\0\0\x01\0\0\x01".to_vec(), &["layout leaf", "too early"]),
            (
                "a pack that is not in the table",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(1, 16, 10), (0, 0, 10)]),
                &["layout leaf", "a pack's number"],
            ),
            (
                "an offset at the end of 64 bits",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, u64::MAX - 1, 10), (0, 0, 10)]),
                &["layout leaf", "the end of a frame"],
            ),
            (
                "an offset before the pack",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, u64::MAX, 10), (0, 0, 10)]),
                &["layout leaf", "the end of a frame"],
            ),
            (
                "a chunk of 4 GiB",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 16, 1 << 32), (0, 0, 10)]),
                &["layout leaf", "a stored length"],
            ),
            (
                "an empty frame",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 16, 0), (0, 0, 10)]),
                &["layout leaf", "a stored length is 0"],
            ),
            (
                "a chunk that is stored in more than it has",
                |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 16, 65_537), (0, 0, 10)]),
                &["layout leaf", "more bytes than it has"],
            ),
            ("one place less", |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 16, 10)]), &["2 entries"]),
            ("places without end", |leaf, _| *leaf = [b"ll\0", &varint(u64::MAX)[..]].concat(), &["number of chunks"]),
            ("bytes behind its end", |leaf, _| leaf.push(1), &["layout leaf", "follow its end"]),
        ],
    );
}

#[test]
fn places_that_lead_elsewhere_only_fail_digests() {
    let cases: [(&str, Stage, Change, &[&str]); 7] = [
        (
            "a pack that does not exist",
            Stage::LayoutLeaf,
            |leaf, _| *leaf = layout_leaf(&Digest::of(b"nothing"), &[(0, 16, 100), (0, 0, 100)]),
            &["packs/"],
        ),
        (
            "a place behind the pack's end",
            Stage::LayoutLeaf,
            |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 2 * known.pack_len, 100), (0, 0, 100)]),
            &["packs/", "index"],
        ),
        (
            "the pack's head",
            Stage::LayoutLeaf,
            |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 0, 100), (0, 0, 100)]),
            &["decompress"],
        ),
        (
            "the pack's catalogue",
            Stage::LayoutLeaf,
            |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 2 * (known.pack_len - 100), 100), (0, 1, 1)]),
            &["decompress"],
        ),
        (
            "chunks that overlap",
            Stage::LayoutLeaf,
            |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 16, 20_000), (0, 39_999, 20_000)]),
            &["decompress"],
        ),
        (
            "another chunk",
            Stage::LayoutLeaf,
            |leaf, known| *leaf = layout_leaf(&known.pack, &[(0, 400, 1000), (0, 1, 1000)]),
            &["decompress"],
        ),
        (
            "a chunk of another length",
            Stage::ContentLeaf,
            |leaf, _| *leaf = content_leaf(&[(0, 17), (15, 8)]),
            &["stored frame"],
        ),
    ];
    for (case, stage, change, words) in cases {
        let evil = Evil::at(stage, change);
        refused_by(&[Reader::Verify, Reader::Export], &evil, case, words);
        let serving = Serving::start(&evil);
        assert!(serving.read(0, 65_536).is_err(), "{case}");
        // What is a hole needs no chunk.
        assert_eq!(serving.read(100 * 4096, 4096), Ok(vec![0; 4096]), "{case}");
        let told = serving.stop();
        assert!(says(&told.text, words), "the server of {case} does not say {words:?}: {}", told.text);
    }
}

/// 2^21 leaves of 16 MiB in 1025 versions, made of two leaves' worth of nodes: whoever looks at each place that names a
/// node, rather than at each node, needs days and gigabytes.
#[test]
fn a_tree_that_names_few_nodes_millions_of_times_is_looked_at_once() {
    let evil = Evil::absurdly_large();
    let link = evil.link();
    let link = link.to_str().unwrap();
    let told = Scratch::new().run(Reader::Info, link);
    assert_eq!(told.code, Some(0), "{}", told.text);
    assert!(says(&told.text, &["35.2 TB of data in 8388608 chunks"]), "{}", told.text);
    let told = Scratch::new().run(Reader::Verify, link);
    assert_eq!(told.code, Some(0), "{}", told.text);
    assert!(says(&told.text, &["8388608 chunks"]), "{}", told.text);
    let serving = Serving::start(&evil);
    assert_eq!(serving.read((20 << 40) + 4, 8), Ok(b"abcdabcd".to_vec()));
    assert_eq!(serving.stop().code, Some(0));
}
