//! What an image costs when it is cut into chunks of one fixed size: the yardstick for other ways of chunking.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use blake3::Hash;
use serde::Serialize;
use zstd::bulk::Compressor;

/// A worker takes this much of the image at a time (at least one chunk).
const BATCH_BYTES: usize = 8 << 20;

/// How to cut and compress.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of every chunk but the last.
    pub chunk_bytes: NonZeroUsize,
    /// zstd level; each chunk is a frame of its own.
    pub level: i32,
    /// Worker threads.
    pub threads: NonZeroUsize,
}

/// The distinct chunks that an image adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Added {
    /// How many there are.
    pub chunks: u64,
    /// Their length.
    pub plain_bytes: u64,
    /// The length of their zstd frames.
    pub compressed_bytes: u64,
}

/// An image that could not be counted.
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
    #[error("compress a chunk with zstd at level {level}")]
    Compress {
        /// The level asked for.
        level: i32,
        /// What zstd says.
        source: io::Error,
    },
}

/// Counts the distinct non-zero chunks of `image` that none of `bases` has.
///
/// # Errors
///
/// When one of the images cannot be read or zstd fails.
pub fn added(image: &Path, bases: &[PathBuf], options: &Options) -> Result<Added, Error> {
    let mut known = HashSet::new();
    for base in bases {
        let found = scan(
            base,
            options,
            || Ok(HashSet::new()),
            |found: &mut HashSet<Hash>, chunk| {
                found.insert(blake3::hash(chunk));
                Ok(())
            },
        )?;
        known.extend(found.into_iter().flatten());
    }
    let known = Mutex::new(known);
    let compress_error = |source| Error::Compress { level: options.level, source };
    let make_worker = || Ok((Compressor::new(options.level).map_err(compress_error)?, Added::default()));
    let workers = scan(image, options, make_worker, |(compressor, added), chunk| {
        let is_new = known.lock().expect("no worker panics while it holds the set").insert(blake3::hash(chunk));
        if is_new {
            added.chunks += 1;
            added.plain_bytes += chunk.len() as u64;
            added.compressed_bytes += compressor.compress(chunk).map_err(compress_error)?.len() as u64;
        }
        Ok(())
    })?;
    Ok(workers.into_iter().fold(Added::default(), |sum, (_, added)| Added {
        chunks: sum.chunks + added.chunks,
        plain_bytes: sum.plain_bytes + added.plain_bytes,
        compressed_bytes: sum.compressed_bytes + added.compressed_bytes,
    }))
}

/// Shows every chunk of the file at `path` that is not all zero to one of several workers, and returns the workers.
fn scan<W: Send>(
    path: &Path,
    options: &Options,
    make_worker: impl Fn() -> Result<W, Error> + Sync,
    visit: impl Fn(&mut W, &[u8]) -> Result<(), Error> + Sync,
) -> Result<Vec<W>, Error> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read_error)?;
    // Seeking tells the size of block devices too.
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(read_error)?;
    let chunk_bytes = options.chunk_bytes.get();
    let batch_bytes = (BATCH_BYTES / chunk_bytes).max(1) * chunk_bytes;
    let next_batch = AtomicU64::new(0);
    let work = || {
        let mut worker = make_worker()?;
        let mut buffer = vec![0; batch_bytes];
        let zeros = vec![0; chunk_bytes];
        loop {
            let offset = next_batch.fetch_add(1, Ordering::Relaxed) * batch_bytes as u64;
            let Some(left_bytes) = size_bytes.checked_sub(offset).filter(|left| *left > 0) else {
                return Ok(worker);
            };
            let length = usize::try_from(left_bytes).map_or(batch_bytes, |left| left.min(batch_bytes));
            let batch = &mut buffer[..length];
            file.read_exact_at(batch, offset).map_err(read_error)?;
            for chunk in batch.chunks(chunk_bytes).filter(|chunk| **chunk != zeros[..chunk.len()]) {
                visit(&mut worker, chunk)?;
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker panicked")).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CHUNK: usize = 4096;

    fn options() -> Options {
        let threads = NonZeroUsize::new(3).expect("not zero");
        Options { chunk_bytes: NonZeroUsize::new(CHUNK).expect("not zero"), level: 3, threads }
    }

    /// Chunks filled with one byte each, and a tail shorter than a chunk.
    fn image(folder: &Path, name: &str, fills: &[u8], tail: &[u8]) -> PathBuf {
        let mut bytes: Vec<u8> = fills.iter().flat_map(|fill| [*fill; CHUNK]).collect();
        bytes.extend(tail);
        let path = folder.join(name);
        fs::write(&path, bytes).expect("write");
        path
    }

    #[test]
    fn zeros_repeats_and_the_bases_chunks_are_free() {
        let folder = tempfile::tempdir().expect("folder");
        let old = image(folder.path(), "old", &[1, 2, 0, 3], b"");
        let other = image(folder.path(), "other", &[9], b"");
        let new = image(folder.path(), "new", &[7, 0, 3, 7, 9, 8, 1], b"tail");

        let alone = added(&new, &[], &options()).expect("count");
        assert_eq!((alone.chunks, alone.plain_bytes), (6, 5 * CHUNK as u64 + 4));
        let after = added(&new, &[old, other], &options()).expect("count");
        assert_eq!((after.chunks, after.plain_bytes), (3, 2 * CHUNK as u64 + 4));
        assert!(after.compressed_bytes > 0 && after.compressed_bytes < alone.compressed_bytes);
    }

    #[test]
    fn an_image_larger_than_a_batch_is_counted_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let chunks = 2 * BATCH_BYTES / CHUNK + 1;
        let bytes: Vec<u8> = (0..chunks as u64).flat_map(|n| (n + 1).to_le_bytes().repeat(CHUNK / 8)).collect();
        let path = folder.path().join("image");
        fs::write(&path, bytes).expect("write");
        assert_eq!(added(&path, &[], &options()).expect("count").chunks, chunks as u64);
        assert_eq!(added(&path, std::slice::from_ref(&path), &options()).expect("count"), Added::default());
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = added(Path::new("/no/such/image"), &[], &options()).expect_err("no file");
        assert!(error.to_string().contains("/no/such/image"));
    }
}
