//! One segment of the disk tier: a file of records, each a checksummed head and a frame, with an index at its end once it is
//! sealed.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vmnetx_format::Digest;
use vmnetx_format::limits::FRAME_PLAIN_BYTES_MAX;

use super::index::{self, Entry};
use crate::limits::SEGMENT_FILE_BYTES_MAX;

/// Bytes before a record's frame.
pub(super) const HEAD_BYTES: u64 = 52;
const HEAD_CHECKED_BYTES: usize = 44;
const MAGIC: [u8; 4] = *b"VXC0";
const SUFFIX: &str = ".segment";

/// A frame to be kept.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) digest: Digest,
    pub(crate) plain_len: u32,
    pub(crate) stored: Bytes,
}

/// A segment file, open for as long as anybody reads it, even after it was evicted.
#[derive(Debug)]
pub(super) struct Segment {
    number: u32,
    path: PathBuf,
    file: File,
}

/// The segments of a directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Oldest first.
    pub(super) segments: Vec<Segment>,
    /// The highest number that is in use, if only by something else that is named like a segment.
    pub(super) highest: Option<u32>,
}

/// What a segment holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    /// Where its records end.
    pub(super) end: u32,
    /// Whether a good index stands behind them.
    pub(super) is_sealed: bool,
}

impl Record {
    /// Bytes that it takes in a segment.
    pub(super) fn len(&self) -> u64 {
        HEAD_BYTES + self.stored.len() as u64
    }

    /// Magic, stored length, plain length, digest, and eight bytes of the BLAKE3 of these.
    fn head(&self) -> [u8; HEAD_BYTES as usize] {
        let mut head = [0; HEAD_BYTES as usize];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&(self.stored.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        head[12..HEAD_CHECKED_BYTES].copy_from_slice(self.digest.as_bytes());
        let check = Digest::of(&head[..HEAD_CHECKED_BYTES]);
        head[HEAD_CHECKED_BYTES..].copy_from_slice(&check.as_bytes()[..8]);
        head
    }
}

/// The segments of a directory. What is named like one and is no regular file that can be read and written is passed over:
/// a symbolic link must not lead to a file that would then be cut.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        let Some(number) = name.and_then(|digits| digits.parse().ok()) else { continue };
        listing.highest = listing.highest.max(Some(number));
        match open(&path) {
            Ok(file) => listing.segments.push(Segment { number, path, file }),
            Err(error) => tracing::warn!(segment = %path.display(), %error, "a segment of the cache is passed over"),
        }
    }
    listing.segments.sort_by_key(|segment| segment.number);
    // `1.segment` and `000000000001.segment` are the same number: one of them is a stranger's.
    listing.segments.dedup_by_key(|segment| segment.number);
    Ok(listing)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

