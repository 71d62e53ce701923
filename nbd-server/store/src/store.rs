//! The store: the caches and connections that all packages of a process share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use vmnetx_format::{Digest, Purpose};

use crate::cache::{
    Ahead, DiskCache, DiskTier, Files, Flights, MemoryCache, MemoryTier, ObjectCache, SingleFlight, Touched,
};
use crate::image::Tiers;
use crate::limits::{KEPT_LINKS_MAX, ORDER_AHEAD_PARTS, PREFETCH_IN_FLIGHT_BLOCKS, RETRY_FOR, TOUCHED_FILES_MAX};
use crate::origin::{Access, HttpClient, Mirrors, OriginTier};
use crate::tier::Tier;
use crate::trust::Trust;
use crate::{Error, Location, Package};

/// The folder of the cache directory with manifests, layout objects and orders.
const OBJECTS_FOLDER: &str = "objects";
/// The folder with links as they were last read.
const LINKS_FOLDER: &str = "links";
/// The folder that says what was read first of each version.
const TOUCHED_FOLDER: &str = "touched";

/// The cache directory of the user: `vmnetx` where the XDG base directory specification has caches. Nothing if the user has
/// no home.
#[must_use]
pub fn default_cache_dir() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("vmnetx"))
}

/// How a store is to be set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of plain chunks in the memory tier.
    pub memory_bytes: u64,
    /// The directory of the disk tier and its bytes; nothing for none.
    pub disk: Option<(PathBuf, u64)>,
    /// How long a read is tried again when the origin fails.
    pub retry_for: Duration,
    /// Bytes a second that fetches for the background may take of each origin; nothing for no limit.
    pub background_bytes_per_s: Option<u64>,
    /// Which credentials go to which host. By default none to any.
    pub access: Access,
    /// Which links are believed. By default nothing is remembered of them.
    pub trust: Trust,
    /// Whether to send no request to any host: what the directory of the disk tier has must do.
    pub offline: bool,
}

/// How one of several readers of a store reads.
#[derive(Debug, Clone)]
pub struct Reader {
    /// How long a read is tried again when the origin fails.
    pub retry_for: Duration,
    /// Bytes a second that its fetches for the background may take of each origin; nothing for the store's own limit. It is
    /// never more than that.
    pub background_bytes_per_s: Option<u64>,
    /// Which credentials go to which host.
    pub access: Access,
    /// Which links are believed.
    pub trust: Trust,
    /// Whether to send no request to any host for it.
    pub offline: bool,
}

/// Caches and connections.
#[derive(Debug, Clone)]
pub struct Store {
    client: HttpClient,
    memory: Arc<MemoryCache>,
    memory_bytes: u64,
    disk: Option<Arc<DiskCache>>,
    kept: Option<Kept>,
    flights: Arc<Flights>,
    retry_for: Duration,
    background_bytes_per_s: Option<u64>,
    trust: Arc<Trust>,
    is_offline: bool,
}

/// What the cache directory has beside the disk tier.
#[derive(Debug, Clone)]
struct Kept {
    objects: Arc<ObjectCache>,
    links: Arc<Files>,
    touched: Arc<Files>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            disk: None,
            retry_for: RETRY_FOR,
            background_bytes_per_s: None,
            access: Access::default(),
            trust: Trust::default(),
            offline: false,
        }
    }
}

impl Store {
    /// Opens the caches; opens no connection yet.
    ///
    /// # Errors
    /// [`Error::Cache`] when the cache directory cannot be used, [`Error::CacheInUse`] when another process uses it.
    pub fn open(options: Options) -> Result<Self, Error> {
        let (disk, kept) = match options.disk {
            Some((dir, bytes)) => {
                let disk = Arc::new(DiskCache::open(&dir, bytes)?);
                let objects = Arc::new(ObjectCache::new(dir.join(OBJECTS_FOLDER), Arc::clone(&disk)));
                let links = Arc::new(Files::new(dir.join(LINKS_FOLDER), KEPT_LINKS_MAX));
                let touched = Arc::new(Files::new(dir.join(TOUCHED_FOLDER), TOUCHED_FILES_MAX));
                (Some(disk), Some(Kept { objects, links, touched }))
            }
            None => (None, None),
        };
        let Options { memory_bytes, retry_for, background_bytes_per_s, access, trust, offline: is_offline, .. } =
            options;
        let memory = Arc::new(MemoryCache::new(memory_bytes));
        let (client, flights, trust) = (HttpClient::with(access), Arc::default(), Arc::new(trust));
        Ok(Self {
            client,
            memory,
            memory_bytes,
            disk,
            kept,
            flights,
            retry_for,
            background_bytes_per_s,
            trust,
            is_offline,
        })
    }

