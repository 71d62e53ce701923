//! What the links of a repository lead to: their versions, the indexes of those, and the objects that hold all of it.
//!
//! The walk goes on past whatever cannot be read, and keeps it: `verify` lists it all, while those who must not act on a
//! part of the truth ask for [`Reach::whole`].
//!
//! Versions share most of their nodes, and a hostile index names few nodes many times: a node that was looked at in one
//! place is not looked at again in another. One version's roots are in memory at a time.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_format::{Digest, Link, Name, Version, layout_path, link_path, manifest_path, order_path};
use vmnetx_store::dir::{DirError, RepositoryDir};

use crate::local::{LeafNode, Leaves, LocalImage, NodeKey, Packs, images};
use crate::order::read_order;
use crate::{Damage, Error};

/// What some links lead to.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The versions that the links name, each link's current one first.
    pub(crate) versions: Vec<ReachedVersion>,
    /// The packs that hold their chunks and indexes, as far as the indexes can be read, and the frames of their orders.
    pub(crate) packs: HashSet<Digest>,
    /// Links, manifests, layout objects and orders that are not as they should be.
    pub(crate) broken: Vec<Broken>,
    /// A part of an image whose nodes cannot be read, if there is one.
    lost: Option<Error>,
}

/// A version that a link names.
#[derive(Debug)]
pub(crate) struct ReachedVersion {
    /// The path of that link.
    pub(crate) link: String,
    pub(crate) version: Version,
    /// Whether its manifest and its layout object can be read.
    pub(crate) whole: bool,
}

/// An object that is not as it should be.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The object's path.
    pub(crate) object: String,
    pub(crate) damage: Damage,
    /// The version that cannot be read because of it, and the path of its link.
    pub(crate) version: Option<(Digest, String)>,
}

impl Reach {
    /// Reads links, manifests, layout objects and indexes.
    pub(crate) fn read(repository: &RepositoryDir, names: &[Name]) -> Self {
        let mut reach = Self::default();
        let finder = Finder { packs: Packs::new(repository.clone()), found: Mutex::default() };
        for name in names {
            let object = link_path(name);
            match repository.link(name) {
                Err(error) => reach.broken(object, error, None),
                Ok(None) => reach.broken(object, Damage::Missing, None),
                Ok(Some(envelope)) => {
                    // A reader takes a link that is laid out otherwise, but no publisher writes one.
                    let stored = repository.object(&object, LINK_BYTES_MAX);
                    if stored.is_ok_and(|stored| stored != envelope.encode()) {
                        reach.broken(object, Damage::Form, None);
                    }
                    if let Err(error) = envelope.signer() {
                        reach.broken(link_path(name), error, None);
                    }
                    reach.add(repository, &finder, &envelope.link);
                }
            }
        }
        let found = finder.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        (reach.packs, reach.lost) = (found.packs, found.lost);
        reach.add_orders(repository);
        reach
    }

    /// Itself, if everything on the way could be read and is as it should be.
    ///
    /// # Errors
    /// [`Error::Object`] and [`Error::Damaged`] with the first thing that is not.
    pub(crate) fn whole(mut self) -> Result<Self, Error> {
        if !self.broken.is_empty() {
            let Broken { object, damage, .. } = self.broken.swap_remove(0);
            return Err(Error::Object { object, source: Box::new(damage) });
        }
        self.lost.take().map_or(Ok(self), Err)
    }

    /// The manifests of the versions.
    pub(crate) fn manifests(&self) -> HashSet<Digest> {
        self.versions.iter().map(|reached| reached.version.manifest).collect()
    }

    /// The layout objects of the versions.
    pub(crate) fn layouts(&self) -> HashSet<Digest> {
        self.versions.iter().map(|reached| reached.version.layout).collect()
    }

    /// The order objects of the versions.
    pub(crate) fn orders(&self) -> HashSet<Digest> {
        self.versions.iter().flat_map(|reached| &reached.version.orders).copied().collect()
    }

    fn broken(&mut self, object: String, damage: impl Into<Damage>, version: Option<(Digest, String)>) {
        self.broken.push(Broken { object, damage: damage.into(), version });
    }

