//! Reads images that are published elsewhere, through the store.

use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::runtime::Runtime;
use vmnetx_store::origin::{Access, AccessArgs};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Image, Location, Options, Package, Store};

use crate::limits::REMOTE_READ_BYTES;
use crate::{Error, Progress};

/// Bytes of the memory tier: each chunk is read once, and the few that are met again soon are worth keeping.
const MEMORY_BYTES: u64 = 64 << 20;

/// Extents that one question to the index asks for.
const EXTENTS_MAX: usize = 64;

/// Offset and length of a part of an image.
pub(crate) type Range = (u64, u64);

/// How packages that are published elsewhere are read.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// Which links are believed.
    pub trust: Trust,
    /// Which credentials go to which host. They are read when a host is asked: what is on this host needs none.
    pub access: AccessArgs,
}

impl Reader {
    /// The credentials.
    pub(crate) fn access(&self) -> Result<Access, Error> {
        Ok(self.access.access().map_err(vmnetx_store::Error::from)?)
    }

    /// A store for reading everything once.
    pub(crate) fn once_store(&self) -> Result<Store, Error> {
        once_store(self.trust.clone(), self.access()?)
    }
}

/// A store for reading everything once that believes these links and has these credentials.
pub(crate) fn once_store(trust: Trust, access: Access) -> Result<Store, Error> {
    Ok(Store::open(Options { memory_bytes: MEMORY_BYTES, trust, access, ..Options::default() })?)
}

/// Opens a package, and says what the user should know about its link.
pub(crate) fn open(
    runtime: &Runtime,
    store: &Store,
    location: &Location,
    progress: &dyn Progress,
) -> Result<Package, vmnetx_store::Error> {
    let package = runtime.block_on(store.package(location))?;
    for notice in package.notices() {
        if notice.is_warning() { progress.warn(&notice.to_string()) } else { progress.note(&notice.to_string()) }
    }
    Ok(package)
}

/// The ranges of an image that are stored, in order, each at most [`REMOTE_READ_BYTES`] long.
pub(crate) fn stored_ranges(image: &Arc<Image>) -> impl Stream<Item = Result<Range, Error>> + Send + use<> {
    let image = Arc::clone(image);
    stream::try_unfold((0, Vec::new()), move |(at, waiting)| next_range(Arc::clone(&image), at, waiting))
}

/// The next range that is stored, at most [`REMOTE_READ_BYTES`] long.
async fn next_range(
    image: Arc<Image>,
    mut at: u64,
    mut waiting: Vec<Range>,
) -> Result<Option<(Range, (u64, Vec<Range>))>, Error> {
    loop {
        if let Some((offset, length)) = waiting.pop() {
            let now = length.min(REMOTE_READ_BYTES);
            if length > now {
                waiting.push((offset + now, length - now));
            }
            return Ok(Some(((offset, now), (at, waiting))));
        }
        let left = image.size_bytes() - at;
        if left == 0 {
            return Ok(None);
        }
        for extent in image.extents(at, left, EXTENTS_MAX).await? {
            if !extent.hole {
                waiting.push((at, extent.length));
            }
            at += extent.length;
        }
        waiting.reverse();
    }
}
