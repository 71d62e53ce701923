//! The server's side of the handshake, a state machine without I/O: bytes and exports go in, bytes and progress come
//! out.
//!
//! ```text
//!  Greeting ──> ClientFlags ──> Options ──> Finished     GO, EXPORT_NAME: Transmission; ABORT: Aborted
//!                                │  ▲  │
//!                                ▼  │  └──> Finished     what the protocol answers by closing: Refused
//!                              Dropping                  payload of an option that is too long
//! ```
//!
//! The caller moves bytes:
//!
//! ```
//! # use bytes::BytesMut;
//! # use vmnetx_nbd_proto::handshake::*;
//! # fn serve<E: Exports>(
//! #     exports: &E,
//! #     mut send: impl FnMut(&mut BytesMut),
//! #     mut receive: impl FnMut(&mut BytesMut) -> usize,
//! # ) -> Option<Session<E::Handle>> {
//! let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
//! let mut handshake = Handshake::new(Config::default());
//! let session = loop {
//!     let progress = handshake.advance(&mut input, exports, &mut output);
//!     send(&mut output); // all of it, in every case
//!     match progress {
//!         Progress::NeedInput if receive(&mut input) == 0 => return None,
//!         Progress::NeedInput | Progress::Continue => {}
//!         Progress::Transmission(session) => break session,
//!         Progress::StartTls => unreachable!("the policy does not offer TLS"),
//!         Progress::Aborted | Progress::Refused(_) => return None,
//!     }
//! };
//! // `input` may already hold the first requests.
//! # Some(session)
//! # }
//! ```

mod answer;
mod export;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, BytesMut};

pub use self::export::{BlockSize, ExportInfo, Exports, Listed, MetaContext};
use crate::limits::{MAX_DROPPED_OPTION_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PENDING_OUTPUT_BYTES};
use crate::option::{BadMagic, BadString, OPTION_HEADER_BYTES, OptionHeader, OptionReply};
use crate::request::Geometry;
use crate::wire::{ClientFlags, HandshakeFlags, INIT_MAGIC, OPTION_MAGIC, OptionCode, OptionReplyType};

/// How a server negotiates.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What is done about TLS.
    pub tls: TlsPolicy,
}

/// What a server does about TLS (NBD spec, "TLS support").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// There is none: NOTLS.
    #[default]
    Unsupported,
    /// A client may start it: SELECTIVETLS without exports that need it.
    Offered,
    /// A client must start it before anything else: FORCEDTLS.
    Required,
}

/// What the caller has to do next. In every case it first sends the output.
#[derive(Debug)]
#[must_use]
pub enum Progress<H> {
    /// Append more received bytes to the input, then advance again.
    NeedInput,
    /// Advance again: the output had grown large.
    Continue,
    /// Put TLS on the connection, then advance again. The input is empty. Should TLS fail, close.
    StartTls,
    /// The handshake is over. The input may hold the first requests.
    Transmission(Session<H>),
    /// The client has left: close.
    Aborted,
    /// The client cannot be answered: close.
    Refused(HandshakeError),
}

/// Why the server closes the connection during the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The protocol demands closing on flags that the server does not know.
    #[error("the client sent unknown flags ({0})")]
    UnknownClientFlags(ClientFlags),
    /// The stream is out of step, or the client speaks something else.
    #[error("the client sent {0:#018x} where an option must start; is it an NBD client?")]
    BadOptionMagic(u64),
    /// Beyond what is read and dropped.
    #[error("the client sent {option} with {length} bytes of data")]
    OptionTooLong {
        /// The option.
        option: OptionCode,
        /// Its length in bytes.
        length: u32,
    },
    /// The client negotiates without end.
    #[error("the client sent more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// Without fixed newstyle only `EXPORT_NAME` can be answered.
    #[error("the client sent {0} without fixed newstyle negotiation")]
    NotFixedNewstyle(OptionCode),
    /// `EXPORT_NAME` cannot answer an error.
    #[error("the client asked for the unknown export {0:?}")]
    UnknownExport(String),
    /// `EXPORT_NAME` cannot answer an error.
    #[error("the export name that the client sent {0}")]
    BadExportName(BadString),
    /// `EXPORT_NAME` cannot answer an error.
    #[error("the client asked for an export without TLS")]
    TlsRequired,
    /// Bytes that somebody may have injected to be taken for protected ones.
    #[error("the client sent plain bytes after STARTTLS")]
    PlainBytesAfterStartTls,
    /// The caller advanced a handshake that had ended.
    #[error("the handshake is over")]
    Finished,
}

