//! What the links of a repository lead to: their versions, the indexes of those, and the objects that hold all of it.
//!
//! The walk goes on past whatever cannot be read, and keeps it: `verify` lists it all, while those who must not act on a
//! part of the truth ask for [`Reach::whole`].

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_format::{Digest, Link, Name, Version, layout_path, link_path, manifest_path};
use vmnetx_store::dir::{DirError, RepositoryDir};

use crate::local::{LEAF_BYTES, LeafNode, Leaves, LocalImage, Packs, images};
use crate::{Damage, Error};

/// What some links lead to.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The versions that the links name, each link's current one first.
    pub(crate) versions: Vec<ReachedVersion>,
    /// The packs that hold their chunks and indexes, as far as the indexes can be read.
    pub(crate) packs: HashSet<Digest>,
    /// Links, manifests and layout objects that are not as they should be.
    pub(crate) broken: Vec<Broken>,
    /// A part of an image whose leaf cannot be read, if there is one; parts without inner nodes are in their [`Leaves`].
    lost: Option<Error>,
}

/// A version that a link names.
#[derive(Debug)]
pub(crate) struct ReachedVersion {
    /// The path of that link.
    pub(crate) link: String,
    pub(crate) version: Version,
    /// Its images and their leaves; none if it cannot be opened.
    pub(crate) images: Vec<(LocalImage, Leaves)>,
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
        let packs = Packs::new(repository.clone());
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
                    reach.add(repository, &packs, &envelope.link);
                }
            }
        }
        reach.find_packs(&packs);
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
        let images = self.versions.iter_mut().flat_map(|reached| &mut reached.images);
        let inner = images.filter_map(|(image, leaves)| {
            let (range, damage) = leaves.lost.pop()?;
            Some(lost(image, range, damage))
        });
        let first = inner.chain(self.lost.take()).next();
        first.map_or(Ok(self), Err)
    }

    /// The manifests of the versions.
    pub(crate) fn manifests(&self) -> HashSet<Digest> {
        self.versions.iter().map(|reached| reached.version.manifest).collect()
    }

    /// The layout objects of the versions.
    pub(crate) fn layouts(&self) -> HashSet<Digest> {
        self.versions.iter().map(|reached| reached.version.layout).collect()
    }

    fn broken(&mut self, object: String, damage: impl Into<Damage>, version: Option<(Digest, String)>) {
        self.broken.push(Broken { object, damage: damage.into(), version });
    }

    fn add(&mut self, repository: &RepositoryDir, packs: &Packs, link: &Link) {
        for version in link.versions() {
            let link = link_path(&link.name);
            self.check_sizes(repository, version, &link);
            let images = open(repository, version).unwrap_or_else(|(object, damage)| {
                self.broken(object, damage, Some((version.manifest, link.clone())));
                Vec::new()
            });
            let images = images.into_iter().map(|image| {
                let leaves = packs.leaves(&image);
                (image, leaves)
            });
            self.versions.push(ReachedVersion { link, version: version.clone(), images: images.collect() });
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

    fn find_packs(&mut self, packs: &Packs) {
        let images: Vec<&(LocalImage, Leaves)> = self.versions.iter().flat_map(|reached| &reached.images).collect();
        let nodes = images.iter().flat_map(|(image, leaves)| leaves.nodes.iter().map(move |node| (image, node)));
        // Versions share most of their leaves, and each is read once.
        let mut seen = HashSet::new();
        let mut is_first = |node: &LeafNode| seen.insert((node.content, node.place.pack, node.place.offset));
        let nodes: Vec<(&LocalImage, &LeafNode)> = nodes.filter(|(_, node)| is_first(node)).collect();
        let of_leaf = |(image, node): &(&LocalImage, &LeafNode)| {
            let mut found = HashSet::from([node.place.pack]);
            match packs.chunks(image.geometry, node) {
                Ok(chunks) => {
                    found.extend(chunks.iter().map(|chunk| chunk.place.pack));
                    (found, None)
                }
                Err(damage) => (found, Some(lost(image, node.leaf..node.leaf.saturating_add(1), damage))),
            }
        };
        type Found = (HashSet<Digest>, Option<Error>);
        let join = |(mut all, lost): Found, (more, next): Found| {
            all.extend(more);
            (all, lost.or(next))
        };
        let (mut found, lost) = nodes.par_iter().map(of_leaf).reduce(Found::default, join);
        // Inner nodes lie in packs of their own, which the roots name.
        found.extend(images.iter().flat_map(|(image, _)| image.roots.layout.children()).map(|place| place.pack));
        (self.packs, self.lost) = (found, lost);
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

/// That the leaves of an image cannot be read.
fn lost(image: &LocalImage, leaves: Range<u32>, damage: Damage) -> Error {
    let byte = |leaf: u32| (u64::from(leaf) * LEAF_BYTES).min(image.geometry.size_bytes());
    Error::Damaged {
        disk: image.name.clone(),
        start: byte(leaves.start),
        end: byte(leaves.end),
        source: Box::new(damage),
    }
}
