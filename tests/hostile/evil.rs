//! Repositories as a hostile publisher makes them: everything is in order but what a case changes, and whatever was made
//! before is named by the digest that it really has.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vmnetx_format::machine::Machine;
use vmnetx_format::{
    BLOCK_BYTES, Chunker, Compressor, ContentInner, ContentLeaf, Digest, Disk, Envelope, Kind, LayoutInner, LayoutLeaf,
    LayoutObject, Link, Manifest, NodePlace, OrderFrame, PackBuilder, Place, Roots, Version, layout_path,
    manifest_path, order_path, pack_path,
};

pub(crate) const MACHINE: &str = "machine = \"pc-i440fx-7.2\"\nmemory_mib = 64\n[cpu]\nmodel = \"qemu64\"\n";

/// The size of the disk of every package here: one leaf, with data at its front.
pub(crate) const DISK_BYTES: u64 = 1 << 20;

/// Blocks of the disk's two chunks: text, which is stored compressed, and noise, which is not.
pub(crate) const CHUNK_BLOCKS: [u32; 2] = [16, 8];

/// What is being made when a case may change its bytes, in the order in which it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The stored bytes of the compressed chunk.
    Frame,
    /// The whole pack with the chunks.
    Pack,
    /// The content leaf.
    ContentLeaf,
    /// The layout leaf.
    LayoutLeaf,
    /// The root of the content tree.
    ContentRoot,
    /// The root of the layout tree.
    LayoutRoot,
    /// The layout object.
    LayoutObject,
    /// The manifest, in JSON.
    Manifest,
    /// The value of `link` in the link file, in JSON.
    Link,
    /// The link file.
    LinkFile,
}

/// What a case may need to know to change something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The pack with the chunks; of zeros before it is made.
    pub(crate) pack: Digest,
    /// Bytes of that pack.
    pub(crate) pack_len: u64,
    /// The pack with the leaves; of zeros before it is made.
    pub(crate) nodes: Digest,
    /// The layout leaf's digest.
    pub(crate) layout_leaf: Digest,
}

/// A repository with one package, `vm`, with one disk, `disk0`.
pub(crate) struct Evil {
    dir: TempDir,
}

impl Evil {
    /// A repository in which nothing is wrong.
    pub(crate) fn good() -> Self {
        Self::new(|_, _, _| ())
    }

    /// A repository in which the bytes of one stage are changed.
    pub(crate) fn at(stage: Stage, change: impl Fn(&mut Vec<u8>, &Known)) -> Self {
        Self::new(|now, bytes, known| {
            if now == stage {
                change(bytes, known);
            }
        })
    }

