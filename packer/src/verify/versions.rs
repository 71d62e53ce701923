//! The trees of every version, compared with the packs chunk by chunk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use vmnetx_format::{BLOCK_BYTES, Digest, Kind, LeafChunk};
use vmnetx_store::dir::RepositoryDir;

use super::frames::{CheckedPacks, Verdict};
use super::{Affected, Findings, told, told_of};
use crate::Damage;
use crate::local::{LEAF_BYTES, LeafNode, LocalImage, Lost, NodeKey, Packs};
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
pub(super) fn check_versions(
    repository: &RepositoryDir,
    reach: &Reach,
    checked: &CheckedPacks,
    findings: &Findings,
) -> u64 {
    let (packs, good) = (Packs::new(repository.clone()), Mutex::default());
    let mut chunks = 0;
    for reached in reach.versions.iter().filter(|reached| reached.whole) {
        let images = reached.images(repository).unwrap_or_else(|damage| {
            // It could be read when the packs were looked for.
            findings.add(&reached.link, told(&damage), None);
            Vec::new()
        });
        for image in &images {
            let check = Check { reached, image, packs: &packs, checked, findings, good: &good };
            chunks += image.children().into_par_iter().map(|child| check.child(child)).sum::<u64>();
        }
    }
    chunks
}

struct Check<'a> {
    reached: &'a ReachedVersion,
    image: &'a LocalImage,
    packs: &'a Packs,
    checked: &'a CheckedPacks,
    findings: &'a Findings,
    /// Nodes below which nothing is wrong, with the number of their chunks.
    good: &'a Mutex<HashMap<NodeKey, u64>>,
}

/// How many chunks were looked at, and whether nothing was wrong.
struct Checked {
    chunks: u64,
    good: bool,
}

impl Check<'_> {
    /// Checks what is below a child of the root; gives the number of chunks.
    fn child(&self, child: LeafNode) -> u64 {
        let geometry = self.image.geometry;
        if !geometry.has_inner() {
            return self.leaf(&child).chunks;
        }
        let key = child.key(geometry.inner_children(child.leaf));
        let checked = self.once(key, || match self.packs.leaves(geometry, child) {
            Ok(leaves) => {
                let sum = |a: Checked, b: Checked| Checked { chunks: a.chunks + b.chunks, good: a.good && b.good };
                leaves.into_par_iter().map(|leaf| self.leaf(&leaf)).reduce(|| Checked { chunks: 0, good: true }, sum)
            }
            Err((lost, damage)) => self.lost((lost, damage)),
        });
        checked.chunks
    }

    fn lost(&self, (leaves, damage): Lost) -> Checked {
        self.report(u64::from(leaves.start) * LEAF_BYTES..u64::from(leaves.end) * LEAF_BYTES, &damage);
        Checked { chunks: 0, good: false }
    }

    /// Does `work` unless it was done for this node, and nothing was wrong: damage is told wherever it stands.
    fn once(&self, key: NodeKey, work: impl FnOnce() -> Checked) -> Checked {
        let good = || self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let known = good().get(&key).copied();
        if let Some(chunks) = known {
            return Checked { chunks, good: true };
        }
        let checked = work();
        if checked.good {
            good().insert(key, checked.chunks);
        }
        checked
    }

    /// Checks a leaf and its chunks.
    fn leaf(&self, node: &LeafNode) -> Checked {
        let key = node.key(self.image.geometry.leaf_blocks(node.leaf));
        self.once(key, || self.fresh_leaf(node))
    }

    fn fresh_leaf(&self, node: &LeafNode) -> Checked {
        let start = u64::from(node.leaf) * LEAF_BYTES;
        let bytes = start..start + u64::from(self.image.geometry.leaf_blocks(node.leaf)) * BLOCK_BYTES as u64;
        let place = &node.place;
        let frames = [
            (Kind::Content, place.content_place(), place.content_plain_len, node.content),
            (Kind::Layout, place.layout_place(), place.layout_plain_len, place.layout),
        ];
        let mut good = true;
        for (kind, place, plain_len, digest) in frames {
            if self.checked.verdict(kind, &place, plain_len, &digest) == Verdict::Elsewhere {
                self.disagree(bytes.clone(), &place.pack);
                good = false;
            }
        }
        match self.packs.chunks(self.image.geometry, node) {
            Ok(chunks) => {
                for chunk in &chunks {
                    good &= self.chunk(start, chunk);
                }
                Checked { chunks: chunks.len() as u64, good }
            }
            Err(damage) => {
                self.report(bytes, &damage);
                Checked { chunks: 0, good: false }
            }
        }
    }

    /// Whether the chunk is good.
    fn chunk(&self, leaf_start: u64, chunk: &LeafChunk) -> bool {
        let start = leaf_start + u64::from(chunk.first_block) * BLOCK_BYTES as u64;
        let bytes = start..start + u64::from(chunk.plain_len());
        let verdict = self.checked.verdict(Kind::Chunk, &chunk.place, chunk.plain_len(), &chunk.digest);
        if verdict == Verdict::Good {
            return true;
        }
        if verdict == Verdict::Elsewhere {
            self.disagree(bytes.clone(), &chunk.place.pack);
        }
        let read = self.packs.chunk(chunk);
        if let Err(damage) = &read {
            self.report(bytes, damage);
        }
        verdict == Verdict::Unknown && read.is_ok()
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
