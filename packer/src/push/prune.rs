//! Deletes from a bucket what the repository no longer has, unless anything in the bucket may still need it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use vmnetx_format::{LINK_SUFFIX, Name, layout_path, manifest_path, order_path, pack_path};
use vmnetx_store::dir::RepositoryDir;

use super::bucket::{Bucket, StoredLink};
use super::link::Step;
use super::{PrunedObject, PushError};
use crate::Error;
use crate::limits::PUSH_DELETES;

/// Links by their paths; nothing where one cannot be read as a link.
type Links = BTreeMap<String, Option<StoredLink>>;

/// Finds what can go, and deletes it unless this is a rehearsal. `steps` are what the push does, or would do, to links.
pub(super) async fn prune(
    bucket: &Bucket,
    repository: &RepositoryDir,
    steps: &[(Name, Step)],
    grace: Duration,
    rehearsal: bool,
) -> Result<Vec<PrunedObject>, Error> {
    let links = look(bucket).await?;
    check_ours(repository, &links, if rehearsal { steps } else { &[] })?;
    let listing = bucket.objects().await?;
    let here = objects_here(repository)?;
    let grace_s = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let newest = bucket.time_unix_s()?.saturating_sub(grace_s);
    let free = listing.iter().filter(|(path, listed)| !here.contains(*path) && listed.modified_unix_s <= newest);
    let mut free: Vec<PrunedObject> =
        free.map(|(path, listed)| PrunedObject { path: path.clone(), bytes: listed.bytes }).collect();
    free.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    if rehearsal || free.is_empty() {
        return Ok(free);
    }
    // The second look: a publisher may have come while the objects were listed.
    if let Some(object) = difference(&links, &look(bucket).await?) {
        return Err(PushError::Prune { object, reason: "was replaced while objects were listed" }.into());
    }
    let paths: Vec<String> = free.iter().map(|object| object.path.clone()).collect();
    for batch in paths.chunks(PUSH_DELETES) {
        bucket.delete(batch).await?;
    }
    // Whoever published meanwhile may have counted on what is gone now, and a push brings it back.
    match difference(&links, &look(bucket).await?) {
        Some(object) => Err(PushError::Overtaken(object).into()),
        None => Ok(free),
    }
}

/// The links in the bucket by their paths. What has a name that no package can have is not read.
async fn look(bucket: &Bucket) -> Result<Links, PushError> {
    let mut links = Links::new();
    for path in bucket.links().await? {
        let stored = match name(&path) {
            Some(name) => bucket.link(&name).await?,
            None => None,
        };
        links.insert(path, stored);
    }
    Ok(links)
}

/// All links must be the repository's, or about to be replaced by its: what another one reaches is not known.
fn check_ours(repository: &RepositoryDir, links: &Links, planned: &[(Name, Step)]) -> Result<(), Error> {
    for (path, stored) in links {
        let not_ours = |reason| PushError::Prune { object: path.clone(), reason };
        let (Some(name), Some(stored)) = (name(path), stored) else {
            return Err(not_ours("is no link of this repository").into());
        };
        let ours = repository.link(&name)?.ok_or_else(|| not_ours("is no link of this repository"))?;
        let replaced = |(planned, step): &(Name, Step)| *planned == name && *step == Step::Replace(stored.clone());
        if stored.bytes != ours.encode() && !planned.iter().any(replaced) {
            return Err(not_ours("differs from the one of this repository").into());
        }
    }
    Ok(())
}

/// The package whose link has this path.
fn name(path: &str) -> Option<Name> {
    path.strip_suffix(LINK_SUFFIX)?.parse().ok()
}

/// A link that is not the same at both times.
fn difference(before: &Links, after: &Links) -> Option<String> {
    before.keys().chain(after.keys()).find(|path| before.get(*path) != after.get(*path)).cloned()
}

/// The paths of all objects of the repository, whether links reach them or not.
fn objects_here(repository: &RepositoryDir) -> Result<HashSet<String>, Error> {
    let packs = repository.packs()?.objects;
    let layouts = repository.layouts()?.objects;
    let manifests = repository.manifests()?.objects;
    let orders = repository.orders()?.objects;
    let paths = packs.iter().map(pack_path).chain(orders.iter().map(order_path));
    Ok(paths.chain(layouts.iter().map(layout_path)).chain(manifests.iter().map(manifest_path)).collect())
}
