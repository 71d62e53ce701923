//! Pulling into a repository of its own: all that a link names, in whole packs, as any web server serves it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;
use vmnetx_format::limits::{LAYOUT_BYTES_MAX, MANIFEST_BYTES_MAX, ORDER_BYTES_MAX, PACK_BYTES_MAX};
use vmnetx_format::{Digest, Hasher, Order, layout_path, manifest_path, order_path, pack_path};

use super::walk::Walk;
use super::{Progress, Pulled, blocking};
use crate::dir::{DirError, Publisher, RepositoryDir, Wait};
use crate::failure::{Class, Told};
use crate::limits::{DAMAGED_TRIES_MAX, PULL_PACKS_MAX};
use crate::origin::{Mirrors, Origin, Retry};
use crate::package::verified;
use crate::{Error, Location, Package, Store};

/// Why a repository cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The origin.
    #[error(transparent)]
    Store(#[from] Error),
    /// The directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The directory has a later link already.
    #[error("{dir} has link number {there} of {name} already, and this is number {here}")]
    Newer {
        /// The directory.
        dir: String,
        /// The package.
        name: String,
        /// The serial number of the link that is there.
        there: u64,
        /// That of the one that was to be copied.
        here: u64,
    },
}

impl Told for CopyError {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::Dir(error) => error.class(),
            Self::Newer { .. } => Class::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Dir(error) => error.hint(),
            Self::Newer { .. } => Some("pull from where the later link was published".into()),
        }
    }
}

impl Store {
    /// Makes the directory `dir` a repository that has all versions which the link at `location` names; what it has already
    /// is verified and left as it is. The link is written last, when everything that it names is there.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn copy(&self, location: &Location, dir: &Path, progress: &Arc<Progress>) -> Result<Pulled, CopyError> {
        let first = self.package(location).await?;
        let repository = RepositoryDir::create(dir)?;
        let publisher = Arc::new(repository.lock(Wait::No)?);
        check_serial(&repository, &first)?;
        let mut packs = BTreeMap::new();
        for version in first.link().versions() {
            let pinned = Location { version: Some(version.manifest), ..location.clone() };
            let package = self.package(&pinned).await?;
            self.copy_objects(&package, &publisher, &mut packs).await?;
            add_packs(&package, &mut packs).await?;
        }
        // The catalogue at the end of each pack is not known yet, and is small.
        progress.start(packs.values().sum());
        copy_packs(self, &first, &publisher, packs, progress).await?;
        let envelope = first.envelope().clone();
        blocking(move || publisher.replace_link(&envelope)).await??;
        Ok(progress.pulled())
    }

    /// Copies manifest, layout and orders; adds the packs that orders name.
    async fn copy_objects(
        &self,
        package: &Package,
        publisher: &Arc<Publisher>,
        packs: &mut BTreeMap<Digest, u64>,
    ) -> Result<(), CopyError> {
        let version = package.version();
        let orders = version.orders.iter().map(|digest| (order_path(digest), *digest, ORDER_BYTES_MAX));
        let objects = [
            (manifest_path(&version.manifest), version.manifest, MANIFEST_BYTES_MAX),
            (layout_path(&version.layout), version.layout, LAYOUT_BYTES_MAX),
        ];
        for (path, digest, max_bytes) in objects.into_iter().chain(orders) {
            let object = verified(self, &**package.repository(), &path, max_bytes, digest).await?.bytes;
            if version.orders.contains(&digest) {
                let damaged = |source| Error::Order { object: package.repository().locate(&path), source };
                let order = Order::decode(&object).map_err(damaged)?;
                order.frames().iter().for_each(|frame| add_place(packs, &frame.place));
            }
            let publisher = Arc::clone(publisher);
            blocking(move || publisher.put(&path, &digest, &object)).await??;
        }
        Ok(())
    }
}

