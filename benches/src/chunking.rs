//! What images cost when they are cut in one way or another: the yardstick for chunking and compression levels.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fastcdc::v2020::StreamCDC;
use rayon::prelude::*;
use serde::Serialize;
use vmnetx_format::{BLOCK_BYTES, Chunker, Compressor, Digest, is_zero};

use crate::replay::Read;
use crate::units::parse_size_bytes;

/// Bytes of an image that are cut at a time; no block-aligned chunk crosses a multiple of it, as in packages.
const SPAN_BYTES: u64 = 16 << 20;

/// A way of cutting an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutter {
    /// Chunks of so many bytes: `fixed:64K`.
    Fixed(usize),
    /// Block-aligned, at places that the data says, as packages are cut: `blocks:4,8,32`.
    Blocks(Chunker),
    /// Byte-wise, at places that the data says, a quarter to four times this mean, as casync and desync do: `bytes:64K`.
    Bytes(usize),
}

/// A text that names no way of cutting.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is no way of cutting: write fixed:64K, blocks:MIN,CUT,MAX or bytes:64K, with 4K to 4M of bytes")]
pub struct CutterError(String);

/// A chunk that is not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it begins in its image, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub length: u32,
    /// What it is known by.
    pub digest: Digest,
}

/// Some distinct chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// How many there are.
    pub chunks: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// The bytes of their zstd frames.
    pub compressed_bytes: u64,
}

/// An image that could not be cut or compressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is missing or cannot be read.
    #[error("read disk image {}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// zstd refuses the level or runs out of memory.
    #[error("compress with zstd at level {level}")]
    Compress {
        /// The level asked for.
        level: i32,
        /// What zstd says.
        source: io::Error,
    },
}

/// An image, cut.
#[derive(Debug)]
pub struct CutImage {
    path: PathBuf,
    chunks: Vec<Chunk>,
}

impl FromStr for Cutter {
    type Err = CutterError;

    fn from_str(text: &str) -> Result<Self, CutterError> {
        let wrong = || CutterError(text.to_owned());
        let (kind, size) = text.split_once(':').ok_or_else(wrong)?;
        let bytes = || {
            let bytes = parse_size_bytes(size).ok().filter(|bytes| (4 << 10..=4 << 20).contains(bytes));
            bytes.map(|bytes| bytes as usize).ok_or_else(wrong)
        };
        match kind {
            "fixed" => Ok(Self::Fixed(bytes()?)),
            "bytes" => Ok(Self::Bytes(bytes()?)),
            "blocks" => {
                let numbers: Vec<u32> = size.split(',').filter_map(|number| number.parse().ok()).collect();
                let [min, cut, max] = numbers[..] else { return Err(wrong()) };
                Chunker::new(min, cut, max).map(Self::Blocks).map_err(|_| wrong())
            }
            _ => Err(wrong()),
        }
    }
}

impl Cutter {
    /// Offsets and lengths of the chunks of one span; byte-wise cutting knows no spans.
    fn cut_span(self, data: &[u8]) -> Vec<(usize, usize)> {
        match self {
            Self::Fixed(size) => (0..data.len()).step_by(size).map(|at| (at, size.min(data.len() - at))).collect(),
            Self::Blocks(chunker) => {
                let run = |run: vmnetx_format::Run| (run.first_block as usize, run.blocks as usize);
                let runs = chunker.cut(data).into_iter().map(run);
                runs.map(|(first, blocks)| (first * BLOCK_BYTES, blocks * BLOCK_BYTES)).collect()
            }
            Self::Bytes(_) => Vec::new(),
        }
    }
}

