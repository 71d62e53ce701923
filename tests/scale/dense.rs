//! A package of a disk without a hole, as large as wished: its index is true where it will be read, and everything is held in
//! memory by a web server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use tempfile::TempDir;
use vmnetx_format::limits::INNER_FANOUT;
use vmnetx_format::{
    BLOCK_BYTES, Chunker, ContentInner, ContentLeaf, Digest, Disk, Geometry, LayoutInner, LayoutLeaf, NodePlace, Place,
    Roots, pack_path,
};

use crate::support::bad_http::{Answer, Asked};
use crate::support::repository::publish;
use crate::support::source::{LEAF_BYTES, Source, noise};

/// Bytes of every chunk, about the mean of a disk's.
pub(crate) const CHUNK_BYTES: u64 = 64 << 10;
/// Distinct chunks, of which all leaves are made.
const CHUNKS: u64 = 1024;
const LEAF_CHUNKS: u64 = LEAF_BYTES / CHUNK_BYTES;
/// From one pair of leaves to the next in their pack, so that the index of a small disk lies in one piece.
const LEAF_PITCH: u64 = 12 << 10;
const INNER_PITCH: u64 = 64 << 10;

/// A disk full of data.
pub(crate) struct Dense {
    dir: TempDir,
    /// Packs by their paths.
    packs: HashMap<String, Source>,
    /// The path of the pack that holds the chunks.
    pool: String,
}

/// A pack that is being made. Its name tells nothing of its bytes, which no reader sees all of.
struct Pack {
    digest: Digest,
    pitch: u64,
    nodes: Source,
}

/// Children of a node in the making: their numbers, digests and places.
type Children = BTreeMap<u32, (Digest, NodePlace)>;

impl Dense {
    /// A disk of `size_bytes` that is going to be read at these offsets. The index of a large one names leaves that hold no such
    /// offset by digests that nothing has, since making all of them would take minutes; that of a small one is fetched whole.
    pub(crate) fn new(size_bytes: u64, offsets: &[u64]) -> Self {
        let geometry = Geometry::new(size_bytes).unwrap();
        let mut pool = Pack::new("chunks", CHUNK_BYTES, CHUNKS);
        let chunks: Vec<(Digest, Place)> = (0..CHUNKS as u32)
            .map(|number| {
                let chunk = noise(number.into(), CHUNK_BYTES as usize);
                let place =
                    Place { pack: pool.digest, offset: pool.put(number, &chunk), stored_len: CHUNK_BYTES as u32 };
                (Digest::of(&chunk), place)
            })
            .collect();
        let (pool, chunk_pack) = pool.done();
        let mut packs = HashMap::from([(pool.clone(), chunk_pack)]);
        let read: BTreeSet<u32> = match geometry.has_inner() {
            true => offsets.iter().map(|offset| (offset / LEAF_BYTES) as u32).collect(),
            false => (0..geometry.leaves()).collect(),
        };
        let per_child = geometry.leaves_per_root_child();
        let mut inner = Pack::new("inner nodes", INNER_PITCH, u64::from(geometry.root_children()));
        let mut root = Children::new();
        for number in 0..geometry.root_children() {
            let first = number * per_child;
            let below = first..(first + per_child).min(geometry.leaves());
            if !geometry.has_inner() {
                continue;
            }
            let mut pack = Pack::new(&format!("leaves of {number}"), LEAF_PITCH, u64::from(INNER_FANOUT));
            let children = leaves(below.map(|leaf| (leaf % INNER_FANOUT, leaf)), &read, &chunks, &mut pack);
            let node = node(&children);
            root.insert(number, inner.pair(number, &node.content.encode(), &node.layout.encode()));
            packs.extend([pack.done()]);
        }
        if !geometry.has_inner() {
            let mut pack = Pack::new("leaves", LEAF_PITCH, u64::from(geometry.leaves()));
            root = leaves((0..geometry.leaves()).map(|leaf| (leaf, leaf)), &read, &chunks, &mut pack);
            packs.extend([pack.done()]);
        }
        packs.extend([inner.done()]);
        let dir = tempfile::tempdir().unwrap();
        let roots = node(&root);
        let content = Digest::of(&roots.content.encode());
        let disk = Disk { name: "disk0".parse().unwrap(), size_bytes, content, chunker: Chunker::DISK };
        publish(dir.path(), vec![disk], None, vec![roots]);
        Self { dir, packs, pool }
    }