/// What was agreed on.
#[derive(Debug)]
pub struct Session<H> {
    /// What [`Exports::find`] gave with the export.
    pub handle: H,
    /// The export; its flags are those that the client was told.
    pub export: ExportInfo,
    /// The name by which the client asked for it.
    pub requested_name: String,
    /// Whether READ is answered by structured replies.
    pub structured: bool,
    /// The selected metadata contexts; without any, BLOCK_STATUS is invalid.
    pub contexts: Vec<MetaContext>,
    /// Whether the connection is inside TLS.
    pub tls: bool,
}

impl<H> Session<H> {
    /// What requests of this session are checked against.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.export.size_bytes,
            flags: self.export.flags,
            minimum_block_bytes: self.export.block_size.minimum_bytes,
            max_payload_bytes: self.export.block_size.maximum_bytes,
            structured: self.structured,
            block_status: !self.contexts.is_empty(),
        }
    }
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    config: Config,
    state: State,
    client: ClientFlags,
    options: u32,
    tls: bool,
    structured: bool,
    selected: Option<Selection>,
}

#[derive(Debug)]
enum State {
    Greeting,
    ClientFlags,
    Options,
    Dropping { option: OptionCode, left: usize },
    Finished,
}

/// What the last `SET_META_CONTEXT` selected.
#[derive(Debug)]
struct Selection {
    export: String,
    contexts: Vec<MetaContext>,
}

/// How one step ended; `None`: another may follow at once.
type Step<H> = Result<Option<Progress<H>>, HandshakeError>;

