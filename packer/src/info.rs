//! What is known of a package without reading its disks.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use url::Url;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Digest, Link, Manifest, Name, Title, Version};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::{Location, Options, Package, Store};

use crate::Error;
use crate::limits::INFO_RETRY_S;
use crate::local::{LocalLink, Packs, images};

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

/// Describes the package that `location` names.
///
/// # Errors
/// [`Error`] when its link, manifest or index cannot be read.
pub fn info(location: &Location) -> Result<PackageInfo, Error> {
    let Some(found) = LocalLink::find(location)? else {
        let package = remote(location)?;
        return Ok(describe(package.link(), package.version(), package.manifest(), &[]));
    };
    let version = found.version(location)?;
    let manifest = found.repository.manifest(version)?;
    let unreadable = |source| Error::Version { link: location.to_string(), source: Box::new(source) };
    let packs = Packs::new(found.repository.clone());
    let mut stored = Vec::new();
    for image in images(&found.repository, version, &manifest).map_err(unreadable)? {
        let mut sum = StoredInfo::default();
        let mut distinct = HashMap::new();
        for node in &packs.whole_leaves(&image).map_err(unreadable)? {
            for chunk in packs.chunks(image.geometry, node).map_err(unreadable)? {
                sum.chunks += 1;
                sum.data_bytes += u64::from(chunk.plain_len());
                distinct.insert(chunk.digest, chunk.place.stored_len);
            }
        }
        sum.stored_bytes = distinct.values().map(|&bytes| u64::from(bytes)).sum();
        stored.push(sum);
    }
    Ok(describe(&found.envelope.link, version, &manifest, &stored))
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

/// Opens a package of a repository that is not on this host.
pub(crate) fn remote(location: &Location) -> Result<Package, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let store = Store::open(Options { retry_for: Duration::from_secs(INFO_RETRY_S), ..Options::default() })?;
    Ok(runtime.block_on(store.package(location))?)
}

fn describe(link: &Link, version: &Version, manifest: &Manifest, stored: &[StoredInfo]) -> PackageInfo {
    let disk = |(index, disk): (usize, &vmnetx_format::Disk)| DiskInfo {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        stored: stored.get(index).copied(),
    };
    PackageInfo {
        name: link.name.clone(),
        title: link.title.clone(),
        serial: link.serial,
        repositories: link.repositories.clone(),
        versions: link
            .versions()
            .map(|version| VersionInfo { version: version.manifest, published_unix_s: version.published_unix_s })
            .collect(),
        version: version.manifest,
        machine: manifest.machine.clone(),
        disks: manifest.disks.iter().enumerate().map(disk).collect(),
    }
}
