//! What is known of a package without reading its disks.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use url::Url;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Digest, Link, Manifest, Name, PublicKey, Title, Version};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::{Location, Options, Package, Store};

use crate::limits::INFO_RETRY_S;
use crate::local::{LocalImage, LocalLink, NodeKey, Packs, images};
use crate::remote::{Reader, open};
use crate::{Damage, Error, OrderInfo, Progress};

/// A package and one of its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageInfo {
    /// Its name.
    pub name: Name,
    /// Its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// The link's serial number.
    pub serial: u64,
    /// Its signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureInfo>,
    /// Where its repository can be read.
    pub repositories: Vec<Url>,
    /// The versions that the link names, the current one first.
    pub versions: Vec<VersionInfo>,
    /// The version that the rest is about.
    pub version: Digest,
    /// The virtual hardware.
    pub machine: Machine,
    /// The disks.
    pub disks: Vec<DiskInfo>,
    /// The orders of the version; only known of a repository on this host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<OrderInfo>,
}

/// The signature of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SignatureInfo {
    /// The key that the link says it is signed with.
    pub key: PublicKey,
    /// Whether it really is.
    pub good: bool,
}

/// A version that a link names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// The digest of its manifest.
    pub version: Digest,
    /// When it was published, in seconds since 1970 (UTC).
    pub published_unix_s: u64,
}

/// A disk of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskInfo {
    /// Its name.
    pub name: Name,
    /// Its size.
    pub size_bytes: u64,
    /// What is stored of it; only known where the whole index is at hand.
    #[serde(flatten)]
    pub stored: Option<StoredInfo>,
}

/// What is stored of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StoredInfo {
    /// Its chunks.
    pub chunks: u64,
    /// Plain bytes of its chunks; the rest of it is zero.
    pub data_bytes: u64,
    /// Bytes of its chunks as stored, equal ones counted once. Other versions and packages may share them.
    pub stored_bytes: u64,
}

/// A package of a repository, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedPackage {
    /// Its name.
    pub name: Name,
    /// Its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// The link's serial number.
    pub serial: u64,
    /// The current version.
    pub version: Digest,
    /// When that was published, in seconds since 1970 (UTC).
    pub published_unix_s: u64,
    /// Earlier versions that can still be read.
    pub retained: u64,
    /// Disks of the current version.
    pub disks: u64,
    /// Bytes of those disks.
    pub disk_bytes: u64,
}

/// Describes the package that `location` names. Unless `reader` demands a key, a bad signature in a repository of this host
/// is no error but told: its publisher wants to see what the link says.
///
/// # Errors
/// [`Error`] when its link, manifest or index cannot be read, or the link is not to be believed.
pub fn info(location: &Location, reader: &Reader, progress: &dyn Progress) -> Result<PackageInfo, Error> {
    let Some(found) = LocalLink::find(location)? else {
        let package = remote(location, reader, progress)?;
        let signature = package.signer().map(|key| SignatureInfo { key, good: true });
        return Ok(describe(package.link(), signature, package.version(), package.manifest(), (&[], Vec::new())));
    };
    found.demand(&reader.trust)?;
    let version = found.version(location)?;
    let unreadable = |source| Error::Version { link: location.to_string(), source: Box::new(source) };
    let manifest = found.repository.manifest(version).map_err(|error| unreadable(error.into()))?;
    let packs = Packs::new(found.repository.clone());
    let mut stored = Vec::new();
    for image in images(&found.repository, version, &manifest).map_err(unreadable)? {
        stored.push(stored_of(&packs, &image).map_err(unreadable)?);
    }
    let signature = found.envelope.signature.as_ref();
    let good = found.envelope.signer().is_ok();
    let signature = signature.map(|signature| SignatureInfo { key: signature.claimed_key(), good });
    let orders = OrderInfo::of(&found.repository, &version.orders);
    Ok(describe(&found.envelope.link, signature, version, &manifest, (&stored, orders)))
}

/// Adds up the index of an image. What it names many times over is looked at once.
fn stored_of(packs: &Packs, image: &LocalImage) -> Result<StoredInfo, Damage> {
    let geometry = image.geometry;
    let mut distinct = HashMap::new();
    let mut known: HashMap<NodeKey, (u64, u64)> = HashMap::new();
    let mut sum = (0, 0);
    for child in image.children() {
        let key = geometry.has_inner().then(|| child.key(geometry.inner_children(child.leaf)));
        let below = match key.and_then(|key| known.get(&key)) {
            Some(below) => *below,
            None => {
                let mut below = (0, 0);
                for leaf in packs.leaves(geometry, child).map_err(|(_, damage)| damage)? {
                    let key = leaf.key(geometry.leaf_blocks(leaf.leaf));
                    let (chunks, bytes) = match known.get(&key) {
                        Some(counts) => *counts,
                        None => {
                            let chunks = packs.chunks(geometry, &leaf)?;
                            distinct.extend(chunks.iter().map(|chunk| (chunk.digest, chunk.place.stored_len)));
                            let bytes = chunks.iter().map(|chunk| u64::from(chunk.plain_len())).sum();
                            *known.entry(key).or_insert((chunks.len() as u64, bytes))
                        }
                    };
                    below = (below.0 + chunks, below.1 + bytes);
                }
                known.extend(key.map(|key| (key, below)));
                below
            }
        };
        sum = (sum.0 + below.0, sum.1 + below.1);
    }
    let stored_bytes = distinct.values().map(|&bytes| u64::from(bytes)).sum();
    Ok(StoredInfo { chunks: sum.0, data_bytes: sum.1, stored_bytes })
}

/// The packages of a repository, in the order of their names.
///
/// # Errors
/// [`Error`] when a link or a manifest cannot be read.
pub fn list(repository: &RepositoryDir) -> Result<Vec<ListedPackage>, Error> {
    let mut listed = Vec::new();
    for name in repository.links()? {
        let Some(envelope) = repository.link(&name)? else { continue };
        let Link { name, title, serial, current, retained, .. } = envelope.link;
        let disks = repository.manifest(&current)?.disks;
        listed.push(ListedPackage {
            name,
            title,
            serial,
            version: current.manifest,
            published_unix_s: current.published_unix_s,
            retained: retained.len() as u64,
            disks: disks.len() as u64,
            disk_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
        });
    }
    Ok(listed)
}

/// Opens a package of a repository that is not on this host, and says what the user should know about its link.
pub(crate) fn remote(location: &Location, reader: &Reader, progress: &dyn Progress) -> Result<Package, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let (retry_for, trust, access) = (Duration::from_secs(INFO_RETRY_S), reader.trust.clone(), reader.access()?);
    let store = Store::open(Options { retry_for, trust, access, ..Options::default() })?;
    Ok(open(&runtime, &store, location, progress)?)
}

fn describe(
    link: &Link,
    signature: Option<SignatureInfo>,
    version: &Version,
    manifest: &Manifest,
    (stored, orders): (&[StoredInfo], Vec<OrderInfo>),
) -> PackageInfo {
    let disk = |(index, disk): (usize, &vmnetx_format::Disk)| DiskInfo {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        stored: stored.get(index).copied(),
    };
    PackageInfo {
        name: link.name.clone(),
        title: link.title.clone(),
        serial: link.serial,
        signature,
        repositories: link.repositories.clone(),
        versions: link
            .versions()
            .map(|version| VersionInfo { version: version.manifest, published_unix_s: version.published_unix_s })
            .collect(),
        version: version.manifest,
        machine: manifest.machine.clone(),
        disks: manifest.disks.iter().enumerate().map(disk).collect(),
        orders,
    }
}
