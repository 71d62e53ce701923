//! Repositories in temporary directories, built with the format crate alone and not by the publisher under test.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;
use vmnetx_format::limits::INNER_FANOUT;
use vmnetx_format::machine::Machine;
use vmnetx_format::{
    BLOCK_BYTES, Chunker, Compressor, ContentInner, ContentLeaf, DEVICE_STATE_IMAGE, DeviceStateImage, Digest, Disk,
    Envelope, Geometry, Kind, LayoutInner, LayoutLeaf, LayoutObject, Link, MAIN_RAM_BLOCK, Manifest, Memory, Name,
    NodePlace, PackBuilder, Place, RamBlock, Roots, Version, layout_path, link_path, manifest_path, pack_path,
};
use vmnetx_store::Location;
use vmnetx_store::tier::Wanted;

use super::source::{LEAF_BYTES, Source};

/// The only package of these repositories.
pub(crate) const NAME: &str = "vm";

const MACHINE: &str = "machine = \"pc-i440fx-7.2\"\nmemory_mib = 64\n[cpu]\nmodel = \"qemu64\"\n";
/// So small that even little images have several packs.
const PACK_BYTES: u64 = 256 << 10;
const LEVEL: i32 = 1;

/// A repository with one package, removed with this value.
#[derive(Debug)]
pub(crate) struct Repository {
    dir: TempDir,
    /// Every distinct chunk, in the order in which they are stored.
    pub(crate) chunks: Vec<Frame>,
    /// The version that the link names.
    pub(crate) version: Version,
}

/// A stored frame, as a tier is asked for it and as it must answer.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) wanted: Wanted,
    pub(crate) plain: Bytes,
}

impl Repository {
    /// Publishes `source` as the disk `disk0`.
    pub(crate) fn of(source: &Source) -> Self {
        Self::of_disks(&[("disk0", source)])
    }

    /// Publishes several disks.
    pub(crate) fn of_disks(disks: &[(&str, &Source)]) -> Self {
        Self::edited(disks, |_| ())
    }

    /// Publishes `disk` as `disk0`, and a saved VM whose main memory is `ram`.
    pub(crate) fn with_memory(disk: &Source, ram: &Source) -> Self {
        let device_state = Source::of(b"no devices".to_vec());
        let disks = [("disk0", disk), (MAIN_RAM_BLOCK, ram), (DEVICE_STATE_IMAGE, &device_state)];
        Self::made(
            &disks,
            |_| (),
            |images| {
                let [(_, state), (name, ram)] = [images.pop().unwrap(), images.pop().unwrap()];
                let (size_bytes, content, chunker) = (ram.0, ram.1, Chunker::DISK);
                let block = RamBlock { name, size_bytes, content, chunker };
                let device_state = DeviceStateImage { size_bytes: state.0, content: state.1, chunker };
                Some(Memory { blocks: vec![block], device_state, accelerator: None, qemu: None, libvirt: None })
            },
        )
    }

    /// Publishes several disks, the leaves of their indexes changed by `edit` before they are stored: what a hostile
    /// publisher could do.
    pub(crate) fn edited(disks: &[(&str, &Source)], edit: impl FnMut(&mut Leaf)) -> Self {
        Self::made(disks, edit, |_| None)
    }

    /// Publishes images, of which `memory` takes those that are no disks.
    fn made(
        sources: &[(&str, &Source)],
        mut edit: impl FnMut(&mut Leaf),
        memory: impl FnOnce(&mut Vec<Described>) -> Option<Memory>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("packs")).unwrap();
        let mut writer = Writer { root: dir.path(), known: HashMap::new(), chunks: Vec::new() };
        let mut images = Vec::new();
        let mut described = Vec::new();
        for (name, source) in sources {
            let roots = writer.image(source, &mut edit);
            let content = Digest::of(&roots.content.encode());
            described.push(((*name).to_owned(), (source.size_bytes(), content)));
            images.push(roots);
        }
        let chunks = writer.chunks;
        let memory = memory(&mut described);
        let disk = |(name, (size_bytes, content)): Described| Disk {
            name: name.parse().unwrap(),
            size_bytes,
            content,
            chunker: Chunker::DISK,
        };
        let version = publish(dir.path(), described.into_iter().map(disk).collect(), memory, images);
        Self { dir, chunks, version }
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn link_file(&self) -> PathBuf {
        self.root().join(link_path(&name()))
    }

