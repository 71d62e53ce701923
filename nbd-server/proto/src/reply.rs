//! Replies of the transmission phase.
//!
//! The encoders write headers into the caller's buffer; the bytes that were read are never copied: they follow
//! [`simple`] or [`data_header`] as the caller sends them.

use bytes::BufMut;

use crate::cursor::Cursor;
use crate::limits::{MAX_CHUNK_PAYLOAD_BYTES, MAX_DATA_CHUNK_BYTES, MAX_EXTENTS, MAX_STRING_BYTES};
use crate::text;
use crate::wire::{CHUNK_MAGIC, ChunkFlags, ChunkType, Cookie, ErrorCode, SIMPLE_REPLY_MAGIC, StatusFlags};

/// Size of a simple reply without the data of a READ.
pub const SIMPLE_BYTES: usize = 16;

/// Size of a chunk without its payload.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Size of a data chunk without its data: header and offset.
pub const DATA_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// Size of a hole chunk.
pub const HOLE_BYTES: usize = CHUNK_HEADER_BYTES + 12;

/// A run of bytes of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least 1.
    pub length: u32,
    /// Its status.
    pub flags: StatusFlags,
}

/// Appends a simple reply. After a READ without error the data follows, all that was asked for.
pub fn simple(output: &mut impl BufMut, cookie: Cookie, error: Option<ErrorCode>) {
    let mut header = [0; SIMPLE_BYTES];
    let mut rest = &mut header[..];
    rest.put_u32(SIMPLE_REPLY_MAGIC);
    rest.put_u32(error.map_or(0, ErrorCode::number));
    rest.put_u64(cookie.0);
    output.put_slice(&header);
}

/// Appends the chunk that ends a reply and holds nothing: success of what has no data, and of a READ of length 0.
pub fn done(output: &mut impl BufMut, cookie: Cookie) {
    output.put_slice(&chunk_header(ChunkFlags::DONE, ChunkType::NONE, cookie, 0));
}

/// Appends the header of a data chunk; `data_bytes` bytes follow, which were read at `offset`.
///
/// There is no data chunk of length 0, and none above [`MAX_DATA_CHUNK_BYTES`].
pub fn data_header(output: &mut impl BufMut, cookie: Cookie, flags: ChunkFlags, offset: u64, data_bytes: u32) {
    debug_assert!((1..=MAX_DATA_CHUNK_BYTES).contains(&data_bytes));
    let mut header = [0; DATA_HEADER_BYTES];
    let (chunk, mut rest) = header.split_at_mut(CHUNK_HEADER_BYTES);
    let length = data_bytes.saturating_add(8);
    chunk.copy_from_slice(&chunk_header(flags, ChunkType::OFFSET_DATA, cookie, length));
    rest.put_u64(offset);
    output.put_slice(&header);
}

/// Appends a chunk that says that `length` bytes at `offset`, at least one, are zeros.
pub fn hole(output: &mut impl BufMut, cookie: Cookie, flags: ChunkFlags, offset: u64, length: u32) {
    debug_assert!(length >= 1);
    let mut chunk = [0; HOLE_BYTES];
    let (header, mut rest) = chunk.split_at_mut(CHUNK_HEADER_BYTES);
    header.copy_from_slice(&chunk_header(flags, ChunkType::OFFSET_HOLE, cookie, 12));
    rest.put_u64(offset);
    rest.put_u32(length);
    output.put_slice(&chunk);
}

/// Appends a chunk that says that the request failed. The text is for people; it is cut at the protocol's limit.
pub fn error(output: &mut impl BufMut, cookie: Cookie, flags: ChunkFlags, error: ErrorCode, text: &str) {
    let text = text::clip(text);
    let length = 6 + text.len() as u32;
    output.put_slice(&chunk_header(flags, ChunkType::ERROR, cookie, length));
    put_error(output, error, text);
}

/// Appends a chunk that says that the request failed at `offset`, which lies in the request's range. Of a data chunk
/// sent before, the bytes from there on are void.
pub fn error_at(
    output: &mut impl BufMut,
    cookie: Cookie,
    flags: ChunkFlags,
    error: ErrorCode,
    text: &str,
    offset: u64,
) {
    let text = text::clip(text);
    let length = 6 + text.len() as u32 + 8;
    output.put_slice(&chunk_header(flags, ChunkType::ERROR_OFFSET, cookie, length));
    put_error(output, error, text);
    output.put_u64(offset);
}

