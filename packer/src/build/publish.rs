//! The last step of publishing: manifest and layout object, then the link.

use vmnetx_format::{Digest, Envelope, LayoutObject, Link, Manifest, Version, layout_path, link_path, manifest_path};
use vmnetx_store::dir::Publisher;

use super::pipeline::Built;
use super::{BuildOptions, BuildReport, DiskReport};
use crate::memory::MemoryReport;
use crate::prune::unix_s;
use crate::reach::layout_key;
use crate::versions::{keep, succeed};
use crate::{Error, LaidOrder};

/// Writes manifest and layout object and replaces the link, unless it says all of that already.
pub(super) fn publish(
    publisher: &Publisher,
    options: &BuildOptions,
    before: Option<Envelope>,
    manifest: &Manifest,
    (Built { images, counts }, orders): (Built, Vec<LaidOrder>),
    (disks, memory): (Vec<DiskReport>, Option<MemoryReport>),
) -> Result<BuildReport, Error> {
    let manifest_bytes = manifest.encode();
    let layout_bytes = LayoutObject { images }.encode();
    let version = Version {
        manifest: Digest::of(&manifest_bytes),
        manifest_bytes: manifest_bytes.len() as u64,
        layout: Digest::of(&layout_bytes),
        layout_bytes: layout_bytes.len() as u64,
        orders: orders.iter().map(|order| order.info.order).collect(),
        published_unix_s: unix_s(),
        pinned: false,
    };
    let new = next_link(options, before.as_ref().map(|envelope| &envelope.link), version);
    let envelope = options.signing.successor(before.as_ref(), new.clone())?;
    let says_more = before.as_ref().is_none_or(|before| before.link != new);
    let published = says_more || before.is_some_and(|before| before.signature != envelope.signature);
    // Also when nothing is published: what may have been damaged is whole again then.
    publisher.put(&manifest_path(&new.current.manifest), &new.current.manifest, &manifest_bytes)?;
    publisher.put(&layout_path(&new.current.layout), &new.current.layout, &layout_bytes)?;
    let mut written_bytes = counts.written_bytes;
    if published {
        publisher.replace_link(&envelope)?;
    }
    if says_more {
        written_bytes += new.current.manifest_bytes + new.current.layout_bytes;
    }
    let disk_bytes = manifest.disks.iter().map(|disk| disk.size_bytes).sum();
    let image_bytes: u64 = manifest.images().map(|image| image.size_bytes).sum();
    Ok(BuildReport {
        name: options.name.clone(),
        link: publisher.repository().root().join(link_path(&options.name)),
        published,
        version: new.current.manifest,
        layout: new.current.layout,
        serial: new.serial,
        key: options.signing.public_key(),
        disks,
        memory,
        disk_bytes,
        kept_bytes: counts.kept_bytes,
        data_bytes: counts.data_bytes,
        // The last block of a disk may be partial, and counts as whole.
        zero_bytes: image_bytes.saturating_sub(counts.kept_bytes).saturating_sub(counts.data_bytes),
        chunks: counts.chunks,
        new_chunks: counts.new_chunks,
        new_bytes: counts.new_bytes,
        written_bytes,
        orders,
    })
}

/// The link that is to be: `old` itself if nothing is new.
fn next_link(options: &BuildOptions, old: Option<&Link>, version: Version) -> Link {
    let title = options.title.clone().or_else(|| old.and_then(|old| old.title.clone()));
    let repositories = match old {
        Some(old) if options.urls.is_empty() => old.repositories.clone(),
        _ => options.urls.clone(),
    };
    let fresh = |current| Link {
        name: options.name.clone(),
        title: title.clone(),
        serial: 1,
        repositories: repositories.clone(),
        current,
        retained: Vec::new(),
    };
    let Some(old) = old else { return fresh(version) };
    let same = |a: &Version, b: &Version| layout_key(a) == layout_key(b);
    if same(&old.current, &version) && old.title == title && old.repositories == repositories {
        return old.clone();
    }
    let (current, retained) = succeed(old, version);
    let serial = old.serial.saturating_add(1);
    let next = Link { serial, retained, ..fresh(current) };
    match options.keep {
        Some(count) => keep(next, count),
        None => next,
    }
}
