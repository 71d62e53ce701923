//! Content nodes: what stands where, by digest. They decide an image's identity, so each has exactly one encoding.

use super::TreeError;
use crate::Digest;
use crate::limits::{CHUNK_BLOCKS_MAX, LEAF_BLOCKS, ROOT_FANOUT_MAX};
use crate::wire::{Reader, put_varint};

const LEAF_TAG: &[u8] = b"cl";
const INNER_TAG: &[u8] = b"ci";
const LEAF: &str = "content leaf";
const INNER: &str = "content node";

/// The chunks of one leaf's span, in order. What no chunk covers is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContentLeaf {
    chunks: Vec<(u32, u32, Digest)>,
}

/// The present children of a root or an inner node, in order. Absent ones are zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContentInner {
    children: Vec<(u32, Digest)>,
}

impl ContentLeaf {
    /// Appends the chunk of `blocks` blocks at `first_block`, which must lie behind the chunks before it and inside the
    /// leaf.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when it does not.
    pub fn push(&mut self, first_block: u32, blocks: u32, digest: Digest) -> Result<(), TreeError> {
        let end = self.chunks.last().map_or(0, |&(first, blocks, _)| first + blocks);
        if first_block < end || blocks == 0 || blocks > CHUNK_BLOCKS_MAX || first_block > LEAF_BLOCKS - blocks {
            return Err(TreeError::damaged(LEAF, "its chunks overlap or leave its span"));
        }
        self.chunks.push((first_block, blocks, digest));
        Ok(())
    }

    /// First block, blocks and digest of each chunk.
    #[must_use]
    pub fn chunks(&self) -> &[(u32, u32, Digest)] {
        &self.chunks
    }

    /// The leaf's only encoding; its digest is what the node above holds.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = LEAF_TAG.to_vec();
        put_varint(&mut out, self.chunks.len() as u64);
        let mut end = 0;
        for &(first_block, blocks, _) in &self.chunks {
            put_varint(&mut out, u64::from(first_block - end));
            put_varint(&mut out, u64::from(blocks));
            end = first_block + blocks;
        }
        out.extend(self.chunks.iter().flat_map(|(_, _, digest)| digest.as_bytes()));
        out
    }

    /// Reads a leaf that spans `span_blocks` blocks.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] for anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8], span_blocks: u32) -> Result<Self, TreeError> {
        let wire = TreeError::wire(LEAF);
        let mut reader = Reader::new(bytes);
        reader.tag(LEAF_TAG).map_err(&wire)?;
        let count = reader.bounded_u32("the number of chunks", span_blocks).map_err(&wire)?;
        let mut leaf = Self { chunks: Vec::with_capacity(count as usize) };
        let mut end = 0;
        for _ in 0..count {
            let gap = reader.bounded_u32("a gap", span_blocks).map_err(&wire)?;
            let blocks = reader.bounded_u32("a chunk's length", CHUNK_BLOCKS_MAX).map_err(&wire)?;
            leaf.push(end + gap, blocks, Digest::from_bytes([0; Digest::BYTES]))?;
            end += gap + blocks;
        }
        if end > span_blocks {
            return Err(TreeError::damaged(LEAF, "a chunk lies behind the image's end"));
        }
        for chunk in &mut leaf.chunks {
            chunk.2 = reader.digest().map_err(&wire)?;
        }
        reader.end().map_err(&wire)?;
        Ok(leaf)
    }
}

impl ContentInner {
    /// Appends the child of number `index`, which must come after the children before it.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when it does not.
    pub fn push(&mut self, index: u32, digest: Digest) -> Result<(), TreeError> {
        let next = self.children.last().map_or(0, |&(last, _)| last + 1);
        if index < next || index >= ROOT_FANOUT_MAX {
            return Err(TreeError::damaged(INNER, "its children are out of order or too many"));
        }
        self.children.push((index, digest));
        Ok(())
    }

    /// Number and digest of each present child.
    #[must_use]
    pub fn children(&self) -> &[(u32, Digest)] {
        &self.children
    }

    /// The node's only encoding; its digest is what the node above, or the manifest, holds.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = INNER_TAG.to_vec();
        put_varint(&mut out, self.children.len() as u64);
        let mut next = 0;
        for &(index, _) in &self.children {
            put_varint(&mut out, u64::from(index - next));
            next = index + 1;
        }
        out.extend(self.children.iter().flat_map(|(_, digest)| digest.as_bytes()));
        out
    }

    /// Reads a node of at most `children_max` children.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] for anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8], children_max: u32) -> Result<Self, TreeError> {
        let wire = TreeError::wire(INNER);
        let mut reader = Reader::new(bytes);
        reader.tag(INNER_TAG).map_err(&wire)?;
        let count = reader.bounded_u32("the number of children", children_max).map_err(&wire)?;
        let mut node = Self { children: Vec::with_capacity(count as usize) };
        let mut next = 0;
        for _ in 0..count {
            let index = next + reader.bounded_u32("a gap", children_max).map_err(&wire)?;
            if index >= children_max {
                return Err(TreeError::damaged(INNER, "a child lies behind the image's end"));
            }
            node.push(index, Digest::from_bytes([0; Digest::BYTES]))?;
            next = index + 1;
        }
        for child in &mut node.children {
            child.1 = reader.digest().map_err(&wire)?;
        }
        reader.end().map_err(&wire)?;
        Ok(node)
    }
}
