//! Looking after the cache directory of a server, which its own user and root may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OwnedSemaphorePermit;
use vmnetx_store::{DiskCache, DiskVerified};

use super::{Host, Peer};
use crate::control::api::{CacheReport, Unpinned};
use crate::{Error, upkeep};

/// A verification of the cache directory. Reading goes on to its end, whoever has left meanwhile: it drops what is damaged.
#[derive(Debug)]
pub(crate) struct Verification {
    read_bytes: Arc<AtomicU64>,
    result: tokio::task::JoinHandle<DiskVerified>,
}

/// Keeps the server from ending as idle.
#[derive(Debug)]
struct Work(Host);

impl Host {
    /// How full the cache directory is.
    pub(crate) async fn cache(&self, peer: Peer) -> Result<CacheReport, Error> {
        self.work(peer, |cache| Ok(upkeep::report(cache))).await
    }

    /// Empties the cache directory until no more than `to_bytes` are left.
    pub(crate) async fn prune(&self, peer: Peer, to_bytes: u64) -> Result<CacheReport, Error> {
        self.work(peer, move |cache| upkeep::prune(cache, to_bytes)).await
    }

    /// Lets go of what is kept for good.
    pub(crate) async fn unpin(&self, peer: Peer, which: String) -> Result<Unpinned, Error> {
        self.work(peer, move |cache| upkeep::unpin(cache, &which)).await
    }

    /// Starts to read every chunk of the cache directory.
    pub(crate) fn verify(&self, peer: Peer) -> Result<Verification, Error> {
        let (cache, work) = self.begin(peer)?;
        let permit = Arc::clone(&self.0.verifying).try_acquire_owned().map_err(|_| Error::BeingVerified)?;
        let read_bytes = Arc::<AtomicU64>::default();
        let result = tokio::task::spawn_blocking({
            let read_bytes = Arc::clone(&read_bytes);
            move || {
                let _under_way: (Work, OwnedSemaphorePermit) = (work, permit);
                cache.verify(|bytes| {
                    read_bytes.fetch_add(bytes, Ordering::Relaxed);
                })
            }
        });
        Ok(Verification { read_bytes, result })
    }

    /// Does something with the cache directory that waits for the disk.
    async fn work<T: Send + 'static>(
        &self,
        peer: Peer,
        work: impl FnOnce(&DiskCache) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (cache, guard) = self.begin(peer)?;
        let done = tokio::task::spawn_blocking(move || {
            let _under_way = guard;
            work(&cache)
        });
        done.await.map_err(|error| Error::Runtime(std::io::Error::other(error)))?
    }

    fn begin(&self, peer: Peer) -> Result<(Arc<DiskCache>, Work), Error> {
        if !peer.is_master {
            return Err(Error::Forbidden("the cache directory is looked after by the server's own user"));
        }
        let cache = self.0.store.disk().cloned().ok_or(Error::NoCache)?;
        let mut state = self.lock();
        if self.is_draining() {
            return Err(Error::Draining);
        }
        state.works += 1;
        self.recount(&state);
        Ok((cache, Work(self.clone())))
    }
}

impl Verification {
    /// Stored bytes that were read until now.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// What came of it.
    pub(crate) async fn verified(&mut self) -> Result<DiskVerified, Error> {
        (&mut self.result).await.map_err(|error| Error::Runtime(std::io::Error::other(error)))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.works = state.works.saturating_sub(1);
        self.0.recount(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmnetx_store::{Options, Store};

    use super::*;
    use crate::HostOptions;

    #[tokio::test]
    async fn one_verification_at_a_time_keeps_the_disk_busy_and_the_server_there() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Some((dir.path().to_owned(), 1 << 20));
        let store = Store::open(Options { disk, ..Options::default() }).unwrap();
        let host = Host::new(store, HostOptions::default()).unwrap();
        let peer = Peer::new(0);
        let other = Arc::clone(&host.0.verifying).try_acquire_owned().unwrap();
        assert!(matches!(host.verify(peer), Err(Error::BeingVerified)));
        drop(other);
        let (_, work) = host.begin(peer).unwrap();
        let mut unused = std::pin::pin!(host.until_unused(Some(Duration::ZERO)));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut unused).await.is_err());
        let mut verification = host.verify(peer).unwrap();
        assert_eq!(verification.verified().await.unwrap().damaged, 0);
        drop(work);
        tokio::time::timeout(Duration::from_secs(20), unused).await.unwrap();
        assert!(matches!(host.verify(peer), Err(Error::Draining)));
        assert!(matches!(host.verify(Peer { uid: 65534, is_master: false }), Err(Error::Forbidden(_))));
    }
}
