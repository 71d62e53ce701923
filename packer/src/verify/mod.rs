//! Looks for damage in a repository: compares every byte of it with the digests that name it.
//!
//! First every pack is read once, from its first byte to its last: its own digest, its catalogue, and each frame
//! decompressed against the catalogue. Then the trees of every version are walked, and every place they name is looked up
//! in what was found. Nothing ends the work early: all damage is listed, with the disks and bytes that it affects.

mod depth;
mod frames;
mod orders;
mod remote;
mod versions;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use vmnetx_format::{Digest, LINK_SUFFIX, Name, layout_path, manifest_path, order_path, pack_path};
use vmnetx_store::dir::{DirError, Listing, RepositoryDir};

pub use self::depth::Depth;
pub use self::remote::verify_remote;

use self::frames::CheckedPacks;
use self::orders::check_orders;
use self::versions::{check_versions, report_broken};
use crate::limits::FINDINGS_MAX;
use crate::reach::Reach;
use crate::{Error, Progress};

/// What was looked at and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Links.
    pub links: u64,
    /// Versions of those links.
    pub versions: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of those packs.
    pub pack_bytes: u64,
    /// Chunks that the versions name, each time one is named; only counted in a repository on this host.
    pub chunks: u64,
    /// Orders of those versions.
    pub orders: u64,
    /// Plain bytes of what was read and compared with its digest: chunks, and in a repository on this host index nodes.
    pub read_bytes: u64,
    /// Damage, at most [`FINDINGS_MAX`] pieces of it.
    pub findings: Vec<Finding>,
    /// Pieces of damage beyond those.
    pub more_findings: u64,
    /// Objects that no link leads to. A publisher that died leaves such, and so does removing a link.
    pub unreferenced: Vec<String>,
    /// Files that are no objects of a repository.
    pub strangers: Vec<PathBuf>,
}

/// A piece of damage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The object or, where it says which part of a version is affected, the link.
    pub object: String,
    /// What is wrong.
    pub what: String,
    /// The part of a version that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affects: Option<Affected>,
}

/// A part of a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Affected {
    /// The version.
    pub version: Digest,
    /// The disk; nothing when all of the version is affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
}

/// Damage as it is found, by several threads.
#[derive(Debug, Default)]
struct Findings(Mutex<(Vec<Finding>, u64)>);

impl Findings {
    fn add(&self, object: impl Into<String>, what: impl Into<String>, affects: Option<Affected>) {
        let finding = Finding { object: object.into(), what: what.into(), affects };
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, more) = &mut *found;
        if list.last_mut().is_some_and(|last| last.extend(&finding)) {
            return;
        }
        if list.len() < FINDINGS_MAX { list.push(finding) } else { *more += 1 }
    }
}

impl VerifyReport {
    /// Takes over what was found, in order.
    fn take(&mut self, findings: &Findings) {
        let found = &mut *findings.0.lock().unwrap_or_else(PoisonError::into_inner);
        (self.findings, self.more_findings) = std::mem::take(found);
        self.findings.sort_unstable();
        // Threads find neighbours out of order.
        self.findings.dedup_by(|next, last| next == last || last.extend(next));
    }
}

impl Finding {
    /// Takes in `next` if it says the same of the bytes right behind.
    fn extend(&mut self, next: &Self) -> bool {
        let (Some(mine), Some(other)) = (&mut self.affects, &next.affects) else { return false };
        let alike = self.object == next.object && self.what == next.what;
        let adjacent = mine.version == other.version && mine.disk == other.disk && mine.end == other.start;
        if alike && adjacent {
            mine.end = other.end;
        }
        alike && adjacent
    }
}

