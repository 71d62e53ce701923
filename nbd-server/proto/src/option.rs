//! Options and their replies as they stand on the wire, for both sides of the handshake.

use bytes::BufMut;

use crate::cursor::Cursor;
use crate::handshake::{BlockSize, Listed, MetaContext};
use crate::limits::MAX_QUERIES;
use crate::text;
use crate::wire::{InfoType, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionCode, OptionReplyType, TransmissionFlags};

pub use crate::text::BadString;

/// Size of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;

/// Size of an option reply's header.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// An option or its reply does not start as it must: the stream is out of step, or the other side speaks something
/// else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an option or its reply starts with {0:#018x} instead of the magic number")]
pub struct BadMagic(pub u64);

/// Why the payload of an option or its reply cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A length in the payload points past its end.
    #[error("the payload is shorter than its own lengths say")]
    Truncated,
    /// The payload goes on after its last item.
    #[error("the payload has bytes after its last item")]
    TrailingBytes,
    /// A payload where there must be none.
    #[error("{0} takes no data")]
    UnexpectedData(OptionCode),
    /// A name or query is no string of the protocol.
    #[error("the {what} {source}")]
    BadString {
        /// Which string.
        what: &'static str,
        /// What is wrong.
        source: BadString,
    },
    /// More queries than are looked at.
    #[error("{0} queries are too many; at most {MAX_QUERIES} are answered")]
    TooManyQueries(u32),
}

impl OptionError {
    /// How a server answers it.
    pub(crate) const fn reply_type(&self) -> OptionReplyType {
        match self {
            Self::TooManyQueries(_) | Self::BadString { source: BadString::TooLong(_), .. } => {
                OptionReplyType::ERR_TOO_BIG
            }
            _ => OptionReplyType::ERR_INVALID,
        }
    }

    const fn bad_name(source: BadString) -> Self {
        Self::BadString { what: "export name", source }
    }
}

/// What stands before an option's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option.
    pub code: OptionCode,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header from the front of `input`; `None` while it is shorter than [`OPTION_HEADER_BYTES`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut cursor = Cursor::new(input);
        match cursor.u64() {
            None => return Ok(None),
            Some(OPTION_MAGIC) => {}
            Some(magic) => return Err(BadMagic(magic)),
        }
        let (Some(code), Some(length)) = (cursor.u32(), cursor.u32()) else {
            return Ok(None);
        };
        Ok(Some(Self { code: OptionCode(code), length }))
    }

    /// Appends the header.
    pub fn encode(&self, output: &mut impl BufMut) {
        output.put_u64(OPTION_MAGIC);
        output.put_u32(self.code.0);
        output.put_u32(self.length);
    }
}

/// The payload of `INFO` and `GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export; empty for the default one.
    pub export: &'a str,
    /// The facts that the client wants beside size and flags.
    pub infos: Vec<InfoType>,
}

impl<'a> InfoRequest<'a> {
    /// Reads a whole payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(payload);
        let name = counted(&mut cursor)?;
        let count = cursor.u16().ok_or(OptionError::Truncated)?;
        let mut infos = Vec::new();
        for _ in 0..count {
            infos.push(InfoType(cursor.u16().ok_or(OptionError::Truncated)?));
        }
        if !cursor.is_empty() {
            return Err(OptionError::TrailingBytes);
        }
        let export = text::parse(name).map_err(OptionError::bad_name)?;
        Ok(Self { export, infos })
    }

    /// Appends the option `code` with this payload.
    pub fn encode(&self, code: OptionCode, output: &mut impl BufMut) {
        let length = 4 + self.export.len() + 2 + 2 * self.infos.len();
        OptionHeader { code, length: length as u32 }.encode(output);
        put_counted(output, self.export);
        output.put_u16(self.infos.len() as u16);
        for info in &self.infos {
            output.put_u16(info.0);
        }
    }
}