    /// A repository in which a piece of a JSON object is another. The piece must be there.
    pub(crate) fn replaced(stage: Stage, from: &str, to: &str) -> Self {
        Self::at(stage, |bytes, _| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from), "{from} is not in {text}");
            *bytes = text.replacen(from, to, 1).into_bytes();
        })
    }

    /// A repository in which nothing is wrong but, perhaps, the order of the version: it is made for the place of the
    /// chunk of noise, which is stored as it is.
    pub(crate) fn ordered(order: impl FnOnce(&OrderFrame) -> Vec<u8>) -> Self {
        let evil = Self::good();
        let noise = &chunks()[1];
        let packs = fs::read_dir(evil.root().join("packs")).unwrap().map(|folder| folder.unwrap().path());
        let mut packs =
            packs.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|file| fs::read(file.unwrap().path()));
        let find = |pack: std::io::Result<Vec<u8>>| {
            let pack = pack.unwrap();
            let offset = pack.windows(noise.len()).position(|bytes| bytes == noise)?;
            Some(Place { pack: Digest::of(&pack), offset: offset as u64, stored_len: noise.len() as u32 })
        };
        let place = packs.find_map(find).unwrap();
        let frame = OrderFrame { digest: Digest::of(noise), plain_len: noise.len() as u32, place };
        let order = order(&frame);
        let digest = Digest::of(&order);
        put(evil.root(), &order_path(&digest), &order);
        let mut link = Envelope::decode(&fs::read(evil.link()).unwrap()).unwrap().link;
        link.current.orders = vec![digest];
        put(evil.root(), "vm.vmnetx", &Envelope::unsigned(link).unwrap().encode());
        evil
    }

    fn new(edit: impl Fn(Stage, &mut Vec<u8>, &Known)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let zero = Digest::from_bytes([0; Digest::BYTES]);
        let mut known = Known { pack: zero, pack_len: 0, nodes: zero, layout_leaf: zero };
        let made = |stage, mut bytes: Vec<u8>, known: &Known| {
            edit(stage, &mut bytes, known);
            bytes
        };

        let plain = chunks();
        let frames: Vec<Vec<u8>> =
            plain.iter().map(|chunk| Compressor::new(3).unwrap().encode(chunk).unwrap()).collect();
        let frames = [made(Stage::Frame, frames[0].clone(), &known), frames[1].clone()];
        let (pack, places) = pack(&[(Kind::Chunk, &plain[0], &frames[0]), (Kind::Chunk, &plain[1], &frames[1])]);
        let pack = made(Stage::Pack, pack, &known);
        (known.pack, known.pack_len) = (Digest::of(&pack), pack.len() as u64);
        put(root, &pack_path(&known.pack), &pack);

        let mut content = ContentLeaf::default();
        content.push(0, CHUNK_BLOCKS[0], Digest::of(&plain[0])).unwrap();
        content.push(32, CHUNK_BLOCKS[1], Digest::of(&plain[1])).unwrap();
        let places = places.into_iter().map(|(offset, stored_len)| Place { pack: known.pack, offset, stored_len });
        let content = made(Stage::ContentLeaf, content.encode(), &known);
        let layout = made(Stage::LayoutLeaf, LayoutLeaf::new(places.collect()).encode(), &known);
        let (nodes, places) = self::pack(&[(Kind::Content, &content, &content), (Kind::Layout, &layout, &layout)]);
        (known.nodes, known.layout_leaf) = (Digest::of(&nodes), Digest::of(&layout));
        put(root, &pack_path(&known.nodes), &nodes);

        let mut inner = ContentInner::default();
        inner.push(0, Digest::of(&content)).unwrap();
        let place = NodePlace {
            pack: known.nodes,
            offset: places[0].0,
            content_stored_len: content.len() as u32,
            content_plain_len: content.len() as u32,
            layout_stored_len: layout.len() as u32,
            layout_plain_len: layout.len() as u32,
            layout: known.layout_leaf,
        };
        let content_root = made(Stage::ContentRoot, inner.encode(), &known);
        let layout_root = made(Stage::LayoutRoot, LayoutInner::new(vec![place]).encode(), &known);
        let object = [b"VMNXLAY0\x01", &varint(content_root.len() as u64)[..], &content_root].concat();
        let object = [&object[..], &varint(layout_root.len() as u64), &layout_root].concat();
        let object = made(Stage::LayoutObject, object, &known);

        let disk = Disk {
            name: "disk0".parse().unwrap(),
            size_bytes: DISK_BYTES,
            content: Digest::of(&content_root),
            chunker: Chunker::DISK,
        };
        let manifest = Manifest::new(Machine::from_toml(MACHINE).unwrap(), vec![disk], None).unwrap().encode();
        let manifest = made(Stage::Manifest, manifest, &known);
        let version = put_version(root, &manifest, &object);
        let link = Envelope::unsigned(link(version)).unwrap().text().to_vec();
        let link = made(Stage::Link, link, &known);
        let digest = Digest::of(&link);
        let file = [b"{\"vmnetx\":0,\"link\":", &link[..], format!(",\"blake3\":\"{digest}\"}}\n").as_bytes()].concat();
        let file = made(Stage::LinkFile, file, &known);
        put(root, "vm.vmnetx", &file);
        Self { dir }
    }

    /// A repository of 32 TiB that is full of data: each of its inner nodes and leaves, and each chunk, is the same one.
    pub(crate) fn absurdly_large() -> Self {
        const CHUNK_BLOCKS: u32 = 1024;
        let dir = tempfile::tempdir().unwrap();
        let chunk = b"abcd".repeat(CHUNK_BLOCKS as usize * BLOCK_BYTES / 4);
        let stored = Compressor::new(3).unwrap().encode(&chunk).unwrap();
        let (bytes, places) = pack(&[(Kind::Chunk, &chunk, &stored)]);
        let place = |bytes: &[u8], (offset, stored_len)| Place { pack: Digest::of(bytes), offset, stored_len };
        let place = place(&bytes, places[0]);
        put(dir.path(), &pack_path(&place.pack), &bytes);
        let mut content = ContentLeaf::default();
        for number in 0..4 {
            content.push(number * CHUNK_BLOCKS, CHUNK_BLOCKS, Digest::of(&chunk)).unwrap();
        }
        let mut below = (content.encode(), LayoutLeaf::new(vec![place; 4]).encode());
        let mut roots = None;
        for count in [512, 4096] {
            let (content, layout) = &below;
            let (bytes, places) = pack(&[(Kind::Content, content, content), (Kind::Layout, layout, layout)]);
            let place = NodePlace {
                pack: Digest::of(&bytes),
                offset: places[0].0,
                content_stored_len: content.len() as u32,
                content_plain_len: content.len() as u32,
                layout_stored_len: layout.len() as u32,
                layout_plain_len: layout.len() as u32,
                layout: Digest::of(layout),
            };
            put(dir.path(), &pack_path(&place.pack), &bytes);
            let mut node = ContentInner::default();
            (0..count).for_each(|number| node.push(number, Digest::of(content)).unwrap());
            let layout = LayoutInner::new(vec![place; count as usize]);
            below = (node.encode(), layout.encode());
            roots = Some(Roots { content: node, layout });
        }
        let object = LayoutObject { images: roots.into_iter().collect() }.encode();
        let disk = Disk {
            name: "disk0".parse().unwrap(),
            size_bytes: 32 << 40,
            content: Digest::of(&below.0),
            chunker: Chunker::DISK,
        };
        let manifest = Manifest::new(Machine::from_toml(MACHINE).unwrap(), vec![disk], None).unwrap().encode();
        let version = put_version(dir.path(), &manifest, &object);
        // Every retained version is the same one.
        let link = Link { retained: vec![version.clone(); 1024], ..link(version) };
        put(dir.path(), "vm.vmnetx", &Envelope::unsigned(link).unwrap().encode());
        Self { dir }
    }

    /// A repository that was made elsewhere.
    pub(crate) const fn made_in(dir: TempDir) -> Self {
        Self { dir }
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The link as a path.
    pub(crate) fn link(&self) -> PathBuf {
        self.root().join("vm.vmnetx")
    }
}

