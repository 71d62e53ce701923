//! Which frames of an earlier order serve a new one where they lie.
//!
//! An update changes some of the chunks that a boot touches. To write all of them again would cost every mirror and every
//! cache the whole order; to use old frames whatever their sequence would cost every reader many ranges. So frames are used
//! again only as far as both orders have them in the same sequence, only if they are most of the order, and only if the
//! order does not end up in too many packs.

use std::collections::{HashMap, HashSet};

use vmnetx_format::limits::PACK_BYTES_TARGET;
use vmnetx_format::{Digest, Entry, Kind, Order, OrderFrame, Place, pack_path};
use vmnetx_store::dir::RepositoryDir;

use super::plan::Planned;
use crate::Error;
use crate::limits::{ORDER_MORE_PACKS_MAX, ORDER_REUSED_MIN};

/// Where an earlier order has each of `frames`; nothing for those that have to be written.
pub(super) fn reuse(
    repository: &RepositoryDir,
    frames: &[Planned],
    earlier: Option<&Order>,
    without: &HashSet<Digest>,
) -> Result<Vec<Option<Place>>, Error> {
    let none = vec![None; frames.len()];
    let Some(earlier) = earlier else { return Ok(none) };
    let good = Good::read(repository, earlier, without)?;
    let at: HashMap<Digest, usize> =
        earlier.frames().iter().enumerate().map(|(at, frame)| (frame.digest, at)).collect();
    let found: Vec<(usize, usize)> = frames
        .iter()
        .enumerate()
        .filter_map(|(number, frame)| Some((number, *at.get(&frame.digest)?)))
        .filter(|&(number, at)| good.has(&earlier.frames()[at], frames[number].plain_len))
        .collect();
    let mut places = none.clone();
    for (number, at) in in_sequence(&found) {
        places[number] = Some(earlier.frames()[at].place.clone());
    }
    Ok(if is_worth_it(frames, &places) { places } else { none })
}

fn is_worth_it(frames: &[Planned], places: &[Option<Place>]) -> bool {
    let bytes = |frame: &Planned| u64::from(frame.plain_len);
    let all: u64 = frames.iter().map(bytes).sum();
    let reused: u64 =
        frames.iter().zip(places).filter(|(_, place)| place.is_some()).map(|(frame, _)| bytes(frame)).sum();
    let packs: HashSet<&Digest> = places.iter().flatten().map(|place| &place.pack).collect();
    let new_pack = usize::from(places.iter().any(Option::is_none));
    let stored: u64 = frames.iter().map(|frame| u64::from(frame.place.stored_len)).sum();
    let packs_max = stored.div_ceil(PACK_BYTES_TARGET) + ORDER_MORE_PACKS_MAX;
    reused as f64 >= ORDER_REUSED_MIN * all as f64 && (packs.len() + new_pack) as u64 <= packs_max
}

/// The most of `found` whose second numbers rise: a longest increasing subsequence, by patience sorting.
fn in_sequence(found: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // The last card of each pile, and under each card the last card of the pile before when it was laid.
    let mut piles: Vec<usize> = Vec::new();
    let mut under: Vec<Option<usize>> = Vec::with_capacity(found.len());
    for (card, &(_, at)) in found.iter().enumerate() {
        let pile = piles.partition_point(|&top| found[top].1 < at);
        under.push(pile.checked_sub(1).and_then(|before| piles.get(before).copied()));
        match piles.get_mut(pile) {
            Some(top) => *top = card,
            None => piles.push(card),
        }
    }
    let mut sequence: Vec<(usize, usize)> =
        std::iter::successors(piles.last().copied(), |&card| under[card]).map(|card| found[card]).collect();
    sequence.reverse();
    sequence
}

/// The packs of an order that hold copies which a new order may count on.
struct Good(HashMap<Digest, HashMap<u64, Entry>>);

impl Good {
    /// Leaves out packs that are damaged or may be removed soon.
    fn read(repository: &RepositoryDir, order: &Order, without: &HashSet<Digest>) -> Result<Self, Error> {
        let tombstones = repository.tombstones()?;
        let packs: HashSet<&Digest> = order.frames().iter().map(|frame| &frame.place.pack).collect();
        let stays = |pack: &&&Digest| !without.contains(**pack) && tombstones.since_unix_s(&pack_path(pack)).is_none();
        let entries = |pack: &Digest| {
            let catalogue = repository.pack(pack).and_then(|file| file.catalogue()).ok()?;
            let copies = catalogue.entries().filter(|(_, entry)| entry.kind == Kind::Copy);
            Some((*pack, copies.map(|(offset, entry)| (offset, *entry)).collect()))
        };
        Ok(Self(packs.iter().filter(stays).filter_map(|pack| entries(pack)).collect()))
    }

    fn has(&self, frame: &OrderFrame, plain_len: u32) -> bool {
        let OrderFrame { digest, place, .. } = frame;
        let expected = Entry { kind: Kind::Copy, digest: *digest, plain_len, stored_len: place.stored_len };
        self.0.get(&place.pack).and_then(|entries| entries.get(&place.offset)) == Some(&expected)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(at: &[usize]) -> Vec<usize> {
        let found: Vec<(usize, usize)> = at.iter().copied().enumerate().collect();
        in_sequence(&found).into_iter().map(|(_, at)| at).collect()
    }

    #[test]
    fn the_longest_rising_part_is_found() {
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[9, 0, 1, 2]), [0, 1, 2]);
        assert_eq!(of(&[0, 1, 7, 2, 3, 8]), [0, 1, 2, 3, 8]);
        assert_eq!(of(&[3, 2, 1]).len(), 1);
    }

    proptest! {
        #[test]
        fn none_is_longer(at in proptest::collection::vec(0_usize..12, 0..10)) {
            let rises = |part: &[usize]| part.windows(2).all(|pair| pair[0] < pair[1]);
            let parts = (0..1_u32 << at.len()).map(|taken| {
                (0..at.len()).filter(|index| taken >> index & 1 == 1).map(|index| at[index]).collect::<Vec<_>>()
            });
            let longest = parts.filter(|part| rises(part)).map(|part| part.len()).max().unwrap_or(0);
            let found = of(&at);
            prop_assert!(rises(&found));
            prop_assert_eq!(found.len(), longest);
        }
    }
}
