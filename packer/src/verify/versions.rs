//! The trees of every version, compared with the packs chunk by chunk.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use vmnetx_format::{BLOCK_BYTES, Digest, Kind, LeafChunk};

use super::frames::{CheckedPacks, Verdict};
use super::{Affected, Findings, told, told_of};
use crate::Damage;
use crate::local::{LEAF_BYTES, LeafNode, LocalImage, Packs};
use crate::reach::{Broken, Reach, ReachedVersion};

/// Lists the objects that the walk found broken.
pub(super) fn report_broken(broken: &[Broken], findings: &Findings) {
    for Broken { object, damage, version } in broken {
        let what = match damage {
            Damage::Repository(error) => told_of(error),
            damage => told(damage),
        };
        match version {
            None => findings.add(object, what, None),
            Some((version, link)) => {
                let affects = Affected { version: *version, disk: None, start: 0, end: 0 };
                findings.add(object, format!("{what}; a version of {link} cannot be read"), Some(affects));
            }
        }
    }
}

/// Compares the trees with the packs; gives the number of chunks.
pub(super) fn check_versions(reach: &Reach, packs: &Packs, checked: &CheckedPacks, findings: &Findings) -> u64 {
    let chunks = AtomicU64::new(0);
    for reached in &reach.versions {
        for (image, leaves) in &reached.images {
            let check = Check { reached, image, packs, checked, findings };
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

struct Check<'a> {
    reached: &'a ReachedVersion,
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
        self.findings.add(&self.reached.link, what, Some(self.affected(bytes)));
    }

    fn report(&self, bytes: std::ops::Range<u64>, damage: &Damage) {
        self.findings.add(&self.reached.link, told(damage), Some(self.affected(bytes)));
    }

    fn affected(&self, bytes: std::ops::Range<u64>) -> Affected {
        let end = bytes.end.min(self.image.geometry.size_bytes());
        let disk = Some(self.image.name.clone());
        Affected { version: self.reached.version.manifest, disk, start: bytes.start, end }
    }
}
