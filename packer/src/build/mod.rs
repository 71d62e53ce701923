//! Publishes a version of a package: reads its disks, writes what the repository lacks and replaces the link last.

mod index;
mod pack_writer;
mod pipeline;
mod publish;
mod writer;

use std::path::PathBuf;

use serde::Serialize;
use url::Url;
use vmnetx_format::limits::DISKS_MAX;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Chunker, Digest, Disk, Manifest, Name, Title};
use vmnetx_store::dir::{RepositoryDir, Wait};

use self::pipeline::{Counts, Job};
use crate::catalogue::Known;
use crate::disk::RawDisk;
use crate::{Error, Progress};

/// zstd level of chunks unless the publisher says otherwise; `docs/decisions/` has the measurement.
pub const LEVEL_DEFAULT: i32 = 4;

/// What is to be published.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The directory of the repository; it is made if it does not exist.
    pub repository: PathBuf,
    /// The package's name.
    pub name: Name,
    /// Each disk's name, and the regular file or block device that holds it raw.
    pub disks: Vec<(Name, PathBuf)>,
    /// The virtual hardware.
    pub machine: Machine,
    /// The title; nothing to keep the one that the link has.
    pub title: Option<Title>,
    /// Where the repository can be read, the canonical URL first; empty to keep those that the link has.
    pub urls: Vec<Url>,
    /// How disks are cut; nothing for the way of the version before, by which most chunks are found again.
    pub chunker: Option<Chunker>,
    /// How many earlier versions that are not pinned stay retained, newest first; nothing for all.
    pub keep: Option<usize>,
    /// zstd level of chunks, 1 to 22.
    pub level: i32,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildReport {
    /// The package's name.
    pub name: Name,
    /// The link file.
    pub link: PathBuf,
    /// Whether the link was replaced; if not, it says all of this already.
    pub published: bool,
    /// The version: the digest of its manifest.
    pub version: Digest,
    /// The digest of its layout object.
    pub layout: Digest,
    /// The link's serial number.
    pub serial: u64,
    /// Bytes of all disks.
    pub disk_bytes: u64,
    /// Bytes of the disks that are not zero, in whole blocks.
    pub data_bytes: u64,
    /// Bytes of the disks that are zero.
    pub zero_bytes: u64,
    /// Chunks of the disks.
    pub chunks: u64,
    /// Chunks that the repository lacked.
    pub new_chunks: u64,
    /// Plain bytes of those.
    pub new_bytes: u64,
    /// Bytes of packs, manifest and layout that were written.
    pub written_bytes: u64,
}

/// Publishes a version of a package.
///
/// # Errors
/// [`Error`] when a disk cannot be read or changes meanwhile, or the repository cannot be written. The versions that
/// were published before stay as they are.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<BuildReport, Error> {
    // What is wrong with the command line is said before any work is done.
    check_names(options)?;
    let disks: Vec<RawDisk> = options.disks.iter().map(|(_, file)| RawDisk::open(file)).collect::<Result<_, _>>()?;
    let publisher = RepositoryDir::create(&options.repository)?.lock(options.wait)?;
    let repository = publisher.repository();
    let before = repository.link(&options.name)?;
    if before.as_ref().is_some_and(|envelope| envelope.signature.is_some()) {
        return Err(Error::Signed(options.name.clone()));
    }
    let previous = before.as_ref().and_then(|envelope| repository.manifest(&envelope.link.current).ok());
    let known = Known::read(repository, progress)?;
    let disks: Vec<_> = disks
        .into_iter()
        .zip(&options.disks)
        .map(|(disk, (name, _))| (disk, chunker(options, name, previous.as_ref())))
        .collect();
    let mut total = 0;
    for (disk, _) in &disks {
        total += disk.data_bytes()?;
    }
    progress.total(total);
    let job = Job { publisher: &publisher, disks: &disks, level: options.level, progress };
    let built = pipeline::run(&job, known)?;
    let manifest_disks =
        options.disks.iter().zip(&disks).zip(&built.images).map(|(((name, _), (disk, chunker)), roots)| Disk {
            name: name.clone(),
            size_bytes: disk.geometry().size_bytes(),
            content: Digest::of(&roots.content.encode()),
            chunker: *chunker,
        });
    let manifest = Manifest::new(options.machine.clone(), manifest_disks.collect(), None)?;
    publish::publish(&publisher, options, before, &manifest, built.images, built.counts)
}

fn check_names(options: &BuildOptions) -> Result<(), Error> {
    let names: Vec<Name> = options.disks.iter().map(|(name, _)| name.clone()).collect();
    if names.is_empty() || names.len() > DISKS_MAX {
        return Err(Error::Usage(format!("a package has 1 to {DISKS_MAX} disks, and {} were given", names.len())));
    }
    if let Some((_, name)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(Error::DuplicateDisk(name.clone()));
    }
    Ok(options.machine.validate(&names)?)
}

fn chunker(options: &BuildOptions, name: &Name, previous: Option<&Manifest>) -> Chunker {
    let before = previous.and_then(|manifest| manifest.disks.iter().find(|disk| disk.name == *name));
    options.chunker.or(before.map(|disk| disk.chunker)).unwrap_or(Chunker::DISK)
}
