//! Plain read-ahead: a reader that goes on where it was is given a window that doubles.

use std::collections::VecDeque;
use std::ops::Range;

use crate::limits::{READ_AHEAD_BYTES_MAX, READ_AHEAD_BYTES_MIN, STREAMS_MAX};

/// How far a read may start behind or before the end of a stream and still go on with it: guests skip what they have
/// cached, and file systems leave small gaps.
const NEAR_BYTES: u64 = 256 << 10;

/// Follows the sequential streams of one image.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Latest used last.
    streams: VecDeque<Stream>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Where its last read ended.
    end: u64,
    /// Up to where it was fetched ahead.
    fetched: u64,
    window: u64,
}

impl ReadAhead {
    /// Takes note of a read from `at` to `stop` and says which range behind it is worth fetching along. Nothing, unless
    /// the read `missed` chunks: hits do not cause requests of their own.
    pub(super) fn window(&mut self, at: u64, stop: u64, missed: bool) -> Range<u64> {
        let near =
            |stream: &Stream| at.abs_diff(stream.end) <= NEAR_BYTES || (at >= stream.end && at <= stream.fetched);
        let known = self.streams.iter().rposition(near).and_then(|position| self.streams.remove(position));
        let mut stream = match known {
            Some(stream) => Stream { end: stop.max(stream.end), ..stream },
            None => Stream { end: stop, fetched: stop, window: READ_AHEAD_BYTES_MIN / 2 },
        };
        if missed {
            stream.window = (stream.window * 2).min(READ_AHEAD_BYTES_MAX);
            stream.fetched = stop + stream.window;
        }
        self.streams.push_back(stream);
        if self.streams.len() > STREAMS_MAX {
            self.streams.pop_front();
        }
        if missed { stop..stop + stream.window } else { stop..stop }
    }
}