    fn add(&mut self, repository: &RepositoryDir, finder: &Finder, link: &Link) {
        let mut known = HashSet::new();
        for version in link.versions().filter(|version| known.insert(layout_key(version))) {
            let link = link_path(&link.name);
            self.check_sizes(repository, version, &link);
            let opened = open(repository, version);
            let whole = opened.is_ok();
            match opened {
                Ok(images) => images.iter().for_each(|image| finder.image(image)),
                Err((object, damage)) => self.broken(object, damage, Some((version.manifest, link.clone()))),
            }
            self.versions.push(ReachedVersion { link, version: version.clone(), whole });
        }
    }

    /// A version can be read without its orders: one that is damaged is told, and nothing else is lost with it.
    fn add_orders(&mut self, repository: &RepositoryDir) {
        for digest in self.orders() {
            match read_order(repository, &digest) {
                Ok(order) => self.packs.extend(order.frames().iter().map(|frame| frame.place.pack)),
                Err(damage) => self.broken(order_path(&digest), damage, None),
            }
        }
    }

    fn check_sizes(&mut self, repository: &RepositoryDir, version: &Version, link: &str) {
        let manifest = (manifest_path(&version.manifest), version.manifest_bytes);
        let layout = (layout_path(&version.layout), version.layout_bytes);
        for (object, promised) in [manifest, layout] {
            let actual = std::fs::metadata(repository.root().join(&object)).map_or(promised, |metadata| metadata.len());
            if actual != promised {
                self.broken(link.to_owned(), Damage::Size { object, promised, actual }, None);
            }
        }
    }
}

/// What decides where a version's data lies: its content, its layout and its orders.
pub(crate) type LayoutKey = (Digest, Digest, Vec<Digest>);

pub(crate) fn layout_key(version: &Version) -> LayoutKey {
    (version.manifest, version.layout, version.orders.clone())
}

impl ReachedVersion {
    /// Its images with all of their leaves.
    pub(crate) fn images_and_leaves(
        &self,
        repository: &RepositoryDir,
        packs: &Packs,
    ) -> Result<Vec<(LocalImage, Leaves)>, Damage> {
        let with_leaves = |image| {
            let leaves = packs.all_leaves(&image);
            (image, leaves)
        };
        Ok(self.images(repository)?.into_iter().map(with_leaves).collect())
    }

    /// Its images.
    pub(crate) fn images(&self, repository: &RepositoryDir) -> Result<Vec<LocalImage>, Damage> {
        open(repository, &self.version).map_err(|(_, damage)| damage)
    }
}

/// Finds the packs that trees name.
struct Finder {
    packs: Packs,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    packs: HashSet<Digest>,
    nodes: HashSet<NodeKey>,
    lost: Option<Error>,
}

impl Finder {
    fn image(&self, image: &LocalImage) {
        let geometry = image.geometry;
        image.children().into_par_iter().for_each(|child| {
            if geometry.has_inner() && !self.is_new(&child, child.key(geometry.inner_children(child.leaf))) {
                return;
            }
            match self.packs.leaves(geometry, child) {
                Ok(leaves) => leaves.into_par_iter().for_each(|leaf| self.leaf(image, &leaf)),
                Err((leaves, damage)) => self.lost(image, leaves, damage),
            }
        });
    }

    fn leaf(&self, image: &LocalImage, leaf: &LeafNode) {
        if !self.is_new(leaf, leaf.key(image.geometry.leaf_blocks(leaf.leaf))) {
            return;
        }
        match self.packs.chunks(image.geometry, leaf) {
            Ok(chunks) => self.lock().packs.extend(chunks.iter().map(|chunk| chunk.place.pack)),
            Err(damage) => self.lost(image, leaf.leaf..leaf.leaf.saturating_add(1), damage),
        }
    }

    fn is_new(&self, node: &LeafNode, key: NodeKey) -> bool {
        let mut found = self.lock();
        found.packs.insert(node.place.pack);
        found.nodes.insert(key)
    }

    fn lost(&self, image: &LocalImage, leaves: Range<u32>, damage: Damage) {
        self.lock().lost.get_or_insert_with(|| image.lost_leaves(leaves, damage));
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a version; the object that is damaged and what is wrong with it.
fn open(repository: &RepositoryDir, version: &Version) -> Result<Vec<LocalImage>, (String, Damage)> {
    let (manifest_path, layout_path) = (manifest_path(&version.manifest), layout_path(&version.layout));
    let manifest = repository.manifest(version).map_err(|error| (manifest_path.clone(), error.into()))?;
    images(repository, version, &manifest).map_err(|damage| match damage {
        Damage::Repository(DirError::Manifest { .. }) => (manifest_path, damage),
        damage => (layout_path, damage),
    })
}
