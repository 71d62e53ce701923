//! Reads images, cuts them into chunks, compresses the new ones and writes them, all at the same time.
//!
//! ```text
//! reader thread    reads the data of one leaf's span after the other into a free buffer
//!   rayon          cuts the span into chunks and hashes them; of changes to a published leaf only what is around them
//! caller's thread  in the order of the spans: decides which chunks are new
//!   rayon          compresses the new ones
//! writer thread    in the order of the spans: appends frames to packs, makes the index; gives the buffer back
//!   sealer thread  flushes finished packs to the disk and names them
//! ```
//!
//! The two ordered steps do little else than look up digests and copy compressed bytes, so the result never depends on
//! timing and the processors are busy with hashing and compressing. A span waits for nothing while it holds a buffer
//! but for spans before it, and there are [`SPANS_IN_FLIGHT`] buffers: memory is bounded, and nothing can lock up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use vmnetx_format::{BLOCK_BYTES, Chunker, Compressor, Digest, Roots};
use vmnetx_store::dir::Publisher;

use super::pack_writer::seal_all;
use super::writer::{ChunkRef, NewChunks, Writer};
use crate::catalogue::{Known, id};
use crate::disk::{Cut, Leaf, LeafExtents, Source};
use crate::limits::{SEALS_WAITING, SPANS_IN_FLIGHT};
use crate::local::LEAF_BYTES;
use crate::{Error, Progress};

/// What the pipeline needs to know.
pub(super) struct Job<'a> {
    pub(super) publisher: &'a Publisher,
    pub(super) images: &'a [Input],
    /// zstd level.
    pub(super) level: i32,
    pub(super) progress: &'a dyn Progress,
}

/// An image that is read.
pub(super) struct Input {
    /// What it is called, to be told.
    pub(super) name: String,
    pub(super) source: Box<dyn Source>,
    pub(super) chunker: Chunker,
}

/// What the pipeline made.
pub(super) struct Built {
    /// The roots of each image.
    pub(super) images: Vec<Roots>,
    pub(super) counts: Counts,
}

/// What was read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Chunks of the images, but for the leaves that are kept.
    pub(super) chunks: u64,
    /// Bytes of those chunks.
    pub(super) data_bytes: u64,
    /// Bytes of the spans of leaves that are kept.
    pub(super) kept_bytes: u64,
    /// Chunks that the repository lacked.
    pub(super) new_chunks: u64,
    /// Bytes of those chunks.
    pub(super) new_bytes: u64,
    /// Bytes of packs that were written for them and for the index.
    pub(super) written_bytes: u64,
}

/// The data of one leaf's span.
struct Span {
    serial: u64,
    disk: usize,
    leaf: Leaf,
    buffer: Vec<u8>,
}

enum Event {
    Read(Span),
    Hashed(Span, Result<Vec<Cut>, Error>),
    /// The reader has ended after so many spans.
    End(u64),
}

/// Items that become ready out of order, given out in order.
pub(super) struct InOrder<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { next: 0, waiting: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    pub(super) fn push(&mut self, serial: u64, item: T) {
        self.waiting.insert(serial, item);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(item)
    }
}

/// Compressors that are not in use, so that there is about one for each thread.
pub(crate) struct Compressors {
    level: i32,
    free: Mutex<Vec<Compressor>>,
}

impl Compressors {
    pub(crate) fn new(level: i32) -> Self {
        Self { level, free: Mutex::default() }
    }

    /// The frame of `plain`.
    pub(crate) fn encode(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let mut compressor = match taken {
            Some(compressor) => compressor,
            None => Compressor::new(self.level).map_err(Error::Compress)?,
        };
        let stored = compressor.encode(plain).map_err(Error::Compress);
        free().push(compressor);
        stored
    }
}

/// Runs the pipeline to its end.
pub(super) fn run(job: &Job<'_>, mut known: Known) -> Result<Built, Error> {
    let (events, incoming) = channel();
    let (give_back, free_buffers) = channel();
    for _ in 0..SPANS_IN_FLIGHT {
        // The receiver lives until the end of this function.
        let _ = give_back.send(Vec::new());
    }
    let (ready, to_write) = channel();
    let (sealer, sealed) = sync_channel(SEALS_WAITING);
    // The decider needs the map of chunks, the writer their places.
    let chunks = std::mem::take(&mut known.chunks);
    std::thread::scope(|scope| {
        let sealing = scope.spawn(|| seal_all(sealed));
        let writing = scope.spawn(move || {
            let mut writer = Writer::new(job.publisher, sealer, known, job.images)?;
            writer.write_all(to_write, &give_back, job.progress)
        });
        let reading = scope.spawn({
            let events = events.clone();
            move || read_all(job.images, &events, &free_buffers)
        });
        let compressors = Compressors::new(job.level);
        let decided = rayon::in_place_scope(|tasks| {
            let mut decider = Decider { chunks, counts: Counts::default() };
            decider.run(job, tasks, &compressors, (events, incoming), ready)
        });
        // The writer ends when nothing is ready any more, the sealer when the writer has ended.
        let read = reading.join().unwrap_or(Err(Error::Stopped));
        let written = writing.join().unwrap_or(Err(Error::Stopped));
        let sealed = sealing.join().unwrap_or(Err(Error::Stopped));
        // The first cause counts: a thread that found another one gone says no more than that.
        read?;
        sealed?;
        let (images, written_bytes) = written?;
        Ok(Built { images, counts: Counts { written_bytes, ..decided? } })
    })
}

