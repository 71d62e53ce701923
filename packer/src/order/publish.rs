//! Publishes orders for a version that is published, without building it anew.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::{Digest, Envelope, Link, Name, Version, link_path};
use vmnetx_store::dir::{RepositoryDir, Wait};

use super::{LaidOrder, Laying, OrderChoice, add_records, inherited};
use crate::local::images;
use crate::versions::replace;
use crate::{Damage, Error, LinkReport, Progress, Signing, VersionName};

/// Which orders are to be published, and of what.
#[derive(Debug, Clone)]
pub struct OrderOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// The package's name.
    pub name: Name,
    /// The version that is to have the orders.
    pub version: VersionName,
    /// What they are made of. To inherit lays those out anew that the version has.
    pub choice: OrderChoice,
    /// zstd level of the frames that are written, 1 to 22. Frames that an earlier order has are left as they are.
    pub level: i32,
    /// Who signs the link.
    pub signing: Signing,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrderReport {
    /// What the link names.
    #[serde(flatten)]
    pub named: LinkReport,
    /// The version whose orders these are.
    pub version: Digest,
    /// Its orders.
    pub orders: Vec<LaidOrder>,
}

/// Publishes the orders of a version: frames and order objects first, the link last. Publishing the same again changes
/// nothing.
///
/// # Errors
/// [`Error`] when there is no such link or version, the version is damaged, or the repository cannot be written. Nothing
/// that is published has changed then.
pub fn publish_order(options: &OrderOptions, progress: &dyn Progress) -> Result<OrderReport, Error> {
    let publisher = RepositoryDir::open(&options.repository)?.lock(options.wait)?;
    let repository = publisher.repository();
    let before: Envelope = repository
        .link(&options.name)?
        .ok_or_else(|| Error::NoSuchPackage { repository: options.repository.clone(), name: options.name.clone() })?;
    options.signing.check(Some(&before))?;
    let version = options.version.find(&before.link)?;
    let unreadable = |source: Damage| {
        let link = repository.root().join(link_path(&options.name)).display().to_string();
        Error::Version { link, source: Box::new(source) }
    };
    let manifest = repository.manifest(version).map_err(|error| unreadable(error.into()))?;
    let images = images(repository, version, &manifest).map_err(unreadable)?;
    let mut wanted = match options.choice {
        OrderChoice::Drop => Vec::new(),
        _ => inherited(repository, (version, &manifest), &manifest, progress),
    };
    if let OrderChoice::Records(records) = &options.choice {
        add_records(&mut wanted, records, &manifest, progress)?;
    }
    let without = HashSet::new();
    let laying = Laying { publisher: &publisher, level: options.level, without: &without, progress };
    let orders = laying.all(&images, &wanted)?;
    let digests: Vec<Digest> = orders.iter().map(|order| order.info.order).collect();
    let new = with_orders(&before.link, version, &digests);
    let version = version.manifest;
    Ok(OrderReport { named: replace(&publisher, &options.signing, &before, new)?, version, orders })
}

/// The link with other orders of a version.
fn with_orders(link: &Link, of: &Version, orders: &[Digest]) -> Link {
    let change = |version: &Version| match version {
        same if same == of => Version { orders: orders.to_vec(), ..version.clone() },
        other => other.clone(),
    };
    Link { current: change(&link.current), retained: link.retained.iter().map(change).collect(), ..link.clone() }
}
