//! The trees of every version, walked from link to chunk.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use vmnetx_format::limits::LINK_BYTES_MAX;
use vmnetx_format::{BLOCK_BYTES, Digest, Kind, LeafChunk, Link, Name, Version, layout_path, link_path, manifest_path};
use vmnetx_store::dir::{DirError, RepositoryDir};

use super::frames::{CheckedPacks, Verdict};
use super::{Affected, Findings, told, told_of};
use crate::Damage;
use crate::local::{LEAF_BYTES, LeafNode, Leaves, LocalImage, Packs, images};

/// The versions to be checked, and the packs that they need as far as their indexes can be read.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) versions: Vec<LocalVersion>,
    pub(super) packs: HashSet<Digest>,
}

/// A version that a link names.
pub(super) struct LocalVersion {
    link: String,
    pub(super) version: Version,
    images: Vec<(LocalImage, Leaves)>,
}

impl Walk {
    /// Reads links, manifests, layout objects and inner nodes.
    pub(super) fn read(repository: &RepositoryDir, names: &[Name], findings: &Findings) -> Self {
        let mut walk = Self::default();
        let packs = Packs::new(repository.clone());
        for name in names {
            let object = link_path(name);
            match repository.link(name) {
                Err(error) => findings.add(object, told_of(&error), None),
                Ok(None) => findings.add(object, "it is missing", None),
                Ok(Some(envelope)) => {
                    // A reader takes a link that is laid out otherwise, but no publisher writes one.
                    let stored = repository.object(&object, LINK_BYTES_MAX);
                    if stored.is_ok_and(|stored| stored != envelope.encode()) {
                        findings.add(&object, "it is not laid out as a publisher writes it", None);
                    }
                    walk.add(repository, &packs, &envelope.link, findings);
                }
            }
        }
        walk.find_packs(&packs);
        walk
    }

    fn add(&mut self, repository: &RepositoryDir, packs: &Packs, link: &Link, findings: &Findings) {
        for version in link.versions() {
            let link = link_path(&link.name);
            let images = open(repository, version, findings, &link).unwrap_or_else(|(object, what)| {
                let affects = Affected { version: version.manifest, disk: None, start: 0, end: 0 };
                findings.add(object, format!("{what}; a version of {link} cannot be read"), Some(affects));
                Vec::new()
            });
            let images = images.into_iter().map(|image| {
                let leaves = packs.leaves(&image);
                (image, leaves)
            });
            self.versions.push(LocalVersion { link, version: version.clone(), images: images.collect() });
        }
    }

    fn find_packs(&mut self, packs: &Packs) {
        let nodes = self.versions.iter().flat_map(|local| &local.images);
        let nodes: Vec<_> =
            nodes.flat_map(|(image, leaves)| leaves.nodes.iter().map(move |node| (image, node))).collect();
        let of_leaf = |(image, node): &(&LocalImage, &LeafNode)| {
            // A leaf that cannot be read is found again, and reported, when it is checked.
            let chunks = packs.chunks(image.geometry, node).unwrap_or_default();
            let mut found: HashSet<Digest> = chunks.iter().map(|chunk| chunk.place.pack).collect();
            found.insert(node.place.pack);
            found
        };
        let union = |mut all: HashSet<Digest>, more| {
            all.extend::<HashSet<Digest>>(more);
            all
        };
        self.packs = nodes.par_iter().map(of_leaf).reduce(HashSet::new, union);
        // Inner nodes lie in packs of their own, which the roots name.
        let roots = self.versions.iter().flat_map(|local| &local.images);
        self.packs.extend(roots.flat_map(|(image, _)| image.roots.layout.children()).map(|place| place.pack));
    }

    /// Compares the trees with the packs; gives the number of chunks.
    pub(super) fn check(&self, packs: &Packs, checked: &CheckedPacks, findings: &Findings) -> u64 {
        let chunks = AtomicU64::new(0);
        for local in &self.versions {
            for (image, leaves) in &local.images {
                let check = Check { local, image, packs, checked, findings };
                for (lost, damage) in &leaves.lost {
                    let bytes = u64::from(lost.start) * LEAF_BYTES..u64::from(lost.end) * LEAF_BYTES;
                    check.report(bytes, damage);
                }
                leaves.nodes.par_iter().for_each(|node| {
                    chunks.fetch_add(check.leaf(node), Ordering::Relaxed);
                });
            }
        }
        chunks.into_inner()
    }
}

