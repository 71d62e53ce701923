//! Looking after a cache directory: what a server does when it is asked to, and a command where there is no server.

use vmnetx_store::{DiskCache, Pin};

use crate::Error;
use crate::control::api::{CacheReport, Unpinned};

/// How full a cache is, and what is kept in it for good. Reads the disk: not for async code.
pub(crate) fn report(cache: &DiskCache) -> CacheReport {
    CacheReport { dir: dir(cache), usage: cache.usage(), pins: cache.pins() }
}

/// Removes what is not kept for good, the oldest first, until no more than `to_bytes` are left. Not for async code.
pub(crate) fn prune(cache: &DiskCache, to_bytes: u64) -> Result<CacheReport, Error> {
    cache.prune(to_bytes)?;
    Ok(report(cache))
}

/// Lets go of the versions that have this name, link or manifest. Not for async code.
pub(crate) fn unpin(cache: &DiskCache, which: &str) -> Result<Unpinned, Error> {
    let is_meant = |pin: &Pin| pin.name == which || pin.link == which || pin.manifest.to_string() == which;
    let (removed, pins): (Vec<Pin>, Vec<Pin>) = cache.pins().into_iter().partition(is_meant);
    if removed.is_empty() {
        return Err(Error::NoPin { dir: cache.dir().to_owned(), which: which.to_owned() });
    }
    for pin in &removed {
        cache.unpin(&pin.manifest)?;
    }
    Ok(Unpinned { dir: dir(cache), removed, pins })
}

fn dir(cache: &DiskCache) -> String {
    cache.dir().display().to_string()
}
