//! LINK arguments, the disk tier's segments, and QEMU's monitor.

use std::io::Write;
use std::os::unix::net::UnixStream;

use vmnetx_format::Digest;
use vmnetx_store::{DiskCache, Location, Place};

use crate::assert_printable;
use crate::qmp::Qmp;

/// Bytes of the head of a record in a segment; the last eight are its checksum.
const HEAD_BYTES: usize = 52;
const HEAD_CHECKED_BYTES: usize = 44;
/// Bytes of a record in the index at a segment's end, and of the end of that.
const ENTRY_BYTES: usize = 44;
const TRAILER_BYTES: usize = 24;

/// A LINK as a user gives it.
pub fn location(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match text.parse::<Location>() {
        Ok(location) => match &location.place {
            Place::Url(url) => {
                assert!(matches!(url.scheme(), "http" | "https"));
                assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
                if url.query().is_none() {
                    let again = location.to_string().parse::<Location>().unwrap();
                    assert_eq!(again, Location { version: None, ..location.clone() });
                }
            }
            Place::Path(path) => assert!(!path.as_os_str().is_empty()),
        },
        Err(error) if text.len() < 1024 => assert_printable(&error),
        Err(_) => {}
    }
}

/// A segment of the disk tier, whose heads are given the checksum that they should have where the bytes say so; and an index
/// of so many entries as they say.
pub fn disk_tier(data: &[u8]) {
    let Some((&choice, records)) = data.split_first() else { return };
    let mut segment = records.to_vec();
    if choice & 1 == 0 {
        let mut at = 0;
        while let Some(head) = segment.get_mut(at..at + HEAD_BYTES) {
            if head.starts_with(b"VXC0") {
                let check = Digest::of(&head[..HEAD_CHECKED_BYTES]);
                head[HEAD_CHECKED_BYTES..].copy_from_slice(&check.as_bytes()[..8]);
            }
            at += 1;
        }
    }
    if choice & 2 != 0 {
        let count = usize::from(choice >> 2) % 16;
        let entries = segment.len().saturating_sub(count * ENTRY_BYTES);
        segment.extend(b"VXI0");
        segment.extend((count as u32).to_le_bytes());
        let check = Digest::of(&segment[entries..]);
        segment.extend(&check.as_bytes()[..16]);
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join(format!("{:012}.segment", choice >> 6));
    std::fs::write(&path, &segment).unwrap();
    let max_bytes = 1 << 20;
    let cache = DiskCache::open(dir.path(), max_bytes).unwrap();
    // Each record has a head, which is longer than its entry in the index.
    assert!(cache.bytes() <= 2 * segment.len() as u64 + TRAILER_BYTES as u64);
    let verified = cache.verify(|_| ());
    assert_eq!(cache.usage().records, verified.records - verified.damaged);
    // A torn record was cut off and damaged ones were dropped, so nothing is lost the second time.
    let usage = cache.usage();
    drop(cache);
    assert_eq!(DiskCache::open(dir.path(), max_bytes).unwrap().usage().records, usage.records);
}

/// Reads a monitor's greeting, answers and events.
pub(crate) fn monitor(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // Half of a socket's buffer: writing does not wait for the reader, and what it writes is not read.
    theirs.write_all(&data[..data.len().min(64 << 10)]).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    ours.set_nonblocking(true).unwrap();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(ours).unwrap();
            let mut qmp = match Qmp::open(stream).await {
                Ok(qmp) => qmp,
                Err(error) => return assert_printable(&error),
            };
            if let Err(error) = qmp.status().await {
                assert_printable(&error);
            }
            while let Ok(_event) = qmp.event().await {}
        });
    });
    drop(theirs);
}
