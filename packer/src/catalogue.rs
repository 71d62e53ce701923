//! What a repository already holds, as the catalogues of its packs say.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use vmnetx_format::{Catalogue, Digest, Kind, NodePlace, pack_path};
use vmnetx_store::dir::{DirError, RepositoryDir};

use crate::limits::CHUNKS_MAX;
use crate::{Error, Progress};

/// Where a frame is stored. Packs are known by their number, because one that is being written has no digest yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
    pub(crate) stored_len: u32,
}

/// The chunks and index nodes of a repository.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Packs by number.
    pub(crate) packs: Vec<Digest>,
    /// The position of each chunk in `places`.
    pub(crate) chunks: HashMap<Digest, u32>,
    /// Where each chunk is stored.
    pub(crate) places: Vec<Stored>,
    /// Where each pair of nodes is stored, by the digests of both; small indexes are written whole, so it may be in
    /// several packs.
    pub(crate) nodes: HashMap<(Digest, Digest), Vec<NodePlace>>,
}

impl Known {
    /// Reads the catalogues of all packs. A pack whose catalogue is damaged is left out: what it held is stored anew. So
    /// is one that may be removed soon.
    pub(crate) fn read(repository: &RepositoryDir, progress: &dyn Progress) -> Result<Self, Error> {
        Self::read_without(repository, &HashSet::new(), progress)
    }

    /// Reads the catalogues of all packs but some.
    pub(crate) fn read_without(
        repository: &RepositoryDir,
        without: &HashSet<Digest>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let tombstones = repository.tombstones()?;
        let mut packs = repository.packs()?.objects;
        packs.retain(|digest| !without.contains(digest) && tombstones.since_unix_s(&pack_path(digest)).is_none());
        let catalogues: Vec<(Digest, Result<Catalogue, DirError>)> = packs
            .into_par_iter()
            .map(|digest| (digest, repository.pack(&digest).and_then(|p| p.catalogue())))
            .collect();
        let mut known = Self::default();
        for (digest, catalogue) in catalogues {
            match catalogue {
                Ok(catalogue) => known.add(digest, &catalogue)?,
                Err(error @ (DirError::Pack { .. } | DirError::TooLarge { .. })) => {
                    progress.warn(&format!("{error}; what it holds is stored anew"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(known)
    }

    fn add(&mut self, digest: Digest, catalogue: &Catalogue) -> Result<(), Error> {
        let pack = self.packs.len() as u32;
        self.packs.push(digest);
        let mut content = None;
        for (offset, entry) in catalogue.entries() {
            match entry.kind {
                Kind::Chunk => {
                    let next = id(self.places.len())?;
                    if *self.chunks.entry(entry.digest).or_insert(next) == next {
                        // Packs are at most 1 GiB long, as their catalogue's decoder has made sure.
                        self.places.push(Stored { pack, offset: offset as u32, stored_len: entry.stored_len });
                    }
                }
                // A layout that led to an order's pack would keep it when the order goes.
                Kind::Copy => {}
                Kind::Content => content = Some((offset, entry)),
                Kind::Layout => {
                    let Some((offset, node)) = content.take() else { continue };
                    let place = NodePlace {
                        pack: digest,
                        offset,
                        content_stored_len: node.stored_len,
                        content_plain_len: node.plain_len,
                        layout_stored_len: entry.stored_len,
                        layout_plain_len: entry.plain_len,
                        layout: entry.digest,
                    };
                    self.nodes.entry((node.digest, entry.digest)).or_default().push(place);
                }
            }
        }
        Ok(())
    }
}

/// The number of the next chunk.
pub(crate) fn id(count: usize) -> Result<u32, Error> {
    if count < CHUNKS_MAX { Ok(count as u32) } else { Err(Error::TooManyChunks) }
}