fn check_serial(repository: &RepositoryDir, package: &Package) -> Result<(), CopyError> {
    let link = package.link();
    match repository.link(&link.name)? {
        Some(there) if there.link.serial > link.serial => Err(CopyError::Newer {
            dir: repository.root().display().to_string(),
            name: link.name.to_string(),
            there: there.link.serial,
            here: link.serial,
        }),
        _ => Ok(()),
    }
}

/// Adds the packs that hold a version, each with the bytes that are known of it.
async fn add_packs(package: &Package, packs: &mut BTreeMap<Digest, u64>) -> Result<(), Error> {
    for image in package.images() {
        let mut walk = Walk::new(image);
        while let Some(frames) = walk.next().await? {
            frames.iter().for_each(|frame| add_place(packs, &frame.place));
        }
    }
    Ok(())
}

fn add_place(packs: &mut BTreeMap<Digest, u64>, place: &vmnetx_format::Place) {
    let end = place.offset + u64::from(place.stored_len);
    let known = packs.entry(place.pack).or_default();
    *known = end.max(*known);
}

async fn copy_packs(
    store: &Store,
    package: &Package,
    publisher: &Arc<Publisher>,
    packs: BTreeMap<Digest, u64>,
    progress: &Arc<Progress>,
) -> Result<(), CopyError> {
    let mut under_way: JoinSet<Result<(), CopyError>> = JoinSet::new();
    for (pack, bytes) in packs {
        while under_way.len() >= PULL_PACKS_MAX
            && let Some(copied) = under_way.join_next().await
        {
            copied.map_err(|_| Error::Closing)??;
        }
        let work = PackCopy {
            pack,
            publisher: Arc::clone(publisher),
            mirrors: Arc::clone(package.repository()),
            retry: Retry::for_as_long_as(store.retry_for()),
        };
        let progress = Arc::clone(progress);
        // It writes files, so it has a thread of its own; what it waits for is asynchronous.
        let runtime = tokio::runtime::Handle::current();
        under_way.spawn_blocking(move || {
            let is_fetched = runtime.block_on(work.run())?;
            progress.add(bytes, is_fetched);
            Ok(())
        });
    }
    while let Some(copied) = under_way.join_next().await {
        copied.map_err(|_| Error::Closing)??;
    }
    Ok(())
}

/// Copies one pack.
struct PackCopy {
    pack: Digest,
    publisher: Arc<Publisher>,
    mirrors: Arc<Mirrors>,
    retry: Retry,
}

impl PackCopy {
    /// Says whether it had to be fetched.
    async fn run(mut self) -> Result<bool, CopyError> {
        let path = pack_path(&self.pack);
        if self.publisher.repository().verified_pack(&self.pack)? {
            return Ok(false);
        }
        let mut damaged = 0;
        loop {
            let error = match self.attempt(&path).await {
                Ok(()) => return Ok(true),
                Err(CopyError::Store(error)) => error.of_object(),
                Err(error) => return Err(error),
            };
            if error.is_damage() {
                damaged += 1;
                self.mirrors.distrust(&path, &error);
            }
            let again = error.is_transient() || (error.is_damage() && damaged < DAMAGED_TRIES_MAX);
            if !again || !self.retry.pause().await {
                return Err(error.into());
            }
        }
    }

    async fn attempt(&self, path: &str) -> Result<(), CopyError> {
        let mut object = self.publisher.temporary()?;
        let mut hasher = Hasher::new();
        let mut body = self.mirrors.range(path, 0..PACK_BYTES_MAX).await?;
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => {
                    hasher.update(&piece);
                    object.write_all(&piece).map_err(|source| self.cannot_write(path, source))?;
                }
                // No pack is as long as what was asked for: it ends where it ends, and its digest says whether that is right.
                Err(Error::Short { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if hasher.digest() != self.pack {
            let object = self.mirrors.locate(path);
            return Err(Error::Digest { object, expected: self.pack }.into());
        }
        Ok(object.commit(path, &self.pack)?)
    }

    fn cannot_write(&self, path: &str, source: std::io::Error) -> DirError {
        DirError::Io { action: "write", path: self.publisher.repository().root().join(path), source }
    }
}
