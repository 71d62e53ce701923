//! Which wanted frames one range request fetches together.

use std::ops::Range;

use vmnetx_format::Digest;

use crate::limits::{COALESCE_GAP_BYTES, RANGE_BYTES_MAX};
use crate::tier::Wanted;

/// One range request: frames of one pack, close to each other, in the order in which they lie there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RangeRequest {
    pub(crate) pack: Digest,
    /// Positions in the list of the wanted, by offset, none overlapping another.
    pub(crate) frames: Vec<usize>,
    pub(crate) bytes: Range<u64>,
}

/// Puts the frames at the positions `frames` of `wanted` together into range requests.
pub(crate) fn coalesce(wanted: &[Wanted], mut frames: Vec<usize>) -> Vec<RangeRequest> {
    frames.sort_by_key(|&index| (wanted[index].place.pack, wanted[index].place.offset));
    let mut requests: Vec<RangeRequest> = Vec::new();
    for index in frames {
        let place = &wanted[index].place;
        let end = place.offset.saturating_add(place.stored_len.into());
        match requests.last_mut() {
            // An honest layout never overlaps frames; one that does gets a request for each.
            Some(last)
                if last.pack == place.pack
                    && place.offset >= last.bytes.end
                    && place.offset - last.bytes.end <= COALESCE_GAP_BYTES
                    && end - last.bytes.start <= RANGE_BYTES_MAX =>
            {
                last.bytes.end = end;
                last.frames.push(index);
            }
            _ => requests.push(RangeRequest { pack: place.pack, frames: vec![index], bytes: place.offset..end }),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnetx_format::Place;

    use super::*;

    fn wanted(pack: u8, offset: u64, stored_len: u32) -> Wanted {
        let place = Place { pack: Digest::of(&[pack]), offset, stored_len };
        Wanted { digest: Digest::of(&offset.to_le_bytes()), plain_len: 4096, place }
    }

    fn ranges(list: &[Wanted]) -> Vec<Range<u64>> {
        coalesce(list, (0..list.len()).collect()).into_iter().map(|request| request.bytes).collect()
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one range is what is expected")]
    fn neighbours_share_a_request_and_strangers_do_not() {
        let near = COALESCE_GAP_BYTES;
        assert_eq!(ranges(&[wanted(1, 300, 50), wanted(1, 100, 200)]), [100..350]);
        assert_eq!(ranges(&[wanted(1, 0, 100), wanted(1, 100 + near, 5)]), [0..105 + near]);
        assert_eq!(ranges(&[wanted(1, 0, 100), wanted(1, 101 + near, 5)]).len(), 2);
        assert_eq!(ranges(&[wanted(1, 0, 100), wanted(2, 100, 5)]).len(), 2);
        assert_eq!(ranges(&[wanted(1, 0, 100), wanted(1, 50, 100)]).len(), 2);
        assert_eq!(ranges(&[wanted(1, u64::MAX - 3, 100)]).len(), 1);
    }

    proptest! {
        #[test]
        fn every_frame_is_fetched_once_in_order(
            parts in proptest::collection::vec((0_u8..3, 0_u64..20_000_000, 1_u32..200_000), 0..60),
        ) {
            let list: Vec<Wanted> = parts.into_iter().map(|(pack, offset, len)| wanted(pack, offset, len)).collect();
            let mut seen = vec![0; list.len()];
            for request in coalesce(&list, (0..list.len()).collect()) {
                prop_assert!(request.bytes.end - request.bytes.start <= RANGE_BYTES_MAX);
                let mut at = request.bytes.start;
                for index in request.frames {
                    let place = &list[index].place;
                    prop_assert!(place.pack == request.pack && place.offset >= at);
                    at = place.offset + u64::from(place.stored_len);
                    prop_assert!(at <= request.bytes.end);
                    seen[index] += 1;
                }
            }
            prop_assert!(seen.into_iter().all(|times| times == 1));
        }
    }
}
