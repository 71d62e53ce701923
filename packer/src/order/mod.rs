//! Orders: what a boot or a resume touches is laid out once more, in sequence, so that a reader fetches it with a few long
//! range requests before the guest asks for it.
//!
//! [`publish_order`] does so for a version that is published; a build does so for the version that it makes, whose order it
//! inherits unless it is given records. Order packs hold copies alone: no layout leads to them, no build counts on them.

mod follow;
mod inherit;
mod lay;
mod plan;
mod publish;
mod records;
mod reuse;
mod walk;

use serde::Serialize;
use vmnetx_format::limits::ORDER_BYTES_MAX;
use vmnetx_format::{Digest, Order, OrderFrame, Purpose, Record, order_path};
use vmnetx_store::dir::RepositoryDir;

pub(crate) use self::inherit::{Wanted, add_records, follow_data, inherited};
pub(crate) use self::lay::Laying;
pub use self::publish::{OrderOptions, OrderReport, publish_order};
pub use self::records::read_records;

use crate::Damage;

/// zstd level of an order's frames unless the publisher says otherwise; `docs/decisions/010` has the measurement.
pub const ORDER_LEVEL_DEFAULT: i32 = 19;

/// What becomes of the orders of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderChoice {
    /// They are made of records, merged for each purpose; those of other purposes are inherited.
    Records(Vec<Record>),
    /// They are inherited: touched blocks are the same, whatever lies there now.
    Inherit,
    /// There are none.
    Drop,
}

/// An order as it is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaidOrder {
    /// What it says of the order, however it came about.
    #[serde(flatten)]
    pub info: OrderInfo,
    /// Bytes of its frames as stored that an earlier order had and that were left where they are.
    pub reused_bytes: u64,
    /// Bytes of the packs that were written for it, and of the order object.
    pub written_bytes: u64,
}

/// What is known of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OrderInfo {
    /// The digest of its object.
    pub order: Digest,
    /// What was recorded.
    pub purpose: Purpose,
    /// Its touches.
    pub touches: u64,
    /// The chunks and index nodes that a reader fetches for it.
    pub frames: u64,
    /// Plain bytes of those.
    pub plain_bytes: u64,
    /// Their bytes as stored: copies of what is stored elsewhere too.
    pub stored_bytes: u64,
    /// The packs that they lie in.
    pub packs: u64,
}

impl OrderInfo {
    fn new(digest: Digest, order: &Order) -> Self {
        let frames = order.frames();
        let sum = |bytes: fn(&OrderFrame) -> u32| frames.iter().map(|frame| u64::from(bytes(frame))).sum();
        let packs: std::collections::HashSet<&Digest> = frames.iter().map(|frame| &frame.place.pack).collect();
        Self {
            order: digest,
            purpose: order.purpose(),
            touches: order.touches().len() as u64,
            frames: frames.len() as u64,
            plain_bytes: sum(|frame| frame.plain_len),
            stored_bytes: sum(|frame| frame.place.stored_len),
            packs: packs.len() as u64,
        }
    }

    /// What the orders of these digests are; nothing in place of one that cannot be read.
    pub(crate) fn of(repository: &RepositoryDir, orders: &[Digest]) -> Vec<Self> {
        orders.iter().filter_map(|digest| Some(Self::new(*digest, &read_order(repository, digest).ok()?))).collect()
    }
}

/// The order known by `digest`.
pub(crate) fn read_order(repository: &RepositoryDir, digest: &Digest) -> Result<Order, Damage> {
    let bytes = repository.verified(&order_path(digest), ORDER_BYTES_MAX, digest)?;
    Ok(Order::decode(&bytes)?)
}
