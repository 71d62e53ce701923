//! Requests of the transmission phase: splitting them out of the client's stream, and checking them against the export.

use bytes::{Buf, BufMut, BytesMut};

use crate::cursor::Cursor;
use crate::wire::{Command, CommandFlags, Cookie, ErrorCode, REQUEST_MAGIC, TransmissionFlags};

/// Size of a request without its payload.
pub const REQUEST_BYTES: usize = 28;

/// The stream of requests is out of step; the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {0:#010x} where a request must start")]
pub struct BadRequestMagic(pub u32);

/// A request as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is to be done.
    pub command: Command,
    /// What the replies must carry.
    pub cookie: Cookie,
    /// Where, in bytes from the start of the export.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

impl Request {
    /// Reads a request from the front of `input`; `None` while it is shorter than [`REQUEST_BYTES`].
    pub fn decode(input: &[u8]) -> Result<Option<Self>, BadRequestMagic> {
        let mut cursor = Cursor::new(input);
        match cursor.u32() {
            None => return Ok(None),
            Some(REQUEST_MAGIC) => {}
            Some(magic) => return Err(BadRequestMagic(magic)),
        }
        let (Some(flags), Some(command), Some(cookie), Some(offset), Some(length)) =
            (cursor.u16(), cursor.u16(), cursor.u64(), cursor.u64(), cursor.u32())
        else {
            return Ok(None);
        };
        Ok(Some(Self { flags: CommandFlags(flags), command: Command(command), cookie: Cookie(cookie), offset, length }))
    }

    /// Appends the request; the payload of a WRITE follows it.
    pub fn encode(&self, output: &mut impl BufMut) {
        output.put_u32(REQUEST_MAGIC);
        output.put_u16(self.flags.0);
        output.put_u16(self.command.0);
        output.put_u64(self.cookie.0);
        output.put_u64(self.offset);
        output.put_u32(self.length);
    }

    /// Bytes that follow the request: only WRITE has a payload.
    pub const fn payload_bytes(&self) -> u32 {
        match self.command {
            Command::WRITE => self.length,
            _ => 0,
        }
    }

    /// What is asked for, if this export can do it. Length 0 is no error.
    ///
    /// Checked in this order: command, flags, permission, block size, bounds, payload limit.
    pub fn check(&self, export: &Geometry) -> Result<Checked, Refusal> {
        let Self { offset, length, .. } = *self;
        if self.command == Command::DISC {
            // There is no reply that could carry an error.
            return Ok(Checked::Disconnect);
        }
        self.check_command(export)?;
        self.check_flags(export)?;
        let writes = matches!(self.command, Command::WRITE | Command::TRIM | Command::WRITE_ZEROES);
        if writes && export.has(TransmissionFlags::READ_ONLY) {
            return Err(Refusal::ReadOnly(self.command));
        }
        if self.command == Command::FLUSH {
            return match (offset, length) {
                (0, 0) => Ok(Checked::Flush),
                _ => Err(Refusal::FlushRange),
            };
        }
        self.check_range(export)?;
        let has = |flag| self.flags.contains(flag);
        let fua = has(CommandFlags::FUA);
        Ok(match self.command {
            Command::READ => Checked::Read { offset, length, whole: has(CommandFlags::DF) },
            Command::WRITE => Checked::Write { offset, length, fua },
            Command::TRIM => Checked::Trim { offset, length, fua },
            Command::CACHE => Checked::Cache { offset, length },
            Command::WRITE_ZEROES => Checked::WriteZeroes {
                offset,
                length,
                fua,
                no_hole: has(CommandFlags::NO_HOLE),
                fast: has(CommandFlags::FAST_ZERO),
            },
            Command::BLOCK_STATUS => Checked::BlockStatus { offset, length, one_extent: has(CommandFlags::REQ_ONE) },
            command => return Err(Refusal::UnknownCommand(command)),
        })
    }