/// Verifies everything that lies in a repository.
///
/// # Errors
/// [`Error`] when the repository cannot be listed. Damage is no error here: see [`VerifyReport::findings`].
pub fn verify_repository(
    repository: &RepositoryDir,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<VerifyReport, Error> {
    let findings = Findings::default();
    let names = repository.links()?;
    let reach = Reach::read(repository, &names);
    let listed = [repository.packs()?, repository.manifests()?, repository.layouts()?, repository.orders()?];
    // What is about to be removed, and leads to nothing, may be damaged: it is told of as unreferenced.
    let tombstones = repository.tombstones()?;
    let stays = |pack: &&Digest| tombstones.since_unix_s(&pack_path(pack)).is_none();
    let mut wanted: HashSet<Digest> = listed[0].objects.iter().filter(stays).copied().collect();
    wanted.extend(&reach.packs);
    let mut report = check(repository, &reach, &wanted, depth, &findings, progress);
    report.links = names.len() as u64;
    report.strangers = strange_links(repository)?;
    report.strangers.extend(listed.iter().flat_map(|listing| listing.strangers.iter().cloned()));
    // An index that cannot be read may lead to any object.
    if let Ok(reach) = reach.whole() {
        report.unreferenced = unreferenced(&reach, &listed);
    }
    Ok(report)
}

/// Verifies all versions of one package.
///
/// # Errors
/// [`Error`] when there is no such link. Damage is no error here: see [`VerifyReport::findings`].
pub fn verify_link(
    repository: &RepositoryDir,
    name: &Name,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<VerifyReport, Error> {
    let findings = Findings::default();
    let reach = Reach::read(repository, std::slice::from_ref(name));
    let mut report = check(repository, &reach, &reach.packs, depth, &findings, progress);
    report.links = 1;
    Ok(report)
}

fn check(
    repository: &RepositoryDir,
    reach: &Reach,
    packs: &HashSet<Digest>,
    depth: Depth,
    findings: &Findings,
    progress: &dyn Progress,
) -> VerifyReport {
    report_broken(&reach.broken, findings);
    let checked = CheckedPacks::read(repository, packs, depth, findings, progress);
    let chunks = check_versions(repository, reach, &checked, findings);
    let orders = check_orders(repository, reach, &checked, findings);
    let mut report = VerifyReport {
        versions: reach.versions.len() as u64,
        packs: packs.len() as u64,
        pack_bytes: checked.bytes(),
        chunks,
        orders,
        read_bytes: checked.read_bytes(),
        ..VerifyReport::default()
    };
    report.take(findings);
    report
}

fn unreferenced(reach: &Reach, [packs, manifests, layouts, orders]: &[Listing; 4]) -> Vec<String> {
    let free = |listing: &Listing, named: &HashSet<Digest>, path: fn(&Digest) -> String| -> Vec<String> {
        listing.objects.iter().filter(|digest| !named.contains(digest)).map(path).collect()
    };
    [
        free(manifests, &reach.manifests(), manifest_path),
        free(layouts, &reach.layouts(), layout_path),
        free(orders, &reach.orders(), order_path),
        free(packs, &reach.packs, pack_path),
    ]
    .concat()
}

/// Files that look like links but have a name that no package can have.
fn strange_links(repository: &RepositoryDir) -> Result<Vec<PathBuf>, Error> {
    let root = repository.root();
    let listed = std::fs::read_dir(root).map_err(Error::file("list", root))?;
    let strange = |path: &Path| {
        let file = path.file_name().map(std::ffi::OsStr::to_string_lossy).unwrap_or_default();
        file.strip_suffix(LINK_SUFFIX).is_some_and(|name| name.parse::<Name>().is_err())
    };
    let mut found: Vec<PathBuf> =
        listed.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| strange(path)).collect();
    found.sort_unstable();
    Ok(found)
}

/// An error in one line, with its causes.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = inner.source();
    }
    text
}

/// What is wrong with an object, without repeating its path.
fn told_of(error: &DirError) -> String {
    match error {
        DirError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => "it is missing".to_owned(),
        DirError::Io { action, source, .. } => format!("cannot {action} it: {source}"),
        DirError::Digest { .. } => "its bytes do not have the digest that names it".to_owned(),
        DirError::Link { source, .. } => told(source),
        DirError::Manifest { source, .. } => told(source),
        DirError::Pack { source, .. } => told(source),
        other => told(other),
    }
}