fn read_all(disks: &[Input], events: &Sender<Event>, free: &Receiver<Vec<u8>>) -> Result<(), Error> {
    let mut serial = 0;
    let mut read = || {
        for (disk, Input { source, .. }) in disks.iter().enumerate() {
            for leaf in source.leaves() {
                let leaf = leaf?;
                // Without a free buffer for ever, the writer has failed and tells why.
                let Ok(mut buffer) = free.recv() else { return Ok(()) };
                let length = leaf.bytes();
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                source.read(&leaf, &mut buffer)?;
                if events.send(Event::Read(Span { serial, disk, leaf, buffer })).is_err() {
                    return Ok(());
                }
                serial += 1;
            }
            source.check_unchanged()?;
        }
        Ok(())
    };
    let result = read();
    let _ = events.send(Event::End(serial));
    result
}

/// Decides, span after span, which chunks are new.
struct Decider {
    chunks: std::collections::HashMap<Digest, u32>,
    counts: Counts,
}

impl Decider {
    fn run<'scope>(
        &mut self,
        job: &'scope Job<'_>,
        tasks: &rayon::Scope<'scope>,
        compressors: &'scope Compressors,
        (events, incoming): (Sender<Event>, Receiver<Event>),
        ready: Sender<Result<NewChunks, Error>>,
    ) -> Result<Counts, Error> {
        let mut spans = InOrder::default();
        let mut decided = 0;
        let mut end = None;
        while end != Some(decided) {
            match incoming.recv().map_err(|_| Error::Stopped)? {
                Event::End(count) => end = Some(count),
                Event::Read(mut span) => {
                    let events = events.clone();
                    tasks.spawn(move |_| {
                        let chunker = job.images[span.disk].chunker;
                        let cuts = cut(&mut span, chunker);
                        let _ = events.send(Event::Hashed(span, cuts));
                    });
                }
                Event::Hashed(span, cuts) => spans.push(span.serial, (span, cuts)),
            }
            while let Some((span, cuts)) = spans.pop() {
                decided += 1;
                let disk = &job.images[span.disk];
                let (refs, new) = self.decide(disk, &cuts?)?;
                if let Leaf::Kept(node) = &span.leaf {
                    let left = disk.source.geometry().size_bytes() - u64::from(node.leaf) * LEAF_BYTES;
                    self.counts.kept_bytes += left.min(LEAF_BYTES);
                }
                let ready = ready.clone();
                tasks.spawn(move |_| {
                    // A writer that is gone has failed and tells why.
                    let _ = ready.send(compress(span, refs, &new, compressors));
                });
            }
        }
        Ok(self.counts)
    }

    /// Which chunk of the repository or of this build each cut is, and the bytes of those that are new.
    fn decide(&mut self, disk: &Input, cuts: &[Cut]) -> Result<(Vec<ChunkRef>, Vec<Range<usize>>), Error> {
        let mut new = Vec::new();
        let mut refs = Vec::with_capacity(cuts.len());
        for cut in cuts {
            let next = id(self.chunks.len())?;
            let chunk = match &cut.bytes {
                Some(_) => *self.chunks.entry(cut.digest).or_insert(next),
                None => *self.chunks.get(&cut.digest).ok_or_else(|| Error::lost(&disk.name, cut.digest))?,
            };
            let plain_bytes = u64::from(cut.blocks) * BLOCK_BYTES as u64;
            self.counts.chunks += 1;
            self.counts.data_bytes += plain_bytes;
            let is_new = chunk == next;
            if let Some(bytes) = cut.bytes.clone().filter(|_| is_new) {
                self.counts.new_chunks += 1;
                self.counts.new_bytes += plain_bytes;
                new.push(bytes);
            }
            let &Cut { first_block, blocks, digest, .. } = cut;
            refs.push(ChunkRef { first_block, blocks, digest, chunk, is_new });
        }
        Ok((refs, new))
    }
}

/// Cuts a span into chunks and hashes them.
fn cut(span: &mut Span, chunker: Chunker) -> Result<Vec<Cut>, Error> {
    match &span.leaf {
        Leaf::Data(extents) => Ok(cut_data(extents, &span.buffer, chunker)),
        Leaf::Patch(patch) => patch.cut(&mut span.buffer, chunker),
        Leaf::Moved(moved) => Ok(moved.cuts()),
        Leaf::Kept(_) => Ok(Vec::new()),
    }
}

/// Cuts a leaf that was read whole. Runs of data are apart by a hole at least, so none continues in the next.
fn cut_data(extents: &LeafExtents, buffer: &[u8], chunker: Chunker) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut start = 0;
    for &(run_block, run_blocks) in &extents.runs {
        let length = run_blocks as usize * BLOCK_BYTES;
        let data = &buffer[start..start + length];
        for run in chunker.cut(data) {
            let at = start + run.first_block as usize * BLOCK_BYTES;
            let bytes = at..at + run.blocks as usize * BLOCK_BYTES;
            let digest = Digest::of(&buffer[bytes.clone()]);
            cuts.push(Cut { first_block: run_block + run.first_block, blocks: run.blocks, bytes: Some(bytes), digest });
        }
        start += length;
    }
    cuts
}

fn compress(
    span: Span,
    refs: Vec<ChunkRef>,
    new: &[Range<usize>],
    compressors: &Compressors,
) -> Result<NewChunks, Error> {
    let encode = |bytes: &Range<usize>| compressors.encode(&span.buffer[bytes.clone()]);
    let frames = new.par_iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
    let read_bytes = span.leaf.bytes() as u64;
    let Span { serial, disk, leaf, buffer } = span;
    let number = leaf.number();
    let kept = if let Leaf::Kept(node) = leaf { Some(node) } else { None };
    Ok(NewChunks { serial, disk, leaf: number, refs, kept, frames, buffer, read_bytes })
}