/// Opens a version; the object that is damaged and what is wrong with it.
fn open(
    repository: &RepositoryDir,
    version: &Version,
    findings: &Findings,
    link: &str,
) -> Result<Vec<LocalImage>, (String, String)> {
    let (manifest_path, layout_path) = (manifest_path(&version.manifest), layout_path(&version.layout));
    let sizes = [(&manifest_path, version.manifest_bytes), (&layout_path, version.layout_bytes)];
    for (object, promised) in sizes {
        let actual = std::fs::metadata(repository.root().join(object)).map_or(promised, |metadata| metadata.len());
        if actual != promised {
            findings.add(link, format!("it says that {object} has {promised} bytes, but it has {actual}"), None);
        }
    }
    let manifest = repository.manifest(version).map_err(|error| (manifest_path.clone(), told_of(&error)))?;
    images(repository, version, &manifest).map_err(|damage| match damage {
        Damage::Repository(error @ DirError::Manifest { .. }) => (manifest_path, told_of(&error)),
        Damage::Repository(error) => (layout_path, told_of(&error)),
        damage => (layout_path, told(&damage)),
    })
}

struct Check<'a> {
    local: &'a LocalVersion,
    image: &'a LocalImage,
    packs: &'a Packs,
    checked: &'a CheckedPacks,
    findings: &'a Findings,
}

impl Check<'_> {
    /// Checks a leaf and its chunks; gives their number.
    fn leaf(&self, node: &LeafNode) -> u64 {
        let start = u64::from(node.leaf) * LEAF_BYTES;
        let bytes = start..start + u64::from(self.image.geometry.leaf_blocks(node.leaf)) * BLOCK_BYTES as u64;
        let place = &node.place;
        let frames = [
            (Kind::Content, place.content_place(), place.content_plain_len, node.content),
            (Kind::Layout, place.layout_place(), place.layout_plain_len, place.layout),
        ];
        for (kind, place, plain_len, digest) in frames {
            if self.checked.verdict(kind, &place, plain_len, &digest) == Verdict::Elsewhere {
                self.disagree(bytes.clone(), &place.pack);
            }
        }
        let chunks = match self.packs.chunks(self.image.geometry, node) {
            Ok(chunks) => chunks,
            Err(damage) => {
                self.report(bytes, &damage);
                return 0;
            }
        };
        for chunk in &chunks {
            self.chunk(start, chunk);
        }
        chunks.len() as u64
    }

    fn chunk(&self, leaf_start: u64, chunk: &LeafChunk) {
        let start = leaf_start + u64::from(chunk.first_block) * BLOCK_BYTES as u64;
        let bytes = start..start + u64::from(chunk.plain_len());
        match self.checked.verdict(Kind::Chunk, &chunk.place, chunk.plain_len(), &chunk.digest) {
            Verdict::Good => {}
            Verdict::Elsewhere => {
                self.disagree(bytes.clone(), &chunk.place.pack);
                if let Err(damage) = self.packs.chunk(chunk) {
                    self.report(bytes, &damage);
                }
            }
            Verdict::Unknown => {
                if let Err(damage) = self.packs.chunk(chunk) {
                    self.report(bytes, &damage);
                }
            }
        }
    }

    fn disagree(&self, bytes: std::ops::Range<u64>, pack: &Digest) {
        let what = format!("the layout and the catalogue of pack {pack} disagree");
        self.findings.add(&self.local.link, what, Some(self.affected(bytes)));
    }

    fn report(&self, bytes: std::ops::Range<u64>, damage: &Damage) {
        self.findings.add(&self.local.link, told(damage), Some(self.affected(bytes)));
    }

    fn affected(&self, bytes: std::ops::Range<u64>) -> Affected {
        let end = bytes.end.min(self.image.geometry.size_bytes());
        let disk = Some(self.image.name.clone());
        Affected { version: self.local.version.manifest, disk, start: bytes.start, end }
    }
}
