//! The parsers of the package format.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use vmnetx_format::limits::{
    FRAME_PLAIN_BYTES_MAX, IMAGE_BLOCKS_MAX, IMAGES_MAX, LEAF_BLOCKS, PACK_BYTES_MAX, ROOT_FANOUT_MAX,
};
use vmnetx_format::machine::{CpuModel, MacAddress, Machine, MachineType};
use vmnetx_format::{
    Catalogue, Compressor, ContentInner, ContentLeaf, Digest, Envelope, Geometry, Kind, LayoutInner, LayoutLeaf,
    LayoutObject, LeafChunk, Link, Manifest, Name, Order, OrderFrame, PackBuilder, PublicKey, Record, Title, Trailer,
    decode_frame, merge,
};

use crate::{assert_printable, bounded};

/// What a tree node may take when it is decoded: the most entries, and twice that while they are put together.
const NODE_ALLOCATION_MAX: usize = 2 << 20;

/// What JSON of this length may take when it is decoded.
pub(crate) const fn json_allocation_max(length: usize) -> usize {
    64 * length + (64 << 10)
}

/// A whole link file.
pub fn link(data: &[u8]) {
    match bounded(json_allocation_max(data.len()), || Envelope::decode(data)) {
        Ok(envelope) => {
            let again = Envelope::decode(&envelope.encode()).unwrap();
            assert_eq!((&again.link, &again.signature), (&envelope.link, &envelope.signature));
            assert_eq!(again.text(), envelope.text());
            if let Err(error) = envelope.signer() {
                assert_printable(&error);
            }
            assert_eq!(rewritten(&envelope.link), envelope.link);
        }
        Err(error) => assert_printable(&error),
    }
}

/// The text of a link, put into a file with the digest that it has.
pub fn link_text(data: &[u8]) {
    let digest = Digest::of(data.trim_ascii());
    let file = [b"{\"vmnetx\":0,\"link\":", data, format!(",\"blake3\":\"{digest}\"}}").as_bytes()].concat();
    link(&file);
}

fn rewritten(link: &Link) -> Link {
    let written = Envelope::unsigned(link.clone()).unwrap().encode();
    Envelope::decode(&written).unwrap().link
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    match bounded(json_allocation_max(data.len()), || Manifest::decode(data)) {
        Ok(manifest) => {
            assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(&manifest));
            assert!(manifest.shapes().is_ok());
            let shown = manifest.memory.iter().flat_map(|memory| &memory.blocks).map(|block| &block.name);
            shown.for_each(assert_printable);
        }
        Err(error) => assert_printable(&error),
    }
}

/// A machine description, as TOML and as the JSON of a manifest.
pub fn machine(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    // The TOML parser keeps spans and keys of every value.
    match bounded(512 * data.len() + (256 << 10), || Machine::from_toml(text)) {
        Ok(machine) => {
            assert_eq!(Machine::from_toml(&machine.to_toml()).as_ref(), Ok(&machine));
            let json = serde_json::to_string(&machine).unwrap();
            assert_eq!(serde_json::from_str::<Machine>(&json).unwrap(), machine);
            let names: Vec<Name> = machine.disks.iter().map(|disk| disk.name.clone()).collect();
            if let Err(error) = machine.validate(&names) {
                assert_printable(&error);
            }
        }
        // Several lines, which show where the text is wrong.
        Err(error) => error.to_string().lines().for_each(|line| assert_printable(&line)),
    }
    let _ = serde_json::from_str::<Machine>(text);
}

/// Names, titles, digests and the values of a machine description.
pub fn names(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Some(name) = survives::<Name>(text) {
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with(['.', '-']));
    }
    if let Some(title) = survives::<Title>(text) {
        assert_printable(&title);
    }
    survives::<Digest>(text);
    survives::<PublicKey>(text);
    if let Some(machine) = survives::<MachineType>(text) {
        assert!(!machine.to_string().contains([',', '=']));
    }
    if let Some(model) = survives::<CpuModel>(text) {
        assert!(!model.as_str().contains([',', '=', ' ', '?', '+']) && !model.as_str().starts_with('-'));
    }
    if let Ok(mac) = text.parse::<MacAddress>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
}

/// Parses a text whose value has no other spelling.
fn survives<T: FromStr<Err: Display> + Display + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string(), text);
            Some(value)
        }
        Err(error) => {
            assert_printable(&error);
            None
        }
    }
}

