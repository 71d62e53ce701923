//! The index at the end of a sealed segment: where each record is, so that opening a cache reads no records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vmnetx_format::Digest;
use vmnetx_format::limits::FRAME_PLAIN_BYTES_MAX;

use super::segment::HEAD_BYTES;
use crate::limits::{SEGMENT_FILE_BYTES_MAX, SEGMENT_INDEX_BYTES_MAX};

/// Bytes of an entry: digest, offset, stored length, plain length.
pub(super) const ENTRY_BYTES: u64 = 44;
/// Bytes of the end of an index: magic, number of entries, sixteen bytes of the BLAKE3 of the entries and these.
pub(super) const TRAILER_BYTES: u64 = 24;
const MAGIC: [u8; 4] = *b"VXI0";
/// Bytes at a segment's end that are read at once: the index of a segment of chunks of usual lengths is no longer.
const GUESSED_BYTES: u64 = 192 << 10;
const TRAILER_CHECKED_BYTES: usize = 8;

/// Where a record's frame is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    /// Where its frame begins; its head stands before that.
    pub(super) offset: u32,
    pub(super) stored_len: u32,
    pub(super) plain_len: u32,
}

impl Entry {
    /// Bytes that the record takes in a sealed segment.
    pub(super) fn bytes(&self) -> u64 {
        HEAD_BYTES + u64::from(self.stored_len) + ENTRY_BYTES
    }
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY_BYTES as usize + TRAILER_BYTES as usize);
    for entry in entries {
        out.extend(entry.digest.as_bytes());
        for number in [entry.offset, entry.stored_len, entry.plain_len] {
            out.extend(number.to_le_bytes());
        }
    }
    out.extend(MAGIC);
    out.extend((entries.len() as u32).to_le_bytes());
    let check = Digest::of(&out);
    out.extend(&check.as_bytes()[..TRAILER_BYTES as usize - TRAILER_CHECKED_BYTES]);
    out
}

/// The entries of the index at the end of a file of `len` bytes, and where its records end; nothing if there is no good one.
pub(super) fn read(file: &File, len: u64) -> io::Result<Option<(Vec<Entry>, u32)>> {
    if !(TRAILER_BYTES..=SEGMENT_FILE_BYTES_MAX).contains(&len) {
        return Ok(None);
    }
    // On a disk that has to seek, one read is worth some bytes too many.
    let guessed = len.min(GUESSED_BYTES);
    let mut tail = vec![0; guessed as usize];
    file.read_exact_at(&mut tail, len - guessed)?;
    let trailer = tail.last_chunk::<{ TRAILER_BYTES as usize }>();
    let Some((magic, rest)) = trailer.map(|trailer| trailer.split_at(MAGIC.len())) else { return Ok(None) };
    let Some(count) = rest.first_chunk().filter(|_| magic == MAGIC) else { return Ok(None) };
    let bytes = u64::from(u32::from_le_bytes(*count)) * ENTRY_BYTES + TRAILER_BYTES;
    let Some(end) = len.checked_sub(bytes).filter(|_| bytes <= SEGMENT_INDEX_BYTES_MAX) else { return Ok(None) };
    let index = match tail.len().checked_sub(bytes as usize) {
        Some(before) => tail.split_off(before),
        None => {
            let mut index = vec![0; bytes as usize];
            file.read_exact_at(&mut index, end)?;
            index
        }
    };
    // Within the length, which has 32 bits.
    let end = end as u32;
    Ok(decode(&index, end).map(|entries| (entries, end)))
}

fn decode(bytes: &[u8], end: u32) -> Option<Vec<Entry>> {
    let body = bytes.len().checked_sub(TRAILER_BYTES as usize)?;
    let (checked, check) = bytes.split_at(body + TRAILER_CHECKED_BYTES);
    if !Digest::of(checked).as_bytes().starts_with(check) {
        return None;
    }
    let mut entries = Vec::with_capacity(body / ENTRY_BYTES as usize);
    let mut before = 0;
    for entry in checked[..body].chunks_exact(ENTRY_BYTES as usize) {
        // One after the other, so that they have no more bytes than their file.
        let entry = parse(entry, end).filter(|entry| u64::from(entry.offset) >= before + HEAD_BYTES)?;
        before = u64::from(entry.offset) + u64::from(entry.stored_len);
        entries.push(entry);
    }
    Some(entries)
}

fn parse(entry: &[u8], end: u32) -> Option<Entry> {
    let (digest, rest) = entry.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk::<4>()?;
    let (stored_len, rest) = rest.split_first_chunk::<4>()?;
    let plain_len = rest.first_chunk::<4>()?;
    let [offset, stored_len, plain_len] = [offset, stored_len, plain_len].map(|number| u32::from_le_bytes(*number));
    let inside = u64::from(offset) + u64::from(stored_len) <= u64::from(end);
    let sane = inside && stored_len <= plain_len && plain_len <= FRAME_PLAIN_BYTES_MAX;
    sane.then(|| Entry { digest: Digest::from_bytes(*digest), offset, stored_len, plain_len })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn entries(count: u32) -> Vec<Entry> {
        let entry = |number: u32| Entry {
            digest: Digest::of(&number.to_le_bytes()),
            offset: 52 + number * 152,
            stored_len: 100,
            plain_len: 200 + number,
        };
        (0..count).map(entry).collect()
    }

    fn written(bytes: &[u8]) -> (File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        (file, bytes.len() as u64)
    }

    #[test]
    fn an_index_says_what_was_written() {
        for count in [0, 1, 1000, 6000] {
            let entries = entries(count);
            let end = count * 152;
            let (file, len) = written(&[vec![7; end as usize], encode(&entries)].concat());
            assert_eq!(read(&file, len).unwrap(), Some((entries, end)));
        }
    }

    proptest! {
        #[test]
        fn damage_is_found(count in 0_u32..40, at: prop::sample::Index, by in 1_u8..=255, cut in 0_usize..300) {
            let index = encode(&entries(count));
            let mut damaged = index.clone();
            damaged[at.index(index.len())] ^= by;
            let (file, len) = written(&[vec![7; count as usize * 152], damaged].concat());
            prop_assert_eq!(read(&file, len).unwrap(), None);
            let cut = index.len().min(cut + 1);
            let (file, len) = written(&[&vec![7; count as usize * 152], &index[..index.len() - cut]].concat());
            prop_assert_eq!(read(&file, len).unwrap(), None);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), count: u32) {
            bytes.extend(MAGIC);
            bytes.extend((count % 16).to_le_bytes());
            let check = Digest::of(&bytes);
            bytes.extend(&check.as_bytes()[..16]);
            let (file, len) = written(&bytes);
            if let Some((entries, end)) = read(&file, len).unwrap() {
                prop_assert!(entries.iter().all(|entry| entry.offset + entry.stored_len <= end));
                prop_assert!(entries.is_sorted_by(|a, b| a.offset + a.stored_len < b.offset));
            }
        }
    }
}
