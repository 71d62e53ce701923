//! Publishes orders: what runs of a version touched first is stored once more, in that sequence.

mod lay;
mod plan;
mod records;

use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::limits::ORDER_BYTES_MAX;
use vmnetx_format::{Digest, Manifest, Name, Order, Purpose, Record, Version, order_path};
use vmnetx_store::dir::RepositoryDir;

pub(crate) use self::lay::{Lay, lay};
pub use self::records::read_record;

use crate::local::{LocalImage, images};
use crate::versions::{LinkOptions, VersionName, change};
use crate::{Damage, Error, Progress};

/// zstd level of what an order stores unless the publisher says otherwise; `docs/decisions/` has the measurement.
pub const ORDER_LEVEL_DEFAULT: i32 = 19;

/// Which order a new version gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OrderChoice {
    /// That of the version before, laid out for the new one's content.
    #[default]
    Inherit,
    /// None.
    None,
    /// What was recorded: several runs are merged.
    Records(Vec<Record>),
}

/// An order that is to be published.
#[derive(Debug, Clone)]
pub struct OrderOptions {
    /// The runs that were recorded; several are merged.
    pub records: Vec<Record>,
    /// The version that gets the order.
    pub version: VersionName,
    /// zstd level of what is stored, 1 to 22; nothing for [`ORDER_LEVEL_DEFAULT`], and for what an earlier order has stored
    /// already.
    pub level: Option<i32>,
}

/// What an order holds and cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrderReport {
    /// The order's digest.
    pub order: Digest,
    /// Its touches.
    pub touches: u64,
    /// The chunks and index nodes that it names.
    pub frames: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Their stored bytes: what a boot fetches ahead.
    pub stored_bytes: u64,
    /// Frames that an earlier order had stored already.
    pub reused_frames: u64,
    /// Bytes of packs and of the order that were written.
    pub written_bytes: u64,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublishedOrder {
    /// The package's name.
    pub name: Name,
    /// The link file.
    pub link: PathBuf,
    /// Whether the link was replaced; if not, it named this order already.
    pub published: bool,
    /// The link's serial number.
    pub serial: u64,
    /// The version that has the order.
    pub version: Digest,
    /// The order.
    #[serde(flatten)]
    pub order: OrderReport,
}

/// Publishes an order of a version that is published already.
///
/// # Errors
/// [`Error`] when a record cannot be read or is of another package, there is no such version, or the repository cannot be
/// written. What was published before stays as it is then.
pub fn order(options: &LinkOptions, order: &OrderOptions, progress: &dyn Progress) -> Result<PublishedOrder, Error> {
    records::check(&order.records)?;
    let mut laid = None;
    let report = change(options, |publisher, link| {
        let repository = publisher.repository();
        let version = order.version.find(link)?.clone();
        let (manifest, images) = open(repository, &version)?;
        let touches = records::touches(&order.records, &manifest, progress)?;
        let kept = Kept::read(repository, &version, progress);
        let job = Lay { publisher, images: &images, level: order.level, earlier: &kept.boot, progress };
        let report = lay(&job, touches)?;
        let mut new = link.clone();
        let orders = kept.others.iter().copied().chain([report.order]).collect::<Vec<_>>();
        for named in new.versions_mut().filter(|named| named.manifest == version.manifest) {
            named.orders.clone_from(&orders);
        }
        laid = Some((version.manifest, report));
        Ok(new)
    })?;
    let (version, order) = laid.ok_or(Error::Stopped)?;
    let (name, link, published, serial) = (report.name, report.link, report.published, report.serial);
    Ok(PublishedOrder { name, link, published, serial, version, order })
}

/// The order of a version that is being built, if it gets one. `before` is the version that it follows.
pub(crate) fn of_build(
    choice: &OrderChoice,
    job: &Lay<'_>,
    manifest: &Manifest,
    before: Option<&Version>,
) -> Result<Option<OrderReport>, Error> {
    let repository = job.publisher.repository();
    let kept = before.map(|version| Kept::read(repository, version, job.progress)).unwrap_or_default();
    let job = Lay { earlier: &kept.boot, ..*job };
    let touches = match choice {
        OrderChoice::None => return Ok(None),
        OrderChoice::Records(records) => {
            records::check(records)?;
            records::touches(records, manifest, job.progress)?
        }
        // Images keep their numbers as long as the package keeps its disks.
        OrderChoice::Inherit => match kept.boot.last() {
            Some(order) => order.touches.clone(),
            None => return Ok(None),
        },
    };
    match lay(&job, touches) {
        // The new version may have nothing where the old one was touched.
        Err(Error::EmptyOrder) if *choice == OrderChoice::Inherit => Ok(None),
        laid => laid.map(Some),
    }
}

/// The orders of `version` for the way in which it is laid out now, `job` being for its images.
pub(crate) fn relay(job: &Lay<'_>, version: &Version) -> Result<Vec<Digest>, Error> {
    let kept = Kept::read(job.publisher.repository(), version, job.progress);
    let mut orders = kept.others.clone();
    if let Some(order) = kept.boot.last() {
        orders.push(lay(&Lay { earlier: &kept.boot, ..*job }, order.touches.clone())?.order);
    }
    Ok(orders)
}

/// The orders that a version has.
#[derive(Debug, Default)]
struct Kept {
    /// Those of boots.
    boot: Vec<Order>,
    /// The digests of all others.
    others: Vec<Digest>,
}

impl Kept {
    /// Reads them as far as they can be read: one that cannot be is given up, for nothing depends on it.
    fn read(repository: &RepositoryDir, version: &Version, progress: &dyn Progress) -> Self {
        let mut kept = Self::default();
        for digest in &version.orders {
            match read(repository, digest) {
                Ok(order) if order.purpose == Purpose::Boot => kept.boot.push(order),
                Ok(_) => kept.others.push(*digest),
                Err(damage) => progress.warn(&format!("{}: {damage}; the order is given up", order_path(digest))),
            }
        }
        kept
    }
}

/// Reads an order of a repository on this host.
pub(crate) fn read(repository: &RepositoryDir, digest: &Digest) -> Result<Order, Damage> {
    let bytes = repository.verified(&order_path(digest), ORDER_BYTES_MAX, digest)?;
    Ok(Order::decode(&bytes)?)
}

fn open(repository: &RepositoryDir, version: &Version) -> Result<(Manifest, Vec<LocalImage>), Error> {
    let manifest = repository.manifest(version)?;
    let images = images(repository, version, &manifest).map_err(|damage| Error::Object {
        object: vmnetx_format::layout_path(&version.layout),
        source: Box::new(damage),
    })?;
    Ok((manifest, images))
}