    /// Whether the export does this command at all.
    fn check_command(&self, export: &Geometry) -> Result<(), Refusal> {
        let read_only = export.has(TransmissionFlags::READ_ONLY);
        let offered = match self.command {
            Command::READ | Command::WRITE => true,
            // Where nothing can be written, flushing does nothing and writing is refused with its own error.
            Command::FLUSH => read_only || export.has(TransmissionFlags::SEND_FLUSH),
            Command::TRIM => read_only || export.has(TransmissionFlags::SEND_TRIM),
            Command::WRITE_ZEROES => read_only || export.has(TransmissionFlags::SEND_WRITE_ZEROES),
            Command::CACHE => export.has(TransmissionFlags::SEND_CACHE),
            Command::BLOCK_STATUS if !export.structured || !export.block_status => {
                return Err(Refusal::NoContext);
            }
            Command::BLOCK_STATUS => true,
            command => return Err(Refusal::UnknownCommand(command)),
        };
        if offered { Ok(()) } else { Err(Refusal::NotOffered(self.command)) }
    }

    /// Whether all flags may stand at this command (NBD spec, "Command flags").
    fn check_flags(&self, export: &Geometry) -> Result<(), Refusal> {
        let mut allowed = match self.command {
            Command::READ if export.has(TransmissionFlags::SEND_DF) && export.structured => CommandFlags::DF,
            Command::WRITE_ZEROES if export.has(TransmissionFlags::SEND_FAST_ZERO) => {
                CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO
            }
            Command::WRITE_ZEROES => CommandFlags::NO_HOLE,
            Command::BLOCK_STATUS => CommandFlags::REQ_ONE,
            _ => CommandFlags::EMPTY,
        };
        // Clients are known to set FUA on commands that write nothing; where nothing is written it is always kept.
        if self.command == Command::READ
            || export.has(TransmissionFlags::READ_ONLY)
            || export.has(TransmissionFlags::SEND_FUA)
        {
            allowed |= CommandFlags::FUA;
        }
        let extra = self.flags.without(allowed);
        if extra.is_empty() { Ok(()) } else { Err(Refusal::BadFlags(self.command, extra)) }
    }

    /// Whether the range lies in the export, on its blocks, and within the payload limit.
    fn check_range(&self, export: &Geometry) -> Result<(), Refusal> {
        let Self { command, offset, length, .. } = *self;
        let block_bytes = export.minimum_block_bytes.max(1);
        if !offset.is_multiple_of(u64::from(block_bytes)) || !length.is_multiple_of(block_bytes) {
            return Err(Refusal::Unaligned { command, offset, length, block_bytes });
        }
        let Some(end) = offset.checked_add(u64::from(length)) else {
            return Err(Refusal::Wraps(command));
        };
        if end > export.size_bytes {
            return Err(Refusal::PastEnd { command, offset, length, size_bytes: export.size_bytes });
        }
        let limit_bytes = export.max_payload_bytes;
        if matches!(command, Command::READ | Command::WRITE) && length > limit_bytes {
            return Err(Refusal::TooLong { command, length, limit_bytes });
        }
        Ok(())
    }
}

/// What a request may do, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the export.
    pub size_bytes: u64,
    /// What the client was told that the export can do.
    pub flags: TransmissionFlags,
    /// Offsets and lengths are multiples of this.
    pub minimum_block_bytes: u32,
    /// Longest READ and WRITE.
    pub max_payload_bytes: u32,
    /// Whether READ is answered by structured replies.
    pub structured: bool,
    /// Whether a metadata context was selected.
    pub block_status: bool,
}

impl Geometry {
    const fn has(&self, flag: TransmissionFlags) -> bool {
        self.flags.contains(flag)
    }
}