impl Segment {
    pub(super) fn create(dir: &Path, number: u32) -> io::Result<Self> {
        let path = dir.join(format!("{number:012}{SUFFIX}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { number, path, file })
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record where the records end; what stood behind that end, an index or half a record, goes. Returns the
    /// entry of the record.
    pub(super) fn append(&self, end: u32, record: &Record) -> io::Result<Entry> {
        let (stored_len, plain_len) = (record.stored.len() as u32, record.plain_len);
        let bytes = [&record.head()[..], &record.stored].concat();
        self.append_bytes(end, &bytes)?;
        Ok(Entry { digest: record.digest, offset: end + HEAD_BYTES as u32, stored_len, plain_len })
    }

    /// Copies the record of `entry` from another segment; returns its entry here.
    pub(super) fn append_copy(&self, end: u32, entry: &Entry, from: &Self) -> io::Result<Entry> {
        let mut bytes = vec![0; HEAD_BYTES as usize + entry.stored_len as usize];
        from.file.read_exact_at(&mut bytes, u64::from(entry.offset) - HEAD_BYTES)?;
        let head = bytes.first_chunk().and_then(parse);
        // A head that is damaged would end the scan of the segment that it is written to.
        if head != Some((entry.digest, entry.stored_len, entry.plain_len)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record's head is damaged"));
        }
        self.append_bytes(end, &bytes)?;
        Ok(Entry { offset: end + HEAD_BYTES as u32, ..*entry })
    }

    fn append_bytes(&self, end: u32, bytes: &[u8]) -> io::Result<()> {
        let end = u64::from(end);
        if self.file.metadata()?.len() > end {
            self.file.set_len(end)?;
        }
        self.file.write_all_at(bytes, end).inspect_err(|_| {
            // Half a record must not stand before later ones; one that stays is written over by the next.
            let _ = self.file.set_len(end);
        })
    }

    /// Writes the index behind the records.
    pub(super) fn seal(&self, end: u32, entries: &[Entry]) -> io::Result<()> {
        self.append_bytes(end, &index::encode(entries))
    }

    /// Brings what was written to the disk itself.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The bytes of a frame, which may be damaged.
    pub(super) fn read(&self, offset: u32, stored_len: u32) -> io::Result<Vec<u8>> {
        let mut stored = vec![0; stored_len as usize];
        self.file.read_exact_at(&mut stored, offset.into())?;
        Ok(stored)
    }

    /// The bytes of a frame if the system has them in memory; nothing if the disk would be waited for.
    pub(super) fn read_now(&self, offset: u32, stored_len: u32) -> io::Result<Option<Vec<u8>>> {
        let mut stored = vec![0; stored_len as usize];
        let read = preadv2(&self.file, &mut [IoSliceMut::new(&mut stored)], offset.into(), ReadWriteFlags::NOWAIT);
        match read {
            Ok(count) if count == stored.len() => Ok(Some(stored)),
            // A part of it is in memory, or the file ends, which a read that waits finds out.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What it holds, by its index; by its records if it has no good one. Frames are verified when they are read.
    pub(super) fn contents(&self) -> io::Result<Contents> {
        let len = self.file.metadata()?.len();
        match index::read(&self.file, len)? {
            Some((entries, end)) => Ok(Contents { entries, end, is_sealed: true }),
            None => self.scan(len),
        }
    }

    /// Every record with a whole head; the first torn one ends the segment.
    fn scan(&self, len: u64) -> io::Result<Contents> {
        let len = len.min(SEGMENT_FILE_BYTES_MAX);
        let mut contents = Contents::default();
        let mut head = [0; HEAD_BYTES as usize];
        while u64::from(contents.end) + HEAD_BYTES <= len {
            self.file.read_exact_at(&mut head, contents.end.into())?;
            let Some((digest, stored_len, plain_len)) = parse(&head) else { break };
            let offset = u64::from(contents.end) + HEAD_BYTES;
            let end = offset + u64::from(stored_len);
            if end > len {
                break;
            }
            // Both are within the length, which has 32 bits.
            contents.entries.push(Entry { digest, offset: offset as u32, stored_len, plain_len });
            contents.end = end as u32;
        }
        Ok(contents)
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Cuts off what stands behind the records.
    pub(super) fn cut(&self, end: u32) -> io::Result<()> {
        self.file.set_len(end.into())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

fn parse(head: &[u8; HEAD_BYTES as usize]) -> Option<(Digest, u32, u32)> {
    let (body, check) = head.split_at(HEAD_CHECKED_BYTES);
    let (magic, rest) = body.split_first_chunk::<4>()?;
    let (stored_len, rest) = rest.split_first_chunk::<4>()?;
    let (plain_len, rest) = rest.split_first_chunk::<4>()?;
    let digest = Digest::from_bytes(*rest.first_chunk()?);
    let (stored_len, plain_len) = (u32::from_le_bytes(*stored_len), u32::from_le_bytes(*plain_len));
    let whole = *magic == MAGIC && Digest::of(body).as_bytes().starts_with(check);
    (whole && stored_len <= plain_len && plain_len <= FRAME_PLAIN_BYTES_MAX).then_some((digest, stored_len, plain_len))
}
