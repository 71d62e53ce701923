//! The other repository: its objects, and the data of its packages.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;
use vmnetx_format::{BLOCK_BYTES, Digest};
use vmnetx_store::origin::{Access, AccessArgs, DirOrigin, HttpClient, HttpOrigin, Origin};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Image, Location, Package, Piece, Place, Store};

use super::RepairSource;
use crate::Error;
use crate::disk::{Elsewhere, LeafExtents};
use crate::limits::COPY_TRIES;
use crate::local::LEAF_BYTES;
use crate::remote::once_store;

/// Extents that one question about a leaf is answered with: more than its blocks cannot be.
const EXTENTS_MAX: usize = vmnetx_format::limits::LEAF_BLOCKS as usize;

/// The other repository.
pub(super) struct Mirror {
    runtime: Arc<Runtime>,
    origin: Arc<dyn Origin>,
    store: Store,
    source: RepairSource,
}

/// An image of a package there.
pub(super) struct MirrorImage {
    runtime: Arc<Runtime>,
    image: Arc<Image>,
}

impl Mirror {
    /// The repository at `source`, read with these credentials. Nothing is believed there: whatever is read has a digest that
    /// is known.
    pub(super) fn open(source: &RepairSource, access: &AccessArgs) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
        let (origin, access): (Arc<dyn Origin>, _) = match source {
            RepairSource::Dir(path) => (Arc::new(DirOrigin::new(path)), Access::default()),
            RepairSource::Url(url) => {
                let access = access.access().map_err(vmnetx_store::Error::from)?;
                (Arc::new(HttpOrigin::new(HttpClient::with(access.clone()), url.clone())), access)
            }
        };
        let store = once_store(Trust::default(), access)?;
        Ok(Self { runtime: Arc::new(runtime), origin, store, source: source.clone() })
    }

    /// The object at `path`, tried a few times.
    pub(super) fn object(&self, path: &str, max_bytes: u64) -> Result<Bytes, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.runtime.block_on(self.origin.object(path, max_bytes)) {
                Err(vmnetx_store::Error::Network { .. }) if tries < COPY_TRIES => {}
                result => return Ok(result?),
            }
        }
    }

    /// The images of a version of the package whose link is `link`.
    pub(super) fn images(&self, link: &str, version: &Digest) -> Result<Vec<MirrorImage>, Error> {
        let place = match &self.source {
            RepairSource::Dir(path) => Place::Path(Path::new(path).join(link)),
            RepairSource::Url(url) => {
                let url = url.join(link).map_err(|error| Error::Usage(format!("{url} with {link}: {error}")))?;
                Place::Url(url)
            }
        };
        let location = Location { place, version: Some(*version) };
        let package: Package = self.runtime.block_on(self.store.package(&location))?;
        let image = |image: &Arc<Image>| MirrorImage { runtime: Arc::clone(&self.runtime), image: Arc::clone(image) };
        Ok(package.images().iter().map(image).collect())
    }
}

impl Elsewhere for MirrorImage {
    fn extents(&self, leaf: u32) -> Result<LeafExtents, Error> {
        let start = u64::from(leaf) * LEAF_BYTES;
        let end = self.image.size_bytes().min(start + LEAF_BYTES);
        let mut runs = Vec::new();
        let mut at = start;
        while at < end {
            for extent in self.runtime.block_on(self.image.extents(at, end - at, EXTENTS_MAX))? {
                if !extent.hole {
                    let first_block = (at - start) / BLOCK_BYTES as u64;
                    runs.push((first_block as u32, extent.length.div_ceil(BLOCK_BYTES as u64) as u32));
                }
                at += extent.length;
            }
        }
        Ok(LeafExtents { leaf, runs })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let there = self.image.size_bytes().saturating_sub(offset).min(buffer.len() as u64);
        let mut rest = buffer;
        for piece in self.runtime.block_on(self.image.read(offset, there))? {
            let (part, behind) = rest.split_at_mut(piece.len() as usize);
            rest = behind;
            match piece {
                Piece::Data(data) => part.copy_from_slice(&data),
                Piece::Zeros(_) => part.fill(0),
            }
        }
        rest.fill(0);
        Ok(())
    }
}
