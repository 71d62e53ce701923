//! Which frames an order has: the chunks that its touches meet, and before them the nodes of large indexes, each once.

use std::collections::HashSet;

use vmnetx_format::limits::ORDER_FRAMES_MAX;
use vmnetx_format::{Digest, OrderError, Place, Touch};

use super::walk::{Found, Walk};
use crate::Error;
use crate::local::{LeafNode, LocalImage, Packs};

/// A frame that an order is to have.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) digest: Digest,
    pub(super) plain_len: u32,
    /// Where the layout has it.
    pub(super) place: Place,
}

/// What an order is to have.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The sequence inside of the images, each block once.
    pub(super) touches: Vec<Touch>,
    pub(super) frames: Vec<Planned>,
    planned: HashSet<Digest>,
}

impl Plan {
    /// Plans the order of a sequence of touches of `images`.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a part of an index that is needed cannot be read; [`Error::Order`] for too many frames.
    pub(super) fn make(packs: &Packs, images: &[LocalImage], sequence: &[Touch]) -> Result<Self, Error> {
        // Of a small index readers fetch all leaves with one request.
        let is_large: Vec<bool> = images.iter().map(|image| !image.roots.is_small_index(image.geometry)).collect();
        let mut walk = Walk::new(packs, images);
        let mut plan = Self::default();
        for touch in sequence {
            for part in walk.first_touched(touch) {
                plan.touches.push(part);
                let (image, blocks) = (part.image as usize, part.first_block..part.end());
                for Found { parent, leaf } in walk.leaves(image, &blocks)? {
                    if is_large.get(image).is_some_and(|large| *large) {
                        parent.iter().chain([&leaf]).try_for_each(|node| plan.node(node))?;
                    }
                    for (_, chunk) in walk.chunks_of(image, &leaf, &blocks)? {
                        plan.frame(chunk.digest, chunk.plain_len(), &chunk.place)?;
                    }
                }
            }
        }
        Ok(plan)
    }

    fn node(&mut self, node: &LeafNode) -> Result<(), Error> {
        let place = &node.place;
        self.frame(node.content, place.content_plain_len, &place.content_place())?;
        self.frame(place.layout, place.layout_plain_len, &place.layout_place())
    }

    fn frame(&mut self, digest: Digest, plain_len: u32, place: &Place) -> Result<(), Error> {
        if !self.planned.insert(digest) {
            return Ok(());
        }
        let count = self.planned.len();
        if count > ORDER_FRAMES_MAX as usize {
            return Err(OrderError::Count { what: "frames", count, max: ORDER_FRAMES_MAX }.into());
        }
        self.frames.push(Planned { digest, plain_len, place: place.clone() });
        Ok(())
    }
}