/// The plain bytes of the disk's chunks.
pub(crate) fn chunks() -> [Vec<u8>; 2] {
    let bytes = CHUNK_BLOCKS.map(|blocks| blocks as usize * BLOCK_BYTES);
    let text = b"a line that a compressor makes much smaller\n".iter().copied().cycle().take(bytes[0]).collect();
    let mut noise = Vec::new();
    let mut hash = Digest::of(b"noise");
    while noise.len() < bytes[1] {
        noise.extend(hash.as_bytes());
        hash = Digest::of(hash.as_bytes());
    }
    [text, noise]
}

pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A pack of these frames, each with its plain and its stored bytes; and offset and length of each.
pub(crate) fn pack(frames: &[(Kind, &[u8], &[u8])]) -> (Vec<u8>, Vec<(u64, u32)>) {
    let mut builder = PackBuilder::new();
    let mut file = PackBuilder::HEADER.to_vec();
    let place = |&(kind, plain, stored): &(Kind, &[u8], &[u8])| {
        file.extend(stored);
        (builder.push(kind, Digest::of(plain), plain.len() as u32, stored), stored.len() as u32)
    };
    let places = frames.iter().map(place).collect();
    file.extend(builder.finish().unwrap().0);
    (file, places)
}

pub(crate) fn link(version: Version) -> Link {
    let title = Some("a title".parse().unwrap());
    Link {
        name: "vm".parse().unwrap(),
        title,
        serial: 1,
        repositories: Vec::new(),
        current: version,
        retained: Vec::new(),
    }
}

pub(crate) fn put_version(root: &Path, manifest: &[u8], layout: &[u8]) -> Version {
    let version = Version {
        manifest: Digest::of(manifest),
        manifest_bytes: manifest.len().min(1 << 20) as u64,
        layout: Digest::of(layout),
        layout_bytes: layout.len() as u64,
        orders: Vec::new(),
        published_unix_s: 1_700_000_000,
        pinned: false,
    };
    put(root, &manifest_path(&version.manifest), manifest);
    put(root, &layout_path(&version.layout), layout);
    version
}

pub(crate) fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