    /// What is served as files: link, manifest and layout object.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Answer {
        match (self.packs.get(&asked.path), &asked.range) {
            (Some(pack), Some(range)) => {
                Answer::Part(pack.read(range.start, range.end - range.start), pack.size_bytes())
            }
            _ => Answer::Good,
        }
    }

    /// What a read inside of one chunk must answer.
    pub(crate) fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let chunk = chunk_of((offset / LEAF_BYTES) as u32, offset % LEAF_BYTES / CHUNK_BYTES);
        self.packs[&self.pool].read(chunk * CHUNK_BYTES + offset % CHUNK_BYTES, length.into())
    }
}

impl Pack {
    fn new(name: &str, pitch: u64, nodes: u64) -> Self {
        Self { digest: Digest::of(name.as_bytes()), pitch, nodes: Source::zeros(pitch * nodes) }
    }

    fn put(&mut self, number: u32, bytes: &[u8]) -> u64 {
        let offset = u64::from(number) * self.pitch;
        assert!(bytes.len() as u64 <= self.pitch);
        let nodes = std::mem::replace(&mut self.nodes, Source::zeros(0));
        self.nodes = nodes.with(offset, bytes.to_vec());
        offset
    }

    /// Stores a pair of nodes, plain.
    fn pair(&mut self, number: u32, content: &[u8], layout: &[u8]) -> (Digest, NodePlace) {
        let offset = self.put(number, &[content, layout].concat());
        let (content_len, layout_len) = (content.len() as u32, layout.len() as u32);
        let place = NodePlace {
            pack: self.digest,
            offset,
            content_stored_len: content_len,
            content_plain_len: content_len,
            layout_stored_len: layout_len,
            layout_plain_len: layout_len,
            layout: Digest::of(layout),
        };
        (Digest::of(content), place)
    }

    fn done(self) -> (String, Source) {
        (pack_path(&self.digest), self.nodes)
    }
}

/// Which chunk stands where: each leaf begins with another one and leaves one out at another slot, so that no two are equal
/// and neighbours lie side by side, as those of a disk do. A few leaves have all the chunks, as many have: so many reads
/// bring as many chunks, wherever they are.
fn chunk_of(leaf: u32, slot: u64) -> u64 {
    /// Odd, so that the first 1024 leaves begin with as many chunks.
    const STRIDE: u64 = 61;
    let (first, left_out) = (u64::from(leaf) * STRIDE % CHUNKS, u64::from(leaf) / CHUNKS);
    (first + slot + u64::from(slot >= left_out)) % CHUNKS
}

/// The leaves of these numbers, in their node and in the disk.
fn leaves(
    numbers: impl Iterator<Item = (u32, u32)>,
    read: &BTreeSet<u32>,
    chunks: &[(Digest, Place)],
    pack: &mut Pack,
) -> Children {
    let mut children = Children::new();
    for (number, leaf) in numbers {
        let child = if read.contains(&leaf) {
            let of_leaf = || (0..LEAF_CHUNKS).map(|slot| (slot, &chunks[chunk_of(leaf, slot) as usize]));
            let mut content = ContentLeaf::default();
            let blocks = (CHUNK_BYTES / BLOCK_BYTES as u64) as u32;
            for (slot, (digest, _)) in of_leaf() {
                content.push(slot as u32 * blocks, blocks, *digest).unwrap();
            }
            let layout = LayoutLeaf::new(of_leaf().map(|(_, (_, place))| place.clone()).collect());
            pack.pair(number, &content.encode(), &layout.encode())
        } else {
            let nothing = Digest::of(&leaf.to_le_bytes());
            let place = NodePlace {
                pack: pack.digest,
                offset: u64::from(number) * pack.pitch,
                content_stored_len: 8 << 10,
                content_plain_len: 8 << 10,
                layout_stored_len: 2 << 10,
                layout_plain_len: 2 << 10,
                layout: nothing,
            };
            (nothing, place)
        };
        children.insert(number, child);
    }
    children
}

fn node(children: &Children) -> Roots {
    let mut content = ContentInner::default();
    for (number, (digest, _)) in children {
        content.push(*number, *digest).unwrap();
    }
    Roots { content, layout: LayoutInner::new(children.values().map(|(_, place)| place.clone()).collect()) }
}
