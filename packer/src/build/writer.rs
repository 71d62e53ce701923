//! The writer: takes compressed spans in their order, appends their chunks to packs and makes the leaves of the index.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use vmnetx_format::{BLOCK_BYTES, Compressor, ContentLeaf, Digest, Geometry, Kind, LayoutLeaf, Place, Roots};
use vmnetx_store::dir::Publisher;

use super::index::{Level, Pair, inner_level, roots};
use super::pack_writer::{PackTable, PackWriter, Sealed};
use super::pipeline::{InOrder, Input};
use crate::catalogue::{Known, Stored};
use crate::limits::LEAVES_WAITING;
use crate::local::{LEAF_BYTES, LeafNode, Packs};
use crate::{Error, Progress};

/// zstd level of index nodes: they are mostly digests, which nothing makes smaller.
const INDEX_LEVEL: i32 = 9;

/// A chunk of a span, as the index names it.
pub(super) struct ChunkRef {
    pub(super) first_block: u32,
    pub(super) blocks: u32,
    pub(super) digest: Digest,
    /// Its number among all chunks of the repository and of this build.
    pub(super) chunk: u32,
    /// Whether it is stored for the first time.
    pub(super) is_new: bool,
}

/// A span whose new chunks are compressed.
pub(super) struct NewChunks {
    pub(super) serial: u64,
    pub(super) disk: usize,
    pub(super) leaf: u32,
    pub(super) refs: Vec<ChunkRef>,
    /// The published leaf that takes the place of `refs`.
    pub(super) kept: Option<LeafNode>,
    /// The stored form of each new chunk, in the order of `refs`.
    pub(super) frames: Vec<Vec<u8>>,
    /// The buffer to be given back.
    pub(super) buffer: Vec<u8>,
    /// Bytes that were read for it.
    pub(super) read_bytes: u64,
}

pub(super) struct Writer<'a> {
    known: Known,
    table: PackTable,
    chunks: PackWriter<'a>,
    leaves: PackWriter<'a>,
    inner: PackWriter<'a>,
    compressor: Compressor,
    images: Vec<WrittenImage>,
    /// Where kept leaves are read.
    packs: Packs,
    waiting: VecDeque<WaitingLeaf>,
}

struct WrittenImage {
    name: String,
    geometry: Geometry,
    leaves: Level,
}

/// A leaf that waits for its turn.
enum WaitingLeaf {
    New(NewLeaf),
    /// A published leaf of the disk of this number.
    Kept(usize, LeafNode),
}

