//! What two versions of a package share, and what each has alone.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use vmnetx_format::{Digest, LeafChunk, Name, Version};
use vmnetx_store::Location;

use super::VersionName;
use crate::local::{LeafNode, LocalLink, Packs, images};
use crate::{Error, OrderInfo};

/// Two versions compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// The package's name.
    pub name: Name,
    /// The version that is compared with.
    pub from: Digest,
    /// The version that is described.
    pub to: Digest,
    /// All disks together; a chunk counts once, wherever and however often it stands.
    pub total: DiskDiff,
    /// Each disk that either version has, by name; chunks that another disk has are shared too.
    pub disks: BTreeMap<String, DiskDiff>,
    /// The orders of the version that is compared with.
    pub orders_from: Vec<OrderInfo>,
    /// The orders of the version that is described.
    pub orders_to: Vec<OrderInfo>,
}

/// What of an image is shared with the other version, and what is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiskDiff {
    /// In both.
    pub shared: Part,
    /// Only in the version that is described.
    pub new: Part,
    /// Only in the version that it is compared with.
    pub gone: Part,
}

/// Some chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How many.
    pub chunks: u64,
    /// Their plain bytes.
    pub bytes: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
}

impl Part {
    pub(crate) fn add(&mut self, chunk: &LeafChunk) {
        self.chunks += 1;
        self.bytes += u64::from(chunk.plain_len());
        self.stored_bytes += u64::from(chunk.place.stored_len);
    }
}

/// Compares the version `to` with `from`, both of the package that `location` names.
///
/// # Errors
/// [`Error`] when the repository is not on this host, there is no such version, or an index cannot be read.
pub fn diff(location: &Location, from: &VersionName, to: &VersionName) -> Result<DiffReport, Error> {
    let found = LocalLink::find(location)?.ok_or_else(|| {
        Error::Usage(format!("{location} is no link in a repository on this host: whole indexes are compared"))
    })?;
    let link = &found.envelope.link;
    let (from, to) = (from.find(link)?, to.find(link)?);
    let chunks = |version| chunks(&found, location, version);
    let (before, after) = (chunks(from)?, chunks(to)?);
    let mut disks: BTreeMap<String, DiskDiff> = BTreeMap::new();
    let mut total = DiskDiff::default();
    let of = |disks: &[(String, Vec<LeafChunk>)]| -> HashSet<Digest> {
        disks.iter().flat_map(|(_, chunks)| chunks).map(|chunk| chunk.digest).collect()
    };
    let (had, has) = (of(&before), of(&after));
    let mut counted = HashSet::new();
    for (disk, chunks) in &after {
        let diff = disks.entry(disk.clone()).or_default();
        for chunk in distinct(chunks) {
            let part = |diff: &mut DiskDiff| {
                let part = if had.contains(&chunk.digest) { &mut diff.shared } else { &mut diff.new };
                part.add(chunk);
            };
            part(diff);
            if counted.insert(chunk.digest) {
                part(&mut total);
            }
        }
    }
    for (disk, chunks) in &before {
        let diff = disks.entry(disk.clone()).or_default();
        for chunk in distinct(chunks).filter(|chunk| !has.contains(&chunk.digest)) {
            diff.gone.add(chunk);
            if counted.insert(chunk.digest) {
                total.gone.add(chunk);
            }
        }
    }
    let orders = |version: &Version| OrderInfo::of(&found.repository, &version.orders);
    Ok(DiffReport {
        name: link.name.clone(),
        from: from.manifest,
        to: to.manifest,
        total,
        disks,
        orders_from: orders(from),
        orders_to: orders(to),
    })
}

/// The chunks of each image of a version; of those that a leaf repeats elsewhere, some places are left out.
fn chunks(found: &LocalLink, location: &Location, version: &Version) -> Result<Vec<(String, Vec<LeafChunk>)>, Error> {
    let unreadable = |source| Error::Version { link: location.to_string(), source: Box::new(source) };
    let manifest = found.repository.manifest(version).map_err(|error| unreadable(error.into()))?;
    let packs = Packs::new(found.repository.clone());
    let images = images(&found.repository, version, &manifest).map_err(unreadable)?;
    let of = |image: crate::local::LocalImage| {
        let mut all = Vec::new();
        let visit = |node: &LeafNode| {
            all.extend(packs.chunks(image.geometry, node)?);
            Ok(())
        };
        packs.new_leaves(&image, &mut HashSet::new(), visit).map_err(unreadable)?;
        Ok((image.name, all))
    };
    images.into_iter().map(of).collect()
}

/// Each chunk once.
fn distinct(chunks: &[LeafChunk]) -> impl Iterator<Item = &LeafChunk> {
    let mut seen = HashSet::new();
    chunks.iter().filter(move |chunk| seen.insert(chunk.digest))
}