/// Content leaves and inner nodes, behind two bytes that say how many blocks or children there may be.
pub fn content_nodes(data: &[u8]) {
    let Some((&span, node)) = data.split_first_chunk::<2>() else { return };
    let span = u32::from(u16::from_le_bytes(span));
    match bounded(NODE_ALLOCATION_MAX, || ContentLeaf::decode(node, span.min(LEAF_BLOCKS))) {
        Ok(leaf) => {
            assert_eq!(leaf.encode(), node);
            let mut end = 0;
            for &(first_block, blocks, _) in leaf.chunks() {
                assert!(first_block >= end && blocks > 0);
                end = first_block + blocks;
            }
            assert!(end <= span);
        }
        Err(error) => assert_printable(&error),
    }
    match bounded(NODE_ALLOCATION_MAX, || ContentInner::decode(node, span.min(ROOT_FANOUT_MAX))) {
        Ok(inner) => {
            assert_eq!(inner.encode(), node);
            assert!(inner.children().is_sorted_by_key(|child| child.0));
            assert!(inner.children().last().is_none_or(|last| last.0 < span));
        }
        Err(error) => assert_printable(&error),
    }
}

/// Layout leaves and inner nodes, and what becomes of them beside a content leaf.
pub fn layout_nodes(data: &[u8]) {
    match bounded(NODE_ALLOCATION_MAX, || LayoutLeaf::decode(data)) {
        Ok(leaf) => {
            assert_eq!(LayoutLeaf::decode(&leaf.encode()).as_ref(), Ok(&leaf));
            let mut content = ContentLeaf::default();
            for (number, _) in (0..).zip(leaf.places()) {
                content.push(number, 1, Digest::of(b"")).unwrap();
            }
            if let Ok(joined) = LeafChunk::join(&content, &leaf) {
                assert!(joined.iter().all(|chunk| chunk.place.stored_len <= chunk.plain_len()));
            }
        }
        Err(error) => assert_printable(&error),
    }
    match bounded(NODE_ALLOCATION_MAX, || LayoutInner::decode(data)) {
        Ok(inner) => {
            assert_eq!(LayoutInner::decode(&inner.encode()).as_ref(), Ok(&inner));
            for child in inner.children() {
                let (content, layout) = (child.content_place(), child.layout_place());
                assert_eq!(content.offset + u64::from(content.stored_len), layout.offset);
            }
        }
        Err(error) => assert_printable(&error),
    }
}

/// A layout object: raw, and put together from an image's size, the length of its content root, and both roots.
pub fn layout_object(data: &[u8]) {
    let Some((&size, rest)) = data.split_first_chunk::<8>() else { return };
    let Ok(geometry) = Geometry::new(u64::from_le_bytes(size)) else { return };
    let decode =
        |bytes: &[u8], root| bounded(2 * NODE_ALLOCATION_MAX, || LayoutObject::decode(bytes, &[(geometry, root)]));
    if let Err(error) = decode(rest, Digest::of(b"ci\0")) {
        assert_printable(&error);
    }
    let Some((&length, roots)) = rest.split_first_chunk::<2>() else { return };
    let (content, layout) = roots.split_at(roots.len().min(u16::from_le_bytes(length).into()));
    let mut object = b"VMNXLAY0\x01".to_vec();
    for node in [content, layout] {
        // The length as a varint of at most three bytes.
        let mut left = node.len();
        while left >= 0x80 {
            object.push(left as u8 | 0x80);
            left >>= 7;
        }
        object.push(left as u8);
        object.extend(node);
    }
    match decode(&object, Digest::of(content)) {
        Ok(object) => {
            let [image] = &object.images[..] else { panic!("not one image") };
            assert_eq!(image.content.children().len(), image.layout.children().len());
            assert_eq!(decode(&object.encode(), Digest::of(content)).as_ref(), Ok(&object));
        }
        Err(error) => assert_printable(&error),
    }
}