    /// The same caches and connections, for a reader who reads like this.
    #[must_use]
    pub fn for_reader(&self, reader: Reader) -> Self {
        let Reader { retry_for, background_bytes_per_s, access, trust, offline } = reader;
        let limits = [self.background_bytes_per_s, background_bytes_per_s];
        Self {
            retry_for,
            background_bytes_per_s: limits.into_iter().flatten().min(),
            trust: Arc::new(trust),
            client: self.client.with_access(access),
            is_offline: self.is_offline || offline,
            ..self.clone()
        }
    }

    /// Opens the package that a link names.
    ///
    /// # Errors
    /// [`Error`] when link, manifest or layout cannot be had or are not what their digests say, or when the link is not to
    /// be believed.
    pub async fn package(&self, location: &Location) -> Result<Package, Error> {
        self.package_for(location, Purpose::Boot).await
    }

    /// The same for another purpose than booting: what is recorded of it is an order of that. A package without memory can only
    /// be booted, whatever the purpose.
    ///
    /// # Errors
    /// As [`Self::package`].
    pub async fn package_for(&self, location: &Location, purpose: Purpose) -> Result<Package, Error> {
        Package::open(self, location, purpose, false).await
    }

    /// As [`Self::package_for`], and starts to fetch, ahead of its readers, what its recorded order of the purpose says.
    ///
    /// # Errors
    /// As [`Self::package`]. An order that cannot be had is no error: readers fetch for themselves.
    pub async fn package_in_order(&self, location: &Location, purpose: Purpose) -> Result<Package, Error> {
        Package::open(self, location, purpose, true).await
    }

    /// The memory tier's cache.
    #[must_use]
    pub fn memory(&self) -> &MemoryCache {
        &self.memory
    }

    /// Whether the version of this manifest is pinned in the cache directory, and nothing of it was lost since: no request is
    /// needed to read it.
    #[must_use]
    pub fn is_complete(&self, manifest: &Digest) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.is_complete(manifest))
    }

    /// The disk tier's cache, if there is one.
    #[must_use]
    pub const fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.disk.as_ref()
    }

    pub(crate) const fn client(&self) -> &HttpClient {
        &self.client
    }

    /// Where immutable objects are kept, if anywhere.
    pub(crate) fn objects(&self) -> Option<&Arc<ObjectCache>> {
        self.kept.as_ref().map(|kept| &kept.objects)
    }

    /// Where links are kept as they were last read, if anywhere.
    pub(crate) fn links(&self) -> Option<&Arc<Files>> {
        self.kept.as_ref().map(|kept| &kept.links)
    }

    /// Whether no request is to be sent.
    pub(crate) const fn is_offline(&self) -> bool {
        self.is_offline
    }

    /// Starts to bring into memory what was read first of a version the last time.
    pub(crate) fn ahead(&self, manifest: Digest) -> Option<Ahead> {
        let (disk, kept) = (self.disk.as_ref()?, self.kept.as_ref()?);
        let (disk, memory, files) = (Arc::clone(disk), Arc::clone(&self.memory), Arc::clone(&kept.touched));
        Some(Ahead::bring(disk, memory, files, manifest, self.memory_bytes / ORDER_AHEAD_PARTS))
    }

    /// Takes note of what is read first of a version this time.
    pub(crate) fn touched(&self, manifest: Digest) -> Option<Arc<Touched>> {
        let (disk, kept) = (self.disk.as_ref()?, self.kept.as_ref()?);
        Some(Arc::new(Touched::new(Arc::clone(disk), Arc::clone(&kept.touched), manifest)))
    }

    /// Bytes that the memory tier may hold.
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How long a read is tried again when the origin fails.
    #[must_use]
    pub const fn retry_for(&self) -> Duration {
        self.retry_for
    }

    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Puts the tiers before an origin: single flight, memory, disk, origin.
    pub(crate) fn tiers(&self, mirrors: Arc<Mirrors>) -> (Tiers, Arc<OriginTier>) {
        let last = OriginTier::over(Arc::clone(&mirrors), self.retry_for, self.background_bytes_per_s);
        let last = Arc::new(last);
        let mut chain: Arc<dyn Tier> = Arc::<OriginTier>::clone(&last);
        if let Some(disk) = &self.disk {
            chain = Arc::new(DiskTier::new(Arc::clone(disk), chain));
        }
        chain = Arc::new(MemoryTier::new(Arc::clone(&self.memory), chain));
        let tiers = Tiers {
            memory: Arc::clone(&self.memory),
            flights: Arc::new(SingleFlight::shared(Arc::clone(&self.flights), chain)),
            mirrors,
            disk: self.disk.clone(),
            background: Arc::new(Semaphore::new(PREFETCH_IN_FLIGHT_BLOCKS as usize)),
        };
        (tiers, last)
    }

    /// The tiers before an origin for what is to be kept on the disk and in memory only if somebody reads it meanwhile.
    pub(crate) fn past_memory(&self, origin: Arc<OriginTier>, disk: Arc<DiskCache>) -> SingleFlight {
        SingleFlight::shared(Arc::clone(&self.flights), Arc::new(DiskTier::new(disk, origin)))
    }
}
