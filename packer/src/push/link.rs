//! The link in the bucket: what it says, whether ours may replace it, and how it does without overwriting another's.

use std::time::Duration;

use bytes::Bytes;
use object_store::{PutMode, UpdateVersion};
use vmnetx_format::{Digest, Envelope, Link, link_path, manifest_path};

use super::bucket::{Bucket, PutFailure, StoredLink};
use super::error::words;
use super::{Conditions, PushError};
use crate::limits::{PUSH_LINK_TRIES, PUSH_PAUSE_MAX, PUSH_PAUSE_MIN};
use crate::media::Media;

/// An entity tag that no object has.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

/// What has to be done about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is in the bucket just so.
    Keep,
    /// The bucket has none.
    Create,
    /// It replaces this one.
    Replace(StoredLink),
}

/// What `ours` has to do, given what the bucket has.
pub(super) fn step(ours: &Envelope, stored: Option<StoredLink>, force: bool) -> Result<Step, PushError> {
    let Some(stored) = stored else { return Ok(Step::Create) };
    if stored.bytes == ours.encode() {
        return Ok(Step::Keep);
    }
    let name = || ours.link.name.clone();
    match Envelope::decode(&stored.bytes) {
        _ if force => {}
        Err(source) => return Err(PushError::RemoteLink { name: name(), source }),
        Ok(theirs) if is_earlier(&theirs.link, &ours.link) => {}
        Ok(theirs) => {
            let (theirs, ours) = (words(&theirs.link), words(&ours.link));
            return Err(PushError::Foreign { name: name(), theirs, ours });
        }
    }
    Ok(Step::Replace(stored))
}

/// Whether `ours` goes on where `theirs` ended.
fn is_earlier(theirs: &Link, ours: &Link) -> bool {
    theirs.name == ours.name && theirs.serial < ours.serial && ours.version(&theirs.current.manifest).is_some()
}

/// Makes sure that the server keeps to the conditions that the steps need, by putting a manifest that is there once more
/// under a condition that is not met.
pub(super) async fn check_conditions(
    bucket: &Bucket,
    steps: impl Iterator<Item = &Step> + Clone,
    manifest: &[u8],
) -> Result<(), PushError> {
    if steps.clone().any(|step| matches!(step, Step::Create)) {
        probe(bucket, manifest, PutMode::Create, "If-None-Match").await?;
    }
    if steps.clone().any(|step| matches!(step, Step::Replace(_))) {
        let update = UpdateVersion { e_tag: Some(NO_ETAG.to_owned()), version: None };
        probe(bucket, manifest, PutMode::Update(update), "If-Match").await?;
    }
    Ok(())
}

async fn probe(bucket: &Bucket, manifest: &[u8], mode: PutMode, header: &'static str) -> Result<(), PushError> {
    let (path, bytes) = (manifest_path(&Digest::of(manifest)), Bytes::copy_from_slice(manifest));
    let unsupported = || PushError::Unconditional { server: bucket.server.clone(), header };
    let mut pauses = pauses();
    loop {
        match bucket.put_if(&path, Media::Manifest, bytes.clone(), mode.clone()).await {
            Err(PutFailure::Unmet) => return Ok(()),
            Ok(()) | Err(PutFailure::Unsupported) => return Err(unsupported()),
            Err(PutFailure::Refused(error)) => return Err(error),
            Err(PutFailure::Unknown(error)) => pause(&mut pauses, error).await?,
        }
    }
}

/// Puts a link in its place, unless somebody else does so first.
pub(super) async fn put(
    bucket: &Bucket,
    ours: &Envelope,
    step: &Step,
    conditions: Conditions,
) -> Result<(), PushError> {
    let (before, mode) = match step {
        Step::Keep => return Ok(()),
        Step::Create => (None, PutMode::Create),
        Step::Replace(stored) => {
            let update = UpdateVersion { e_tag: stored.etag.clone(), version: None };
            (Some(stored), PutMode::Update(update))
        }
    };
    let name = &ours.link.name;
    let (path, bytes) = (link_path(name), Bytes::from(ours.encode()));
    if conditions == Conditions::Without {
        // All that can be done: nobody else should be seen to work here.
        settle(ours, before, bucket.link(name).await?)?;
        return bucket.put(&path, Media::Link, bytes).await;
    }
    if before.is_some_and(|stored| stored.etag.is_none()) {
        return Err(PushError::Unconditional { server: bucket.server.clone(), header: "ETag" });
    }
    let mut pauses = pauses();
    loop {
        let failure = match bucket.put_if(&path, Media::Link, bytes.clone(), mode.clone()).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        // A lost answer, perhaps to an earlier try, leaves open who it was that replaced the link: the link says so.
        if settle(ours, before, bucket.link(name).await?)? {
            return Ok(());
        }
        let error = match failure {
            PutFailure::Refused(error) => return Err(error),
            PutFailure::Unknown(error) => error,
            PutFailure::Unsupported | PutFailure::Unmet => {
                PushError::Unconditional { server: bucket.server.clone(), header: "of the link" }
            }
        };
        pause(&mut pauses, error).await?;
    }
}

/// Whether the bucket has our link; an error if it has neither ours nor the one from before.
fn settle(ours: &Envelope, before: Option<&StoredLink>, now: Option<StoredLink>) -> Result<bool, PushError> {
    if now.as_ref().is_some_and(|now| now.bytes == ours.encode()) {
        return Ok(true);
    }
    if now.as_ref() == before {
        return Ok(false);
    }
    let theirs = now.map(|now| Envelope::decode(&now.bytes));
    let theirs = match theirs {
        None => "no link".to_owned(),
        Some(Ok(theirs)) => words(&theirs.link),
        Some(Err(error)) => format!("a link that cannot be read ({error})"),
    };
    Err(PushError::Raced { name: ours.link.name.clone(), theirs, ours: words(&ours.link) })
}

fn pauses() -> impl Iterator<Item = Duration> {
    let longer = |pause: &Duration| Some((*pause * 2).min(PUSH_PAUSE_MAX));
    std::iter::successors(Some(PUSH_PAUSE_MIN), longer).take(PUSH_LINK_TRIES - 1)
}

async fn pause(pauses: &mut impl Iterator<Item = Duration>, error: PushError) -> Result<(), PushError> {
    match pauses.next() {
        None => Err(error),
        Some(pause) => {
            tokio::time::sleep(pause).await;
            Ok(())
        }
    }
}