impl Handshake {
    /// A handshake that has not begun.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Greeting,
            client: ClientFlags::EMPTY,
            options: 0,
            tls: false,
            structured: false,
            selected: None,
        }
    }

    /// Takes what it can from `input` and appends what is to be sent to `output`; the first call writes the greeting.
    ///
    /// `input` keeps an incomplete option, so it needs room for [`MAX_OPTION_BYTES`] and a header. Not to be called
    /// again after `Transmission`, `Aborted` or `Refused`.
    pub fn advance<E: Exports>(
        &mut self,
        input: &mut BytesMut,
        exports: &E,
        output: &mut BytesMut,
    ) -> Progress<E::Handle> {
        loop {
            match self.step(input, exports, output) {
                Ok(None) if output.len() >= MAX_PENDING_OUTPUT_BYTES => return Progress::Continue,
                Ok(None) => {}
                Ok(Some(progress)) => {
                    if matches!(progress, Progress::Transmission(_) | Progress::Aborted) {
                        self.state = State::Finished;
                    }
                    return progress;
                }
                Err(error) => {
                    self.state = State::Finished;
                    return Progress::Refused(error);
                }
            }
        }
    }

    fn step<E: Exports>(&mut self, input: &mut BytesMut, exports: &E, output: &mut BytesMut) -> Step<E::Handle> {
        match &mut self.state {
            State::Greeting => {
                output.put_u64(INIT_MAGIC);
                output.put_u64(OPTION_MAGIC);
                let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
                output.put_u16(flags.0);
                self.state = State::ClientFlags;
                Ok(None)
            }
            State::ClientFlags => {
                let Ok(flags) = input.try_get_u32() else {
                    return Ok(Some(Progress::NeedInput));
                };
                let flags = ClientFlags(flags);
                let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
                if !known.contains(flags) {
                    return Err(HandshakeError::UnknownClientFlags(flags));
                }
                self.client = flags;
                self.state = State::Options;
                Ok(None)
            }
            State::Options => self.next_option(input, exports, output),
            State::Dropping { option, left } => {
                let count = input.len().min(*left);
                input.advance(count);
                *left -= count;
                if *left > 0 {
                    return Ok(Some(Progress::NeedInput));
                }
                let option = *option;
                self.state = State::Options;
                self.answer_dropped(option, output);
                Ok(None)
            }
            State::Finished => Err(HandshakeError::Finished),
        }
    }

    /// Takes one whole option from `input`, unless it is too long to be kept.
    fn next_option<E: Exports>(&mut self, input: &mut BytesMut, exports: &E, output: &mut BytesMut) -> Step<E::Handle> {
        let header = match OptionHeader::decode(input) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Some(Progress::NeedInput)),
            Err(BadMagic(magic)) => return Err(HandshakeError::BadOptionMagic(magic)),
        };
        if self.options >= MAX_OPTIONS {
            return Err(HandshakeError::TooManyOptions);
        }
        let OptionHeader { code: option, length } = header;
        let kept = length <= MAX_OPTION_BYTES;
        if length > MAX_DROPPED_OPTION_BYTES || !kept && option == OptionCode::EXPORT_NAME {
            return Err(HandshakeError::OptionTooLong { option, length });
        }
        let left = length as usize;
        if !kept {
            self.options += 1;
            input.advance(OPTION_HEADER_BYTES);
            self.state = State::Dropping { option, left };
            return Ok(None);
        }
        if input.len() - OPTION_HEADER_BYTES < left {
            return Ok(Some(Progress::NeedInput));
        }
        self.options += 1;
        input.advance(OPTION_HEADER_BYTES);
        let payload = input.split_to(left);
        let fixed = self.client.contains(ClientFlags::FIXED_NEWSTYLE);
        if !fixed && option != OptionCode::EXPORT_NAME {
            return Err(HandshakeError::NotFixedNewstyle(option));
        }
        if option == OptionCode::STARTTLS {
            return self.start_tls(&payload, input, output);
        }
        self.answer(option, &payload, exports, output)
    }

    /// An option that needs TLS first is refused; `None` if this one does not.
    fn refuse_for_tls<H>(&self, option: OptionCode, output: &mut BytesMut) -> Option<Step<H>> {
        if self.config.tls != TlsPolicy::Required || self.tls || option == OptionCode::ABORT {
            return None;
        }
        if option == OptionCode::EXPORT_NAME {
            return Some(Err(HandshakeError::TlsRequired));
        }
        refuse(option, OptionReplyType::ERR_TLS_REQD, "start TLS first", output);
        Some(Ok(None))
    }

    fn start_tls<H>(&mut self, payload: &[u8], input: &BytesMut, output: &mut BytesMut) -> Step<H> {
        let option = OptionCode::STARTTLS;
        let (kind, text) = if self.config.tls == TlsPolicy::Unsupported {
            (OptionReplyType::ERR_UNSUP, "this server has no TLS")
        } else if self.tls {
            (OptionReplyType::ERR_INVALID, "TLS is already started")
        } else if !payload.is_empty() {
            (OptionReplyType::ERR_INVALID, "STARTTLS takes no data")
        } else if !input.is_empty() {
            return Err(HandshakeError::PlainBytesAfterStartTls);
        } else {
            // Nothing that was negotiated in the open counts any more (NBD spec, NBD_OPT_STARTTLS).
            self.tls = true;
            self.structured = false;
            self.selected = None;
            OptionReply::Ack.encode(option, output);
            return Ok(Some(Progress::StartTls));
        };
        refuse(option, kind, text, output);
        Ok(None)
    }

    fn answer_dropped(&mut self, option: OptionCode, output: &mut BytesMut) {
        if option == OptionCode::SET_META_CONTEXT {
            self.selected = None;
        }
        let text = format!("over {MAX_OPTION_BYTES} bytes of data are too much");
        refuse(option, OptionReplyType::ERR_TOO_BIG, &text, output);
    }
}

fn refuse(option: OptionCode, kind: OptionReplyType, text: &str, output: &mut BytesMut) {
    let text = text.to_owned();
    OptionReply::Error { kind, text }.encode(option, output);
}
