//! Which frames the touches of an order need, in which sequence, and where they are stored now.

use std::collections::{HashMap, HashSet};

use vmnetx_format::limits::{LEAF_BLOCKS, ORDER_FRAMES_MAX};
use vmnetx_format::{Digest, LeafChunk, Place, Touch};

use crate::local::{LeafNode, LocalImage, Packs};
use crate::{Damage, Error};

/// A frame that an order names.
#[derive(Debug, Clone)]
pub(super) struct Needed {
    pub(super) digest: Digest,
    pub(super) plain_len: u32,
    /// Where the layout has it.
    pub(super) place: Place,
}

/// The frames that `touches` need: index nodes first, each frame once.
pub(super) fn needed(packs: &Packs, images: &[LocalImage], touches: &[Touch]) -> Result<Vec<Needed>, Error> {
    let mut finder =
        Finder { packs, images: images.iter().map(Known::new).collect(), seen: HashSet::new(), nodes: Vec::new() };
    let mut chunks = Vec::new();
    for touch in touches {
        finder.touch(touch, &mut chunks)?;
    }
    let mut needed = finder.nodes;
    needed.append(&mut chunks);
    // The last ones are the least wanted.
    needed.truncate(ORDER_FRAMES_MAX as usize);
    Ok(needed)
}

struct Finder<'a> {
    packs: &'a Packs,
    images: Vec<Known<'a>>,
    seen: HashSet<Digest>,
    nodes: Vec<Needed>,
}

/// An image, and what of its index was looked at.
struct Known<'a> {
    image: &'a LocalImage,
    /// Whether readers look its leaves up one by one, so that the order brings them.
    by_leaf: bool,
    /// The children of the root.
    children: Vec<LeafNode>,
    /// The leaves below a child of the root, by its number.
    leaves: HashMap<u32, Vec<LeafNode>>,
    chunks: HashMap<u32, Vec<LeafChunk>>,
}

impl<'a> Known<'a> {
    fn new(image: &'a LocalImage) -> Self {
        let by_leaf = !image.roots.is_small_index(image.geometry);
        let children = image.children();
        Self { image, by_leaf, children, leaves: HashMap::new(), chunks: HashMap::new() }
    }
}

impl Finder<'_> {
    /// Adds the chunks that a touch needs for the first time.
    fn touch(&mut self, touch: &Touch, chunks: &mut Vec<Needed>) -> Result<(), Error> {
        let Some(known) = self.images.get(touch.image as usize) else { return Ok(()) };
        let end = (touch.first_block + u64::from(touch.blocks)).min(known.image.geometry.blocks());
        let span = u64::from(LEAF_BLOCKS);
        let mut at = touch.first_block;
        while at < end {
            let leaf = at / span;
            let stop = end.min((leaf + 1) * span);
            let (first, last) = ((at % span) as u32, ((stop - 1) % span) as u32);
            // The geometry bounds the number of leaves.
            for chunk in self.leaf(touch.image as usize, leaf as u32)? {
                let touched = chunk.first_block <= last && chunk.first_block + chunk.blocks > first;
                if touched && self.seen.insert(chunk.digest) {
                    let plain_len = chunk.plain_len();
                    chunks.push(Needed { digest: chunk.digest, plain_len, place: chunk.place });
                }
            }
            at = stop;
        }
        Ok(())
    }

    /// The chunks of a leaf; the first time its nodes are added to what is needed.
    fn leaf(&mut self, image: usize, number: u32) -> Result<Vec<LeafChunk>, Error> {
        let Some(known) = self.images.get_mut(image) else { return Ok(Vec::new()) };
        if let Some(chunks) = known.chunks.get(&number) {
            return Ok(chunks.clone());
        }
        let geometry = known.image.geometry;
        let below_root = number / geometry.leaves_per_root_child();
        let Ok(position) = known.children.binary_search_by_key(&below_root, |child| child.leaf) else {
            return Ok(Vec::new());
        };
        let child = known.children[position].clone();
        let leaves = match known.leaves.get(&below_root) {
            Some(leaves) => leaves,
            None => {
                let found = self.packs.leaves(geometry, child.clone());
                let found = found.map_err(|(_, damage)| known.image.lost(&child, damage))?;
                if known.by_leaf && geometry.has_inner() {
                    add_pair(&child, &mut self.seen, &mut self.nodes);
                }
                known.leaves.entry(below_root).or_insert(found)
            }
        };
        let Ok(position) = leaves.binary_search_by_key(&number, |leaf| leaf.leaf) else { return Ok(Vec::new()) };
        let node = &leaves[position];
        if known.by_leaf {
            add_pair(node, &mut self.seen, &mut self.nodes);
        }
        let lost = |damage: Damage| known.image.lost(node, damage);
        let chunks = self.packs.chunks(geometry, node).map_err(lost)?;
        Ok(known.chunks.entry(number).or_insert(chunks).clone())
    }
}

fn add_pair(node: &LeafNode, seen: &mut HashSet<Digest>, nodes: &mut Vec<Needed>) {
    let place = &node.place;
    let content = Needed { digest: node.content, plain_len: place.content_plain_len, place: place.content_place() };
    let layout = Needed { digest: place.layout, plain_len: place.layout_plain_len, place: place.layout_place() };
    nodes.extend([content, layout].into_iter().filter(|needed| seen.insert(needed.digest)));
}