    /// The link as a path.
    pub(crate) fn location(&self) -> Location {
        self.link_file().to_str().unwrap().parse().unwrap()
    }

    /// What the link says.
    pub(crate) fn link(&self) -> Link {
        link(&self.version)
    }

    /// The files of all packs.
    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.root().join("packs")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }
}

/// An image's name, and its size and content.
type Described = (String, (u64, Digest));

/// A content leaf and a layout leaf in the making.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// First block, blocks and digest of each chunk.
    pub(crate) chunks: Vec<(u32, u32, Digest)>,
    /// Where each of them lies.
    pub(crate) places: Vec<Place>,
}

/// Writes manifest, layout object and link of a package whose packs hold these trees.
pub(crate) fn publish(root: &Path, disks: Vec<Disk>, memory: Option<Memory>, images: Vec<Roots>) -> Version {
    let mut machine = Machine::from_toml(MACHINE).unwrap();
    for block in memory.iter().flat_map(|memory| &memory.blocks) {
        machine.memory_mib = (block.size_bytes >> 20).try_into().unwrap();
    }
    let manifest = Manifest::new(machine, disks, memory).unwrap().encode();
    let layout = LayoutObject { images }.encode();
    let version = Version {
        manifest: Digest::of(&manifest),
        manifest_bytes: manifest.len() as u64,
        layout: Digest::of(&layout),
        layout_bytes: layout.len() as u64,
        orders: Vec::new(),
        published_unix_s: 1_700_000_000,
        pinned: false,
    };
    for (path, bytes) in [(manifest_path(&version.manifest), manifest), (layout_path(&version.layout), layout)] {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let envelope = Envelope::unsigned(link(&version)).unwrap();
    std::fs::write(root.join(link_path(&name())), envelope.encode()).unwrap();
    version
}

fn link(version: &Version) -> Link {
    let current = version.clone();
    Link { name: name(), title: None, serial: 1, repositories: Vec::new(), current, retained: Vec::new() }
}

fn name() -> Name {
    NAME.parse().unwrap()
}

struct Writer<'a> {
    root: &'a Path,
    known: HashMap<Digest, Place>,
    chunks: Vec<Frame>,
}

