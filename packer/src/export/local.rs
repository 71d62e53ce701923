//! Exports an image of a repository on this host: leaves side by side into a file, in order to standard output.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use vmnetx_format::{BLOCK_BYTES, LeafChunk};

use super::damaged;
use super::target::{FileTarget, Stdout, Target};
use crate::local::{LEAF_BYTES, LeafNode, LocalImage, Packs};
use crate::{Error, Progress};

/// A chunk's place in the image, and its plain bytes.
type Piece = (u64, Vec<u8>);

/// Exports `image`; gives the bytes that are stored.
pub(super) fn export(packs: &Packs, image: &LocalImage, target: Target, progress: &dyn Progress) -> Result<u64, Error> {
    let source = Source { packs, image, progress };
    let child_bytes = u64::from(image.geometry.leaves_per_root_child()) * LEAF_BYTES;
    progress.total(image.children().len() as u64 * child_bytes);
    match target {
        Target::File(file) => source.to_file(file),
        Target::Stdout(stdout) => source.to_stdout(stdout),
    }
}

struct Source<'a> {
    packs: &'a Packs,
    image: &'a LocalImage,
    progress: &'a dyn Progress,
}

impl Source<'_> {
    fn to_file(&self, file: FileTarget) -> Result<u64, Error> {
        file.set_size(self.image.geometry.size_bytes())?;
        let data_bytes = AtomicU64::new(0);
        let write = |leaf: LeafNode| {
            for chunk in self.chunks(&leaf)? {
                let (offset, plain) = self.piece(&leaf, &chunk)?;
                file.write_at(self.inside(offset, &plain), offset)?;
                data_bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
            }
            self.progress.advance(LEAF_BYTES);
            Ok::<_, Error>(())
        };
        let children = self.image.children().into_par_iter();
        children.try_for_each(|child| self.leaves(child)?.into_par_iter().try_for_each(write))?;
        file.finish()?;
        Ok(data_bytes.into_inner())
    }

    /// One leaf is read while the one before is written.
    fn to_stdout(&self, mut stdout: Stdout) -> Result<u64, Error> {
        let (mut at, mut data_bytes) = (0, 0);
        let mut write = |pieces: Vec<Piece>| {
            for (offset, plain) in pieces {
                stdout.write_zeros(offset - at)?;
                let inside = self.inside(offset, &plain);
                stdout.write(inside)?;
                at = offset + inside.len() as u64;
                data_bytes += plain.len() as u64;
            }
            Ok::<_, Error>(())
        };
        let mut ready = Vec::new();
        for child in self.image.children() {
            for leaf in self.leaves(child)? {
                let (written, read) = std::thread::scope(|scope| {
                    let reading = scope.spawn(|| self.leaf(&leaf));
                    let written = write(std::mem::take(&mut ready));
                    (written, reading.join().unwrap_or(Err(Error::Stopped)))
                });
                written?;
                ready = read?;
                self.progress.advance(LEAF_BYTES);
            }
        }
        write(ready)?;
        stdout.write_zeros(self.image.geometry.size_bytes() - at)?;
        Ok(data_bytes)
    }

    fn leaves(&self, child: LeafNode) -> Result<Vec<LeafNode>, Error> {
        self.packs.leaves(self.image.geometry, child).map_err(|(leaves, source)| {
            let bytes = u64::from(leaves.start) * LEAF_BYTES..u64::from(leaves.end) * LEAF_BYTES;
            damaged(&self.image.name, bytes, source)
        })
    }

    fn leaf(&self, node: &LeafNode) -> Result<Vec<Piece>, Error> {
        self.chunks(node)?.par_iter().map(|chunk| self.piece(node, chunk)).collect()
    }

    fn chunks(&self, node: &LeafNode) -> Result<Vec<LeafChunk>, Error> {
        let start = u64::from(node.leaf) * LEAF_BYTES;
        let lost = |source| damaged(&self.image.name, start..start + LEAF_BYTES, source);
        self.packs.chunks(self.image.geometry, node).map_err(lost)
    }

    fn piece(&self, node: &LeafNode, chunk: &LeafChunk) -> Result<Piece, Error> {
        let start = u64::from(node.leaf) * LEAF_BYTES + u64::from(chunk.first_block) * BLOCK_BYTES as u64;
        let lost = |source| damaged(&self.image.name, start..start + u64::from(chunk.plain_len()), source);
        Ok((start, self.packs.chunk(chunk).map_err(lost)?))
    }

    /// The part of a chunk that is inside the image: its last block may be partial, and is stored filled up with zeros.
    fn inside<'b>(&self, offset: u64, plain: &'b [u8]) -> &'b [u8] {
        let left = self.image.geometry.size_bytes().saturating_sub(offset).min(plain.len() as u64);
        &plain[..left as usize]
    }
}
