//! What can go wrong for a client.

use std::io;
use std::sync::Arc;

use crate::option::{BadMagic, OptionError};
use crate::reply::ReplyError;
use crate::wire::{Command, ErrorCode, OptionCode, OptionReplyType};

/// Why a client could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No agreement with the server.
    #[error("negotiate with the NBD server: {0}")]
    Negotiate(Arc<NegotiateError>),
    /// The server answered this request with an error; others are not touched by it.
    #[error("{command} of {length} bytes at {offset}: the NBD server answered: {error}{}", explained(.text))]
    Server {
        /// The request.
        command: Command,
        /// Its offset.
        offset: u64,
        /// Its length in bytes.
        length: u32,
        /// The error.
        error: ErrorCode,
        /// The server's explanation; may be empty.
        text: String,
    },
    /// The connection has ended, and this request with it.
    #[error("the connection to the NBD server has ended: {0}")]
    Connection(Arc<ConnectionError>),
    /// More than the server takes in one request.
    #[error("READ of {length} bytes is too long; read at most {limit_bytes} bytes at a time")]
    TooLong {
        /// What was asked for, in bytes.
        length: u32,
        /// The most that may be asked for, in bytes.
        limit_bytes: u32,
    },
    /// The server has none of the metadata contexts that were wished for.
    #[error("no metadata context was agreed on with the NBD server")]
    NoContext,
}

impl From<NegotiateError> for ClientError {
    fn from(error: NegotiateError) -> Self {
        Self::Negotiate(Arc::new(error))
    }
}

/// Why there is no agreement with the server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiateError {
    /// The stream failed, or ended too early.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else listens there.
    #[error("the other side is no NBD server: it begins with {0:#018x}")]
    NotNbd(u64),
    /// A server from before 2012, or something else.
    #[error("the server speaks no newstyle NBD; it may be too old ({0:#018x})")]
    NotNewstyle(u64),
    /// The wish needs options that this server cannot refuse politely.
    #[error("the server speaks no fixed newstyle NBD, which {0} needs")]
    NotFixedNewstyle(OptionCode),
    /// A reply is out of step.
    #[error("the server sent {0:#018x} where a reply must start")]
    BadMagic(u64),
    /// A reply makes no sense.
    #[error("the server's reply to {option} cannot be read: {source}")]
    BadReply {
        /// What was asked.
        option: OptionCode,
        /// What is wrong.
        source: OptionError,
    },
    /// A reply to something else, or one that does not belong there.
    #[error("the server answered {option} with {kind}, which does not belong there")]
    UnexpectedReply {
        /// What was asked.
        option: OptionCode,
        /// What came.
        kind: OptionReplyType,
    },
    /// More or longer replies than are read.
    #[error("the server's reply to {0} is too long")]
    TooLong(OptionCode),
    /// The server said no.
    #[error("the server refused {option} ({kind}){}", explained(.text))]
    Refused {
        /// What was asked.
        option: OptionCode,
        /// The kind of refusal.
        kind: OptionReplyType,
        /// The server's explanation; may be empty.
        text: String,
    },
    /// The server agreed without telling the export's size.
    #[error("the server told no size of the export")]
    NoSize,
    /// The export's name cannot be sent.
    #[error("the name of the export or of a context is longer than the protocol allows")]
    NameTooLong,
}

impl From<BadMagic> for NegotiateError {
    fn from(BadMagic(magic): BadMagic) -> Self {
        Self::BadMagic(magic)
    }
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This side closed it.
    #[error("it was closed here")]
    Closed,
    /// The server closed it.
    #[error("the server closed it")]
    ServerClosed,
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A reply that the protocol forbids.
    #[error("{0}")]
    Reply(#[from] ReplyError),
    /// A reply to a request that is not waiting for one.
    #[error("the server answered a request that was not sent (cookie {0})")]
    UnknownCookie(u64),
    /// A simple reply where a structured one is due, the other way round, or a chunk that its request cannot have.
    #[error("the server sent a reply that does not belong to {0}")]
    WrongReply(Command),
    /// Data outside the range that was asked for, twice the same, or not all.
    #[error("the server's answer to READ does not cover what was asked for exactly once")]
    BadCover,
    /// A context that was not selected, twice the same, or not all.
    #[error("the server's answer to BLOCK_STATUS does not tell each context once")]
    BadContexts,
}

fn explained(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
