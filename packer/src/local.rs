//! Reads published images straight from the packs of a repository on this host.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use vmnetx_format::limits::{INNER_FANOUT, LEAF_BLOCKS};
use vmnetx_format::{
    BLOCK_BYTES, ContentInner, ContentLeaf, Digest, Envelope, Geometry, LINK_SUFFIX, LayoutInner, LayoutLeaf,
    LayoutObject, LeafChunk, Manifest, Name, NodePlace, Place, PublicKey, Roots, TreeError, Version, decode_frame,
    link_path,
};
use vmnetx_store::dir::{DirError, PackFile, RepositoryDir};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Location, Place as LinkPlace};

use crate::limits::PACKS_OPEN;
use crate::{Damage, Error};

/// Bytes of an image that one leaf covers.
pub(crate) const LEAF_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK_BYTES as u64;

/// A link in a repository of this host.
#[derive(Debug)]
pub(crate) struct LocalLink {
    pub(crate) repository: RepositoryDir,
    pub(crate) envelope: Envelope,
}

/// An image of a version.
#[derive(Debug)]
pub(crate) struct LocalImage {
    pub(crate) name: String,
    pub(crate) geometry: Geometry,
    pub(crate) roots: Roots,
}

/// A pair of nodes below a root or an inner node.
#[derive(Debug, Clone)]
pub(crate) struct LeafNode {
    /// Its number: of a leaf among all leaves, of an inner node among the root's children.
    pub(crate) leaf: u32,
    pub(crate) content: Digest,
    pub(crate) place: NodePlace,
}

/// What decides whether a node can be read and what it says, wherever in an image it stands: a small repository can name
/// the same few nodes millions of times, and nobody needs to look at them more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeKey {
    content: Digest,
    layout: Digest,
    pack: Digest,
    offset: u64,
    /// Stored and plain lengths of both nodes.
    lengths: [u32; 4],
    /// Blocks or children that it may have.
    span: u32,
}

/// All leaves of an image as far as they can be reached: for publishers, who lay out anew what they have made.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    pub(crate) nodes: Vec<LeafNode>,
    pub(crate) lost: Vec<Lost>,
}

/// Leaves that cannot be reached, and why.
pub(crate) type Lost = (Range<u32>, Damage);

/// The packs of a repository, some of which are open.
#[derive(Debug)]
pub(crate) struct Packs {
    repository: RepositoryDir,
    open: Mutex<HashMap<Digest, Arc<PackFile>>>,
}

impl LocalLink {
    /// The link at `location`, if it lies in a repository of this host. A link file that was handed on lies elsewhere.
    pub(crate) fn find(location: &Location) -> Result<Option<Self>, Error> {
        let LinkPlace::Path(path) = &location.place else { return Ok(None) };
        let name = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(LINK_SUFFIX));
        let Some(Ok(name)) = name.map(str::parse::<Name>) else { return Ok(None) };
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let repository = match RepositoryDir::open(folder) {
            Err(DirError::NotARepository { .. }) => return Ok(None),
            repository => repository?,
        };
        let envelope = repository.link(&name)?;
        Ok(envelope.map(|envelope| Self { repository, envelope }))
    }

    /// The key that signed the link, which must be one that `trust` demands if it does. Nothing is remembered of links on
    /// this host: they are the word of whoever may write there.
    pub(crate) fn signer(&self, trust: &Trust) -> Result<Option<PublicKey>, Error> {
        let file = self.repository.root().join(link_path(&self.envelope.link.name));
        trust.check_file(&file, &self.envelope).map_err(|error| Error::Read(error.into()))
    }

    /// Whether the link is signed with a key that `trust` demands, if it demands one. A bad signature is of no matter else.
    pub(crate) fn demand(&self, trust: &Trust) -> Result<(), Error> {
        if trust.keys.is_empty() { Ok(()) } else { self.signer(trust).map(drop) }
    }

    /// The version that `location` asks for.
    pub(crate) fn version(&self, location: &Location) -> Result<&Version, Error> {
        let link = &self.envelope.link;
        let Some(wanted) = location.version else { return Ok(&link.current) };
        link.version(&wanted).ok_or_else(|| Error::NoSuchVersion { link: location.to_string(), version: wanted })
    }
}