/// A leaf whose chunks have their places, but perhaps in a pack that has no digest yet.
struct NewLeaf {
    disk: usize,
    leaf: u32,
    content: Vec<u8>,
    chunks: Vec<u32>,
    last_pack: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        publisher: &'a Publisher,
        sealer: SyncSender<Sealed<'a>>,
        known: Known,
        disks: &[Input],
    ) -> Result<Self, Error> {
        let image = |disk: &Input| WrittenImage {
            name: disk.name.clone(),
            geometry: disk.source.geometry(),
            leaves: Level::default(),
        };
        Ok(Self {
            table: PackTable::new(&known.packs),
            known,
            chunks: PackWriter::new(publisher, sealer.clone()),
            leaves: PackWriter::new(publisher, sealer.clone()),
            inner: PackWriter::new(publisher, sealer),
            compressor: Compressor::new(INDEX_LEVEL).map_err(Error::Compress)?,
            images: disks.iter().map(image).collect(),
            packs: Packs::new(publisher.repository().clone()),
            waiting: VecDeque::new(),
        })
    }

    /// Writes all spans; gives the roots of each disk and the bytes of the packs.
    pub(super) fn write_all(
        &mut self,
        spans: Receiver<Result<NewChunks, Error>>,
        give_back: &Sender<Vec<u8>>,
        progress: &dyn Progress,
    ) -> Result<(Vec<Roots>, u64), Error> {
        let mut in_order = InOrder::default();
        for span in spans {
            let span = span?;
            in_order.push(span.serial, span);
            while let Some(mut span) = in_order.pop() {
                let buffer = std::mem::take(&mut span.buffer);
                let read_bytes = span.read_bytes;
                match span.kept.take() {
                    Some(node) => self.keep(span.disk, node)?,
                    None => self.write(&span)?,
                }
                progress.advance(read_bytes);
                // The reader no longer takes buffers when it has read everything.
                let _ = give_back.send(buffer);
            }
        }
        self.end()
    }

    fn write(&mut self, span: &NewChunks) -> Result<(), Error> {
        let mut frames = span.frames.iter();
        let mut content = ContentLeaf::default();
        let mut chunks = Vec::with_capacity(span.refs.len());
        let mut last_pack = 0;
        for chunk in &span.refs {
            content.push(chunk.first_block, chunk.blocks, chunk.digest)?;
            if chunk.is_new {
                let frame = frames.next().ok_or(Error::Stopped)?;
                let place = self.append(chunk, frame)?;
                self.known.places.push(place);
            }
            last_pack = last_pack.max(self.place(chunk.chunk)?.pack);
            chunks.push(chunk.chunk);
        }
        // A span of nothing but zeros is absent from the index.
        if !chunks.is_empty() {
            let content = content.encode();
            let leaf = NewLeaf { disk: span.disk, leaf: span.leaf, content, chunks, last_pack };
            self.waiting.push_back(WaitingLeaf::New(leaf));
        }
        self.write_leaves_soon()
    }

    fn keep(&mut self, disk: usize, node: LeafNode) -> Result<(), Error> {
        self.waiting.push_back(WaitingLeaf::Kept(disk, node));
        self.write_leaves_soon()
    }

    fn write_leaves_soon(&mut self) -> Result<(), Error> {
        if self.waiting.len() > LEAVES_WAITING {
            self.chunks.finish(&mut self.table)?;
        }
        self.write_leaves()
    }

    fn append(&mut self, chunk: &ChunkRef, frame: &[u8]) -> Result<Stored, Error> {
        self.chunks.keep_together(&mut self.table, frame.len() as u64)?;
        let plain_len = chunk.blocks * BLOCK_BYTES as u32;
        self.chunks.append(&mut self.table, Kind::Chunk, chunk.digest, plain_len, frame)
    }

    fn place(&self, chunk: u32) -> Result<Stored, Error> {
        self.known.places.get(chunk as usize).copied().ok_or(Error::Stopped)
    }

    /// Writes the leaves at the head of the queue whose packs are all finished.
    fn write_leaves(&mut self) -> Result<(), Error> {
        let is_ready = |leaf: &WaitingLeaf, table: &PackTable| match leaf {
            WaitingLeaf::New(leaf) => table.digest(leaf.last_pack).is_some(),
            WaitingLeaf::Kept(..) => true,
        };
        while let Some(leaf) = self.waiting.pop_front_if(|leaf| is_ready(leaf, &self.table)) {
            match leaf {
                WaitingLeaf::New(leaf) => self.write_leaf(&leaf)?,
                WaitingLeaf::Kept(disk, node) => self.write_kept(disk, node)?,
            }
        }
        Ok(())
    }

    fn write_leaf(&mut self, leaf: &NewLeaf) -> Result<(), Error> {
        let place = |&chunk: &u32| {
            let Stored { pack, offset, stored_len } = self.place(chunk)?;
            let pack = self.table.digest(pack).ok_or(Error::Stopped)?;
            Ok::<_, Error>(Place { pack, offset: offset.into(), stored_len })
        };
        let layout = LayoutLeaf::new(leaf.chunks.iter().map(place).collect::<Result<_, _>>()?);
        let pair = Pair::new(&mut self.compressor, leaf.leaf, &leaf.content, &layout.encode())?;
        self.push(leaf.disk, pair)
    }

    /// Takes a published leaf over. As long as the index is small its leaves are read, so that it lies in one piece again.
    fn write_kept(&mut self, disk: usize, mut node: LeafNode) -> Result<(), Error> {
        let image = &mut self.images[disk];
        let places = self.known.nodes.get(&(node.content, node.place.layout)).map_or(&[][..], Vec::as_slice);
        if !places.contains(&node.place) {
            node.place = places.first().ok_or_else(|| Error::lost(&image.name, node.content))?.clone();
        }
        if image.leaves.is_large() {
            image.leaves.keep(node);
            return Ok(());
        }
        let pair = self.packs.stored_pair(&node).map_err(|source| Error::Damaged {
            disk: image.name.clone(),
            start: u64::from(node.leaf) * LEAF_BYTES,
            end: u64::from(node.leaf) * LEAF_BYTES + LEAF_BYTES,
            source: Box::new(source),
        })?;
        self.push(disk, Pair::stored(&node, pair))
    }

    fn push(&mut self, disk: usize, pair: Pair) -> Result<(), Error> {
        self.end_images_before(disk)?;
        self.images[disk].leaves.push(pair, &self.known, &mut self.table, &mut self.leaves)
    }

    /// Leaves of a disk follow those of all disks before it, so these are complete.
    fn end_images_before(&mut self, disk: usize) -> Result<(), Error> {
        for image in &mut self.images[..disk] {
            image.leaves.end(&self.known, &mut self.table, &mut self.leaves)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(Vec<Roots>, u64), Error> {
        self.chunks.finish(&mut self.table)?;
        self.write_leaves()?;
        self.end_images_before(self.images.len())?;
        self.leaves.finish(&mut self.table)?;
        let mut tops = Vec::with_capacity(self.images.len());
        for WrittenImage { geometry, leaves, .. } in std::mem::take(&mut self.images) {
            let top = if geometry.has_inner() {
                inner_level(&leaves, &mut self.compressor, &self.known, &mut self.table, &mut self.inner)?
            } else {
                leaves
            };
            tops.push((geometry, top));
        }
        self.inner.finish(&mut self.table)?;
        let images: Result<_, Error> = tops.iter().map(|(geometry, top)| roots(top, *geometry, &self.table)).collect();
        let written = [&self.chunks, &self.leaves, &self.inner].map(PackWriter::written_bytes);
        Ok((images?, written.iter().sum()))
    }
}