impl CutImage {
    /// Cuts the image at `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn cut(path: &Path, cutter: Cutter) -> Result<Self, Error> {
        let chunks = match cutter {
            Cutter::Bytes(mean) => cut_bytes(path, mean),
            _ => cut_spans(path, cutter),
        };
        let chunks = chunks.map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), chunks })
    }

    /// Its chunks that are not all zero, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The distinct chunks that none of `bases` has.
    #[must_use]
    pub fn added(&self, bases: &[&Self]) -> Vec<Chunk> {
        let mut known: HashSet<Digest> = bases.iter().flat_map(|base| &base.chunks).map(|chunk| chunk.digest).collect();
        self.chunks.iter().filter(|chunk| known.insert(chunk.digest)).copied().collect()
    }

    /// The distinct chunks that some reads touch.
    #[must_use]
    pub fn touched(&self, reads: &[Read]) -> Vec<Chunk> {
        let mut seen = HashSet::new();
        let mut touched = Vec::new();
        for read in reads {
            let end = read.offset + u64::from(read.length);
            let first = self.chunks.partition_point(|chunk| chunk.offset + u64::from(chunk.length) <= read.offset);
            let reached = self.chunks.iter().skip(first).take_while(|chunk| chunk.offset < end);
            touched.extend(reached.filter(|chunk| seen.insert(chunk.digest)));
        }
        touched
    }

    /// What `chunks`, distinct ones of this image, cost at a zstd level.
    ///
    /// # Errors
    /// When the image cannot be read again, or zstd fails.
    pub fn cost(&self, chunks: &[Chunk], level: i32) -> Result<Cost, Error> {
        let read_error = |source| Error::Read { path: self.path.clone(), source };
        let compress_error = |source| Error::Compress { level, source };
        let file = File::open(&self.path).map_err(read_error)?;
        let one = |compressor: &mut Result<Compressor, io::Error>, chunk: &Chunk| {
            let compressor = compressor.as_mut().map_err(|error| compress_error(io::Error::from(error.kind())))?;
            let mut plain = vec![0; chunk.length as usize];
            // The end of an image that is no multiple of a block is filled up with zeros.
            let there = file.metadata().map_err(read_error)?.len().saturating_sub(chunk.offset);
            let there = usize::try_from(there).unwrap_or(usize::MAX).min(plain.len());
            file.read_exact_at(&mut plain[..there], chunk.offset).map_err(read_error)?;
            Ok(compressor.encode(&plain).map_err(compress_error)?.len() as u64)
        };
        let stored = chunks.par_iter().map_init(|| Compressor::new(level), one).collect::<Result<Vec<u64>, Error>>()?;
        Ok(Cost {
            chunks: chunks.len() as u64,
            plain_bytes: chunks.iter().map(|chunk| u64::from(chunk.length)).sum(),
            compressed_bytes: stored.iter().sum(),
        })
    }
}

fn cut_spans(path: &Path, cutter: Cutter) -> io::Result<Vec<Chunk>> {
    let mut file = File::open(path)?;
    // Seeking tells the size of block devices too.
    let size_bytes = file.seek(SeekFrom::End(0))?;
    let spans = (0..size_bytes.div_ceil(SPAN_BYTES)).into_par_iter().map(|span| {
        let start = span * SPAN_BYTES;
        let there = (size_bytes - start).min(SPAN_BYTES) as usize;
        let mut data = vec![0; there.next_multiple_of(BLOCK_BYTES)];
        file.read_exact_at(&mut data[..there], start)?;
        let cuts = cutter.cut_span(&data).into_iter().map(|(at, length)| (at, &data[at..at + length]));
        Ok(cuts.filter_map(|(at, plain)| chunk(start + at as u64, plain)).collect::<Vec<_>>())
    });
    Ok(spans.collect::<io::Result<Vec<_>>>()?.concat())
}

fn cut_bytes(path: &Path, mean: usize) -> io::Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for found in StreamCDC::new(File::open(path)?, mean / 4, mean, mean * 4) {
        let found = found.map_err(io::Error::other)?;
        chunks.extend(chunk(found.offset, &found.data));
    }
    Ok(chunks)
}

