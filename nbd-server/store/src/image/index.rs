//! The index of an image: leaves are fetched when they are touched and kept decoded; of those that are pushed out, the parts
//! that were read stay.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use vmnetx_format::limits::INNER_FANOUT;
use vmnetx_format::{
    ContentInner, ContentLeaf, Digest, Geometry, LayoutInner, LayoutLeaf, LeafChunk, NodePlace, Roots, TreeError,
};

use super::leaf::{Chunk, Leaf, PART_BYTES};
use super::{LEAF_BYTES, Tiers};
use crate::limits::{DISK_INLINE_BYTES_MAX, LEAF_PARTS_BYTES_MAX, LEAVES_BYTES_MAX};
use crate::tier::{Tier, Wanted, Why};
use crate::{Counters, Error};

/// Looks up leaves.
#[derive(Debug)]
pub(super) struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    image: String,
    geometry: Geometry,
    roots: Roots,
    tiers: Tiers,
    counters: Arc<Counters>,
    leaves: moka::sync::Cache<u32, Arc<Leaf>>,
    /// Parts of leaves that were pushed out, by their numbers in the image.
    parts: Parts,
    nodes: moka::sync::Cache<u32, Arc<Roots>>,
    hole: Arc<Leaf>,
}

type Parts = moka::sync::Cache<u64, Arc<Leaf>>;

/// A node to be fetched: the content node's digest and where the pair is stored.
#[derive(Debug, Clone)]
struct Child {
    content: Digest,
    place: NodePlace,
}

/// The plain bytes of a pair of nodes.
struct Pair {
    content: bytes::Bytes,
    layout: bytes::Bytes,
}

impl Index {
    pub(super) fn new(image: String, geometry: Geometry, roots: Roots, tiers: Tiers, counters: Arc<Counters>) -> Self {
        /// Inner nodes that are kept: 128 GiB of image.
        const NODES_MAX: u64 = 16;
        let weigh = |_: &u32, leaf: &Arc<Leaf>| leaf.weight_bytes();
        let parts: Parts = moka::sync::Cache::builder()
            .max_capacity(LEAF_PARTS_BYTES_MAX)
            .weigher(|_, part: &Arc<Leaf>| part.weight_bytes())
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let kept = parts.clone();
        let leaves = moka::sync::Cache::builder()
            .max_capacity(LEAVES_BYTES_MAX)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |number: Arc<u32>, leaf: Arc<Leaf>, _| {
                let first = u64::from(*number) * (LEAF_BYTES / PART_BYTES);
                leaf.touched_parts().for_each(|(part, of)| kept.insert(first + u64::from(part), Arc::new(of)));
            })
            .build();
        let nodes = moka::sync::Cache::builder().max_capacity(NODES_MAX).eviction_policy(EvictionPolicy::lru()).build();
        Self(Arc::new(Inner { image, geometry, roots, tiers, counters, leaves, parts, nodes, hole: Arc::default() }))
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Whether the root, or an inner node that is here, says that a leaf is a hole.
    pub(super) fn is_hole(&self, leaf: u32) -> bool {
        let Inner { geometry, nodes, .. } = &*self.0;
        let below = |node: Arc<Roots>| child(&node, leaf % INNER_FANOUT).is_none();
        self.0.root_child(leaf).is_none()
            || (geometry.has_inner() && nodes.get(&(leaf / INNER_FANOUT)).is_some_and(below))
    }

    /// What to say of a leaf that gives a chunk another length than the chunk has.
    pub(super) fn wrong_length(&self) -> Error {
        let reason = "a chunk has not the length that it gives".to_owned();
        self.0.damaged(TreeError::Damaged { node: "content leaf", reason })
    }

    /// The leaf, if it is here or is a hole.
    pub(super) fn leaf_now(&self, number: u32) -> Option<Arc<Leaf>> {
        self.0.leaves.get(&number).or_else(|| self.is_hole(number).then(|| Arc::clone(&self.0.hole)))
    }

    /// What is to be walked between two offsets of a leaf, if that is here.
    pub(super) fn range_now(&self, at: u64, stop: u64) -> Option<Arc<Leaf>> {
        if let Some(leaf) = self.leaf_now((at / LEAF_BYTES) as u32) {
            return Some(leaf);
        }
        let part = at / PART_BYTES;
        (stop <= (part + 1) * PART_BYTES).then(|| self.0.parts.get(&part)).flatten()
    }

