//! A version that is published elsewhere: every node, every chunk and every frame of its orders fetched and compared with its
//! digest.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use vmnetx_format::{Digest, OrderFrame, order_path};
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::trust::TrustError;
use vmnetx_store::{Image, Location, Package, Store};

use super::{Affected, Depth, Findings, VerifyReport, told};
use crate::limits::{REMOTE_READ_BYTES, REMOTE_READS};
use crate::remote::{Reader, open, stored_ranges};
use crate::{Error, Progress};

/// Verifies the version that a link on a web server names: its link, manifest, index, every chunk, and its orders with all that
/// they name. What lies beside it in the repository, and the digests of whole packs, are for [`super::verify_repository`].
///
/// # Errors
/// [`Error`] when the server cannot be reached, or the link is not to be believed. Damage is no error here: see
/// [`VerifyReport::findings`].
pub fn verify_remote(
    location: &Location,
    depth: Depth,
    reader: &Reader,
    progress: &dyn Progress,
) -> Result<VerifyReport, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let findings = Findings::default();
    let mut report = VerifyReport { links: 1, versions: 1, ..VerifyReport::default() };
    let store = reader.once_store()?;
    match open(&runtime, &store, location, progress) {
        Ok(package) => {
            progress.total(package.images().iter().map(|image| image.size_bytes()).sum());
            let version = package.version().manifest;
            for image in package.images() {
                let checked = Checked { link: location.to_string(), version, image, depth, findings: &findings };
                report.read_bytes += runtime.block_on(checked.verify(progress))?;
            }
            for digest in &package.version().orders {
                report.orders += 1;
                let checking = verify_order(&store, &package, *digest, depth, &findings);
                report.read_bytes += runtime.block_on(checking)?;
            }
        }
        // What is known of the link on this host is not the link's damage.
        Err(error @ vmnetx_store::Error::Trust(_)) if !is_bad_signature(&error) => return Err(error.into()),
        Err(error) => findings.add(location.to_string(), told_damage(error)?, None),
    }
    report.take(&findings);
    Ok(report)
}

/// Verifies an order and the frames that it names, each where the order says that it lies; gives the plain bytes of what was
/// read. A frame that is not what the order says wastes a reader's time, and harms no version.
async fn verify_order(
    store: &Store,
    package: &Package,
    digest: Digest,
    depth: Depth,
    findings: &Findings,
) -> Result<u64, Error> {
    let object = order_path(&digest);
    let order = match store.order(package, digest).await {
        Ok(order) => order,
        Err(error) => {
            findings.add(object, told_damage(error)?, None);
            return Ok(0);
        }
    };
    let mut read_bytes = 0;
    let fetches = batches(order.frames(), depth).map(|batch| async move {
        let mut arrivals = package.frames_of_order(batch.iter().map(|(_, frame)| *frame));
        let mut results = Vec::new();
        while let Some(arrival) = arrivals.next().await {
            if let Some((number, frame)) = batch.get(arrival.index) {
                results.push((*number, arrival.result.map(|_| u64::from(frame.plain_len))));
            }
        }
        results
    });
    let mut fetches = std::pin::pin!(fetches.buffered(REMOTE_READS));
    while let Some(results) = fetches.next().await {
        for (number, result) in results {
            match result {
                Ok(plain_bytes) => read_bytes += plain_bytes,
                Err(error) => findings.add(&object, format!("frame {number}: {}", told_damage(error)?), None),
            }
        }
    }
    Ok(read_bytes)
}

/// The frames of an order that are looked at, with their numbers, some [`REMOTE_READ_BYTES`] at a time.
fn batches(frames: &[OrderFrame], depth: Depth) -> impl Stream<Item = Vec<(usize, &OrderFrame)>> {
    let mut looked_at = frames.iter().enumerate().filter(move |_| depth.takes()).peekable();
    stream::iter(std::iter::from_fn(move || {
        let mut bytes = 0;
        let batch = std::iter::from_fn(|| {
            let (_, frame) = looked_at.peek().filter(|_| bytes < REMOTE_READ_BYTES)?;
            bytes += u64::from(frame.place.stored_len);
            looked_at.next()
        });
        let batch: Vec<_> = batch.collect();
        (!batch.is_empty()).then_some(batch)
    }))
}

fn is_bad_signature(error: &vmnetx_store::Error) -> bool {
    matches!(error, vmnetx_store::Error::Trust(TrustError::BadSignature { .. }))
}

/// An image that is verified.
struct Checked<'a> {
    link: String,
    version: Digest,
    image: &'a Arc<Image>,
    depth: Depth,
    findings: &'a Findings,
}

impl Checked<'_> {
    /// Gives the bytes that were read.
    async fn verify(&self, progress: &dyn Progress) -> Result<u64, Error> {
        self.image.warm_index();
        let size_bytes = self.image.size_bytes();
        let (mut done, mut read_bytes) = (0, 0);
        let reads = stored_ranges(self.image).map(|range| async move {
            match range {
                Ok((offset, length)) if !self.depth.takes() => (Some((offset, offset + length)), Ok(0)),
                Ok((offset, length)) => {
                    let read = self.image.read(offset, length).await;
                    (Some((offset, offset + length)), read.map(|_| length).map_err(Error::from))
                }
                Err(error) => (None, Err(error)),
            }
        });
        let mut reads = std::pin::pin!(reads.buffered(REMOTE_READS));
        while let Some((range, read)) = reads.next().await {
            // Without an index nothing is known of what follows.
            let (start, end) = range.unwrap_or((done, size_bytes));
            match read {
                Ok(bytes) => read_bytes += bytes,
                Err(error) => {
                    let what = told_damage(error)?;
                    let disk = Some(self.image.name().to_owned());
                    self.findings.add(&self.link, what, Some(Affected { version: self.version, disk, start, end }));
                }
            }
            progress.advance(end - done);
            done = end;
        }
        progress.advance(size_bytes - done);
        Ok(read_bytes)
    }
}

/// What is wrong with the data, or the error itself if it says nothing about the data.
fn told_damage(error: impl Into<Error>) -> Result<String, Error> {
    let error = error.into();
    let missing =
        matches!(&error, Error::Read(vmnetx_store::Error::Refused { status, .. }) if status.starts_with("404"));
    if error.class() == Class::Integrity || missing { Ok(told(&error)) } else { Err(error) }
}
