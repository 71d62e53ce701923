//! Which orders a version is to have: those of the version before, on its own images, and those that records make.

use vmnetx_format::limits::ORDER_TOUCHES_MAX;
use vmnetx_format::{Manifest, Order, Purpose, Record, Touch, Version, merge, order_path};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::failure::describe;

use super::follow::follow;
use super::read_order;
use crate::local::{LocalImage, Packs, images};
use crate::{Error, Progress};

/// An order that a version is to have.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) purpose: Purpose,
    /// The sequence, on the version's images.
    pub(crate) touches: Vec<Touch>,
    /// The order that it takes the place of, whose frames may be used again.
    pub(crate) earlier: Option<Order>,
}

/// The orders of `from` for a version whose manifest is `to`: the same blocks of the images of the same names. One that
/// cannot be read is left out.
pub(crate) fn inherited(
    repository: &RepositoryDir,
    from: (&Version, &Manifest),
    to: &Manifest,
    progress: &dyn Progress,
) -> Vec<Wanted> {
    let (version, manifest) = from;
    let mut wanted: Vec<Wanted> = Vec::new();
    for digest in &version.orders {
        match read_order(repository, digest) {
            Err(damage) => {
                let cause = describe(&Error::Object { object: order_path(digest), source: Box::new(damage) });
                progress.warn(&format!("an order is left out: {cause}"));
            }
            // Nothing is resumed without memory, and a second order of one purpose would fetch things twice.
            Ok(order) if order.purpose() == Purpose::Resume && to.memory.is_none() => {}
            Ok(order) if wanted.iter().any(|other| other.purpose == order.purpose()) => {}
            Ok(order) => {
                let touches = on_images(order.touches(), manifest, to);
                wanted.push(Wanted { purpose: order.purpose(), touches, earlier: Some(order) });
            }
        }
    }
    wanted
}

/// Has inherited orders follow their data to other places in the images `to` of the new version, where it is not an update in
/// place. Where the version before cannot be read, they stay at their blocks.
pub(crate) fn follow_data(
    repository: &RepositoryDir,
    from: (&Version, &Manifest),
    to: &[LocalImage],
    wanted: &mut [Wanted],
    progress: &dyn Progress,
) {
    let (version, manifest) = from;
    let packs = Packs::new(repository.clone());
    let Ok(images) = images(repository, version, manifest) else { return };
    for order in wanted {
        let Some(earlier) = &order.earlier else { continue };
        let Ok(followed) = follow(&packs, &images, to, earlier.touches()) else { continue };
        if followed.touches.len() > ORDER_TOUCHES_MAX as usize {
            continue;
        }
        if followed.gone_blocks * 2 > followed.sought_blocks {
            let purpose = order.purpose;
            progress.note(&format!("most of what the order of a {purpose} touched has changed: record it anew"));
        }
        order.touches = followed.touches;
    }
}

/// Merges `records` of each purpose into the sequence of that order.
///
/// # Errors
/// [`Error::Merge`]; [`Error::Usage`] for what no VM of the version can have done.
pub(crate) fn add_records(
    wanted: &mut Vec<Wanted>,
    records: &[Record],
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<(), Error> {
    for purpose in [Purpose::Boot, Purpose::Resume] {
        let of_purpose: Vec<Record> = records.iter().filter(|record| record.purpose == purpose).cloned().collect();
        if of_purpose.is_empty() {
            continue;
        }
        if purpose == Purpose::Resume && manifest.memory.is_none() {
            return Err(Error::Usage("a record is of a resume, and the version has no memory".to_owned()));
        }
        let touches = resolve(&of_purpose, manifest, progress)?;
        match wanted.iter_mut().find(|order| order.purpose == purpose) {
            Some(order) => order.touches = touches,
            None => wanted.push(Wanted { purpose, touches, earlier: None }),
        }
    }
    Ok(())
}

/// The sequence of records, on the images of a version.
fn resolve(records: &[Record], manifest: &Manifest, progress: &dyn Progress) -> Result<Vec<Touch>, Error> {
    let mut touches = Vec::new();
    let mut strange: Vec<String> = Vec::new();
    for touch in merge(records)? {
        let vmnetx_format::RecordTouch { after_ms, image, first_block, blocks } = touch;
        match position(manifest, &image) {
            Some(image) => touches.push(Touch { image, first_block, blocks, after_ms }),
            None if strange.contains(&image) => {}
            None => strange.push(image),
        }
    }
    for image in strange {
        progress.warn(&format!("the records touch {image}, which the version does not have: it is left out"));
    }
    Ok(touches)
}

/// Touches of images of one version on those of another, where it has images of the same names.
fn on_images(touches: &[Touch], from: &Manifest, to: &Manifest) -> Vec<Touch> {
    let positions: Vec<Option<u32>> = from.images().map(|image| position(to, &image.name)).collect();
    let moved = |touch: &Touch| {
        let image = (*positions.get(touch.image as usize)?)?;
        Some(Touch { image, ..*touch })
    };
    touches.iter().filter_map(moved).collect()
}

fn position(manifest: &Manifest, name: &str) -> Option<u32> {
    // There are no more images than a u32 counts.
    manifest.images().position(|image| image.name == name).map(|position| position as u32)
}
