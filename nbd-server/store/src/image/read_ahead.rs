//! Read-ahead: what is worth fetching along with the chunks that a reader waits for.
//!
//! A round trip costs time in which the line could have carried bytes, so how far to fetch ahead is a matter of the line: the
//! more it carries in a round trip, the more is worth guessing. A reader that goes on where it was is given a window that
//! doubles; in a long stream the next window is fetched before the reader has come to the end of the last one, so that a copy
//! does not wait for round trips. Where guesses come to nothing, windows shrink.

use std::collections::VecDeque;
use std::ops::Range;

use crate::limits::{
    READ_AHEAD_BYTES_MAX, READ_AHEAD_FIRST_BYTES, READ_AHEAD_FIRST_BYTES_MAX, READ_AHEAD_FIRST_BYTES_MIN,
    READ_AHEAD_STREAM_BYTES_MAX, STREAMS_MAX,
};

/// How far a read may start behind or before the end of a stream and still go on with it: guests skip what they have
/// cached, and file systems leave small gaps.
const NEAR_BYTES: u64 = 256 << 10;

/// Bytes that are read in a row before a stream is a long one.
const LONG_BYTES: u64 = 4 << 20;

/// The part of a long stream that is worth fetching ahead of it: one in so many bytes.
const LONG_PARTS: u64 = 8;

/// The first window's part of the stored bytes that the line carries in a round trip, in eighths. Chunks have about a third
/// of their plain bytes when stored, so a first window that nobody uses costs about a quarter of a round trip.
const ROUND_TRIP_EIGHTHS: u64 = 5;

/// Guesses that are looked back at: bytes after which older ones count half.
const MEMORY_BYTES: u64 = 8 << 20;

/// Windows shrink when less than one in so many guessed bytes is used.
const USED_PARTS: u64 = 8;

/// Follows the sequential streams of one image.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Latest used last.
    streams: VecDeque<Stream>,
    guessed: Guesses,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Bytes that were read since the last gap.
    read_bytes: u64,
    /// Where its last read ended.
    end: u64,
    /// Up to where it was fetched ahead.
    fetched: u64,
    window: u64,
}

/// How well guesses do.
#[derive(Debug, Default)]
struct Guesses {
    /// Bytes that were fetched ahead.
    bytes: u64,
    /// Bytes of them that were read.
    used_bytes: u64,
}

impl ReadAhead {
    /// Takes note of a read from `at` to `stop` and says which range is worth fetching: along with the chunks that the read
    /// `missed`, or, in a long stream, while the reader goes on with what is here. Other hits cause no requests of their own.
    /// `round_trip_bytes` are the bytes that the origin's line carries in a round trip, if that is known.
    pub(super) fn window(&mut self, at: u64, stop: u64, missed: bool, round_trip_bytes: Option<u64>) -> Range<u64> {
        let near =
            |stream: &Stream| at.abs_diff(stream.end) <= NEAR_BYTES || (at >= stream.end && at <= stream.fetched);
        let known = self.streams.iter().rposition(near).and_then(|position| self.streams.remove(position));
        let mut stream = match known {
            Some(stream) => {
                self.guessed.used(stream.fetched.min(stop).saturating_sub(stream.end));
                let grown = (stream.window * 2).min(READ_AHEAD_BYTES_MAX).max(stream.window);
                let window = if missed { grown } else { stream.window };
                let read_bytes = if at == stream.end { stream.read_bytes } else { 0 } + (stop - at);
                Stream { read_bytes, end: stop.max(stream.end), window, ..stream }
            }
            None => Stream {
                read_bytes: stop - at,
                end: stop,
                fetched: stop,
                window: self.guessed.scale(first_window(round_trip_bytes)),
            },
        };
        let is_long = stream.read_bytes >= LONG_BYTES && stop + stream.window / 2 > stream.fetched;
        if stream.read_bytes / LONG_PARTS > stream.window {
            stream.window = (stream.read_bytes / LONG_PARTS).min(READ_AHEAD_STREAM_BYTES_MAX);
        }
        let range = if missed {
            stop..stop + stream.window
        } else if is_long {
            stream.fetched.max(stop)..stream.fetched.max(stop) + stream.window
        } else {
            stop..stop
        };
        self.guessed.made(range.end.saturating_sub(stream.fetched.max(stop)));
        stream.fetched = stream.fetched.max(range.end);
        self.streams.push_back(stream);
        if self.streams.len() > STREAMS_MAX {
            self.streams.pop_front();
        }
        range
    }
}

