use proptest::prelude::*;

use super::*;
use crate::limits::ROOT_FANOUT_MAX;

fn digest(seed: u32) -> Digest {
    Digest::of(&seed.to_le_bytes())
}

fn leaf() -> impl Strategy<Value = ContentLeaf> {
    proptest::collection::vec((0_u32..40, 1_u32..40, any::<u32>()), 0..100).prop_map(|parts| {
        let mut leaf = ContentLeaf::default();
        let mut at = 0;
        for (gap, blocks, seed) in parts {
            if at + gap + blocks > LEAF_BLOCKS {
                break;
            }
            leaf.push(at + gap, blocks, digest(seed)).unwrap();
            at += gap + blocks;
        }
        leaf
    })
}

fn places(count: usize) -> impl Strategy<Value = Vec<Place>> {
    proptest::collection::vec((0_u32..5, 0_u64..100_000_000, 1_u32..4096), count).prop_map(|parts| {
        let place = |(pack, offset, stored_len)| Place { pack: digest(pack), offset, stored_len };
        parts.into_iter().map(place).collect()
    })
}

fn inner() -> impl Strategy<Value = (ContentInner, LayoutInner)> {
    proptest::collection::vec((0_u32..9, 0_u32..5, 0_u64..100_000_000, 2_u32..100_000), 0..400).prop_map(|parts| {
        let mut content = ContentInner::default();
        let mut children = Vec::new();
        let mut at = 0;
        for (gap, pack, offset, len) in parts {
            content.push(at + gap, digest(len)).unwrap();
            at += gap + 1;
            children.push(NodePlace {
                pack: digest(pack),
                offset,
                content_stored_len: len,
                content_plain_len: len + 1,
                layout_stored_len: len / 2,
                layout_plain_len: len,
                layout: digest(pack + 1),
            });
        }
        (content, LayoutInner::new(children))
    })
}

#[test]
fn shapes_follow_the_size() {
    let shape = |size| {
        let geometry = Geometry::new(size).unwrap();
        (geometry.blocks(), geometry.leaves(), geometry.has_inner(), geometry.root_children())
    };
    assert_eq!(shape(0), (0, 0, false, 0));
    assert_eq!(shape(1), (1, 1, false, 1));
    assert_eq!(shape(1 << 30), (1 << 18, 64, false, 64));
    assert_eq!(shape(8 << 30), (2 << 20, 512, false, 512));
    assert_eq!(shape((8 << 30) + 1), ((2 << 20) + 1, 513, true, 2));
    assert_eq!(shape(4 << 40), (1 << 30, 1 << 18, true, 512));
    assert_eq!(shape(IMAGE_BYTES_MAX).3, ROOT_FANOUT_MAX);
    assert!(Geometry::new(IMAGE_BYTES_MAX + 1).is_err());
    let odd = Geometry::new((8 << 30) + 4097).unwrap();
    assert_eq!((odd.leaf_blocks(0), odd.leaf_blocks(512), odd.leaf_blocks(513)), (LEAF_BLOCKS, 2, 0));
    assert_eq!((odd.inner_children(0), odd.inner_children(1), odd.inner_children(2)), (INNER_FANOUT, 1, 0));
}

#[test]
fn leaves_refuse_what_leaves_their_span() {
    let mut leaf = ContentLeaf::default();
    assert!(leaf.push(0, 0, digest(0)).is_err());
    assert!(leaf.push(LEAF_BLOCKS, 1, digest(0)).is_err());
    assert!(leaf.push(LEAF_BLOCKS - 1, 2, digest(0)).is_err());
    leaf.push(LEAF_BLOCKS - 2, 2, digest(0)).unwrap();
    assert!(leaf.push(LEAF_BLOCKS - 2, 1, digest(0)).is_err());
    assert!(ContentLeaf::decode(&leaf.encode(), LEAF_BLOCKS).is_ok());
    assert!(ContentLeaf::decode(&leaf.encode(), LEAF_BLOCKS - 1).is_err());
}

#[test]
fn a_layout_object_belongs_to_one_manifest() {
    let mut content = ContentInner::default();
    content.push(3, digest(3)).unwrap();
    let geometry = Geometry::new(100 << 20).unwrap();
    let place = NodePlace {
        pack: digest(1),
        offset: 8,
        content_stored_len: 1,
        content_plain_len: 2,
        layout_stored_len: 3,
        layout_plain_len: 4,
        layout: digest(2),
    };
    let root = Digest::of(&content.encode());
    let object = LayoutObject { images: vec![Roots { content, layout: LayoutInner::new(vec![place]) }] };
    let bytes = object.encode();
    assert_eq!(LayoutObject::decode(&bytes, &[(geometry, root)]), Ok(object.clone()));
    assert!(LayoutObject::decode(&bytes, &[(geometry, digest(9))]).is_err());
    assert!(LayoutObject::decode(&bytes, &[]).is_err());
    assert!(LayoutObject::decode(&bytes, &[(Geometry::new(48 << 20).unwrap(), root)]).is_err());
    let childless = LayoutObject { images: vec![Roots { layout: LayoutInner::default(), ..object.images[0].clone() }] };
    let expected = TreeError::Mismatch { content: 1, layout: 0 };
    assert_eq!(LayoutObject::decode(&childless.encode(), &[(geometry, root)]), Err(expected));
}

proptest! {
    #[test]
    fn leaves_survive((content, layout) in leaf().prop_flat_map(|leaf| {
        let count = leaf.chunks().len();
        (Just(leaf), places(count))
    })) {
        let layout = LayoutLeaf::new(layout);
        prop_assert_eq!(ContentLeaf::decode(&content.encode(), LEAF_BLOCKS), Ok(content.clone()));
        prop_assert_eq!(LayoutLeaf::decode(&layout.encode()), Ok(layout.clone()));
        let joined = LeafChunk::join(&content, &layout).unwrap();
        prop_assert_eq!(joined.len(), content.chunks().len());
        for (chunk, place) in joined.iter().zip(layout.places()) {
            prop_assert_eq!(&chunk.place, place);
        }
    }

    #[test]
    fn inner_nodes_survive((content, layout) in inner()) {
        prop_assert_eq!(ContentInner::decode(&content.encode(), ROOT_FANOUT_MAX), Ok(content));
        prop_assert_eq!(LayoutInner::decode(&layout.encode()), Ok(layout));
    }

    #[test]
    fn content_has_one_encoding(content in leaf(), at: prop::sample::Index, flip in 1_u8..=255) {
        let mut bytes = content.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = ContentLeaf::decode(&bytes, LEAF_BLOCKS) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_decoders_panic(
        tag in prop::sample::select(vec!["cl", "ci", "ll", "li", "VMNXLAY0"]),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [tag.as_bytes(), &tail].concat();
        let _ = ContentLeaf::decode(&bytes, 77);
        let _ = ContentInner::decode(&bytes, 77);
        let _ = LayoutLeaf::decode(&bytes);
        let _ = LayoutInner::decode(&bytes);
        let _ = LayoutObject::decode(&bytes, &[(Geometry::new(1 << 30).unwrap(), digest(0))]);
    }
}
