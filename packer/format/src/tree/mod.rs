//! The two trees over an image: content says which chunk stands where, layout says in which pack each chunk lies.
//!
//! Both have the same shape, which follows from the image's size alone: a root, one level of inner nodes if there are
//! more than [`INNER_FANOUT`] leaves, and leaves of [`LEAF_BLOCKS`] blocks. Children that hold nothing but zeros are
//! absent. A content node is known by its digest and names its children by theirs; the layout node beside it, child by
//! child, says where they are stored. A leaf of each is joined into [`LeafChunk`]s.

mod content;
mod layout;
mod object;
mod packs;
#[cfg(test)]
mod tests;

pub use content::{ContentInner, ContentLeaf};
pub use layout::{LayoutInner, LayoutLeaf, NodePlace, Place};
pub use object::{LayoutObject, Roots};
pub(crate) use packs::Packs;

use crate::limits::{IMAGE_BYTES_MAX, INNER_FANOUT, LEAF_BLOCKS};
use crate::wire::WireError;
use crate::{BLOCK_BYTES, Digest};

/// The shape of the trees over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
}

/// A chunk as a joined pair of leaves knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafChunk {
    /// The first block, counted from the leaf's first block.
    pub first_block: u32,
    /// How many blocks it has.
    pub blocks: u32,
    /// The BLAKE3 of its plain bytes.
    pub digest: Digest,
    /// Where it is stored.
    pub place: Place,
}

/// Why bytes are not a tree node or a layout object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The bytes of a node end too early, go on too long or contradict themselves.
    #[error("the {node} is damaged: {reason}")]
    Damaged {
        /// Which kind of node.
        node: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Content and layout speak of different children or chunks.
    #[error("a content node has {content} entries and the layout node beside it {layout}")]
    Mismatch {
        /// Entries of the content node.
        content: usize,
        /// Entries of the layout node.
        layout: usize,
    },
    /// The image is larger than the format allows.
    #[error("an image of {0} bytes is larger than {IMAGE_BYTES_MAX}")]
    ImageTooLarge(u64),
}

impl TreeError {
    fn wire(node: &'static str) -> impl Fn(WireError) -> Self {
        move |error| Self::Damaged { node, reason: error.to_string() }
    }

    fn damaged(node: &'static str, reason: &str) -> Self {
        Self::Damaged { node, reason: reason.to_owned() }
    }
}

impl Geometry {
    /// The trees' shape for an image of `size_bytes`.
    ///
    /// # Errors
    /// [`TreeError::ImageTooLarge`] above [`IMAGE_BYTES_MAX`].
    pub const fn new(size_bytes: u64) -> Result<Self, TreeError> {
        if size_bytes > IMAGE_BYTES_MAX { Err(TreeError::ImageTooLarge(size_bytes)) } else { Ok(Self { size_bytes }) }
    }

    /// The image's true size in bytes, not rounded up to blocks.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    /// Blocks of the image; the last one may be partial.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES as u64)
    }

    /// Leaves that cover the image.
    #[must_use]
    pub const fn leaves(self) -> u32 {
        self.blocks().div_ceil(LEAF_BLOCKS as u64) as u32
    }

    /// Blocks that the leaf of this number covers; only the image's last leaf has fewer than [`LEAF_BLOCKS`].
    #[must_use]
    pub const fn leaf_blocks(self, leaf: u32) -> u32 {
        let before = leaf as u64 * LEAF_BLOCKS as u64;
        let left = self.blocks().saturating_sub(before);
        if left < LEAF_BLOCKS as u64 { left as u32 } else { LEAF_BLOCKS }
    }

    /// Whether inner nodes stand between the root and the leaves.
    #[must_use]
    pub const fn has_inner(self) -> bool {
        self.leaves() > INNER_FANOUT
    }

    /// Leaves below one child of the root.
    #[must_use]
    pub const fn leaves_per_root_child(self) -> u32 {
        if self.has_inner() { INNER_FANOUT } else { 1 }
    }

    /// Children that the root has at most.
    #[must_use]
    pub const fn root_children(self) -> u32 {
        self.leaves().div_ceil(self.leaves_per_root_child())
    }

    /// Children that the inner node below the root's child of this number has at most.
    #[must_use]
    pub const fn inner_children(self, root_child: u32) -> u32 {
        let left = self.leaves().saturating_sub(root_child.saturating_mul(INNER_FANOUT));
        if left < INNER_FANOUT { left } else { INNER_FANOUT }
    }
}

impl LeafChunk {
    /// Joins a content leaf with the layout leaf beside it.
    ///
    /// # Errors
    /// [`TreeError::Mismatch`] when they have different numbers of chunks; [`TreeError::Damaged`] when a stored length
    /// exceeds the plain one.
    pub fn join(content: &ContentLeaf, layout: &LayoutLeaf) -> Result<Vec<Self>, TreeError> {
        let (content, layout) = (content.chunks(), layout.places());
        if content.len() != layout.len() {
            return Err(TreeError::Mismatch { content: content.len(), layout: layout.len() });
        }
        let joined = content.iter().zip(layout).map(|(&(first_block, blocks, digest), place)| {
            let chunk = Self { first_block, blocks, digest, place: place.clone() };
            if chunk.place.stored_len > chunk.plain_len() {
                return Err(TreeError::damaged("layout leaf", "a chunk is stored in more bytes than it has"));
            }
            Ok(chunk)
        });
        joined.collect()
    }

    /// Bytes of the chunk when plain.
    #[must_use]
    pub const fn plain_len(&self) -> u32 {
        self.blocks * BLOCK_BYTES as u32
    }
}