/// Appends a chunk that tells the extents of a context, from the request's offset on.
///
/// At least one extent. Those after [`MAX_EXTENTS`] are left out: a reply may tell less than was asked for.
pub fn block_status(output: &mut impl BufMut, cookie: Cookie, flags: ChunkFlags, context_id: u32, extents: &[Extent]) {
    debug_assert!(!extents.is_empty());
    let extents = extents.get(..MAX_EXTENTS).unwrap_or(extents);
    let length = 4 + 8 * extents.len() as u32;
    output.put_slice(&chunk_header(flags, ChunkType::BLOCK_STATUS, cookie, length));
    output.put_u32(context_id);
    for extent in extents {
        output.put_u32(extent.length);
        output.put_u32(extent.flags.0);
    }
}

fn chunk_header(flags: ChunkFlags, kind: ChunkType, cookie: Cookie, length: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let mut header = [0; CHUNK_HEADER_BYTES];
    let mut rest = &mut header[..];
    rest.put_u32(CHUNK_MAGIC);
    rest.put_u16(flags.0);
    rest.put_u16(kind.0);
    rest.put_u64(cookie.0);
    rest.put_u32(length);
    header
}

fn put_error(output: &mut impl BufMut, error: ErrorCode, text: &str) {
    output.put_u32(error.number());
    output.put_u16(text.len() as u16);
    output.put_slice(text.as_bytes());
}

/// Why a reply cannot be understood; the connection has to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The stream is out of step, or the server speaks something else.
    #[error("the server sent {0:#010x} where a reply must start")]
    BadMagic(u32),
    /// A chunk of a type that the protocol does not define and that is no error.
    #[error("the server sent a chunk of the unknown type {0}")]
    UnknownChunk(ChunkType),
    /// A chunk whose length is wrong for its type, or whose inner lengths disagree with it.
    #[error("the server sent a {kind} chunk of {length} bytes, which cannot be")]
    BadLength {
        /// Its type.
        kind: ChunkType,
        /// Its length in bytes.
        length: u32,
    },
    /// An empty hole or extent, or error number 0.
    #[error("the server sent a {0} chunk with a zero that the protocol forbids")]
    ForbiddenZero(ChunkType),
    /// `NONE` must end its reply.
    #[error("the server sent an empty chunk that does not end its reply")]
    NoneNotDone,
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A simple reply. After a READ without error the data follows.
    Simple {
        /// The request's cookie.
        cookie: Cookie,
        /// `None`: success.
        error: Option<ErrorCode>,
    },
    /// A chunk, whose payload follows.
    Chunk(ChunkHeader),
}

/// The head of a structured reply chunk. Its length has been checked against its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Flags.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub kind: ChunkType,
    /// The request's cookie.
    pub cookie: Cookie,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl Header {
    /// Reads a header from the front of `input`, and says how long it was; `None` when more bytes are needed.
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, ReplyError> {
        let mut cursor = Cursor::new(input);
        match cursor.u32() {
            None => Ok(None),
            Some(SIMPLE_REPLY_MAGIC) => {
                let (Some(error), Some(cookie)) = (cursor.u32(), cursor.u64()) else {
                    return Ok(None);
                };
                let header = Self::Simple { cookie: Cookie(cookie), error: ErrorCode::from_wire(error) };
                Ok(Some((header, SIMPLE_BYTES)))
            }
            Some(CHUNK_MAGIC) => {
                let (Some(flags), Some(kind), Some(cookie), Some(length)) =
                    (cursor.u16(), cursor.u16(), cursor.u64(), cursor.u32())
                else {
                    return Ok(None);
                };
                let header =
                    ChunkHeader { flags: ChunkFlags(flags), kind: ChunkType(kind), cookie: Cookie(cookie), length };
                header.check()?;
                Ok(Some((Self::Chunk(header), CHUNK_HEADER_BYTES)))
            }
            Some(magic) => Err(ReplyError::BadMagic(magic)),
        }
    }
}

impl ChunkHeader {
    /// Whether this is the last chunk of its reply.
    pub const fn is_last(&self) -> bool {
        self.flags.contains(ChunkFlags::DONE)
    }

