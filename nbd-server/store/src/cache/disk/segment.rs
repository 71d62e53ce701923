//! One segment of the disk tier: a file of records, each a checksummed head and a frame.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use vmnetx_format::Digest;
use vmnetx_format::limits::FRAME_PLAIN_BYTES_MAX;

const HEAD_BYTES: usize = 52;
const MAGIC: [u8; 4] = *b"VXC0";
const SUFFIX: &str = ".segment";

/// A frame to be kept.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) digest: Digest,
    pub(super) plain_len: u32,
    pub(super) stored: Bytes,
}

/// A segment file; its records are only ever appended, by one writer.
#[derive(Debug)]
pub(super) struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    len: AtomicU64,
}

impl Record {
    /// Bytes that it takes in a segment.
    pub(super) fn len(&self) -> u64 {
        (HEAD_BYTES + self.stored.len()) as u64
    }

    /// Magic, stored length, plain length, digest, and eight bytes of the BLAKE3 of these.
    fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&(self.stored.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        head[12..44].copy_from_slice(self.digest.as_bytes());
        let check = Digest::of(&head[..44]);
        head[44..].copy_from_slice(&check.as_bytes()[..8]);
        head
    }
}

/// The segments of a directory, oldest first.
pub(super) fn list(dir: &Path) -> std::io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        let Some(number) = name.and_then(|digits| digits.parse().ok()) else { continue };
        let file = File::options().read(true).write(true).open(&path)?;
        let len = AtomicU64::new(file.metadata()?.len());
        segments.push(Segment { number, path, file, len });
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

impl Segment {
    pub(super) fn create(dir: &Path, number: u64) -> std::io::Result<Self> {
        let path = dir.join(format!("{number:012}{SUFFIX}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { number, path, file, len: AtomicU64::new(0) })
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Appends a record; returns where its frame begins.
    pub(super) fn append(&self, record: &Record) -> std::io::Result<u64> {
        let at = self.len();
        let bytes = [&record.head()[..], &record.stored].concat();
        if let Err(error) = self.file.write_all_at(&bytes, at) {
            // Half a record must not stand before later ones.
            let _ = self.file.set_len(at);
            return Err(error);
        }
        self.len.store(at + bytes.len() as u64, Ordering::Relaxed);
        Ok(at + HEAD_BYTES as u64)
    }

    pub(super) fn read(&self, offset: u64, stored_len: u32) -> std::io::Result<Vec<u8>> {
        let mut stored = vec![0; stored_len as usize];
        self.file.read_exact_at(&mut stored, offset)?;
        Ok(stored)
    }

    /// Digest, frame offset, stored and plain length of every record with a whole head. The first torn one ends the
    /// segment, which is cut off there; frames are verified when they are read.
    pub(super) fn scan(&self) -> Vec<(Digest, u64, u32, u32)> {
        let mut records = Vec::new();
        let mut at = 0;
        let mut head = [0; HEAD_BYTES];
        while self.file.read_exact_at(&mut head, at).is_ok() {
            let Some((digest, stored_len, plain_len)) = parse(&head) else { break };
            let end = at + HEAD_BYTES as u64 + u64::from(stored_len);
            if end > self.len() {
                break;
            }
            records.push((digest, at + HEAD_BYTES as u64, stored_len, plain_len));
            at = end;
        }
        if at < self.len() && self.file.set_len(at).is_ok() {
            self.len.store(at, Ordering::Relaxed);
        }
        records
    }

    pub(super) fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

fn parse(head: &[u8; HEAD_BYTES]) -> Option<(Digest, u32, u32)> {
    let (body, check) = head.split_at(44);
    let (magic, rest) = body.split_first_chunk::<4>()?;
    let (stored_len, rest) = rest.split_first_chunk::<4>()?;
    let (plain_len, rest) = rest.split_first_chunk::<4>()?;
    let digest = Digest::from_bytes(*rest.first_chunk()?);
    let (stored_len, plain_len) = (u32::from_le_bytes(*stored_len), u32::from_le_bytes(*plain_len));
    let whole = *magic == MAGIC && Digest::of(body).as_bytes().starts_with(check);
    (whole && stored_len <= plain_len && plain_len <= FRAME_PLAIN_BYTES_MAX).then_some((digest, stored_len, plain_len))
}