/// A request that the export can do: its range lies in the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Read bytes.
    Read {
        /// Where.
        offset: u64,
        /// Bytes; may be 0.
        length: u32,
        /// The reply must not be in more than one content chunk (`DF`).
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// Where.
        offset: u64,
        /// Bytes; may be 0.
        length: u32,
        /// Reply when it is on stable storage.
        fua: bool,
    },
    /// End the session when all requests are answered; has no reply.
    Disconnect,
    /// Bring what was written to stable storage.
    Flush,
    /// Forget bytes.
    Trim {
        /// Where.
        offset: u64,
        /// Bytes; may be 0.
        length: u32,
        /// Reply when it is on stable storage.
        fua: bool,
    },
    /// Fetch bytes that will be read.
    Cache {
        /// Where.
        offset: u64,
        /// Bytes; may be 0, and more than a READ may ask for.
        length: u32,
    },
    /// Write zeros.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// Bytes; may be 0.
        length: u32,
        /// Reply when it is on stable storage.
        fua: bool,
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail unless it is faster than writing.
        fast: bool,
    },
    /// Tell the extents of every selected context.
    BlockStatus {
        /// Where.
        offset: u64,
        /// Bytes; may be 0.
        length: u32,
        /// One extent per context, no longer than asked (`REQ_ONE`).
        one_extent: bool,
    },
}

/// Why a request is answered with an error; its text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a command of the protocol.
    #[error("command {0} is unknown")]
    UnknownCommand(Command),
    /// The client was not told that it may send this.
    #[error("{0} is not offered by this export")]
    NotOffered(Command),
    /// BLOCK_STATUS without a context to tell.
    #[error("no metadata context was negotiated for this export")]
    NoContext,
    /// Unknown flags, or flags that do not belong to the command here.
    #[error("{0} does not take the flags {1} here")]
    BadFlags(Command, CommandFlags),
    /// A write to what cannot be written.
    #[error("{0} refused: the export is read-only")]
    ReadOnly(Command),
    /// A FLUSH has no range.
    #[error("FLUSH takes no offset and no length")]
    FlushRange,
    /// Not on block borders.
    #[error("{command} of {length} bytes at {offset} is not a multiple of {block_bytes} bytes")]
    Unaligned {
        /// The command.
        command: Command,
        /// Its offset.
        offset: u64,
        /// Its length in bytes.
        length: u32,
        /// The minimum block size.
        block_bytes: u32,
    },
    /// Offset and length exceed 64 bits.
    #[error("{0} with an offset and a length beyond 64 bits")]
    Wraps(Command),
    /// Beyond the export.
    #[error("{command} of {length} bytes at {offset} goes past the end ({size_bytes} bytes)")]
    PastEnd {
        /// The command.
        command: Command,
        /// Its offset.
        offset: u64,
        /// Its length in bytes.
        length: u32,
        /// Size of the export.
        size_bytes: u64,
    },
    /// More payload than the server handles.
    #[error("{command} of {length} bytes is too long; at most {limit_bytes} bytes at a time")]
    TooLong {
        /// The command.
        command: Command,
        /// Its length in bytes.
        length: u32,
        /// The most that is accepted.
        limit_bytes: u32,
    },
}

impl Refusal {
    /// The error number of the reply (NBD spec, "Error values").
    pub const fn error(&self) -> ErrorCode {
        match self {
            Self::ReadOnly(_) => ErrorCode::PERM,
            Self::PastEnd { command: Command::WRITE | Command::WRITE_ZEROES, .. } => ErrorCode::NOSPC,
            _ => ErrorCode::INVAL,
        }
    }
}

/// Splits requests out of the stream of a client that cannot write: payloads are dropped as they arrive.
#[derive(Debug, Default)]
pub struct Requests {
    /// A WRITE whose payload is being dropped, and what is left of it.
    dropping: Option<(Request, usize)>,
}

impl Requests {
    /// At the start of a request.
    pub const fn new() -> Self {
        Self { dropping: None }
    }

    /// Takes the next request from the front of `input`; `None` when more bytes are needed. A WRITE is given out when
    /// its whole payload has been dropped.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Request>, BadRequestMagic> {
        if self.dropping.is_none() {
            let Some(request) = Request::decode(input)? else {
                return Ok(None);
            };
            input.advance(REQUEST_BYTES);
            match request.payload_bytes() {
                0 => return Ok(Some(request)),
                count => self.dropping = Some((request, count as usize)),
            }
        }
        let Some((request, left)) = &mut self.dropping else {
            return Ok(None);
        };
        let count = input.len().min(*left);
        input.advance(count);
        *left -= count;
        if *left > 0 {
            return Ok(None);
        }
        let request = *request;
        self.dropping = None;
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests;