/// A chunk, unless it is all zero: every way of cutting has those for nothing.
fn chunk(offset: u64, plain: &[u8]) -> Option<Chunk> {
    (!is_zero(plain)).then(|| Chunk { offset, length: plain.len() as u32, digest: Digest::of(plain) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CHUNK: usize = 4096;

    /// Chunks filled with one byte each, and a tail shorter than a chunk.
    fn image(folder: &Path, name: &str, fills: &[u8], tail: &[u8]) -> PathBuf {
        let mut bytes: Vec<u8> = fills.iter().flat_map(|fill| [*fill; CHUNK]).collect();
        bytes.extend(tail);
        let path = folder.join(name);
        fs::write(&path, bytes).expect("write");
        path
    }

    fn cut(path: &Path) -> CutImage {
        CutImage::cut(path, Cutter::Fixed(CHUNK)).expect("cut")
    }

    #[test]
    fn zeros_repeats_and_the_bases_chunks_are_free() {
        let folder = tempfile::tempdir().expect("folder");
        let old = cut(&image(folder.path(), "old", &[1, 2, 0, 3], b""));
        let other = cut(&image(folder.path(), "other", &[9], b""));
        let new = cut(&image(folder.path(), "new", &[7, 0, 3, 7, 9, 8, 1], b"tail"));
        let alone = new.cost(&new.added(&[]), 3).expect("cost");
        assert_eq!((alone.chunks, alone.plain_bytes), (6, 6 * CHUNK as u64));
        let after = new.cost(&new.added(&[&old, &other]), 3).expect("cost");
        assert_eq!((after.chunks, after.plain_bytes), (3, 3 * CHUNK as u64));
        assert!(after.compressed_bytes > 0 && after.compressed_bytes < alone.compressed_bytes);
        assert!(new.added(&[&new]).is_empty());
    }

    #[test]
    fn touched_chunks_are_those_that_a_read_overlaps() {
        let folder = tempfile::tempdir().expect("folder");
        let image = cut(&image(folder.path(), "image", &[1, 2, 0, 3, 1, 4], b""));
        let read = |first: u64, length: u32| Read { offset: first * CHUNK as u64, length };
        let touched = |reads: &[Read]| -> Vec<u64> {
            image.touched(reads).iter().map(|chunk| chunk.offset / CHUNK as u64).collect()
        };
        assert_eq!(touched(&[read(1, 1)]), [1]);
        assert!(touched(&[read(2, 4096)]).is_empty());
        assert_eq!(touched(&[read(0, 2 * 4096 + 1), read(3, 4096)]), [0, 1, 3]);
        assert_eq!(touched(&[read(4, 8192), read(0, 1)]), [4, 5], "equal chunks count once");
    }

    #[test]
    fn every_way_of_cutting_covers_the_image_and_finds_what_moved() {
        let folder = tempfile::tempdir().expect("folder");
        let fill = |seed: u64| (0..3_000_000_u64).map(move |n| (n.wrapping_mul(seed).wrapping_pow(3) >> 40) as u8);
        let bytes: Vec<u8> = fill(0x9e37_79b9_7f4a_7c15).collect();
        let (plain, moved) = (folder.path().join("plain"), folder.path().join("moved"));
        fs::write(&plain, &bytes).expect("write");
        fs::write(&moved, [&[7; 3 * CHUNK][..], &bytes].concat()).expect("write");
        for (text, finds) in [("fixed:64K", false), ("blocks:4,8,32", true), ("bytes:64K", true)] {
            let cutter: Cutter = text.parse().expect("a cutter");
            let [plain, moved] = [&plain, &moved].map(|path| CutImage::cut(path, cutter).expect("cut"));
            let mut at = 0;
            for chunk in plain.chunks() {
                assert_eq!(chunk.offset, at, "{text}");
                at += u64::from(chunk.length);
            }
            assert!(at >= bytes.len() as u64 && at < (bytes.len() + CHUNK) as u64, "{text}: {at}");
            let added: u64 = moved.added(&[&plain]).iter().map(|chunk| u64::from(chunk.length)).sum();
            assert_eq!(added < 500_000, finds, "{text}: {added}");
        }
    }

    #[test]
    fn other_texts_name_no_way_of_cutting() {
        for text in ["", "fixed", "fixed:0", "fixed:1G", "blocks:4,8", "blocks:4,7,32", "bytes:1", "other:64K"] {
            assert!(text.parse::<Cutter>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = CutImage::cut(Path::new("/no/such/image"), Cutter::Fixed(CHUNK)).expect_err("no file");
        assert!(error.to_string().contains("/no/such/image"));
    }
}
