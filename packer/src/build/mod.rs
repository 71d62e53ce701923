//! Publishes a version of a package: reads its disks, writes what the repository lacks and replaces the link last.

mod index;
mod inputs;
mod pack_writer;
mod pipeline;
mod publish;
mod relayout;
mod writer;

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;
use url::Url;
use vmnetx_format::limits::DISKS_MAX;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Chunker, Digest, Disk, Envelope, Manifest, ManifestImage, Name, PublicKey, Roots, Title};
use vmnetx_store::dir::{Publisher, RepositoryDir, Wait};
use vmnetx_store::failure::describe;

use self::inputs::Inputs;
pub use self::inputs::{BaseOptions, DiskReport};
pub(crate) use self::pack_writer::{PackTable, PackWriter, seal_all};
pub(crate) use self::pipeline::Compressors;
use self::pipeline::{Built, Input, Job};
pub(crate) use self::relayout::{Relay, relayout};
use crate::catalogue::Known;
use crate::disk::DiskFile;
use crate::local::LocalImage;
use crate::memory::{MemoryFile, MemoryHead, MemoryReport, SavedMemory};
use crate::order::{Laying, add_records, follow_data, inherited};
use crate::{Error, LaidOrder, OrderChoice, Progress, Signing};

/// zstd level of chunks unless the publisher says otherwise; `docs/decisions/` has the measurement.
pub const LEVEL_DEFAULT: i32 = 4;

/// What is to be published.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The directory of the repository; it is made if it does not exist.
    pub repository: PathBuf,
    /// The package's name.
    pub name: Name,
    /// The disks in their order. With a base, those of its disks that are not among them are taken over.
    pub disks: Vec<DiskFile>,
    /// Whether an image may consist of files outside of its own folder.
    pub allow_backing: bool,
    /// The version that qcow2 disks are overlays over; nothing if all disks are whole.
    pub base: Option<BaseOptions>,
    /// The virtual hardware; nothing for that of the base.
    pub machine: Option<Machine>,
    /// The title; nothing to keep the one that the link has.
    pub title: Option<Title>,
    /// Where the repository can be read, the canonical URL first; empty to keep those that the link has.
    pub urls: Vec<Url>,
    /// The memory that the VM had when its disks were what they are; nothing for a VM that boots.
    pub memory: Option<MemoryFile>,
    /// How disks are cut; nothing for the way of the version before, by which most chunks are found again.
    pub chunker: Option<Chunker>,
    /// How many earlier versions that are not pinned stay retained, newest first; nothing for all.
    pub keep: Option<usize>,
    /// zstd level of chunks, 1 to 22.
    pub level: i32,
    /// What becomes of the orders of the version before, or of the base.
    pub orders: OrderChoice,
    /// zstd level of the orders' frames, 1 to 22. Frames that an earlier order has are left as they are.
    pub order_level: i32,
    /// Who signs the link.
    pub signing: Signing,
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
    /// The key that has signed the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// What each disk was read from.
    pub disks: Vec<DiskReport>,
    /// What was read of the saved memory, if there is one. Its data and zeros are counted below with those of the disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// Bytes of all disks.
    pub disk_bytes: u64,
    /// Bytes of the disks that were taken over from the base without a look at them. They are not counted further.
    pub kept_bytes: u64,
    /// Bytes of disks and memory that are not zero, in whole blocks.
    pub data_bytes: u64,
    /// Bytes of them that are zero.
    pub zero_bytes: u64,
    /// Chunks of them.
    pub chunks: u64,
    /// Chunks that the repository lacked.
    pub new_chunks: u64,
    /// Plain bytes of those.
    pub new_bytes: u64,
    /// Bytes of packs, manifest and layout that were written, without those of orders.
    pub written_bytes: u64,
    /// The version's orders. What is stored for them is stored for the chunks, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<LaidOrder>,
}

/// Publishes a version of a package.
///
/// # Errors
/// [`Error`] when a disk cannot be read or changes meanwhile, or the repository cannot be written. The versions that
/// were published before stay as they are.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<BuildReport, Error> {
    // What is wrong with the command line is said before any work is done.
    check_names(options, &options.disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>())?;
    // Without a base the disks are opened first: a wrong name of a file makes no repository.
    let whole = if options.base.is_none() { Some(Inputs::whole(options, progress)?) } else { None };
    let publisher = match whole {
        Some(_) => RepositoryDir::create(&options.repository)?,
        None => RepositoryDir::open(&options.repository)?,
    };
    let publisher = publisher.lock(options.wait)?;
    let repository = publisher.repository();
    let before = repository.link(&options.name)?;
    options.signing.check(before.as_ref())?;
    let inputs = match (whole, &options.base) {
        (None, Some(base)) => Inputs::over(options, base, repository, before.as_ref(), progress)?,
        (whole, _) => whole.ok_or(Error::Stopped)?,
    };
    publish_inputs(options, inputs, &publisher, before, progress)
}

