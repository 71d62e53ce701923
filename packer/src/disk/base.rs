//! A disk of a published version that a new version starts from.

use std::sync::Arc;

use vmnetx_format::{Chunker, Digest, Geometry, LeafChunk, Name, Version};
use vmnetx_store::dir::RepositoryDir;

use super::{Leaf, Source};
use crate::local::{LEAF_BYTES, LeafNode, LocalImage, Packs, images};
use crate::{Damage, Error};

/// A disk of a published version, in a repository on this host.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) name: Name,
    pub(crate) version: Digest,
    pub(crate) chunker: Chunker,
    image: LocalImage,
    packs: Packs,
}

/// A disk that is taken over as it is.
pub(crate) struct KeptDisk {
    base: Arc<Base>,
}

impl Base {
    /// The disks of a version of the package that `link` names, in their order.
    ///
    /// # Errors
    /// [`Error::Repository`], [`Error::Version`].
    pub(crate) fn disks(link: &str, repository: &RepositoryDir, version: &Version) -> Result<Vec<Arc<Self>>, Error> {
        let manifest = repository.manifest(version)?;
        let unreadable = |source| Error::Version { link: link.to_owned(), source: Box::new(source) };
        let images = images(repository, version, &manifest).map_err(unreadable)?;
        let disks = manifest.disks.into_iter().zip(images);
        let base = disks.map(|(disk, image)| {
            let packs = Packs::new(repository.clone());
            Arc::new(Self { name: disk.name, version: version.manifest, chunker: disk.chunker, image, packs })
        });
        Ok(base.collect())
    }

    pub(crate) const fn geometry(&self) -> Geometry {
        self.image.geometry
    }

    /// All leaves that hold something, in order.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub(super) fn nodes(&self) -> Result<Vec<LeafNode>, Error> {
        let mut nodes = Vec::new();
        for child in self.image.children() {
            let below = self.packs.leaves(self.image.geometry, child);
            nodes.extend(below.map_err(|(leaves, damage)| {
                self.damaged(u64::from(leaves.start) * LEAF_BYTES, u64::from(leaves.end) * LEAF_BYTES, damage)
            })?);
        }
        Ok(nodes)
    }

    /// The chunks of a leaf.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub(super) fn chunks(&self, node: &LeafNode) -> Result<Vec<LeafChunk>, Error> {
        let start = u64::from(node.leaf) * LEAF_BYTES;
        let chunks = self.packs.chunks(self.image.geometry, node);
        chunks.map_err(|damage| self.damaged(start, start + LEAF_BYTES, damage))
    }

    /// The bytes of a chunk of the leaf `leaf`, verified.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub(super) fn chunk(&self, leaf: u32, chunk: &LeafChunk) -> Result<Vec<u8>, Error> {
        let start = u64::from(leaf) * LEAF_BYTES + u64::from(chunk.first_block) * super::BLOCK;
        let plain = self.packs.chunk(chunk);
        plain.map_err(|damage| self.damaged(start, start + u64::from(chunk.plain_len()), damage))
    }

    fn damaged(&self, start: u64, end: u64, damage: Damage) -> Error {
        Error::Damaged { disk: self.name.to_string(), start, end, source: Box::new(damage) }
    }
}

impl KeptDisk {
    pub(crate) const fn new(base: Arc<Base>) -> Self {
        Self { base }
    }
}

impl Source for KeptDisk {
    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_> {
        match self.base.nodes() {
            Ok(nodes) => Box::new(nodes.into_iter().map(|node| Ok(Leaf::Kept(node)))),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    /// There is nothing to be read.
    fn read(&self, _leaf: &Leaf, _buffer: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    /// What is published never changes.
    fn check_unchanged(&self) -> Result<(), Error> {
        Ok(())
    }
}