    /// The leaf, fetched if need be.
    pub(super) async fn leaf(&self, number: u32, why: Why) -> Result<Arc<Leaf>, Error> {
        if let Some(leaf) = self.leaf_now(number) {
            return Ok(leaf);
        }
        let Some(child) = self.0.leaf_child(number, why).await? else { return Ok(Arc::clone(&self.0.hole)) };
        let pair = self.0.pair(&child, why).await?;
        self.0.enter(number, &child, &pair)
    }

    /// The frames of a leaf: the nodes that lead to it, and its chunks; none of a hole.
    pub(super) async fn frames(&self, number: u32, why: Why) -> Result<Vec<Wanted>, Error> {
        let inner = &self.0;
        let Some(below_root) = inner.root_child(number) else { return Ok(Vec::new()) };
        let mut frames = wanted(&below_root).to_vec();
        if inner.geometry.has_inner() {
            let Some(child) = inner.leaf_child(number, why).await? else { return Ok(frames) };
            frames.extend(wanted(&child));
        }
        let leaf = match self.leaf_now(number) {
            Some(leaf) => leaf,
            // Whoever goes through all leaves must not push out those that others read.
            None => match inner.leaf_child(number, why).await? {
                Some(child) => Arc::new(inner.leaf(number, &inner.pair(&child, why).await?)?),
                None => return Ok(frames),
            },
        };
        frames.extend(leaf.chunks().map(Chunk::want));
        Ok(frames)
    }

    /// The leaf, if it is to be had without the origin: it is decoded, is a hole, or `is_here` says of each node on the way
    /// to it that a tier of this host has it.
    pub(super) async fn leaf_here(&self, number: u32, is_here: impl Fn(&Digest) -> bool + Send) -> Option<Arc<Leaf>> {
        if let Some(leaf) = self.leaf_now(number) {
            return Some(leaf);
        }
        let inner = &self.0;
        let pair_is_here = |child: &Child| is_here(&child.content) && is_here(&child.place.layout);
        let below_root = inner.root_child(number)?;
        let decoded = inner.geometry.has_inner() && inner.nodes.contains_key(&(number / INNER_FANOUT));
        if !decoded && !pair_is_here(&below_root) {
            return None;
        }
        let Some(child) = inner.leaf_child(number, Why::Background).await.ok()? else {
            return Some(Arc::clone(&inner.hole));
        };
        if !pair_is_here(&child) {
            return None;
        }
        let pair = inner.pair(&child, Why::Background).await.ok()?;
        inner.enter(number, &child, &pair).ok()
    }

    /// Fetches the whole index with one request if it is small and lies in one piece; returns at once.
    pub(super) fn warm(&self) {
        let inner = Arc::clone(&self.0);
        if inner.roots.is_small_index(inner.geometry) {
            tokio::spawn(async move {
                if let Err(error) = inner.fetch_all().await {
                    // Whoever needs a leaf tries again and then tells.
                    tracing::debug!(image = inner.image, %error, "index not fetched ahead");
                }
            });
        }
    }
}

impl Inner {
    fn damaged(&self, source: TreeError) -> Error {
        Error::Tree { image: self.image.clone(), source }
    }

    fn root_child(&self, leaf: u32) -> Option<Child> {
        child(&self.roots, leaf / self.geometry.leaves_per_root_child())
    }

    async fn leaf_child(&self, leaf: u32, why: Why) -> Result<Option<Child>, Error> {
        let Some(below_root) = self.root_child(leaf) else { return Ok(None) };
        if !self.geometry.has_inner() {
            return Ok(Some(below_root));
        }
        let number = leaf / INNER_FANOUT;
        let node = match self.nodes.get(&number) {
            Some(node) => node,
            None => {
                let pair = self.pair(&below_root, why).await?;
                let children_max = self.geometry.inner_children(number);
                let content = ContentInner::decode(&pair.content, children_max).map_err(|e| self.damaged(e))?;
                let layout = LayoutInner::decode(&pair.layout).map_err(|e| self.damaged(e))?;
                let (contents, layouts) = (content.children().len(), layout.children().len());
                if contents != layouts {
                    return Err(self.damaged(TreeError::Mismatch { content: contents, layout: layouts }));
                }
                let node = Arc::new(Roots { content, layout });
                self.nodes.insert(number, Arc::clone(&node));
                self.forget(&below_root);
                node
            }
        };
        Ok(child(&node, leaf % INNER_FANOUT))
    }

