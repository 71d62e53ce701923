//! Reading an order, and the frames that it names, from where it says that they lie.

use vmnetx_format::limits::ORDER_BYTES_MAX;
use vmnetx_format::{Digest, Order, OrderFrame, order_path};

use crate::origin::Origin;
use crate::package::verified;
use crate::tier::{Arrivals, Tier, Wanted, Why};
use crate::{Error, Package, Store};

impl Store {
    /// Reads an order of a package's repository.
    ///
    /// # Errors
    /// [`Error`] when it cannot be had, has another digest or is no order.
    pub async fn order(&self, package: &Package, digest: Digest) -> Result<Order, Error> {
        read(self, &**package.repository(), digest).await
    }
}

impl Package {
    /// Fetches frames of an order from its places at the origin, and from no cache: they lie elsewhere than the image has
    /// them, and what is here under their digests says nothing of that. Must be called within a tokio runtime.
    #[must_use]
    pub fn frames_of_order<'a>(&self, frames: impl IntoIterator<Item = &'a OrderFrame>) -> Arrivals {
        self.origin().fetch(frames.into_iter().map(wanted).collect(), Why::Background)
    }
}

pub(super) async fn read(store: &Store, origin: &dyn Origin, digest: Digest) -> Result<Order, Error> {
    let path = order_path(&digest);
    let object = verified(store, origin, &path, ORDER_BYTES_MAX, digest).await?;
    Order::decode(&object.bytes).map_err(|source| Error::Order { object: origin.locate(&path), source })
}

/// A frame of an order, to be fetched.
pub(super) fn wanted(frame: &OrderFrame) -> Wanted {
    let OrderFrame { digest, plain_len, place } = frame.clone();
    Wanted { digest, plain_len, place }
}
