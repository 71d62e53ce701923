//! Frees the space of what nothing leads to: marks it first, removes it after a grace period and a second look.
//!
//! ```text
//!   reached ──── no link leads to it any more ────▶ marked ──── grace period over, still nothing leads to it ────▶ removed
//!      ▲                                               │
//!      └──────────── a link leads to it again ─────────┘
//! ```
//!
//! Whoever reads a version that was given up, a running VM for example, has the grace period to end. A build stores anew
//! what has a tombstone, so it never leads to something that is about to go. All of this happens under the publisher's
//! lock, and nothing is marked in a repository that is damaged: what its links lead to is not known then.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vmnetx_format::{Digest, layout_path, manifest_path, order_path, pack_path};
use vmnetx_store::dir::{Publisher, RepositoryDir, Tombstones, Wait};

use crate::reach::Reach;
use crate::{Error, Progress};

/// How a repository is to be pruned.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// How long an object stays after it was marked.
    pub grace: Duration,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// What was marked and removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// What links lead to.
    pub reached: Objects,
    /// What nothing leads to since this run; a later run removes it.
    pub marked: Objects,
    /// What was marked before and is still in its grace period.
    pub waiting: Objects,
    /// What was removed.
    pub removed: Objects,
    /// What was marked and is led to again.
    pub spared: u64,
}

/// Some objects of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Objects {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Objects {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// Prunes a repository.
///
/// # Errors
/// [`Error`] when the repository is damaged, in use by another publisher, or cannot be written.
pub fn prune(options: &PruneOptions, progress: &dyn Progress) -> Result<PruneReport, Error> {
    let publisher = RepositoryDir::open(&options.repository)?.lock(options.wait)?;
    let repository = publisher.repository();
    let reach = Reach::read(repository, &repository.links()?).whole()?;
    let plan = Plan::make(repository, &reach, options.grace, unix_s())?;
    if !options.dry_run {
        plan.carry_out(&publisher, progress)?;
    }
    Ok(plan.report)
}

/// What is to be done.
struct Plan {
    report: PruneReport,
    /// The tombstones of everything that nothing leads to.
    tombstones: Tombstones,
    /// Paths and bytes of the objects to be removed.
    removed: Vec<(String, u64)>,
}

impl Plan {
    fn make(repository: &RepositoryDir, reach: &Reach, grace: Duration, now_unix_s: u64) -> Result<Self, Error> {
        let mut tombstones = repository.tombstones()?;
        let mut report = PruneReport::default();
        let mut removed = Vec::new();
        let mut free = HashSet::new();
        for (path, is_reached) in objects(repository, reach)? {
            let file = repository.root().join(&path);
            let bytes = std::fs::metadata(&file).map_err(Error::file("look at", &file))?.len();
            if is_reached {
                report.reached.add(bytes);
                report.spared += u64::from(tombstones.since_unix_s(&path).is_some());
                continue;
            }
            // One from the future is none: the clock was put back since, and the wait begins anew. It must not be as long as the
            // clock was ahead.
            match tombstones.since_unix_s(&path).filter(|since| *since <= now_unix_s) {
                None => {
                    report.marked.add(bytes);
                    tombstones.mark(path.clone(), now_unix_s);
                }
                Some(since) if now_unix_s.saturating_sub(since) >= grace.as_secs() => {
                    report.removed.add(bytes);
                    removed.push((path.clone(), bytes));
                }
                Some(_) => report.waiting.add(bytes),
            }
            free.insert(path);
        }
        tombstones.retain(|path| free.contains(path));
        Ok(Self { report, tombstones, removed })
    }

    /// Marks, then removes: whatever the moment at which this ends, each object that is gone had its tombstone before.
    fn carry_out(&self, publisher: &Publisher, progress: &dyn Progress) -> Result<(), Error> {
        let before = publisher.repository().tombstones()?;
        if self.tombstones != before {
            publisher.replace_tombstones(&self.tombstones)?;
        }
        if self.removed.is_empty() {
            return Ok(());
        }
        progress.total(self.report.removed.bytes);
        for (path, bytes) in &self.removed {
            publisher.remove(path)?;
            progress.advance(*bytes);
        }
        let gone: HashSet<&str> = self.removed.iter().map(|(path, _)| path.as_str()).collect();
        let mut left = self.tombstones.clone();
        left.retain(|path| !gone.contains(path));
        Ok(publisher.replace_tombstones(&left)?)
    }
}

/// The path of every object, and whether a link leads to it. Manifests go first and packs last, so that what is left of a
/// version when its removal is cut short is what leads nowhere.
fn objects(repository: &RepositoryDir, reach: &Reach) -> Result<Vec<(String, bool)>, Error> {
    let (manifests, layouts) = (reach.manifests(), reach.layouts());
    let kind = |listed: Vec<Digest>, reached: &HashSet<Digest>, path: fn(&Digest) -> String| {
        listed.into_iter().map(|digest| (path(&digest), reached.contains(&digest))).collect::<Vec<_>>()
    };
    Ok([
        kind(repository.manifests()?.objects, &manifests, manifest_path),
        kind(repository.layouts()?.objects, &layouts, layout_path),
        kind(repository.orders()?.objects, &reach.orders(), order_path),
        kind(repository.packs()?.objects, &reach.packs, pack_path),
    ]
    .concat())
}

/// Now, in seconds since 1970 (UTC).
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
