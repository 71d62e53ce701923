//! Puts the index of images together: leaves as their chunks find their places, inner nodes and roots at the end.
//!
//! A layout node names the packs of what lies below it, so it can be written only when those are finished. That is why
//! leaves and inner nodes lie in different packs, and why an image's roots are made last of all.

use vmnetx_format::limits::{INNER_FANOUT, SMALL_INDEX_BYTES_MAX};
use vmnetx_format::{Compressor, ContentInner, Digest, Geometry, Kind, LayoutInner, NodePlace, Roots};

use super::pack_writer::{PackTable, PackWriter};
use crate::Error;
use crate::catalogue::{Known, Stored};
use crate::local::LeafNode;

/// A pair of nodes as it is stored.
pub(super) struct Pair {
    number: u32,
    content: Frame,
    layout: Frame,
}

struct Frame {
    digest: Digest,
    plain_len: u32,
    stored: Vec<u8>,
}

/// Where a pair of nodes is: stored before, or in a pack of this build.
enum Placed {
    Known(NodePlace),
    New { content: Stored, content_plain_len: u32, layout_stored_len: u32, layout_plain_len: u32, layout: Digest },
}

/// The nodes of one level of an image's trees, in order.
#[derive(Default)]
pub(super) struct Level {
    /// Nodes that are held back, as long as all of them together are small.
    held: Vec<Pair>,
    held_bytes: u64,
    /// Whether there were too many to be held back.
    is_large: bool,
    /// Number and content digest of each node that has its place, and the place.
    placed: Vec<(u32, Digest, Placed)>,
}

impl Pair {
    pub(super) fn new(compressor: &mut Compressor, number: u32, content: &[u8], layout: &[u8]) -> Result<Self, Error> {
        let mut frame = |plain: &[u8]| {
            let stored = compressor.encode(plain).map_err(Error::Compress)?;
            Ok::<_, Error>(Frame { digest: Digest::of(plain), plain_len: plain.len() as u32, stored })
        };
        Ok(Self { number, content: frame(content)?, layout: frame(layout)? })
    }

    /// A pair that is stored already, as it is stored.
    pub(super) fn stored(node: &LeafNode, (content, layout): (Vec<u8>, Vec<u8>)) -> Self {
        let LeafNode { leaf, content: digest, place } = node;
        let content = Frame { digest: *digest, plain_len: place.content_plain_len, stored: content };
        let layout = Frame { digest: place.layout, plain_len: place.layout_plain_len, stored: layout };
        Self { number: *leaf, content, layout }
    }

    fn stored_bytes(&self) -> u64 {
        (self.content.stored.len() + self.layout.stored.len()) as u64
    }

    fn known<'a>(&self, known: &'a Known) -> &'a [NodePlace] {
        known.nodes.get(&(self.content.digest, self.layout.digest)).map_or(&[], Vec::as_slice)
    }
}

impl Level {
    /// Takes the next node.
    pub(super) fn push(
        &mut self,
        pair: Pair,
        known: &Known,
        table: &mut PackTable,
        out: &mut PackWriter<'_>,
    ) -> Result<(), Error> {
        self.held_bytes += pair.stored_bytes();
        self.held.push(pair);
        if self.is_large || self.held_bytes > SMALL_INDEX_BYTES_MAX {
            self.is_large = true;
            for pair in std::mem::take(&mut self.held) {
                self.place_alone(pair, known, table, out)?;
            }
        }
        Ok(())
    }

    /// Whether its nodes no longer lie in one piece.
    pub(super) const fn is_large(&self) -> bool {
        self.is_large
    }

    /// Takes the next node, which a large level leaves where it is stored.
    pub(super) fn keep(&mut self, node: LeafNode) {
        self.placed.push((node.leaf, node.content, Placed::Known(node.place)));
    }

    /// Says that there are no more nodes: a small level is now written in one piece, so that a reader fetches it with one
    /// request, unless the repository has it in one piece already.
    pub(super) fn end(&mut self, known: &Known, table: &mut PackTable, out: &mut PackWriter<'_>) -> Result<(), Error> {
        let held = std::mem::take(&mut self.held);
        if let Some(places) = in_one_piece(&held, known) {
            let known =
                held.iter().zip(places).map(|(pair, place)| (pair.number, pair.content.digest, Placed::Known(place)));
            self.placed.extend(known);
            return Ok(());
        }
        out.keep_together(table, self.held_bytes)?;
        for pair in &held {
            self.write(pair, table, out)?;
        }
        Ok(())
    }

