//! The index of an image: leaves are fetched when they are touched and kept decoded.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use vmnetx_format::limits::INNER_FANOUT;
use vmnetx_format::{
    ContentInner, ContentLeaf, Digest, Geometry, LayoutInner, LayoutLeaf, LeafChunk, NodePlace, Roots, TreeError,
};

use crate::limits::LEAVES_BYTES_MAX;
use crate::tier::{Tier, Wanted, Why};
use crate::{Counters, Error};

/// A decoded pair of leaves.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    chunks: Box<[LeafChunk]>,
}

/// Looks up leaves.
#[derive(Debug)]
pub(super) struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    image: String,
    geometry: Geometry,
    roots: Roots,
    tiers: Arc<dyn Tier>,
    counters: Arc<Counters>,
    leaves: moka::sync::Cache<u32, Arc<Leaf>>,
    nodes: moka::sync::Cache<u32, Arc<Roots>>,
    hole: Arc<Leaf>,
}

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

impl Leaf {
    pub(super) const fn chunks(&self) -> &[LeafChunk] {
        &self.chunks
    }
}

impl Index {
    pub(super) fn new(
        image: String,
        geometry: Geometry,
        roots: Roots,
        tiers: Arc<dyn Tier>,
        counters: Arc<Counters>,
    ) -> Self {
        /// Inner nodes that are kept: 128 GiB of image.
        const NODES_MAX: u64 = 16;
        let weigh = |_: &u32, leaf: &Arc<Leaf>| (size_of_val(leaf.chunks()) + 64) as u32;
        let leaves = moka::sync::Cache::builder()
            .max_capacity(LEAVES_BYTES_MAX)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let nodes = moka::sync::Cache::builder().max_capacity(NODES_MAX).eviction_policy(EvictionPolicy::lru()).build();
        Self(Arc::new(Inner { image, geometry, roots, tiers, counters, leaves, nodes, hole: Arc::default() }))
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

    /// The leaf, fetched if need be.
    pub(super) async fn leaf(&self, number: u32, why: Why) -> Result<Arc<Leaf>, Error> {
        if let Some(leaf) = self.leaf_now(number) {
            return Ok(leaf);
        }
        let Some(child) = self.0.leaf_child(number, why).await? else { return Ok(Arc::clone(&self.0.hole)) };
        let pair = self.0.pair(&child, why).await?;
        self.0.enter(number, &pair)
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
        frames.extend(self.leaf(number, why).await?.chunks().iter().map(super::want));
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
        inner.enter(number, &pair).ok()
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
                node
            }
        };
        Ok(child(&node, leaf % INNER_FANOUT))
    }

    /// Fetches a pair of nodes, which lie side by side: one request.
    async fn pair(&self, child: &Child, why: Why) -> Result<Pair, Error> {
        let mut arrivals = self.tiers.fetch(wanted(child).into(), why);
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

    fn enter(&self, number: u32, pair: &Pair) -> Result<Arc<Leaf>, Error> {
        let content = ContentLeaf::decode(&pair.content, self.geometry.leaf_blocks(number));
        let layout = LayoutLeaf::decode(&pair.layout);
        let chunks = content.and_then(|content| LeafChunk::join(&content, &layout?)).map_err(|e| self.damaged(e))?;
        let leaf = Arc::new(Leaf { chunks: chunks.into() });
        self.leaves.insert(number, Arc::clone(&leaf));
        Ok(leaf)
    }

    async fn fetch_all(&self) -> Result<(), Error> {
        let numbers: Vec<u32> = self.roots.content.children().iter().map(|&(number, _)| number).collect();
        let frames = numbers.iter().filter_map(|&number| child(&self.roots, number)).flat_map(|child| wanted(&child));
        let mut arrivals = self.tiers.fetch(frames.collect(), Why::Demand);
        let mut halves: Vec<[Option<bytes::Bytes>; 2]> = vec![[None, None]; numbers.len()];
        while let Some(arrival) = arrivals.next().await {
            let found = arrival.result?;
            self.counters.node(&found);
            let (Some(pair), Some(&number)) = (halves.get_mut(arrival.index / 2), numbers.get(arrival.index / 2))
            else {
                continue;
            };
            pair[arrival.index % 2] = Some(found.plain);
            if let [Some(content), Some(layout)] = pair {
                let whole = Pair { content: content.clone(), layout: layout.clone() };
                *pair = [None, None];
                self.enter(number, &whole)?;
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