fn publish_inputs(
    options: &BuildOptions,
    inputs: Inputs,
    publisher: &Publisher,
    before: Option<Envelope>,
    progress: &dyn Progress,
) -> Result<BuildReport, Error> {
    let repository = publisher.repository();
    let previous = before.as_ref().and_then(|envelope| repository.manifest(&envelope.link.current).ok());
    let known = Known::read(repository, progress)?;
    let Inputs { machine, disks, reports } = inputs;
    let input = |disk: inputs::Opened| {
        let chunker = disk.chunker.unwrap_or_else(|| chunker(options, &disk.name, previous.as_ref()));
        (disk.name.clone(), Input { name: disk.name.to_string(), source: disk.source, chunker })
    };
    let (names, mut images): (Vec<Name>, Vec<Input>) = disks.into_iter().map(input).unzip();
    let (memory, mut total) = match &options.memory {
        Some(file) => {
            let saved = SavedMemory::read(file, (&machine, names.len()), publisher, progress)?;
            let (head, saved) = saved.into_images();
            // As disks are: what a guest has read of them lies in its RAM once more.
            images.extend(saved.into_iter().map(|(name, source)| Input { name, source, chunker: Chunker::RAM }));
            // Reading it was told of already.
            let read_bytes = head.report.ram_bytes;
            (Some(head), read_bytes)
        }
        None => (None, 0),
    };
    for image in &images {
        for leaf in image.source.leaves() {
            total += leaf?.bytes() as u64;
        }
    }
    progress.total(total);
    let job = Job { publisher, images: &images, level: options.level, progress };
    let built = pipeline::run(&job, known)?;
    let manifest = manifest(machine, names, memory.as_ref(), &images, &built)?;
    let orders = lay_orders(publisher, options, before.as_ref(), &manifest, &built, progress)?;
    let memory = memory.map(|head| head.report);
    publish::publish(publisher, options, before, &manifest, (built, orders), (reports, memory))
}

/// The manifest of what was built: disks first, then memory.
fn manifest(
    machine: Machine,
    names: Vec<Name>,
    memory: Option<&MemoryHead>,
    images: &[Input],
    built: &Built,
) -> Result<Manifest, Error> {
    let images = images.iter().zip(&built.images);
    let mut images = images.map(|(image, roots)| (image.source.geometry().size_bytes(), image.chunker, roots));
    let disks = names.into_iter().zip(&mut images).map(|(name, (size_bytes, chunker, roots))| Disk {
        name,
        size_bytes,
        content: Digest::of(&roots.content.encode()),
        chunker,
    });
    let disks = disks.collect();
    let memory = memory.map(|head| head.memory(&images.collect::<Vec<_>>())).transpose()?;
    Ok(Manifest::new(machine, disks, memory)?)
}

/// Lays out the orders of the version that was built.
fn lay_orders(
    publisher: &Publisher,
    options: &BuildOptions,
    before: Option<&Envelope>,
    manifest: &Manifest,
    built: &Built,
    progress: &dyn Progress,
) -> Result<Vec<LaidOrder>, Error> {
    let repository = publisher.repository();
    let images = images_of(manifest, &built.images)?;
    let mut wanted = Vec::new();
    if let Some(envelope) = before.filter(|_| options.orders != OrderChoice::Drop) {
        let link = &envelope.link;
        // A version that was published before has its own.
        let twin = link.version(&Digest::of(&manifest.encode()));
        let from = match (twin, &options.base) {
            (Some(twin), _) => twin,
            (None, Some(base)) => base.version.find(link)?,
            (None, None) => &link.current,
        };
        match repository.manifest(from) {
            Ok(old) => {
                wanted = inherited(repository, (from, &old), manifest, progress);
                if twin.is_none() && options.orders == OrderChoice::Inherit {
                    follow_data(repository, (from, &old), &images, &mut wanted, progress);
                }
            }
            Err(_) if from.orders.is_empty() => {}
            Err(error) => progress.warn(&format!("no order is inherited: {}", describe(&error))),
        }
    }
    if let OrderChoice::Records(records) = &options.orders {
        add_records(&mut wanted, records, manifest, progress)?;
    }
    let without = HashSet::new();
    let laying = Laying { publisher, level: options.order_level, without: &without, progress };
    match laying.all(&images, &wanted) {
        // What was published is no reason not to publish.
        Err(Error::Order(error)) if options.orders == OrderChoice::Inherit => {
            progress.warn(&format!("no order is inherited: {}", describe(&Error::Order(error))));
            Ok(Vec::new())
        }
        laid => laid,
    }
}

/// The images of a version that was laid out just now.
fn images_of(manifest: &Manifest, roots: &[Roots]) -> Result<Vec<LocalImage>, Error> {
    let images = manifest.images().zip(roots);
    let image = |(image, roots): (ManifestImage<'_>, &Roots)| {
        Ok(LocalImage { geometry: image.geometry()?, name: image.name.into_owned(), roots: roots.clone() })
    };
    images.map(image).collect()
}

/// Checks the names of the disks in their order, and whether the machine has just these.
fn check_names(options: &BuildOptions, names: &[Name]) -> Result<(), Error> {
    if names.is_empty() || names.len() > DISKS_MAX {
        return Err(Error::Usage(format!("a package has 1 to {DISKS_MAX} disks, and {} were given", names.len())));
    }
    if let Some((_, name)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(Error::DuplicateDisk(name.clone()));
    }
    match &options.machine {
        // With a base there are perhaps more disks than were given.
        _ if options.base.is_some() => Ok(()),
        Some(machine) => Ok(machine.validate(names)?),
        None => Err(Error::Usage("a version that starts from no other needs a machine description".to_owned())),
    }
}

fn chunker(options: &BuildOptions, name: &Name, previous: Option<&Manifest>) -> Chunker {
    let before = previous.and_then(|manifest| manifest.disks.iter().find(|disk| disk.name == *name));
    options.chunker.or(before.map(|disk| disk.chunker)).unwrap_or(Chunker::DISK)
}