/// The images of a version, disks first.
pub(crate) fn images(
    repository: &RepositoryDir,
    version: &Version,
    manifest: &Manifest,
) -> Result<Vec<LocalImage>, Damage> {
    let path = repository.root().join(vmnetx_format::manifest_path(&version.manifest));
    let shapes = manifest.shapes().map_err(|source| DirError::Manifest { path, source })?;
    let layout = LayoutObject::decode(&repository.layout(version)?, &shapes)?;
    let images = manifest.images().zip(shapes).zip(layout.images);
    let image = |((image, (geometry, _)), roots): ((vmnetx_format::ManifestImage<'_>, _), _)| LocalImage {
        name: image.name.into_owned(),
        geometry,
        roots,
    };
    Ok(images.map(image).collect())
}

impl LocalImage {
    /// The children of the root, in order.
    pub(crate) fn children(&self) -> Vec<LeafNode> {
        children(&self.roots, 0).collect()
    }

    /// An image of which nothing but its size is known, and all of its leaves as lost.
    pub(crate) fn unknown(geometry: Geometry) -> (Self, Leaves) {
        let roots = Roots { content: ContentInner::default(), layout: LayoutInner::default() };
        let lost = vec![(0..geometry.leaves(), Damage::Missing)];
        (Self { name: String::new(), geometry, roots }, Leaves { nodes: Vec::new(), lost })
    }

    /// That a leaf of it cannot be read.
    pub(crate) fn lost(&self, node: &LeafNode, damage: Damage) -> Error {
        self.lost_leaves(node.leaf..node.leaf.saturating_add(1), damage)
    }

    /// That some leaves of it cannot be read.
    pub(crate) fn lost_leaves(&self, leaves: Range<u32>, damage: Damage) -> Error {
        let byte = |leaf: u32| (u64::from(leaf) * LEAF_BYTES).min(self.geometry.size_bytes());
        let (start, end) = (byte(leaves.start), byte(leaves.end));
        Error::Damaged { disk: self.name.clone(), start, end, source: Box::new(damage) }
    }
}

impl Packs {
    pub(crate) fn new(repository: RepositoryDir) -> Self {
        Self { repository, open: Mutex::default() }
    }

    /// The leaves below a child of an image's root, in order; of an image without inner nodes the child itself. There are
    /// millions of leaves at most, so they are not gathered for a whole image.
    pub(crate) fn leaves(&self, geometry: Geometry, child: LeafNode) -> Result<Vec<LeafNode>, Lost> {
        if !geometry.has_inner() {
            return Ok(vec![child]);
        }
        let first = child.leaf.saturating_mul(INNER_FANOUT);
        match self.inner(geometry, &child) {
            Ok(node) => Ok(children(&node, first).collect()),
            Err(damage) => {
                let end = first.saturating_add(geometry.inner_children(child.leaf));
                Err((first..end, damage))
            }
        }
    }

    /// All leaves of an image, in order.
    pub(crate) fn all_leaves(&self, image: &LocalImage) -> Leaves {
        let mut all = Leaves::default();
        for child in image.children() {
            match self.leaves(image.geometry, child) {
                Ok(nodes) => all.nodes.extend(nodes),
                Err(lost) => all.lost.push(lost),
            }
        }
        all
    }

    /// Gives `visit` every leaf of an image whose key is not in `seen`, and enters them.
    pub(crate) fn new_leaves(
        &self,
        image: &LocalImage,
        seen: &mut HashSet<NodeKey>,
        mut visit: impl FnMut(&LeafNode) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let geometry = image.geometry;
        for child in image.children() {
            if geometry.has_inner() && !seen.insert(child.key(geometry.inner_children(child.leaf))) {
                continue;
            }
            for leaf in self.leaves(geometry, child).map_err(|(_, damage)| damage)? {
                if seen.insert(leaf.key(geometry.leaf_blocks(leaf.leaf))) {
                    visit(&leaf)?;
                }
            }
        }
        Ok(())
    }

    /// The chunks of a leaf.
    pub(crate) fn chunks(&self, geometry: Geometry, node: &LeafNode) -> Result<Vec<LeafChunk>, Damage> {
        let (content, layout) = self.pair(node)?;
        let content = ContentLeaf::decode(&content, geometry.leaf_blocks(node.leaf))?;
        Ok(LeafChunk::join(&content, &LayoutLeaf::decode(&layout)?)?)
    }

    /// The plain bytes of a chunk.
    pub(crate) fn chunk(&self, chunk: &LeafChunk) -> Result<Vec<u8>, Damage> {
        self.frame(&chunk.place, chunk.plain_len(), &chunk.digest)
    }

    fn inner(&self, geometry: Geometry, node: &LeafNode) -> Result<Roots, Damage> {
        let (content, layout) = self.pair(node)?;
        let content = ContentInner::decode(&content, geometry.inner_children(node.leaf))?;
        let layout = LayoutInner::decode(&layout)?;
        let (contents, layouts) = (content.children().len(), layout.children().len());
        if contents != layouts {
            return Err(TreeError::Mismatch { content: contents, layout: layouts }.into());
        }
        Ok(Roots { content, layout })
    }

    /// Content and layout of a pair of nodes as they are stored, verified.
    pub(crate) fn stored_pair(&self, node: &LeafNode) -> Result<(Vec<u8>, Vec<u8>), Damage> {
        let place = &node.place;
        let content = self.stored(&place.content_place())?;
        verified(&content, place.content_plain_len, &node.content)?;
        let layout = self.stored(&place.layout_place())?;
        verified(&layout, place.layout_plain_len, &place.layout)?;
        Ok((content, layout))
    }

    fn pair(&self, node: &LeafNode) -> Result<(Vec<u8>, Vec<u8>), Damage> {
        let place = &node.place;
        let content = self.frame(&place.content_place(), place.content_plain_len, &node.content)?;
        let layout = self.frame(&place.layout_place(), place.layout_plain_len, &place.layout)?;
        Ok((content, layout))
    }

    /// The plain bytes of a frame.
    pub(crate) fn frame(&self, place: &Place, plain_len: u32, digest: &Digest) -> Result<Vec<u8>, Damage> {
        verified(&self.stored(place)?, plain_len, digest)
    }

    fn stored(&self, place: &Place) -> Result<Vec<u8>, Damage> {
        let pack = self.pack(&place.pack)?;
        // A place comes from a damaged or foreign index perhaps: its length is bounded by its decoder.
        let mut stored = vec![0; place.stored_len as usize];
        pack.read_exact_at(&mut stored, place.offset)?;
        Ok(stored)
    }

    fn pack(&self, digest: &Digest) -> Result<Arc<PackFile>, DirError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = open.get(digest) {
            return Ok(Arc::clone(pack));
        }
        let pack = Arc::new(self.repository.pack(digest)?);
        if open.len() >= PACKS_OPEN {
            open.clear();
        }
        open.insert(*digest, Arc::clone(&pack));
        Ok(pack)
    }
}

/// The plain bytes of a stored frame.
fn verified(stored: &[u8], plain_len: u32, digest: &Digest) -> Result<Vec<u8>, Damage> {
    let plain = decode_frame(stored, plain_len)?;
    if Digest::of(&plain) == *digest { Ok(plain) } else { Err(Damage::Digest(*digest)) }
}

impl LeafNode {
    /// The key of a node that may have `span` blocks or children.
    pub(crate) const fn key(&self, span: u32) -> NodeKey {
        let Self { content, place, .. } = self;
        let lengths =
            [place.content_stored_len, place.content_plain_len, place.layout_stored_len, place.layout_plain_len];
        NodeKey { content: *content, layout: place.layout, pack: place.pack, offset: place.offset, lengths, span }
    }
}

fn children(node: &Roots, first: u32) -> impl Iterator<Item = LeafNode> {
    let places = node.content.children().iter().zip(node.layout.children());
    places.map(move |(&(number, content), place)| LeafNode {
        leaf: first.saturating_add(number),
        content,
        place: place.clone(),
    })
}