    fn check(&self) -> Result<(), ReplyError> {
        let length = self.length;
        let fits = match self.kind {
            ChunkType::NONE if !self.is_last() => return Err(ReplyError::NoneNotDone),
            ChunkType::NONE => length == 0,
            ChunkType::OFFSET_DATA => length >= 9,
            ChunkType::OFFSET_HOLE => length == 12,
            ChunkType::BLOCK_STATUS => length >= 12 && length % 8 == 4 && length <= MAX_CHUNK_PAYLOAD_BYTES,
            ChunkType::ERROR_OFFSET => (14..=MAX_CHUNK_PAYLOAD_BYTES).contains(&length),
            // An error of a type to come starts as all errors do.
            kind if kind.is_error() => (6..=MAX_CHUNK_PAYLOAD_BYTES).contains(&length),
            kind => return Err(ReplyError::UnknownChunk(kind)),
        };
        if fits { Ok(()) } else { Err(self.bad_length()) }
    }

    const fn bad_length(&self) -> ReplyError {
        ReplyError::BadLength { kind: self.kind, length: self.length }
    }

    /// Reads the payload, which must be [`length`](Self::length) bytes.
    pub fn parse<'a>(&self, payload: &'a [u8]) -> Result<Chunk<'a>, ReplyError> {
        self.check()?;
        if u32::try_from(payload.len()) != Ok(self.length) {
            return Err(self.bad_length());
        }
        let mut cursor = Cursor::new(payload);
        let short = || self.bad_length();
        Ok(match self.kind {
            ChunkType::NONE => Chunk::None,
            ChunkType::OFFSET_DATA => Chunk::Data { offset: cursor.u64().ok_or_else(short)?, data: cursor.rest() },
            ChunkType::OFFSET_HOLE => Chunk::Hole {
                offset: cursor.u64().ok_or_else(short)?,
                length: match cursor.u32().ok_or_else(short)? {
                    0 => return Err(ReplyError::ForbiddenZero(self.kind)),
                    length => length,
                },
            },
            ChunkType::BLOCK_STATUS => {
                let context_id = cursor.u32().ok_or_else(short)?;
                let mut extents = Vec::with_capacity(payload.len() / 8);
                while let (Some(length), Some(flags)) = (cursor.u32(), cursor.u32()) {
                    if length == 0 {
                        return Err(ReplyError::ForbiddenZero(self.kind));
                    }
                    extents.push(Extent { length, flags: StatusFlags(flags) });
                }
                Chunk::BlockStatus { context_id, extents }
            }
            _ => self.parse_error(cursor)?,
        })
    }

    fn parse_error<'a>(&self, mut cursor: Cursor<'a>) -> Result<Chunk<'a>, ReplyError> {
        let short = || self.bad_length();
        let error = cursor.u32().ok_or_else(short)?;
        let text_bytes = cursor.u16().ok_or_else(short)?;
        if usize::from(text_bytes) > MAX_STRING_BYTES {
            return Err(short());
        }
        let text = cursor.bytes(u32::from(text_bytes)).ok_or_else(short)?;
        let offset = match self.kind {
            ChunkType::ERROR_OFFSET => Some(cursor.u64().ok_or_else(short)?),
            _ => None,
        };
        Ok(Chunk::Error {
            error: ErrorCode::from_wire(error).ok_or(ReplyError::ForbiddenZero(self.kind))?,
            text: text::lossy(text),
            offset,
        })
    }
}

/// A structured reply chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing; the reply ends.
    None,
    /// Bytes.
    Data {
        /// Where they were read.
        offset: u64,
        /// At least one.
        data: &'a [u8],
    },
    /// Zeros.
    Hole {
        /// Where.
        offset: u64,
        /// How many, at least one.
        length: u32,
    },
    /// Extents of a context, from the request's offset on.
    BlockStatus {
        /// The context's number on this connection.
        context_id: u32,
        /// At least one.
        extents: Vec<Extent>,
    },
    /// The request failed, or a part of it.
    Error {
        /// Why.
        error: ErrorCode,
        /// The server's explanation; may be empty.
        text: String,
        /// Where; `None` if nothing of the reply counts.
        offset: Option<u64>,
    },
}

#[cfg(test)]
mod tests;
