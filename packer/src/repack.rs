//! Frees the space between: moves what is in use out of packs that mostly hold what is not.
//!
//! The versions that need such a pack are laid out anew and keep their identity. The pack itself stays for those who read
//! by the old layout, until `prune` finds that nothing leads to it any more.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use vmnetx_format::{Digest, Envelope, Name, NodePlace, order_path};
use vmnetx_store::dir::{RepositoryDir, Wait};

use crate::build::{Relay, relayout};
use crate::catalogue::Known;
use crate::disk::Relaid;
use crate::local::{LocalImage, Packs};
use crate::order::read_order;
use crate::prune::Objects;
use crate::reach::{LayoutKey, Reach, ReachedVersion, layout_key};
use crate::{Error, Progress, Signing};

/// How a repository is to be repacked.
#[derive(Debug, Clone)]
pub struct RepackOptions {
    /// The directory of the repository.
    pub repository: PathBuf,
    /// Packs of which a smaller part than this is in use are emptied, from 0 to 1.
    pub below: f64,
    /// zstd level of the chunks that are moved, 1 to 22.
    pub level: i32,
    /// Who signs the links.
    pub signing: Signing,
    /// Whether to wait for another publisher.
    pub wait: Wait,
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepackReport {
    /// Packs that links lead to.
    pub packs: Objects,
    /// Those of them that nothing leads to any more.
    pub emptied: Objects,
    /// Bytes of these that were in use.
    pub moved_bytes: u64,
    /// Bytes of the packs that were written.
    pub written_bytes: u64,
    /// Versions that were laid out anew.
    pub versions: u64,
    /// The packages whose links were replaced.
    pub links: Vec<Name>,
}

/// Repacks a repository.
///
/// # Errors
/// [`Error`] when the repository is damaged, in use by another publisher, or cannot be written, or a link is signed and no
/// key is given. Every version can be read as before then.
pub fn repack(options: &RepackOptions, progress: &dyn Progress) -> Result<RepackReport, Error> {
    let publisher = RepositoryDir::open(&options.repository)?.lock(options.wait)?;
    let repository = publisher.repository();
    let names = repository.links()?;
    let links: Vec<Envelope> =
        names.iter().map(|name| repository.link(name)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    for link in &links {
        options.signing.check(Some(link))?;
    }
    let reach = Reach::read(repository, &names).whole()?;
    let use_of = Use::read(repository, &reach)?;
    let mut report = RepackReport::default();
    let mut leaving = HashSet::new();
    for pack in &reach.packs {
        let (file, used) = (repository.pack(pack)?, use_of.bytes(pack));
        let frames: u64 = file.catalogue()?.entries().map(|(_, entry)| u64::from(entry.stored_len)).sum();
        report.packs.add(file.len());
        if (used as f64) < options.below * frames as f64 {
            report.emptied.add(file.len());
            report.moved_bytes += used;
            leaving.insert(*pack);
        }
    }
    if leaving.is_empty() {
        return Ok(report);
    }
    let leaving = Arc::new(leaving);
    let mut relays = Vec::new();
    let mut seen = HashSet::new();
    for reached in reach.versions {
        let key = layout_key(&reached.version);
        if use_of.needs(&key, &leaving) && seen.insert(key) {
            relays.push(relay(repository, reached, &leaving)?);
        }
    }
    report.versions = relays.len() as u64;
    let known = Known::read_without(repository, &leaving, progress)?;
    let laid = relayout(&publisher, known, relays, &leaving, options.level, progress)?;
    report.written_bytes = laid.written_bytes;
    report.links = laid.publish(&publisher, &links, &options.signing)?;
    Ok(report)
}

fn relay(repository: &RepositoryDir, reached: ReachedVersion, leaving: &Arc<HashSet<Digest>>) -> Result<Relay, Error> {
    let manifest = repository.manifest(&reached.version)?;
    let packs = Packs::new(repository.clone());
    let unreadable = |source| Error::Version { link: reached.link.clone(), source: Box::new(source) };
    let images = reached.images_and_leaves(repository, &packs).map_err(unreadable)?;
    let relaid =
        |(image, leaves)| Relaid::new(image, leaves, Packs::new(repository.clone()), Arc::clone(leaving), None);
    let images = images.into_iter().map(relaid).collect();
    Ok(Relay { version: reached.version, manifest, images })
}

/// Which bytes of each pack versions need.
#[derive(Default)]
struct Use {
    /// Offset and length of each frame, so that one that many versions need counts once.
    frames: HashMap<Digest, HashMap<u64, u32>>,
    /// The packs of each version.
    packs: HashMap<LayoutKey, HashSet<Digest>>,
}

impl Use {
    fn read(repository: &RepositoryDir, reach: &Reach) -> Result<Self, Error> {
        let mut found = Self::default();
        let packs = Packs::new(repository.clone());
        // The packs of each leaf, which many versions share.
        let mut leaves: HashMap<(Digest, u64), HashSet<Digest>> = HashMap::new();
        for reached in &reach.versions {
            let mut needed = HashSet::new();
            let unreadable = |source| Error::Version { link: reached.link.clone(), source: Box::new(source) };
            for (image, nodes) in &reached.images_and_leaves(repository, &packs).map_err(unreadable)? {
                found.roots(image, &mut needed);
                for node in &nodes.nodes {
                    found.node(&node.place);
                    needed.insert(node.place.pack);
                    let of_leaf = match leaves.entry((node.place.pack, node.place.offset)) {
                        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            let chunks =
                                packs.chunks(image.geometry, node).map_err(|damage| image.lost(node, damage))?;
                            for chunk in &chunks {
                                found.frame(chunk.place.pack, chunk.place.offset, chunk.place.stored_len);
                            }
                            entry.insert(chunks.iter().map(|chunk| chunk.place.pack).collect())
                        }
                    };
                    needed.extend(of_leaf.iter());
                }
            }
            for digest in &reached.version.orders {
                let unreadable = |source| Error::Object { object: order_path(digest), source: Box::new(source) };
                for frame in read_order(repository, digest).map_err(unreadable)?.frames() {
                    found.frame(frame.place.pack, frame.place.offset, frame.place.stored_len);
                    needed.insert(frame.place.pack);
                }
            }
            found.packs.insert(layout_key(&reached.version), needed);
        }
        Ok(found)
    }

    fn roots(&mut self, image: &LocalImage, needed: &mut HashSet<Digest>) {
        for place in image.roots.layout.children() {
            self.node(place);
            needed.insert(place.pack);
        }
    }

    fn node(&mut self, place: &NodePlace) {
        for part in [place.content_place(), place.layout_place()] {
            self.frame(part.pack, part.offset, part.stored_len);
        }
    }

    fn frame(&mut self, pack: Digest, offset: u64, length: u32) {
        self.frames.entry(pack).or_default().insert(offset, length);
    }

    fn bytes(&self, pack: &Digest) -> u64 {
        self.frames.get(pack).map_or(0, |frames| frames.values().map(|&length| u64::from(length)).sum())
    }

    fn needs(&self, version: &LayoutKey, packs: &HashSet<Digest>) -> bool {
        self.packs.get(version).is_some_and(|needed| !needed.is_disjoint(packs))
    }
}
