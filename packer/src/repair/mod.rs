//! Brings back what is damaged or missing, from another repository that holds the same packages.
//!
//! First whole objects are copied: whatever has the right digest is right, whoever gives it. A mirror that is packed
//! otherwise has no such packs. Of what is left, the data itself is read there, chunk by chunk and verified like all data,
//! and the versions that need it are laid out anew here.

mod copy;
mod elsewhere;
mod source;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use vmnetx_format::{Digest, Envelope, Name, pack_path};
use vmnetx_store::dir::{Publisher, RepositoryDir, Wait};
use vmnetx_store::origin::AccessArgs;

pub use self::source::RepairSource;

use self::copy::Copies;
use self::elsewhere::Mirror;
use crate::build::{Relay, relayout};
use crate::catalogue::Known;
use crate::disk::{Elsewhere, Relaid};
use crate::local::{Leaves, LocalImage, Packs};
use crate::order::read_order;
use crate::prune::unix_s;
use crate::reach::{Reach, ReachedVersion, layout_key};
use crate::{Error, Progress, Signing};

/// What is to be repaired, and from where.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// The other repository.
    pub from: RepairSource,
    /// Which credentials go to its host.
    pub access: AccessArgs,
    /// zstd level of the chunks that are fetched, 1 to 22.
    pub level: i32,
    /// Who signs links that have to be replaced.
    pub signing: Signing,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// What was repaired.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Objects that were damaged or missing.
    pub damaged: Vec<String>,
    /// Those that were copied.
    pub copied: Vec<String>,
    /// Bytes of them.
    pub copied_bytes: u64,
    /// Versions that were laid out anew, with data that was read from the other repository.
    pub relaid: Vec<Digest>,
    /// Bytes of the packs that were written for them.
    pub written_bytes: u64,
    /// Versions that are still damaged, and why.
    pub left: Vec<Left>,
}

/// A version that could not be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its link.
    pub link: String,
    /// The version; nothing if the link itself cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Digest>,
    /// Why not.
    pub why: String,
}

/// Repairs a repository.
///
/// # Errors
/// [`Error`] when the repository cannot be written or the other one cannot be reached. What cannot be repaired is no error
/// here: see [`RepairReport::left`].
pub fn repair(options: &RepairOptions, progress: &dyn Progress) -> Result<RepairReport, Error> {
    let publisher = RepositoryDir::open(&options.repository)?.lock(options.wait)?;
    let repository = publisher.repository();
    let mirror = Mirror::open(&options.from, &options.access)?;
    let mut report = RepairReport::default();
    let mut copies = Copies::new(&publisher, &mirror);
    let names = repository.links()?;
    for name in &names {
        copies.link(name, &mut report)?;
    }
    // An index that was copied leads to objects that nobody knew of before.
    let reach = loop {
        let reach = Reach::read(repository, &names);
        if !copies.objects(&reach, &mut report, progress)? {
            break reach;
        }
    };
    relay_the_rest(options, &publisher, &mirror, reach, copies.into_lost(), &mut report, progress)?;
    Ok(report)
}

/// Lays the versions out anew that need what could not be copied.
fn relay_the_rest(
    options: &RepairOptions,
    publisher: &Publisher,
    mirror: &Mirror,
    reach: Reach,
    lost: HashSet<Digest>,
    report: &mut RepairReport,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let repository = publisher.repository();
    let lost = Arc::new(lost);
    let packs = Packs::new(repository.clone());
    let (mut relays, mut seen) = (Vec::new(), HashSet::new());
    for reached in reach.versions {
        let key = layout_key(&reached.version);
        if !is_damaged(repository, &reached, &packs, &lost) || !seen.insert(key) {
            continue;
        }
        let (link, version) = (reached.link.clone(), reached.version.manifest);
        match relay(repository, mirror, reached, &lost) {
            Ok(relay) => relays.push(relay),
            Err(error) => {
                let why = vmnetx_store::failure::describe(&error);
                report.left.push(Left { link, version: Some(version), why });
            }
        }
    }
    if relays.is_empty() {
        return Ok(());
    }
    let links = links(repository)?;
    for link in &links {
        options.signing.check(Some(link))?;
    }
    report.relaid = relays.iter().map(|relay| relay.version.manifest).collect();
    let known = Known::read_without(repository, &lost, progress)?;
    let laid = relayout(publisher, known, relays, &lost, options.level, progress)?;
    report.written_bytes = laid.written_bytes;
    // The catalogue of a damaged pack may be whole: no build may count on what it says, from now on.
    let mut tombstones = repository.tombstones()?;
    // One that was packed again as it was is whole now.
    for pack in lost.iter().filter(|pack| !copy::is_whole(repository, pack)) {
        tombstones.mark(pack_path(pack), unix_s());
    }
    publisher.replace_tombstones(&tombstones)?;
    laid.publish(publisher, &links, &options.signing)?;
    Ok(())
}

/// The links that can be read.
fn links(repository: &RepositoryDir) -> Result<Vec<Envelope>, Error> {
    let names = repository.links()?;
    Ok(names.iter().filter_map(|name: &Name| repository.link(name).ok().flatten()).collect())
}

fn is_damaged(repository: &RepositoryDir, reached: &ReachedVersion, packs: &Packs, lost: &HashSet<Digest>) -> bool {
    let leaf_is_damaged = |(image, leaves): &(LocalImage, Leaves)| {
        !leaves.lost.is_empty()
            || leaves.nodes.iter().any(|node| match packs.chunks(image.geometry, node) {
                Ok(chunks) => {
                    lost.contains(&node.place.pack) || chunks.iter().any(|chunk| lost.contains(&chunk.place.pack))
                }
                Err(_) => true,
            })
            || image.roots.layout.children().iter().any(|place| lost.contains(&place.pack))
    };
    let order_is_damaged = |digest: &Digest| match read_order(repository, digest) {
        Ok(order) => order.frames().iter().any(|frame| lost.contains(&frame.place.pack)),
        Err(_) => true,
    };
    reached.version.orders.iter().any(order_is_damaged)
        || reached.images_and_leaves(repository, packs).map_or(true, |images| images.iter().any(leaf_is_damaged))
}

/// How a version is laid out anew: what can be read here stays, the rest comes from the mirror.
fn relay(
    repository: &RepositoryDir,
    mirror: &Mirror,
    reached: ReachedVersion,
    lost: &Arc<HashSet<Digest>>,
) -> Result<Relay, Error> {
    let manifest = repository.manifest(&reached.version)?;
    let path = repository.root().join(vmnetx_format::manifest_path(&reached.version.manifest));
    let shapes = manifest.shapes().map_err(|source| vmnetx_store::dir::DirError::Manifest { path, source })?;
    let copies = mirror.images(&reached.link, &reached.version.manifest)?;
    // Without a layout nothing of the version can be found here.
    let unknown = |_| shapes.into_iter().map(|(geometry, _)| LocalImage::unknown(geometry)).collect();
    let here = reached.images_and_leaves(repository, &Packs::new(repository.clone())).unwrap_or_else(unknown);
    let images = here.into_iter().zip(copies).map(|((image, leaves), copy)| {
        let elsewhere: Box<dyn Elsewhere> = Box::new(copy);
        Relaid::new(image, leaves, Packs::new(repository.clone()), Arc::clone(lost), Some(elsewhere))
    });
    Ok(Relay { manifest, images: images.collect(), version: reached.version })
}