/// Bytes to fetch ahead of a read that goes on with nothing.
fn first_window(round_trip_bytes: Option<u64>) -> u64 {
    round_trip_bytes.map_or(READ_AHEAD_FIRST_BYTES, |bytes| {
        (bytes / 8 * ROUND_TRIP_EIGHTHS).clamp(READ_AHEAD_FIRST_BYTES_MIN, READ_AHEAD_FIRST_BYTES_MAX)
    })
}

impl Guesses {
    fn made(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes > MEMORY_BYTES {
            self.bytes /= 2;
            self.used_bytes /= 2;
        }
    }

    const fn used(&mut self, bytes: u64) {
        self.used_bytes += bytes;
    }

    /// A first window, smaller the worse guesses do. It never is nothing, or nobody would find out that they do better now.
    fn scale(&self, window: u64) -> u64 {
        // Too little to judge by.
        if self.bytes < MEMORY_BYTES / 8 || self.used_bytes >= self.bytes / USED_PARTS {
            return window;
        }
        let scaled = window * self.used_bytes.saturating_mul(USED_PARTS) / self.bytes;
        scaled.clamp(READ_AHEAD_FIRST_BYTES_MIN.min(window), window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_stream_of_misses_is_given_windows_that_double() {
        let mut ahead = ReadAhead::default();
        let first = ahead.window(0, 4 * KIB, true, None);
        assert_eq!(first, 4 * KIB..4 * KIB + READ_AHEAD_FIRST_BYTES);
        // Within what was fetched nothing is asked for.
        assert!(ahead.window(4 * KIB, 64 * KIB, false, None).is_empty());
        let second = ahead.window(first.end, first.end + 4 * KIB, true, None);
        assert_eq!(second.end - second.start, 2 * READ_AHEAD_FIRST_BYTES);
        // Somewhere else a stream of its own begins.
        let other = ahead.window(1 << 30, (1 << 30) + KIB, true, None);
        assert_eq!(other.end - other.start, READ_AHEAD_FIRST_BYTES);
    }

    #[test]
    fn a_long_stream_never_reaches_the_end_of_what_was_fetched() {
        let mut ahead = ReadAhead::default();
        let (mut at, mut fetched, mut misses) = (0, 0, 0);
        while at < 256 << 20 {
            let missed = at >= fetched;
            misses += u64::from(missed);
            let range = ahead.window(at, at + 64 * KIB, missed, None);
            assert!(range.is_empty() || range.start >= fetched.max(at), "nothing is asked for twice");
            fetched = fetched.max(range.end);
            at += 64 * KIB;
        }
        assert!(misses <= 12, "{misses}");
        assert!(fetched <= at + 2 * READ_AHEAD_STREAM_BYTES_MAX);
    }

    #[test]
    fn a_line_that_carries_more_in_a_round_trip_is_given_larger_windows() {
        let first = |bytes| {
            let range = ReadAhead::default().window(0, 1, true, bytes);
            range.end - range.start
        };
        assert_eq!(first(Some(0)), READ_AHEAD_FIRST_BYTES_MIN);
        assert_eq!(first(Some(256 * KIB)), 160 * KIB);
        assert_eq!(first(Some(1 << 30)), READ_AHEAD_FIRST_BYTES_MAX);
    }

    #[test]
    fn readers_that_jump_are_given_little() {
        let mut ahead = ReadAhead::default();
        let mut last = 0;
        for jump in 0..200 {
            let range = ahead.window(jump << 30, (jump << 30) + 4 * KIB, true, None);
            last = range.end - range.start;
        }
        assert_eq!(last, READ_AHEAD_FIRST_BYTES_MIN);
        // And more again when they use it.
        for jump in 200..900 {
            let range = ahead.window(jump << 30, (jump << 30) + 4 * KIB, true, None);
            last = range.end - range.start;
            assert!(ahead.window(range.start, range.end, false, None).is_empty());
        }
        assert_eq!(last, READ_AHEAD_FIRST_BYTES);
    }
}