/// The payload of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// The export; empty for the default one.
    pub export: &'a str,
    /// Names of contexts, or a namespace and a colon.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    /// Reads a whole payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(payload);
        let name = counted(&mut cursor)?;
        let count = cursor.u32().ok_or(OptionError::Truncated)?;
        if count > MAX_QUERIES {
            return Err(OptionError::TooManyQueries(count));
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            let query = counted(&mut cursor)?;
            queries.push(text::parse(query).map_err(|source| OptionError::BadString { what: "query", source })?);
        }
        if !cursor.is_empty() {
            return Err(OptionError::TrailingBytes);
        }
        let export = text::parse(name).map_err(OptionError::bad_name)?;
        Ok(Self { export, queries })
    }

    /// Appends the option `code` with this payload.
    pub fn encode(&self, code: OptionCode, output: &mut impl BufMut) {
        let queries: usize = self.queries.iter().map(|query| 4 + query.len()).sum();
        let length = 4 + self.export.len() + 4 + queries;
        OptionHeader { code, length: length as u32 }.encode(output);
        put_counted(output, self.export);
        output.put_u32(self.queries.len() as u32);
        for query in &self.queries {
            put_counted(output, query);
        }
    }
}

/// What stands before the payload of an option's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// The kind of answer.
    pub kind: OptionReplyType,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Reads a header from the front of `input`; `None` while it is shorter than [`OPTION_REPLY_HEADER_BYTES`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut cursor = Cursor::new(input);
        match cursor.u64() {
            None => return Ok(None),
            Some(OPTION_REPLY_MAGIC) => {}
            Some(magic) => return Err(BadMagic(magic)),
        }
        let (Some(option), Some(kind), Some(length)) = (cursor.u32(), cursor.u32(), cursor.u32()) else {
            return Ok(None);
        };
        Ok(Some(Self { option: OptionCode(option), kind: OptionReplyType(kind), length }))
    }

    fn encode(&self, output: &mut impl BufMut) {
        output.put_u64(OPTION_REPLY_MAGIC);
        output.put_u32(self.option.0);
        output.put_u32(self.kind.0);
        output.put_u32(self.length);
    }
}

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    /// Done.
    Ack,
    /// An export, to `LIST`.
    Server(Listed),
    /// A fact, to `INFO` and `GO`.
    Info(Info),
    /// A context, to `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    MetaContext(MetaContext),
    /// A refusal.
    Error {
        /// Its kind.
        kind: OptionReplyType,
        /// The server's explanation; may be empty.
        text: String,
    },
    /// A kind of reply that the protocol does not know.
    Unknown(OptionReplyType),
}

/// A fact about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size and abilities.
    Export {
        /// Bytes.
        size_bytes: u64,
        /// Abilities.
        flags: TransmissionFlags,
    },
    /// The canonical name.
    Name(String),
    /// A text for people.
    Description(String),
    /// Block sizes.
    BlockSize(BlockSize),
    /// A fact that is not known here; to be ignored.
    Unknown(InfoType),
}

impl OptionReply {
    /// Reads the payload that came with `header`.
    pub fn decode(header: &OptionReplyHeader, payload: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(payload);
        Ok(match header.kind {
            OptionReplyType::ACK => Self::Ack,
            OptionReplyType::SERVER => {
                let name = text::parse(counted(&mut cursor)?).map_err(OptionError::bad_name)?;
                Self::Server(Listed { name: name.to_owned(), description: text::lossy(cursor.rest()) })
            }
            OptionReplyType::INFO => Self::Info(Info::decode(cursor)?),
            OptionReplyType::META_CONTEXT => {
                let id = cursor.u32().ok_or(OptionError::Truncated)?;
                let name = text::parse(cursor.rest())
                    .map_err(|source| OptionError::BadString { what: "context name", source })?;
                Self::MetaContext(MetaContext { id, name: name.to_owned() })
            }
            kind if kind.is_error() => Self::Error { kind, text: text::lossy(payload) },
            kind => Self::Unknown(kind),
        })
    }

