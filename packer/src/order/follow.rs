//! Where the touches of one version are in another: what lies where it lay, what has moved, and what is gone.
//!
//! After an update in place a boot reads the same blocks, whatever they hold now. A file system that was made anew holds most
//! of the same files at other places: there a touch follows its chunk, which is known by its digest, to where the new version
//! has it. What is gone even there was changed, and its place is the best guess.

use std::collections::HashMap;

use vmnetx_format::limits::LEAF_BLOCKS;
use vmnetx_format::{Digest, LeafChunk, Touch};

use super::walk::Walk;
use crate::Error;
use crate::limits::ORDER_IN_PLACE_MIN;
use crate::local::{LocalImage, Packs};

/// Touches of another version.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) touches: Vec<Touch>,
    /// Blocks whose data was looked for, because most of what was touched is not in its place.
    pub(super) sought_blocks: u64,
    /// Blocks of them of whose data nothing is known in the new version.
    pub(super) gone_blocks: u64,
}

/// A part of a touch: of one chunk, or of what no chunk covers.
struct Part {
    touch: Touch,
    chunk: Option<Was>,
}

/// A chunk as it was.
#[derive(Clone, Copy)]
struct Was {
    first_block: u64,
    digest: Digest,
    stays: bool,
}

/// Follows `touches` of the images `from` to the images `to` of another version.
///
/// # Errors
/// [`Error::Damaged`] when an index cannot be read.
pub(super) fn follow(
    packs: &Packs,
    from: &[LocalImage],
    to: &[LocalImage],
    touches: &[Touch],
) -> Result<Followed, Error> {
    let same = |image: &LocalImage| to.iter().position(|other| other.name == image.name);
    let positions: Vec<Option<usize>> = from.iter().map(same).collect();
    let parts = parts(packs, from, to, &positions, touches)?;
    let blocks = |which: fn(&Was) -> bool| -> u64 {
        let of = |part: &&Part| part.chunk.as_ref().is_some_and(which);
        parts.iter().filter(of).map(|part| u64::from(part.touch.blocks)).sum()
    };
    let (stays, all) = (blocks(|was| was.stays), blocks(|_| true));
    let mut sought: HashMap<Digest, Option<(u32, u64)>> = HashMap::new();
    if (stays as f64) < ORDER_IN_PLACE_MIN * all as f64 {
        let chunks = parts.iter().filter_map(|part| part.chunk).filter(|was| !was.stays);
        sought.extend(chunks.map(|was| (was.digest, None)));
        find(packs, from, to, &mut sought)?;
    }
    let mut followed = Followed::default();
    for Part { touch, chunk } in parts {
        let was = chunk.filter(|was| !was.stays && sought.contains_key(&was.digest));
        let place = was.and_then(|was| Some((was, sought.get(&was.digest).copied()??)));
        if was.is_some() {
            followed.sought_blocks += u64::from(touch.blocks);
        }
        if let Some((was, (image, first_block))) = place {
            let first_block = first_block + touch.first_block.saturating_sub(was.first_block);
            followed.push(Touch { image, first_block, ..touch });
            continue;
        }
        if was.is_some() {
            followed.gone_blocks += u64::from(touch.blocks);
        }
        if let Some(image) = positions.get(touch.image as usize).copied().flatten() {
            followed.push(Touch { image: image as u32, ..touch });
        }
    }
    Ok(followed)
}

impl Followed {
    /// Takes the next touch, which may go on where the last one ended.
    fn push(&mut self, touch: Touch) {
        if let Some(last) = self.touches.last_mut()
            && (last.image, last.end(), last.after_ms) == (touch.image, touch.first_block, touch.after_ms)
            && let Some(blocks) = last.blocks.checked_add(touch.blocks)
        {
            last.blocks = blocks;
            return;
        }
        self.touches.push(touch);
    }
}

/// The touches cut where chunks begin and end.
fn parts(
    packs: &Packs,
    from: &[LocalImage],
    to: &[LocalImage],
    positions: &[Option<usize>],
    touches: &[Touch],
) -> Result<Vec<Part>, Error> {
    let (mut old, mut new) = (Walk::new(packs, from), Walk::new(packs, to));
    let mut parts = Vec::new();
    for touch in touches.iter().flat_map(|touch| old.first_touched(touch)).collect::<Vec<_>>() {
        let image = touch.image as usize;
        let part = |start: u64, end: u64| Touch { first_block: start, blocks: (end - start) as u32, ..touch };
        let mut at = touch.first_block;
        for (first_block, chunk) in old.chunks(image, &(touch.first_block..touch.end()))? {
            let end = first_block + u64::from(chunk.blocks);
            let (meets, leaves) = (first_block.max(at), end.min(touch.end()));
            if at < meets {
                parts.push(Part { touch: part(at, meets), chunk: None });
            }
            let is_it = |(first, other): &(u64, LeafChunk)| *first == first_block && other.digest == chunk.digest;
            let stays = match positions.get(image).copied().flatten() {
                Some(position) => new.chunks(position, &(first_block..end))?.iter().any(is_it),
                None => false,
            };
            let was = Was { first_block, digest: chunk.digest, stays };
            parts.push(Part { touch: part(meets, leaves), chunk: Some(was) });
            at = leaves;
        }
        if at < touch.end() {
            parts.push(Part { touch: part(at, touch.end()), chunk: None });
        }
    }
    Ok(parts)
}

/// Looks for chunks in all leaves that are not the same in both versions.
fn find(
    packs: &Packs,
    from: &[LocalImage],
    to: &[LocalImage],
    sought: &mut HashMap<Digest, Option<(u32, u64)>>,
) -> Result<(), Error> {
    for (number, image) in (0..).zip(to) {
        let old = from.iter().find(|other| other.name == image.name);
        let old: HashMap<u32, Digest> = old
            .map(|old| packs.all_leaves(old).nodes.into_iter().map(|node| (node.leaf, node.content)).collect())
            .unwrap_or_default();
        for child in image.children() {
            let lost = |(leaves, damage)| image.lost_leaves(leaves, damage);
            for leaf in packs.leaves(image.geometry, child).map_err(lost)? {
                if old.get(&leaf.leaf) == Some(&leaf.content) {
                    continue;
                }
                let start = u64::from(leaf.leaf) * u64::from(LEAF_BLOCKS);
                for chunk in packs.chunks(image.geometry, &leaf).map_err(|damage| image.lost(&leaf, damage))? {
                    if let Some(place) = sought.get_mut(&chunk.digest) {
                        place.get_or_insert((number, start + u64::from(chunk.first_block)));
                    }
                }
            }
        }
    }
    Ok(())
}
