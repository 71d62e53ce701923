//! Makes a bucket of an object store hold what a repository's links reach.
//!
//! The repository's directory stays the publisher's master copy. What the bucket lacks is uploaded, objects before the links
//! that lead to them, and a link is replaced only if it still is the one that was looked at. A push that dies leaves
//! every version that could be read; the next one uploads only what is missing still.

mod bucket;
mod credentials;
mod error;
mod http;
mod link;
mod prune;
mod target;
mod upload;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use vmnetx_format::limits::MANIFEST_BYTES_MAX;
use vmnetx_format::{Digest, Envelope, Name, link_path, manifest_path};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::interrupt;

pub use self::error::PushError;
pub use self::target::{Endpoint, Target};

use self::bucket::{Bucket, Listing};
use self::link::Step;
use self::upload::{Object, Uploads};
use crate::limits::{PUSH_ABORT, PUSH_ROUNDS};
use crate::reach::Reach;
use crate::{Damage, Error, Progress};

/// What to push and where.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// The packages; all of the repository if there are none.
    pub names: Vec<Name>,
    /// The bucket.
    pub target: Target,
    /// Its server.
    pub endpoint: Endpoint,
    /// Whether a link may be replaced that is not an earlier one of ours.
    pub force_link: bool,
    /// Whether links are put conditionally.
    pub conditions: Conditions,
    /// How long objects that the repository no longer has are kept in the bucket; nothing to keep them all.
    pub prune: Option<Duration>,
    /// Change nothing, and tell what would be done.
    pub dry_run: bool,
}

/// Whether links are put under the condition that nobody else has replaced them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// They are; a server that cannot do so is an error.
    With,
    /// They are not: the user knows that nobody else publishes.
    Without,
}

/// What a push did, or would do.
#[derive(Debug, Default, Serialize)]
pub struct PushReport {
    /// The bucket.
    pub target: String,
    /// The packages.
    pub links: Vec<PushedLink>,
    /// Objects that the packages need.
    pub objects: u64,
    /// Objects of these that were uploaded.
    pub uploaded_objects: u64,
    /// Bytes of those.
    pub uploaded_bytes: u64,
    /// Objects that were deleted.
    pub pruned: Vec<PrunedObject>,
    /// Nothing was changed: this is what would be done.
    pub dry_run: bool,
}

/// A package that was pushed.
#[derive(Debug, Serialize)]
pub struct PushedLink {
    /// Its name.
    pub name: Name,
    /// The link's serial number.
    pub serial: u64,
    /// Its current version.
    pub version: Digest,
    /// Whether the link was put; it is left alone where it is the same already.
    pub changed: bool,
}

/// An object that was deleted from a bucket.
#[derive(Debug, Serialize)]
pub struct PrunedObject {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
}

/// What the repository has, as it was at one moment.
struct Here {
    repository: RepositoryDir,
    links: Vec<Envelope>,
    needed: Vec<Object>,
}

/// Pushes packages to a bucket.
///
/// # Errors
/// [`Error::Object`] and [`Error::Damaged`] when the repository is damaged, before anything is uploaded; [`Error::Push`].
pub fn push(options: &PushOptions, progress: &dyn Progress) -> Result<PushReport, Error> {
    // What is wrong with the endpoint and the credentials should be told before the repository is walked.
    let bucket = Bucket::open(&options.target, &options.endpoint)?;
    let here = Here::read(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let stop = interrupt::token().map_err(Error::Runtime)?;
        let stopped = async {
            stop.cancelled().await;
            // Time for uploads to be taken back; the link is not put any more.
            tokio::time::sleep(PUSH_ABORT).await;
        };
        tokio::select! {
            pushed = work(options, &bucket, &here, progress, &stop) => pushed,
            () = stopped => Err(PushError::Interrupted.into()),
        }
    })
}

