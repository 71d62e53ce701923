//! Layout nodes: where chunks and nodes are stored. They may be written anew without touching an image's identity.

use super::TreeError;
use super::packs::Packs;
use crate::Digest;
use crate::limits::{FRAME_PLAIN_BYTES_MAX, LEAF_BLOCKS, NODE_BYTES_MAX, ROOT_FANOUT_MAX};
use crate::wire::{Reader, WireError, put_varint};

const LEAF_TAG: &[u8] = b"ll";
const INNER_TAG: &[u8] = b"li";
const LEAF: &str = "layout leaf";
const INNER: &str = "layout node";

/// Where one frame is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The pack that holds it.
    pub pack: Digest,
    /// Bytes from the pack's start.
    pub offset: u64,
    /// Bytes as stored.
    pub stored_len: u32,
}

/// Where a pair of nodes is stored: the content node and, right behind it, its layout node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    /// The pack that holds both.
    pub pack: Digest,
    /// Bytes from the pack's start to the content node.
    pub offset: u64,
    /// Bytes of the content node as stored.
    pub content_stored_len: u32,
    /// Bytes of the content node when plain.
    pub content_plain_len: u32,
    /// Bytes of the layout node as stored.
    pub layout_stored_len: u32,
    /// Bytes of the layout node when plain.
    pub layout_plain_len: u32,
    /// The digest of the layout node, so that damage is found where it is.
    pub layout: Digest,
}

/// The places of a leaf's chunks, in the order of the content leaf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayoutLeaf {
    places: Vec<Place>,
}

/// The places of a node's present children, in the order of the content node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayoutInner {
    children: Vec<NodePlace>,
}

impl NodePlace {
    /// Where the content node alone is stored.
    #[must_use]
    pub const fn content_place(&self) -> Place {
        Place { pack: self.pack, offset: self.offset, stored_len: self.content_stored_len }
    }

    /// Where the layout node alone is stored.
    #[must_use]
    pub const fn layout_place(&self) -> Place {
        let offset = self.offset + self.content_stored_len as u64;
        Place { pack: self.pack, offset, stored_len: self.layout_stored_len }
    }
}

impl LayoutLeaf {
    /// Takes the places of a leaf's chunks.
    #[must_use]
    pub const fn new(places: Vec<Place>) -> Self {
        Self { places }
    }

    /// The places, chunk by chunk.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The leaf as it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = LEAF_TAG.to_vec();
        let mut writer = Packs::collect(self.places.iter().map(|place| place.pack), &mut out);
        put_varint(&mut out, self.places.len() as u64);
        for place in &self.places {
            writer.put(&mut out, place.pack, place.offset, u64::from(place.stored_len));
            put_varint(&mut out, u64::from(place.stored_len));
        }
        out
    }

    /// Reads a leaf.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        Self::read(bytes).map_err(TreeError::wire(LEAF))
    }

    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.tag(LEAF_TAG)?;
        let mut packs = Packs::read(&mut reader)?;
        let count = reader.bounded_u32("the number of chunks", LEAF_BLOCKS)?;
        let mut places = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (index, offset) = packs.take(&mut reader)?;
            let stored_len = reader.positive_u32("a stored length", FRAME_PLAIN_BYTES_MAX)?;
            places.push(Place { pack: packs.advance(index, offset, stored_len.into())?, offset, stored_len });
        }
        reader.end()?;
        Ok(Self { places })
    }
}

impl LayoutInner {
    /// Takes the places of a node's present children.
    #[must_use]
    pub const fn new(children: Vec<NodePlace>) -> Self {
        Self { children }
    }

    /// The places, child by child.
    #[must_use]
    pub fn children(&self) -> &[NodePlace] {
        &self.children
    }

    /// The node as it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = INNER_TAG.to_vec();
        let mut writer = Packs::collect(self.children.iter().map(|child| child.pack), &mut out);
        put_varint(&mut out, self.children.len() as u64);
        for child in &self.children {
            let stored = u64::from(child.content_stored_len) + u64::from(child.layout_stored_len);
            writer.put(&mut out, child.pack, child.offset, stored);
            for len in
                [child.content_stored_len, child.content_plain_len, child.layout_stored_len, child.layout_plain_len]
            {
                put_varint(&mut out, len.into());
            }
        }
        out.extend(self.children.iter().flat_map(|child| child.layout.as_bytes()));
        out
    }

    /// Reads a node.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        Self::read(bytes).map_err(TreeError::wire(INNER))
    }

    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.tag(INNER_TAG)?;
        let mut packs = Packs::read(&mut reader)?;
        let count = reader.bounded_u32("the number of children", ROOT_FANOUT_MAX)?;
        let mut children = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (index, offset) = packs.take(&mut reader)?;
            let mut len = || reader.positive_u32("a node's length", NODE_BYTES_MAX);
            let [content_stored_len, content_plain_len, layout_stored_len, layout_plain_len] =
                [len()?, len()?, len()?, len()?];
            let stored = u64::from(content_stored_len) + u64::from(layout_stored_len);
            children.push(NodePlace {
                pack: packs.advance(index, offset, stored)?,
                offset,
                content_stored_len,
                content_plain_len,
                layout_stored_len,
                layout_plain_len,
                layout: Digest::from_bytes([0; Digest::BYTES]),
            });
        }
        for child in &mut children {
            child.layout = reader.digest()?;
        }
        reader.end()?;
        Ok(Self { children })
    }
}
