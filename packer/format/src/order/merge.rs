//! Several records become one sequence: every block once, at the median of its ranks.
//!
//! A block's rank in a run is how many blocks the run had touched before it. Ranks are compared and not times, because a
//! slow host or line stretches a run's times but not its sequence; the median is taken and not the mean, because one run
//! in which a file system was checked or a service came late must not move what the others agree on.
//!
//! Of three or more runs, blocks that less than half of them touched come last. They are not left out: replaying them
//! takes the line when everything surer is there, while leaving them out costs a round trip in each run that needs them.

use std::collections::BTreeMap;

use super::{Covered, Record, RecordTouch};
use crate::limits::{ORDER_TOUCHES_MAX, RECORDS_MAX};

/// Why records cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// None or too many.
    #[error("{0} records cannot be merged: 1 to {RECORDS_MAX} can")]
    Records(usize),
    /// A boot and a resume.
    #[error("records of a boot and of a resume cannot be merged: they become orders of their own")]
    Purposes,
    /// The runs have so little in common that the sequence is too long.
    #[error("the records make a sequence of {0} touches, more than {ORDER_TOUCHES_MAX}: merge fewer of them")]
    Touches(usize),
}

/// What a run touched for the first time, in one piece.
struct Piece {
    start: u64,
    end: u64,
    run: usize,
    /// Of its first block; the next has the next.
    rank: u64,
    after_ms: u32,
}

/// Blocks that the same runs touched, each in one piece.
struct Segment<'a> {
    rare: bool,
    /// Twice the median of the ranks, which may lie between two of them.
    rank_doubled: u64,
    image: &'a str,
    start: u64,
    end: u64,
    after_ms: u32,
}

/// The one sequence of `records`, which are all of a boot or all of a resume. A single record keeps its sequence and loses
/// what it touched before.
///
/// # Errors
/// [`MergeError`] when there are none or too many, of several purposes, or with too many touches in all.
pub fn merge(records: &[Record]) -> Result<Vec<RecordTouch>, MergeError> {
    if !(1..=RECORDS_MAX).contains(&records.len()) {
        return Err(MergeError::Records(records.len()));
    }
    if records.windows(2).any(|pair| pair[0].purpose != pair[1].purpose) {
        return Err(MergeError::Purposes);
    }
    let mut images: BTreeMap<&str, Vec<Piece>> = BTreeMap::new();
    for (run, record) in records.iter().enumerate() {
        collect_pieces(run, record, &mut images);
    }
    let mut segments = Vec::new();
    for (image, pieces) in images {
        collect_segments(image, pieces, records.len(), &mut segments);
    }
    segments.sort_by_key(|segment| (segment.rare, segment.rank_doubled, segment.image, segment.start));
    let touches = join(&segments);
    if touches.len() > ORDER_TOUCHES_MAX as usize { Err(MergeError::Touches(touches.len())) } else { Ok(touches) }
}

fn collect_pieces<'a>(run: usize, record: &'a Record, images: &mut BTreeMap<&'a str, Vec<Piece>>) {
    let mut covered: BTreeMap<&str, Covered> = BTreeMap::new();
    let mut rank = 0;
    for touch in &record.touches {
        let new = covered.entry(&touch.image).or_default().insert(touch.first_block..touch.end());
        let pieces = images.entry(&touch.image).or_default();
        for range in new {
            let length = range.end - range.start;
            pieces.push(Piece { start: range.start, end: range.end, run, rank, after_ms: touch.after_ms });
            rank += length;
        }
    }
}

/// Walks along an image: between two ends of pieces nothing begins or ends.
fn collect_segments<'a>(image: &'a str, mut pieces: Vec<Piece>, runs: usize, segments: &mut Vec<Segment<'a>>) {
    pieces.sort_unstable_by_key(|piece| piece.start);
    let mut ends: Vec<u64> = pieces.iter().flat_map(|piece| [piece.start, piece.end]).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut upcoming = pieces.iter().peekable();
    // A run's pieces do not overlap: it is in one of them at most.
    let mut within: Vec<Option<&Piece>> = vec![None; runs];
    for pair in ends.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        for piece in &mut within {
            *piece = piece.filter(|piece| piece.end > start);
        }
        while let Some(piece) = upcoming.next_if(|piece| piece.start <= start) {
            within[piece.run] = Some(piece);
        }
        let here: Vec<&Piece> = within.iter().flatten().copied().collect();
        if here.is_empty() {
            continue;
        }
        let rank = |piece: &&Piece| piece.rank + (start - piece.start);
        segments.push(Segment {
            rare: runs >= 3 && here.len() * 2 < runs,
            rank_doubled: median_doubled(here.iter().map(rank).collect()),
            image,
            start,
            end,
            after_ms: (median_doubled(here.iter().map(|piece| piece.after_ms.into()).collect()) / 2) as u32,
        });
    }
}

/// Twice the middle of `values`, of which there is one at least.
fn median_doubled(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let middle = |position: usize| values.get(position).copied().unwrap_or(0);
    middle(values.len() / 2) + middle((values.len().max(1) - 1) / 2)
}

/// The segments as touches: joined again where one goes on behind the other, at times that never go back.
fn join(segments: &[Segment<'_>]) -> Vec<RecordTouch> {
    let mut touches: Vec<RecordTouch> = Vec::new();
    for segment in segments {
        let blocks = segment.end - segment.start;
        let after_ms = segment.after_ms.max(touches.last().map_or(0, |last| last.after_ms));
        if let Some(last) = touches.last_mut()
            && last.image == segment.image
            && last.end() == segment.start
            && last.after_ms == after_ms
            && let Ok(blocks) = u32::try_from(u64::from(last.blocks) + blocks)
        {
            last.blocks = blocks;
            continue;
        }
        // A segment is a part of a touch, and so no longer.
        touches.push(RecordTouch {
            after_ms,
            image: segment.image.to_owned(),
            first_block: segment.start,
            blocks: blocks as u32,
        });
    }
    touches
}