    /// A pair of nodes, if it is to be had without waiting: an order may have brought it, and the disk tier keeps what was
    /// pushed out of memory.
    fn pair_now(&self, child: &Child) -> Option<Pair> {
        let Tiers { memory, disk, .. } = &self.tiers;
        let node = |wanted: Wanted| {
            memory.get(&wanted.digest).or_else(|| {
                let disk = disk.as_ref().filter(|_| wanted.plain_len <= DISK_INLINE_BYTES_MAX)?;
                disk.read_now(&wanted.digest)
            })
        };
        let [content, layout] = wanted(child).map(node);
        Some(Pair { content: content?, layout: layout? })
    }

    /// A pair of nodes, which lie side by side: one request if it is not on this host.
    async fn pair(&self, child: &Child, why: Why) -> Result<Pair, Error> {
        if let (Why::Demand, Some(pair)) = (why, self.pair_now(child)) {
            return Ok(pair);
        }
        let mut arrivals = self.tiers.flights.fetch(wanted(child).into(), why);
        let mut nodes = [None, None];
        while let Some(arrival) = arrivals.next().await {
            let found = arrival.result?;
            self.counters.node(&found);
            if let Some(node) = nodes.get_mut(arrival.index) {
                *node = Some(found.plain);
            }
        }
        let [Some(content), Some(layout)] = nodes else { return Err(Error::Closing) };
        Ok(Pair { content, layout })
    }

    /// Forgets the plain bytes of a pair that is kept decoded.
    fn forget(&self, child: &Child) {
        self.tiers.memory.forget(&child.content);
        self.tiers.memory.forget(&child.place.layout);
    }

    fn leaf(&self, number: u32, pair: &Pair) -> Result<Leaf, Error> {
        let content = ContentLeaf::decode(&pair.content, self.geometry.leaf_blocks(number));
        let layout = LayoutLeaf::decode(&pair.layout);
        let chunks = content.and_then(|content| LeafChunk::join(&content, &layout?));
        chunks.and_then(|chunks| Leaf::new(&chunks)).map_err(|e| self.damaged(e))
    }

    /// Keeps a leaf that somebody reads, in this form alone.
    fn enter(&self, number: u32, child: &Child, pair: &Pair) -> Result<Arc<Leaf>, Error> {
        let leaf = Arc::new(self.leaf(number, pair)?);
        self.leaves.insert(number, Arc::clone(&leaf));
        self.forget(child);
        Ok(leaf)
    }

    async fn fetch_all(&self) -> Result<(), Error> {
        let numbers = self.roots.content.children().iter().map(|&(number, _)| number);
        let leaves: Vec<(u32, Child)> =
            numbers.filter_map(|number| Some((number, child(&self.roots, number)?))).collect();
        let frames = leaves.iter().flat_map(|(_, child)| wanted(child)).collect();
        let mut arrivals = self.tiers.flights.fetch(frames, Why::Demand);
        let mut halves: Vec<[Option<bytes::Bytes>; 2]> = vec![[None, None]; leaves.len()];
        while let Some(arrival) = arrivals.next().await {
            let found = arrival.result?;
            self.counters.node(&found);
            let place = arrival.index / 2;
            let (Some(pair), Some((number, child))) = (halves.get_mut(place), leaves.get(place)) else { continue };
            pair[arrival.index % 2] = Some(found.plain);
            if let [Some(content), Some(layout)] = pair {
                let whole = Pair { content: content.clone(), layout: layout.clone() };
                *pair = [None, None];
                self.enter(*number, child, &whole)?;
            }
        }
        Ok(())
    }
}

/// The child of this number, if it is no hole.
fn child(node: &Roots, number: u32) -> Option<Child> {
    let children = node.content.children();
    let position = children.binary_search_by_key(&number, |&(index, _)| index).ok()?;
    let place = node.layout.children().get(position)?.clone();
    Some(Child { content: children[position].1, place })
}

fn wanted(child: &Child) -> [Wanted; 2] {
    let place = &child.place;
    [
        Wanted { digest: child.content, plain_len: place.content_plain_len, place: place.content_place() },
        Wanted { digest: place.layout, plain_len: place.layout_plain_len, place: place.layout_place() },
    ]
}
