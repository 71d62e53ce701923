//! Which parts of an image are on this host: holes, and chunks that the memory or the disk tier has.

use vmnetx_format::Digest;

use super::leaf::{Leaf, Step};
use super::{Image, LEAF_BYTES, Tiers};
use crate::Error;
use crate::limits::RESIDENCY_LEAVES_MAX;

/// A run of an image that is on this host or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residency {
    /// Bytes of the run.
    pub length: u64,
    /// Whether a read of it would have to ask the origin.
    pub remote: bool,
}

impl Tiers {
    /// Whether a tier of this host has the frame; never waits.
    pub(super) fn have(&self, digest: &Digest) -> bool {
        self.memory.contains(digest) || self.disk.as_ref().is_some_and(|disk| disk.contains(digest))
    }
}

impl Image {
    /// Says which parts of `length` bytes at `offset` are on this host at this moment: at most `extents_max` runs, from the
    /// first byte on, neighbours being unlike; together they may be shorter than `length`. A run ends where a chunk or a
    /// hole does, or with the range.
    ///
    /// Asks the origin nothing and is no use of a chunk. Where the index itself is not on this host, all is remote: what is
    /// called resident is.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] when the range leaves the image.
    pub async fn residency(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Residency>, Error> {
        self.check(offset, length)?;
        let mut out: Vec<Residency> = Vec::new();
        let mut at = offset;
        let end = offset + length;
        let mut looked = 0;
        while at < end && out.len() <= extents_max && looked < RESIDENCY_LEAVES_MAX {
            let stop = end.min((at / LEAF_BYTES + 1) * LEAF_BYTES);
            let number = (at / LEAF_BYTES) as u32;
            match self.index.leaf_here(number, |digest| self.tiers.have(digest)).await {
                Some(leaf) => {
                    looked += u32::from(!leaf.is_hole());
                    self.leaf_residency(&leaf, at, stop, extents_max, &mut out);
                    // Thousands of look-ups may lie behind: let others have their turn.
                    tokio::task::yield_now().await;
                }
                None => push(&mut out, stop - at, true),
            }
            at = stop;
        }
        out.truncate(extents_max);
        Ok(out)
    }

    fn leaf_residency(&self, leaf: &Leaf, at: u64, stop: u64, extents_max: usize, out: &mut Vec<Residency>) {
        leaf.each_touch(at, stop, |step| {
            match step {
                Step::Zeros(zeros) => push(out, zeros, false),
                Step::Chunk(touch) => push(out, touch.length, !self.tiers.have(touch.chunk.digest())),
            }
            out.len() <= extents_max
        });
    }
}

fn push(out: &mut Vec<Residency>, length: u64, remote: bool) {
    match out.last_mut() {
        Some(last) if last.remote == remote => last.length += length,
        _ => out.push(Residency { length, remote }),
    }
}