impl Writer<'_> {
    /// Stores an image's chunks, then its leaves, then the nodes above them, each in packs of their own: a layout node
    /// names packs by digest, so these must be complete.
    fn image(&mut self, source: &Source, edit: &mut impl FnMut(&mut Leaf)) -> Roots {
        let geometry = Geometry::new(source.size_bytes()).unwrap();
        let mut leaves = Vec::new();
        let mut packs = Packs::new(self.root);
        let mut new = Vec::new();
        for number in source.leaves() {
            let start = u64::from(number) * LEAF_BYTES;
            let mut data = source.read(start, LEAF_BYTES.min(source.size_bytes() - start));
            data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
            let mut chunks = Vec::new();
            for run in Chunker::DISK.cut(&data) {
                let plain = Bytes::copy_from_slice(run.slice(&data).unwrap());
                let digest = Digest::of(&plain);
                chunks.push((run.first_block, run.blocks, digest));
                if !self.known.contains_key(&digest) && !new.iter().any(|(_, known, _)| *known == digest) {
                    new.push((packs.put(&[(Kind::Chunk, &plain)]).remove(0), digest, plain));
                }
            }
            if !chunks.is_empty() {
                leaves.push((number, chunks));
            }
        }
        let digests = packs.finish();
        for (spot, digest, plain) in new {
            let place = spot.place(&digests);
            self.known.insert(digest, place.clone());
            let wanted = Wanted { digest, plain_len: plain.len() as u32, place };
            self.chunks.push(Frame { wanted, plain });
        }
        let leaves = leaves.into_iter().map(|(number, chunks)| {
            let places = chunks.iter().map(|(_, _, digest)| self.known[digest].clone()).collect();
            let mut leaf = Leaf { chunks, places };
            edit(&mut leaf);
            let mut content = ContentLeaf::default();
            for (first_block, blocks, digest) in leaf.chunks {
                content.push(first_block, blocks, digest).unwrap();
            }
            (number, content.encode(), LayoutLeaf::new(leaf.places).encode())
        });
        let mut children = self.pairs(leaves.collect());
        if geometry.has_inner() {
            let below = children.chunk_by(|a, b| a.0 / INNER_FANOUT == b.0 / INNER_FANOUT);
            let inner = below.map(|siblings| {
                let roots = node(siblings, |number| number % INNER_FANOUT);
                (siblings[0].0 / INNER_FANOUT, roots.content.encode(), roots.layout.encode())
            });
            children = self.pairs(inner.collect());
        }
        node(&children, |number| number)
    }

    /// Stores pairs of nodes side by side: their numbers, the digests of the content nodes, the places of the pairs.
    fn pairs(&self, nodes: Vec<(u32, Vec<u8>, Vec<u8>)>) -> Vec<(u32, Digest, NodePlace)> {
        let mut packs = Packs::new(self.root);
        let stored = nodes.into_iter().map(|(number, content, layout)| {
            let spots = packs.put(&[(Kind::Content, &content), (Kind::Layout, &layout)]);
            (number, content, layout, spots)
        });
        let stored: Vec<_> = stored.collect();
        let digests = packs.finish();
        let placed = stored.into_iter().map(|(number, content, layout, spots)| {
            let place = NodePlace {
                pack: digests[spots[0].pack],
                offset: spots[0].offset,
                content_stored_len: spots[0].stored_len,
                content_plain_len: content.len() as u32,
                layout_stored_len: spots[1].stored_len,
                layout_plain_len: layout.len() as u32,
                layout: Digest::of(&layout),
            };
            (number, Digest::of(&content), place)
        });
        placed.collect()
    }
}

fn node(children: &[(u32, Digest, NodePlace)], number_in_node: impl Fn(u32) -> u32) -> Roots {
    let mut content = ContentInner::default();
    for (number, digest, _) in children {
        content.push(number_in_node(*number), *digest).unwrap();
    }
    Roots { content, layout: LayoutInner::new(children.iter().map(|(_, _, place)| place.clone()).collect()) }
}

/// Packs that are being written; places in them are by number until they are complete.
struct Packs<'a> {
    root: &'a Path,
    compressor: Compressor,
    builder: PackBuilder,
    file: Vec<u8>,
    done: Vec<Digest>,
}

#[derive(Debug, Clone, Copy)]
struct Spot {
    pack: usize,
    offset: u64,
    stored_len: u32,
}

impl Spot {
    fn place(self, digests: &[Digest]) -> Place {
        Place { pack: digests[self.pack], offset: self.offset, stored_len: self.stored_len }
    }
}

impl<'a> Packs<'a> {
    fn new(root: &'a Path) -> Self {
        let compressor = Compressor::new(LEVEL).unwrap();
        Self { root, compressor, builder: PackBuilder::new(), file: PackBuilder::HEADER.to_vec(), done: Vec::new() }
    }

    /// Stores frames side by side.
    fn put(&mut self, frames: &[(Kind, &[u8])]) -> Vec<Spot> {
        if self.builder.len() >= PACK_BYTES {
            self.end_pack();
        }
        let put = |&(kind, plain): &(Kind, &[u8])| {
            let stored = self.compressor.encode(plain).unwrap();
            let offset = self.builder.push(kind, Digest::of(plain), plain.len() as u32, &stored);
            self.file.extend_from_slice(&stored);
            Spot { pack: self.done.len(), offset, stored_len: stored.len() as u32 }
        };
        frames.iter().map(put).collect()
    }

    fn end_pack(&mut self) {
        let (footer, digest) = std::mem::take(&mut self.builder).finish().unwrap();
        let mut file = std::mem::replace(&mut self.file, PackBuilder::HEADER.to_vec());
        file.extend(footer);
        let path = self.root.join(pack_path(&digest));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file).unwrap();
        self.done.push(digest);
    }

    fn finish(mut self) -> Vec<Digest> {
        if !self.builder.is_empty() {
            self.end_pack();
        }
        self.done
    }
}