    /// Appends this reply to `option`. Texts for people are cut at the protocol's limit; names must be within it.
    pub fn encode(&self, option: OptionCode, output: &mut impl BufMut) {
        let header = |kind, length: usize| OptionReplyHeader { option, kind, length: length as u32 };
        match self {
            Self::Ack => header(OptionReplyType::ACK, 0).encode(output),
            Self::Server(Listed { name, description }) => {
                let description = text::clip(description);
                let length = 4 + name.len() + description.len();
                header(OptionReplyType::SERVER, length).encode(output);
                put_counted(output, name);
                output.put_slice(description.as_bytes());
            }
            Self::Info(info) => {
                header(OptionReplyType::INFO, info.encoded_bytes()).encode(output);
                info.encode(output);
            }
            Self::MetaContext(MetaContext { id, name }) => {
                header(OptionReplyType::META_CONTEXT, 4 + name.len()).encode(output);
                output.put_u32(*id);
                output.put_slice(name.as_bytes());
            }
            Self::Error { kind, text } => {
                let text = text::clip(text);
                header(*kind, text.len()).encode(output);
                output.put_slice(text.as_bytes());
            }
            Self::Unknown(kind) => header(*kind, 0).encode(output),
        }
    }
}

impl Info {
    fn decode(mut cursor: Cursor<'_>) -> Result<Self, OptionError> {
        let kind = InfoType(cursor.u16().ok_or(OptionError::Truncated)?);
        let info = match kind {
            InfoType::EXPORT => Self::Export {
                size_bytes: cursor.u64().ok_or(OptionError::Truncated)?,
                flags: TransmissionFlags(cursor.u16().ok_or(OptionError::Truncated)?),
            },
            InfoType::BLOCK_SIZE => Self::BlockSize(BlockSize {
                minimum_bytes: cursor.u32().ok_or(OptionError::Truncated)?,
                preferred_bytes: cursor.u32().ok_or(OptionError::Truncated)?,
                maximum_bytes: cursor.u32().ok_or(OptionError::Truncated)?,
            }),
            InfoType::NAME => {
                let name = text::parse(cursor.rest()).map_err(OptionError::bad_name)?;
                return Ok(Self::Name(name.to_owned()));
            }
            InfoType::DESCRIPTION => return Ok(Self::Description(text::lossy(cursor.rest()))),
            kind => return Ok(Self::Unknown(kind)),
        };
        if !cursor.is_empty() {
            return Err(OptionError::TrailingBytes);
        }
        Ok(info)
    }

    fn encoded_bytes(&self) -> usize {
        2 + match self {
            Self::Export { .. } => 10,
            Self::Name(name) => name.len(),
            Self::Description(description) => text::clip(description).len(),
            Self::BlockSize(_) => 12,
            Self::Unknown(_) => 0,
        }
    }

    fn encode(&self, output: &mut impl BufMut) {
        match self {
            Self::Export { size_bytes, flags } => {
                output.put_u16(InfoType::EXPORT.0);
                output.put_u64(*size_bytes);
                output.put_u16(flags.0);
            }
            Self::Name(name) => {
                output.put_u16(InfoType::NAME.0);
                output.put_slice(name.as_bytes());
            }
            Self::Description(description) => {
                output.put_u16(InfoType::DESCRIPTION.0);
                output.put_slice(text::clip(description).as_bytes());
            }
            Self::BlockSize(sizes) => {
                output.put_u16(InfoType::BLOCK_SIZE.0);
                output.put_u32(sizes.minimum_bytes);
                output.put_u32(sizes.preferred_bytes);
                output.put_u32(sizes.maximum_bytes);
            }
            Self::Unknown(kind) => output.put_u16(kind.0),
        }
    }
}

/// A 32-bit length and as many bytes.
fn counted<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], OptionError> {
    let length = cursor.u32().ok_or(OptionError::Truncated)?;
    cursor.bytes(length).ok_or(OptionError::Truncated)
}

fn put_counted(output: &mut impl BufMut, text: &str) {
    output.put_u32(text.len() as u32);
    output.put_slice(text.as_bytes());
}
