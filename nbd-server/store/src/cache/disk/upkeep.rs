//! What is done with a cache beside reading and filling it: looking how full it is, verifying, emptying.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmnetx_format::Digest;

use super::index::Entry;
use super::segment::{Record, Segment};
use super::{DiskCache, Job};
use crate::Error;
use crate::cache::{Pin, Pinned, pins};
use crate::limits::PINNED_QUARTERS_MAX;

/// How full a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskUsage {
    /// Bytes of its segments, what was overwritten in them included.
    pub bytes: u64,
    /// Frames that can be read.
    pub records: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the records that are pinned.
    pub pinned_bytes: u64,
}

/// What came of verifying a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskVerified {
    /// Frames that were read.
    pub records: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Those of them that were damaged and dropped.
    pub damaged: u64,
}

/// Keeps frames from being evicted until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold(Arc<DiskCache>);

impl Hold {
    /// Keeps these too, whether they are here or not.
    pub(crate) fn keep(&self, digests: impl IntoIterator<Item = Digest>) {
        self.0.shared.lock().pin(digests);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Not the cache itself: its writer would wait for its own end if it dropped it last.
        let shared = Arc::clone(&self.0.shared);
        self.0.later(move || {
            shared.lock().release();
            shared.pin_all();
        });
    }
}

impl DiskCache {
    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// How full it is now.
    #[must_use]
    pub fn usage(&self) -> DiskUsage {
        let state = self.shared.lock();
        DiskUsage {
            bytes: state.bytes(),
            records: state.records() as u64,
            segments: state.segments().len() as u64,
            pinned_bytes: state.pinned_bytes(),
        }
    }

    /// Reads every frame, compares it with its digest and drops those that are damaged; `advance` hears of the bytes of
    /// each. Not for async code.
    pub fn verify(&self, mut advance: impl FnMut(u64)) -> DiskVerified {
        let mut verified = DiskVerified::default();
        let segments = self.shared.lock().segments();
        for segment in segments {
            // One that was cut or damaged since it was opened has fewer entries than records: reading finds those out.
            let Ok(contents) = segment.contents() else { continue };
            let damaged_before = verified.damaged;
            for entry in contents.entries {
                let Some(is_whole) = self.is_whole(&segment, &entry) else { continue };
                verified.records += 1;
                verified.bytes += u64::from(entry.stored_len);
                verified.damaged += u64::from(!is_whole);
                advance(u64::from(entry.stored_len));
            }
            if verified.damaged > damaged_before {
                let path = segment.path().to_owned();
                if let Some(Err(error)) = self.with_writer(move |writer| writer.reseal(&segment)) {
                    tracing::warn!(segment = %path.display(), %error, "damaged records stay in the segment's index");
                }
            }
        }
        verified
    }

    /// Whether the frame of an entry is read as it was written; nothing if it is read from elsewhere or not at all.
    fn is_whole(&self, segment: &Segment, entry: &Entry) -> Option<bool> {
        let found = {
            let mut state = self.shared.lock();
            state.is_live(segment.number(), entry).then(|| state.find(&entry.digest, false)).flatten()?
        };
        let stored = found.segment.read(found.entry.offset, found.entry.stored_len);
        Some(self.shared.opened(&found, stored).is_some())
    }

    /// Removes segments, oldest first, until no more than `max_bytes` are left or all that is left is pinned. Not for async
    /// code.
    ///
    /// # Errors
    /// [`Error::Cache`] when something pinned cannot be moved.
    pub fn prune(&self, max_bytes: u64) -> Result<(), Error> {
        self.with_writer(move |writer| writer.prune(max_bytes)).unwrap_or(Ok(())).map_err(|error| self.error(&error))
    }

    /// Writes frames, however many wait, and says whether all of them are here then. Not for async code.
    pub(crate) fn insert(&self, records: Vec<Record>) -> bool {
        let digests: Vec<Digest> = records.iter().map(|record| record.digest).collect();
        for record in records {
            self.shared.queued_bytes.fetch_add(record.len(), std::sync::atomic::Ordering::Relaxed);
            self.ask(Job::Keep(record));
        }
        self.flush();
        digests.iter().all(|digest| self.contains(digest))
    }

    /// Has everything that was written survive a loss of power. Not for async code.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.with_writer(super::Writer::sync).unwrap_or(Ok(())).map_err(|error| self.error(&error))
    }

    /// The versions that are pinned. Reads the disk: not for async code.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        pins::load(&self.shared.dir).into_iter().map(|pinned| pinned.pin).collect()
    }

    /// Pins no longer the version of this manifest; says whether it was pinned. Not for async code.
    ///
    /// # Errors
    /// [`Error::Cache`] when the pin cannot be removed.
    pub fn unpin(&self, manifest: &Digest) -> Result<bool, Error> {
        let removed = pins::remove(&self.shared.dir, manifest).map_err(|error| self.error(&error))?;
        self.shared.pin_all();
        Ok(removed)
    }

    /// Bytes that pins may keep together.
    pub(crate) fn pinned_bytes_max(&self) -> u64 {
        self.shared.max_bytes / 4 * PINNED_QUARTERS_MAX
    }

    /// Begins to keep frames from being evicted, which ends with the hold.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.shared.lock().hold();
        Hold(Arc::clone(self))
    }

    /// Whether the version of this manifest is pinned and all of it is here; does not read the disk.
    pub(crate) fn is_complete(&self, manifest: &Digest) -> bool {
        self.shared.lock().is_complete(manifest)
    }

    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.shared.lock().is_pinned(digest)
    }

    /// Pins a version, all of which is here and on the disk itself. Not for async code.
    ///
    /// # Errors
    /// [`Error::Cache`] when the pin cannot be written.
    pub(crate) fn pin(&self, pinned: &Pinned) -> Result<(), Error> {
        pinned.write(&self.shared.dir).map_err(|error| self.error(&error))?;
        self.shared.pin_all();
        Ok(())
    }

    /// The directory cannot be used for this reason.
    pub(crate) fn error(&self, reason: &impl ToString) -> Error {
        super::cannot(&self.shared.dir, reason)
    }
}
