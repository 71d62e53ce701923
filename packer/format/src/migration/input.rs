//! A stream's bytes from their source: buffered, counted, and never more of them held than the buffer has room for.

use std::io::{ErrorKind, Read};

use super::error::{StreamError, device_state_too_large};
use super::wire;
use crate::limits::{DEVICE_STATE_BYTES_MAX, STREAM_BUFFER_BYTES};
use crate::name::printable;

pub(super) struct Input<R> {
    source: R,
    buffer: Box<[u8]>,
    /// The bytes of the buffer that were read from the source and not yet taken.
    start: usize,
    end: usize,
    /// Bytes taken so far.
    at_bytes: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; STREAM_BUFFER_BYTES].into(), start: 0, end: 0, at_bytes: 0 }
    }

    /// Bytes taken so far.
    pub(super) const fn at_bytes(&self) -> u64 {
        self.at_bytes
    }

    /// The next `N` bytes, no more than the buffer has room for.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<&[u8; N], StreamError> {
        const { assert!(N <= STREAM_BUFFER_BYTES) };
        self.fill(N, what)?;
        let start = self.start;
        self.start += N;
        self.at_bytes += N as u64;
        let bytes = self.buffer.get(start..).and_then(<[u8]>::first_chunk);
        bytes.ok_or(StreamError::Truncated { what, at_bytes: self.at_bytes })
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, StreamError> {
        self.array(what).map(|[byte]| *byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, StreamError> {
        self.array(what).map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, StreamError> {
        self.array(what).map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, StreamError> {
        self.array(what).map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The next byte, which stays where it is.
    pub(super) fn peek(&mut self, what: &'static str) -> Result<u8, StreamError> {
        self.fill(1, what)?;
        self.buffer.get(self.start).copied().ok_or(StreamError::Truncated { what, at_bytes: self.at_bytes })
    }

    /// A text of `length` bytes, one that QEMU gives as a name.
    pub(super) fn text(&mut self, length: u8, what: &'static str) -> Result<String, StreamError> {
        let length = usize::from(length);
        self.fill(length, what)?;
        let bytes = self.buffer.get(self.start..self.start + length).unwrap_or_default().to_vec();
        self.start += length;
        self.at_bytes += length as u64;
        match String::from_utf8(bytes) {
            Ok(text) if wire::is_graphic(text.as_bytes()) => Ok(text),
            Ok(text) => Err(self.damaged(format!("{what} is {:?}", printable(&text)))),
            Err(_) => Err(self.damaged(format!("{what} is no text"))),
        }
    }

    /// A text behind its length in one byte.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String, StreamError> {
        let length = self.u8(what)?;
        self.text(length, what)
    }

    /// All bytes that are left, which must be no more than a device state has.
    pub(super) fn rest(mut self) -> Result<Vec<u8>, StreamError> {
        let mut rest = self.buffer.get(self.start..self.end).unwrap_or_default().to_vec();
        let room = DEVICE_STATE_BYTES_MAX.saturating_sub(rest.len() as u64);
        // One more than may be there, so that it is seen when there is more.
        self.source.by_ref().take(room + 1).read_to_end(&mut rest).map_err(StreamError::Read)?;
        match rest.len() as u64 {
            length if length > DEVICE_STATE_BYTES_MAX => Err(device_state_too_large(length)),
            _ => Ok(rest),
        }
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> StreamError {
        StreamError::Damaged { why: why.into(), at_bytes: self.at_bytes }
    }

    /// Sees to it that `count` bytes are there to be taken.
    fn fill(&mut self, count: usize, what: &'static str) -> Result<(), StreamError> {
        if self.end - self.start >= count {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < count {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(room) {
                Ok(0) => return Err(StreamError::Truncated { what, at_bytes: self.at_bytes + self.end as u64 }),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Read(error)),
            }
        }
        Ok(())
    }
}

impl<R> std::fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("at_bytes", &self.at_bytes).finish_non_exhaustive()
    }
}
