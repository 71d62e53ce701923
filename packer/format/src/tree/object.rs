//! The layout object: the root nodes of both trees of every image of a package, so that reading starts with one request.

use super::{ContentInner, Geometry, LayoutInner, NodePlace, TreeError};
use crate::Digest;
use crate::limits::{IMAGES_MAX, LAYOUT_BYTES_MAX, SMALL_INDEX_BYTES_MAX};
use crate::wire::{Reader, WireError, put_varint};

const TAG: &[u8] = b"VMNXLAY0";
const OBJECT: &str = "layout object";

/// The two roots of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The root of the content tree; the manifest holds its digest.
    pub content: ContentInner,
    /// The root of the layout tree.
    pub layout: LayoutInner,
}

/// The roots of a package's images, in the manifest's order: disks first, then RAM blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayoutObject {
    /// One pair for each image.
    pub images: Vec<Roots>,
}

impl Roots {
    /// Whether a reader fetches all leaves of the image with one request, instead of each when it is needed: they must
    /// be the root's own children, in one pack, within [`SMALL_INDEX_BYTES_MAX`].
    #[must_use]
    pub fn is_small_index(&self, geometry: Geometry) -> bool {
        let places = self.layout.children();
        let Some(first) = places.first() else { return false };
        let stored = |place: &NodePlace| u64::from(place.content_stored_len) + u64::from(place.layout_stored_len);
        let start = places.iter().map(|place| place.offset).min().unwrap_or(0);
        let end = places.iter().map(|place| place.offset.saturating_add(stored(place))).max().unwrap_or(0);
        let one_pack = places.iter().all(|place| place.pack == first.pack);
        !geometry.has_inner() && one_pack && end - start <= SMALL_INDEX_BYTES_MAX
    }
}

impl LayoutObject {
    /// The object as it is stored; its digest is its name.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = TAG.to_vec();
        put_varint(&mut out, self.images.len() as u64);
        for roots in &self.images {
            for node in [roots.content.encode(), roots.layout.encode()] {
                put_varint(&mut out, node.len() as u64);
                out.extend(node);
            }
        }
        out
    }

    /// Reads the object that belongs to images of these sizes and content digests, as the manifest gives them.
    ///
    /// # Errors
    /// [`TreeError`] when the bytes are not that object: other images, a content root of another digest, damage.
    pub fn decode(bytes: &[u8], images: &[(Geometry, Digest)]) -> Result<Self, TreeError> {
        let wire = TreeError::wire(OBJECT);
        let mut reader = Reader::new(bytes);
        reader.tag(TAG).map_err(&wire)?;
        let count = reader.bounded_u32("the number of images", IMAGES_MAX).map_err(&wire)?;
        if count as usize != images.len() {
            return Err(TreeError::Mismatch { content: images.len(), layout: count as usize });
        }
        let mut object = Self { images: Vec::with_capacity(images.len()) };
        for (geometry, digest) in images {
            let content = node(&mut reader).map_err(&wire)?;
            let layout = node(&mut reader).map_err(&wire)?;
            if Digest::of(content) != *digest {
                return Err(TreeError::damaged(OBJECT, "a content root is not the one that the manifest names"));
            }
            let content = ContentInner::decode(content, geometry.root_children())?;
            let layout = LayoutInner::decode(layout)?;
            if content.children().len() != layout.children().len() {
                let (content, layout) = (content.children().len(), layout.children().len());
                return Err(TreeError::Mismatch { content, layout });
            }
            object.images.push(Roots { content, layout });
        }
        reader.end().map_err(&wire)?;
        Ok(object)
    }
}

fn node<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let len = reader.bounded("a root's length", LAYOUT_BYTES_MAX)?;
    reader.bytes(len as usize)
}