    /// The parents of the nodes, each of `children` children's numbers, once the packs of the nodes are finished.
    pub(super) fn parents(&self, children: u32, table: &PackTable) -> Result<Vec<(u32, Roots)>, Error> {
        let mut parents: Vec<(u32, ContentInner, Vec<NodePlace>)> = Vec::new();
        for (number, digest, placed) in &self.placed {
            let parent = number / children;
            if parents.last().is_none_or(|(last, ..)| *last != parent) {
                parents.push((parent, ContentInner::default(), Vec::new()));
            }
            if let Some((_, content, places)) = parents.last_mut() {
                content.push(number % children, *digest)?;
                places.push(placed.resolve(table)?);
            }
        }
        let roots = |(number, content, places)| (number, Roots { content, layout: LayoutInner::new(places) });
        Ok(parents.into_iter().map(roots).collect())
    }

    fn place_alone(
        &mut self,
        pair: Pair,
        known: &Known,
        table: &mut PackTable,
        out: &mut PackWriter<'_>,
    ) -> Result<(), Error> {
        if let Some(place) = pair.known(known).first() {
            self.placed.push((pair.number, pair.content.digest, Placed::Known(place.clone())));
            return Ok(());
        }
        out.keep_together(table, pair.stored_bytes())?;
        self.write(&pair, table, out)
    }

    fn write(&mut self, pair: &Pair, table: &mut PackTable, out: &mut PackWriter<'_>) -> Result<(), Error> {
        let Pair { number, content, layout } = pair;
        let stored = out.append(table, Kind::Content, content.digest, content.plain_len, &content.stored)?;
        let beside = out.append(table, Kind::Layout, layout.digest, layout.plain_len, &layout.stored)?;
        let placed = Placed::New {
            content: stored,
            content_plain_len: content.plain_len,
            layout_stored_len: beside.stored_len,
            layout_plain_len: layout.plain_len,
            layout: layout.digest,
        };
        self.placed.push((*number, content.digest, placed));
        Ok(())
    }
}

impl Placed {
    fn resolve(&self, table: &PackTable) -> Result<NodePlace, Error> {
        Ok(match self {
            Self::Known(place) => place.clone(),
            &Self::New { content, content_plain_len, layout_stored_len, layout_plain_len, layout } => NodePlace {
                pack: table.digest(content.pack).ok_or(Error::Stopped)?,
                offset: content.offset.into(),
                content_stored_len: content.stored_len,
                content_plain_len,
                layout_stored_len,
                layout_plain_len,
                layout,
            },
        })
    }
}

/// Builds what stands above the leaves of an image, inner nodes through `out`; gives the level of the root's children.
pub(super) fn inner_level(
    leaves: &Level,
    compressor: &mut Compressor,
    known: &Known,
    table: &mut PackTable,
    out: &mut PackWriter<'_>,
) -> Result<Level, Error> {
    let mut level = Level::default();
    for (number, node) in leaves.parents(INNER_FANOUT, table)? {
        let pair = Pair::new(compressor, number, &node.content.encode(), &node.layout.encode())?;
        level.push(pair, known, table, out)?;
    }
    level.end(known, table, out)?;
    Ok(level)
}

/// The roots of an image whose root's children are `level`.
pub(super) fn roots(level: &Level, geometry: Geometry, table: &PackTable) -> Result<Roots, Error> {
    let mut parents = level.parents(geometry.root_children().max(1), table)?;
    let empty = || Roots { content: ContentInner::default(), layout: LayoutInner::default() };
    Ok(parents.pop().map_or_else(empty, |(_, roots)| roots))
}

/// Where the repository has these nodes side by side and in this order, if it does.
fn in_one_piece(pairs: &[Pair], known: &Known) -> Option<Vec<NodePlace>> {
    let first = pairs.first()?;
    first.known(known).iter().find_map(|start| {
        let mut next = start.offset;
        let places = pairs.iter().map(|pair| {
            let place = pair.known(known).iter().find(|place| place.pack == start.pack && place.offset == next)?;
            next += pair.stored_bytes();
            Some(place.clone())
        });
        places.collect()
    })
}