/// An order object.
pub fn order(data: &[u8]) {
    // A touch has 4 bytes at least and takes 24, a frame has 36 and takes 96; each frame's pack may be another.
    match bounded(16 * data.len() + (64 << 10), || Order::decode(data)) {
        Ok(order) => {
            assert_eq!(order.encode(), data);
            assert!(order.touches().is_sorted_by_key(|touch| touch.after_ms));
            for touch in order.touches() {
                assert!(touch.blocks > 0 && touch.end() <= IMAGE_BLOCKS_MAX && touch.image < IMAGES_MAX);
            }
            for OrderFrame { plain_len, place, .. } in order.frames() {
                assert!((1..=*plain_len).contains(&place.stored_len) && *plain_len <= FRAME_PLAIN_BYTES_MAX);
                assert!(place.offset + u64::from(place.stored_len) <= PACK_BYTES_MAX);
            }
            let again = Order::new(order.purpose(), order.touches().to_vec(), order.frames().to_vec());
            assert_eq!(again.as_ref(), Ok(&order));
        }
        Err(error) => assert_printable(&error),
    }
}

/// Records of touches, one a line, and what becomes of them together.
pub fn record(data: &[u8]) {
    let mut records: Vec<Record> = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        match bounded(json_allocation_max(line.len()), || Record::decode(line)) {
            Ok(record) => {
                assert_eq!(Record::decode(&record.encode().unwrap()).as_ref(), Ok(&record));
                records.push(record);
            }
            Err(error) => assert_printable(&error),
        }
    }
    match merge(&records) {
        Ok(touches) => {
            // It is a sequence that a record can have, with each block once.
            let merged = Record::new(records[0].manifest, records[0].purpose, touches.clone()).unwrap();
            assert_eq!(merge(&[merged]).as_ref(), Ok(&touches));
        }
        Err(error) => assert_printable(&error),
    }
}

/// A pack's end: a catalogue behind the length that the pack is to have, and the bytes as a trailer.
pub fn catalogue(data: &[u8]) {
    if let Some(trailer) = data.last_chunk::<{ Trailer::BYTES }>()
        && let Ok(trailer) = Trailer::decode(trailer, data.len() as u64)
    {
        let end = data.len() - Trailer::BYTES;
        let stored = &data[end - trailer.stored_len as usize..end];
        let _ = Catalogue::decode(stored, &trailer, data.len() as u64);
    }
    let Some((&pack_len, plain)) = data.split_first_chunk::<8>() else { return };
    let pack_len = u64::from_le_bytes(pack_len);
    let length = plain.len() as u32;
    let trailer = Trailer { stored_len: length, plain_len: length, digest: Digest::of(plain) };
    match bounded(4 * plain.len() + (64 << 10), || Catalogue::decode(plain, &trailer, pack_len)) {
        Ok(catalogue) => {
            let mut builder = PackBuilder::new();
            for (offset, entry) in catalogue.entries() {
                assert!(offset + u64::from(entry.stored_len) <= pack_len);
                assert_eq!(offset, builder.len());
                let stored = vec![0; entry.stored_len as usize];
                builder.push(entry.kind, entry.digest, entry.plain_len, &stored);
            }
            let (footer, _) = builder.finish().unwrap();
            let written = Trailer::decode(footer.last_chunk().unwrap(), builder_len(pack_len, length, &footer));
            assert_eq!(written.unwrap().digest, Digest::of(plain));
            assert!(
                catalogue.entries().all(|(_, entry)| {
                    matches!(entry.kind, Kind::Chunk | Kind::Content | Kind::Layout | Kind::Copy)
                })
            );
        }
        Err(error) => assert_printable(&error),
    }
}

/// The length of the pack of which `footer` is the end, written anew, when it had `pack_len` with a plain catalogue.
fn builder_len(pack_len: u64, plain_catalogue: u32, footer: &[u8]) -> u64 {
    pack_len - u64::from(plain_catalogue) - Trailer::BYTES as u64 + footer.len() as u64
}

/// A stored frame behind its plain length; and the bytes as plain ones that are stored and come back.
pub fn frame(data: &[u8]) {
    let Some((&plain_len, stored)) = data.split_first_chunk::<4>() else { return };
    let plain_len = u32::from_le_bytes(plain_len);
    match bounded(plain_len as usize + (64 << 10), || decode_frame(stored, plain_len)) {
        Ok(plain) => assert_eq!(plain.len(), plain_len as usize),
        Err(error) => assert_printable(&error),
    }
    let level = i32::from(plain_len.to_le_bytes()[0] % 5 + 1);
    let written = Compressor::new(level).unwrap().encode(stored).unwrap();
    assert!(written.len() <= stored.len());
    assert_eq!(decode_frame(&written, stored.len() as u32).as_deref(), Ok(stored));
}