async fn work(
    options: &PushOptions,
    bucket: &Bucket,
    here: &Here,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<PushReport, Error> {
    let mut steps = Vec::new();
    for envelope in &here.links {
        let name = &envelope.link.name;
        let first = steps.is_empty();
        let stored = if first { bucket.first_link(name).await } else { bucket.link(name).await };
        steps.push((name.clone(), link::step(envelope, stored?, options.force_link)?));
    }
    let mut report = here.report(options, &steps);
    complete(bucket, here, options, progress, stop, &mut report).await?;
    if !options.dry_run {
        put_links(bucket, here, &steps, options.conditions, stop).await?;
    }
    if let Some(grace) = options.prune {
        report.pruned = prune::prune(bucket, &here.repository, &steps, grace, options.dry_run).await?;
    }
    Ok(report)
}

/// Uploads until a list of the bucket has everything: what another publisher prunes meanwhile is noticed before the link
/// is put, and an upload of which the answer was lost counts if it is there.
async fn complete(
    bucket: &Bucket,
    here: &Here,
    options: &PushOptions,
    progress: &dyn Progress,
    stop: &CancellationToken,
    report: &mut PushReport,
) -> Result<(), Error> {
    let mut missing = here.missing(&bucket.objects().await?)?;
    let bytes = missing.iter().map(|object| object.bytes).sum();
    (report.uploaded_objects, report.uploaded_bytes) = (missing.len() as u64, bytes);
    if options.dry_run {
        return Ok(());
    }
    upload::check(&here.repository, &missing)?;
    progress.total(bytes);
    for _ in 0..PUSH_ROUNDS {
        if missing.is_empty() {
            return Ok(());
        }
        let uploads = Uploads::new(bucket, &here.repository, progress, stop);
        let (packs, others): (Vec<&Object>, Vec<&Object>) = missing.iter().partition(|object| object.is_pack());
        uploads.run(&packs).await?;
        uploads.run(&others).await?;
        missing = here.missing(&bucket.objects().await?)?;
    }
    match missing.into_iter().next() {
        Some(object) => Err(PushError::NotListed { server: bucket.server.clone(), object: object.path }.into()),
        None => Ok(()),
    }
}

async fn put_links(
    bucket: &Bucket,
    here: &Here,
    steps: &[(Name, Step)],
    conditions: Conditions,
    stop: &CancellationToken,
) -> Result<(), Error> {
    if let (Conditions::With, Some(envelope)) = (conditions, here.links.first()) {
        let digest = &envelope.link.current.manifest;
        let manifest = here.repository.verified(&manifest_path(digest), MANIFEST_BYTES_MAX, digest)?;
        link::check_conditions(bucket, steps.iter().map(|(_, step)| step), &manifest).await?;
    }
    for (envelope, (_, step)) in here.links.iter().zip(steps) {
        if stop.is_cancelled() {
            return Err(PushError::Interrupted.into());
        }
        link::put(bucket, envelope, step, conditions).await?;
    }
    Ok(())
}

impl Here {
    fn read(options: &PushOptions) -> Result<Self, Error> {
        let repository = RepositoryDir::open(&options.repository)?;
        let names = if options.names.is_empty() { repository.links()? } else { options.names.clone() };
        let links = envelopes(&repository, &names)?;
        let reach = Reach::read(&repository, &names).whole()?;
        // The walk reads the links by itself: it must have seen the same.
        for (name, (before, after)) in names.iter().zip(links.iter().zip(envelopes(&repository, &names)?)) {
            if before.encode() != after.encode() {
                return Err(PushError::Changed(name.clone()).into());
            }
        }
        let needed = upload::needed(&repository, &reach)?;
        Ok(Self { repository, links, needed })
    }

    /// What the bucket lacks.
    fn missing(&self, listing: &Listing) -> Result<Vec<Object>, PushError> {
        let mut missing = Vec::new();
        for object in &self.needed {
            match listing.get(&object.path) {
                None => missing.push(object.clone()),
                Some(listed) if listed.bytes == object.bytes => {}
                Some(listed) => {
                    let (remote, local) = (listed.bytes, object.bytes);
                    return Err(PushError::Size { object: object.path.clone(), remote, local });
                }
            }
        }
        Ok(missing)
    }

    fn report(&self, options: &PushOptions, steps: &[(Name, Step)]) -> PushReport {
        let links = self.links.iter().zip(steps).map(|(envelope, (name, step))| PushedLink {
            name: name.clone(),
            serial: envelope.link.serial,
            version: envelope.link.current.manifest,
            changed: *step != Step::Keep,
        });
        PushReport {
            target: options.target.to_string(),
            links: links.collect(),
            objects: self.needed.len() as u64,
            dry_run: options.dry_run,
            ..PushReport::default()
        }
    }
}

fn envelopes(repository: &RepositoryDir, names: &[Name]) -> Result<Vec<Envelope>, Error> {
    let envelope = |name: &Name| {
        let missing = || Error::Object { object: link_path(name), source: Box::new(Damage::Missing) };
        repository.link(name)?.ok_or_else(missing)
    };
    names.iter().map(envelope).collect()
}
