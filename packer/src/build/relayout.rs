//! Lays published versions out anew: their chunks and indexes go to other packs, while their identity stays what it was.

use std::collections::{HashMap, HashSet};

use vmnetx_format::{Digest, Envelope, LayoutObject, Link, Manifest, Name, Roots, Version, layout_path};
use vmnetx_store::dir::Publisher;

use super::images_of;
use super::pipeline::{self, Input, Job};
use crate::catalogue::Known;
use crate::disk::Relaid;
use crate::order::{Laying, inherited};
use crate::reach::{LayoutKey, layout_key};
use crate::{Error, ORDER_LEVEL_DEFAULT, Progress, Signing};

/// A version that is to be laid out anew.
pub(crate) struct Relay {
    pub(crate) version: Version,
    pub(crate) manifest: Manifest,
    /// Its images, disks first.
    pub(crate) images: Vec<Relaid>,
}

/// Versions that were laid out anew.
pub(crate) struct Laid {
    /// By what it was: the version as links shall name it.
    versions: HashMap<LayoutKey, Version>,
    /// Bytes of the packs that were written, those of orders among them.
    pub(crate) written_bytes: u64,
}

/// Lays versions out anew, with chunks of `known` alone and those that their images give, and their orders without those of
/// `leaving` packs.
///
/// # Errors
/// [`Error`] when something cannot be read or written, or is not what its manifest says. Nothing that is published has
/// changed then.
pub(crate) fn relayout(
    publisher: &Publisher,
    known: Known,
    relays: Vec<Relay>,
    leaving: &HashSet<Digest>,
    level: i32,
    progress: &dyn Progress,
) -> Result<Laid, Error> {
    let mut versions = Vec::new();
    let mut inputs = Vec::new();
    for Relay { version, manifest, images } in relays {
        let chunkers: Vec<_> = manifest.images().map(|image| image.chunker).collect();
        versions.push((version, manifest, images.len()));
        let images = images.into_iter().zip(chunkers);
        inputs.extend(images.map(|(image, chunker)| Input {
            name: image.name().to_owned(),
            source: Box::new(image),
            chunker,
        }));
    }
    let mut total = 0;
    for input in &inputs {
        for leaf in input.source.leaves() {
            total += leaf?.bytes() as u64;
        }
    }
    progress.total(total);
    let built = pipeline::run(&Job { publisher, images: &inputs, level, progress }, known)?;
    let mut images = built.images.into_iter();
    let mut laid = Laid { versions: HashMap::new(), written_bytes: built.counts.written_bytes };
    for (version, manifest, count) in versions {
        let roots: Vec<Roots> = images.by_ref().take(count).collect();
        check(&manifest, &version, &roots)?;
        let laying = Laying { publisher, level: ORDER_LEVEL_DEFAULT, without: leaving, progress };
        let wanted = inherited(publisher.repository(), (&version, &manifest), &manifest, progress);
        let orders = laying.all(&images_of(&manifest, &roots)?, &wanted)?;
        laid.written_bytes += orders.iter().map(|order| order.written_bytes).sum::<u64>();
        let orders = orders.iter().map(|order| order.info.order).collect();
        let layout = LayoutObject { images: roots }.encode();
        let (digest, layout_bytes) = (Digest::of(&layout), layout.len() as u64);
        publisher.put(&layout_path(&digest), &digest, &layout)?;
        let key = layout_key(&version);
        laid.versions.insert(key, Version { layout: digest, layout_bytes, orders, ..version });
    }
    Ok(laid)
}

impl Laid {
    /// Has the links of a repository name the versions as they are laid out now, each under its next serial number; gives
    /// the links that were replaced.
    ///
    /// # Errors
    /// [`Error`] when a link cannot be signed or written.
    pub(crate) fn publish(
        &self,
        publisher: &Publisher,
        links: &[Envelope],
        signing: &Signing,
    ) -> Result<Vec<Name>, Error> {
        let mut replaced = Vec::new();
        for before in links {
            let new = self.link(&before.link);
            if new != before.link {
                let name = new.name.clone();
                publisher.replace_link(&signing.successor(Some(before), new)?)?;
                replaced.push(name);
            }
        }
        Ok(replaced)
    }

    fn link(&self, old: &Link) -> Link {
        let laid = |version: &Version| match self.versions.get(&layout_key(version)) {
            // All else that the link says of the version is the link's own.
            Some(new) => Version {
                layout: new.layout,
                layout_bytes: new.layout_bytes,
                orders: new.orders.clone(),
                ..version.clone()
            },
            None => version.clone(),
        };
        let new =
            Link { current: laid(&old.current), retained: old.retained.iter().map(laid).collect(), ..old.clone() };
        if new == *old { new } else { Link { serial: old.serial.saturating_add(1), ..new } }
    }
}

/// Whether the content is what the manifest says: another publisher may have cut otherwise than it has noted.
fn check(manifest: &Manifest, version: &Version, roots: &[Roots]) -> Result<(), Error> {
    let mut images = manifest.images().zip(roots);
    let same = images.all(|(image, roots)| Digest::of(&roots.content.encode()) == image.content);
    if same { Ok(()) } else { Err(Error::OtherContent { version: version.manifest }) }
}
