//! Looks chunks up in the images of a version, as a sequence of touches needs them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use vmnetx_format::limits::{INNER_FANOUT, LEAF_BLOCKS};
use vmnetx_format::{Covered, LeafChunk, Touch};

use crate::Error;
use crate::limits::{ORDER_INNER_NODES, ORDER_LEAVES};
use crate::local::{LeafNode, LocalImage, Packs};

/// The images of a version, of which little is kept at a time.
pub(super) struct Walk<'a> {
    packs: &'a Packs,
    trees: Vec<Tree<'a>>,
    /// Leaves that were looked at, by image and number.
    leaves: HashMap<(usize, u32), Arc<[LeafChunk]>>,
}

/// A leaf that holds something, and the inner node that leads to it if there are such.
pub(super) struct Found {
    pub(super) parent: Option<LeafNode>,
    pub(super) leaf: LeafNode,
}

/// The index of an image as far as it was needed.
struct Tree<'a> {
    image: &'a LocalImage,
    /// The root's children, in order.
    children: Vec<LeafNode>,
    /// The leaves below some of them, by number.
    inner: HashMap<u32, Arc<[LeafNode]>>,
    covered: Covered,
}

impl<'a> Walk<'a> {
    pub(super) fn new(packs: &'a Packs, images: &'a [LocalImage]) -> Self {
        let tree = |image: &'a LocalImage| Tree {
            image,
            children: image.children(),
            inner: HashMap::new(),
            covered: Covered::default(),
        };
        Self { packs, trees: images.iter().map(tree).collect(), leaves: HashMap::new() }
    }

    /// The parts of a touch that lie inside of its image and that no touch before has touched.
    pub(super) fn first_touched(&mut self, touch: &Touch) -> Vec<Touch> {
        let Some(tree) = self.trees.get_mut(touch.image as usize) else { return Vec::new() };
        let end = touch.end().min(tree.image.geometry.blocks());
        // A part of a touch is no longer than it.
        let part =
            |range: Range<u64>| Touch { first_block: range.start, blocks: (range.end - range.start) as u32, ..*touch };
        tree.covered.insert(touch.first_block..end).into_iter().map(part).collect()
    }

    /// The leaves that span some blocks inside of an image.
    ///
    /// # Errors
    /// [`Error::Damaged`] when an inner node cannot be read.
    pub(super) fn leaves(&mut self, image: usize, blocks: &Range<u64>) -> Result<Vec<Found>, Error> {
        let Some(tree) = self.trees.get_mut(image) else { return Ok(Vec::new()) };
        // Inside of the image, whose leaves a u32 counts.
        let span = u64::from(LEAF_BLOCKS);
        let numbers = (blocks.start / span) as u32..blocks.end.div_ceil(span) as u32;
        if !tree.image.geometry.has_inner() {
            let found = |leaf: &LeafNode| Found { parent: None, leaf: leaf.clone() };
            return Ok(within(&tree.children, &numbers).iter().map(found).collect());
        }
        let mut found = Vec::new();
        let parents = numbers.start / INNER_FANOUT..numbers.end.div_ceil(INNER_FANOUT);
        for parent in within(&tree.children, &parents).to_vec() {
            let below = tree.below(self.packs, &parent)?;
            let of = |leaf: &LeafNode| Found { parent: Some(parent.clone()), leaf: leaf.clone() };
            found.extend(within(&below, &numbers).iter().map(of));
        }
        Ok(found)
    }

    /// The chunks of a leaf that meet some blocks, each with its first block in the image.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the leaf cannot be read.
    pub(super) fn chunks_of(
        &mut self,
        image: usize,
        leaf: &LeafNode,
        blocks: &Range<u64>,
    ) -> Result<Vec<(u64, LeafChunk)>, Error> {
        let start = u64::from(leaf.leaf) * u64::from(LEAF_BLOCKS);
        let meets = |chunk: &LeafChunk| {
            let first = start + u64::from(chunk.first_block);
            let does = first < blocks.end && first + u64::from(chunk.blocks) > blocks.start;
            does.then(|| (first, chunk.clone()))
        };
        Ok(self.leaf(image, leaf)?.iter().filter_map(meets).collect())
    }

    /// The chunks of an image that meet some blocks, each with its first block.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a node cannot be read.
    pub(super) fn chunks(&mut self, image: usize, blocks: &Range<u64>) -> Result<Vec<(u64, LeafChunk)>, Error> {
        let mut chunks = Vec::new();
        for Found { leaf, .. } in self.leaves(image, blocks)? {
            chunks.extend(self.chunks_of(image, &leaf, blocks)?);
        }
        Ok(chunks)
    }

    fn leaf(&mut self, image: usize, leaf: &LeafNode) -> Result<Arc<[LeafChunk]>, Error> {
        let key = (image, leaf.leaf);
        if let Some(chunks) = self.leaves.get(&key) {
            return Ok(Arc::clone(chunks));
        }
        let Some(tree) = self.trees.get(image) else { return Ok(Arc::default()) };
        let chunks = self.packs.chunks(tree.image.geometry, leaf).map_err(|damage| tree.image.lost(leaf, damage))?;
        let chunks: Arc<[LeafChunk]> = chunks.into();
        if self.leaves.len() >= ORDER_LEAVES {
            self.leaves.clear();
        }
        self.leaves.insert(key, Arc::clone(&chunks));
        Ok(chunks)
    }
}

impl Tree<'_> {
    fn below(&mut self, packs: &Packs, parent: &LeafNode) -> Result<Arc<[LeafNode]>, Error> {
        if let Some(below) = self.inner.get(&parent.leaf) {
            return Ok(Arc::clone(below));
        }
        let lost = |(leaves, damage)| self.image.lost_leaves(leaves, damage);
        let below: Arc<[LeafNode]> = packs.leaves(self.image.geometry, parent.clone()).map_err(lost)?.into();
        if self.inner.len() >= ORDER_INNER_NODES {
            self.inner.clear();
        }
        self.inner.insert(parent.leaf, Arc::clone(&below));
        Ok(below)
    }
}

/// The nodes of these numbers, of nodes in order.
fn within<'a>(nodes: &'a [LeafNode], numbers: &Range<u32>) -> &'a [LeafNode] {
    let start = nodes.partition_point(|node| node.leaf < numbers.start);
    let end = nodes.partition_point(|node| node.leaf < numbers.end);
    nodes.get(start..end).unwrap_or(&[])
}
