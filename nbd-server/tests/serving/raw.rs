//! An NBD client that sends whatever it is told to and looks closely at what comes back.

use std::collections::{BTreeMap, HashMap};
use std::io;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use vmnetx_nbd_proto::reply::{Chunk, Header};
use vmnetx_nbd_proto::wire::{ChunkFlags, Cookie};

use crate::support::source::Source;
use crate::within;

/// Numbers as the protocol's text has them, not as the code under test does.
pub(crate) mod number {
    pub(crate) const FIXED_NEWSTYLE: u32 = 1;
    pub(crate) const NO_ZEROES: u32 = 2;

    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META: u32 = 9;
    pub(crate) const SET_META: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;

    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const REP_INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const UNSUP: u32 = 0x8000_0001;
    pub(crate) const POLICY: u32 = 0x8000_0002;
    pub(crate) const INVALID: u32 = 0x8000_0003;
    pub(crate) const TLS_REQD: u32 = 0x8000_0005;
    pub(crate) const UNKNOWN: u32 = 0x8000_0006;
    pub(crate) const TOO_BIG: u32 = 0x8000_0009;

    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;

    pub(crate) const FUA: u16 = 1;
    pub(crate) const DF: u16 = 4;
    pub(crate) const REQ_ONE: u16 = 8;

    pub(crate) const EPERM: u32 = 1;
    pub(crate) const EIO: u32 = 5;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const ESHUTDOWN: u32 = 108;
}

use number::*;

/// Seconds after which the server is taken to hang.
const PATIENCE_S: u64 = 100;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The connection.
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    structured: bool,
    /// Lengths of the READs under way: a simple reply does not tell its own.
    reads: HashMap<u64, u32>,
    /// Chunks of replies that are not complete.
    open: HashMap<u64, Vec<Part>>,
}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OptionAnswer {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) payload: Vec<u8>,
}

/// A chunk of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Data {
        offset: u64,
        data: Vec<u8>,
    },
    Hole {
        offset: u64,
        length: u32,
    },
    /// Context id, then length and flags of each extent.
    Status {
        context: u32,
        extents: Vec<(u32, u32)>,
    },
    Error {
        number: u32,
        text: String,
    },
}

/// A whole reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) parts: Vec<Part>,
}

impl Raw {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self { stream: Box::new(stream), structured: false, reads: HashMap::new(), open: HashMap::new() }
    }

    /// The same connection inside TLS, if that comes about.
    pub(crate) async fn into_tls(self, tls: &TlsConnector, server: &'static str) -> io::Result<Self> {
        let name = ServerName::try_from(server).unwrap();
        Ok(Self::new(within(PATIENCE_S, tls.connect(name, self.stream)).await?))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within(PATIENCE_S, self.stream.write_all(bytes)).await.unwrap();
        within(PATIENCE_S, self.stream.flush()).await.unwrap();
    }

    /// Sends what may be sent to a server that has closed.
    pub(crate) async fn send_anyway(&mut self, bytes: &[u8]) {
        let _ = within(PATIENCE_S, self.stream.write_all(bytes)).await;
    }

    /// Says that nothing more will be sent; still receives.
    pub(crate) async fn end_sending(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(crate) async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within(PATIENCE_S, self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// What the server sends until it closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset closes too: it tells of bytes of ours that were not read.
        let _ = within(PATIENCE_S, self.stream.read_to_end(&mut rest)).await;
        rest
    }

    /// The server closes, having sent nothing more.
    pub(crate) async fn expect_closed(&mut self) {
        let rest = self.rest().await;
        assert!(rest.is_empty(), "{} more bytes before the end", rest.len());
    }

    async fn number<const N: usize>(&mut self) -> [u8; N] {
        self.receive(N).await.try_into().unwrap()
    }

    /// Takes the greeting and answers it.
    pub(crate) async fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(16).await, b"NBDMAGICIHAVEOPT");
        let offered = u16::from_be_bytes(self.number().await);
        assert_eq!(offered, 3, "fixed newstyle, no zeroes");
        self.send(&flags.to_be_bytes()).await;
    }

    pub(crate) async fn option(&mut self, code: u32, payload: &[u8]) {
        self.option_of_length(code, payload.len() as u32, payload).await;
    }

    /// An option whose length need not be that of its payload.
    pub(crate) async fn option_of_length(&mut self, code: u32, length: u32, payload: &[u8]) {
        let bytes = [b"IHAVEOPT", &code.to_be_bytes()[..], &length.to_be_bytes(), payload].concat();
        self.send(&bytes).await;
    }

    pub(crate) async fn option_answer(&mut self) -> OptionAnswer {
        assert_eq!(u64::from_be_bytes(self.number().await), 0x0003_e889_0455_65a9);
        let option = u32::from_be_bytes(self.number().await);
        let kind = u32::from_be_bytes(self.number().await);
        let length = u32::from_be_bytes(self.number().await);
        let payload = self.receive(length as usize).await;
        OptionAnswer { option, kind, payload }
    }

    /// Sends an option and collects its answers up to the final one, which is of this kind.
    pub(crate) async fn expect_option(&mut self, code: u32, payload: &[u8], kind: u32) -> Vec<OptionAnswer> {
        self.option(code, payload).await;
        self.expect_answers(code, kind).await
    }

    pub(crate) async fn expect_answers(&mut self, code: u32, kind: u32) -> Vec<OptionAnswer> {
        let mut answers = Vec::new();
        loop {
            let answer = self.option_answer().await;
            assert_eq!(answer.option, code);
            if answer.kind == ACK || answer.kind >= 0x8000_0000 {
                assert_eq!(answer.kind, kind, "{:?}", String::from_utf8_lossy(&answer.payload));
                if answer.kind == ACK {
                    assert_eq!(answer.payload, b"");
                } else {
                    assert!(answer.payload.len() <= 4096);
                }
                return answers;
            }
            answers.push(answer);
        }
    }

    /// Goes into the transmission phase of the default export by GO.
    pub(crate) async fn negotiate(&mut self, structured: bool) {
        self.negotiate_contexts(structured, &["base:allocation"]).await;
    }

    /// The same with these metadata contexts.
    pub(crate) async fn negotiate_contexts(&mut self, structured: bool, contexts: &[&str]) {
        self.greet(FIXED_NEWSTYLE | NO_ZEROES).await;
        self.agree(structured, contexts).await;
    }

    /// The same after the greeting.
    pub(crate) async fn agree(&mut self, structured: bool, contexts: &[&str]) {
        if structured {
            self.structured().await;
            self.expect_option(SET_META, &meta("", contexts), ACK).await;
        }
        self.expect_option(GO, &info("", &[]), ACK).await;
    }

    /// Negotiates structured replies.
    pub(crate) async fn structured(&mut self) {
        self.expect_option(STRUCTURED_REPLY, b"", ACK).await;
        self.structured = true;
    }

    pub(crate) async fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request(flags, command, cookie, offset, length)).await;
        if command == READ {
            self.reads.insert(cookie, length);
        }
    }

    pub(crate) async fn read(&mut self, cookie: u64, offset: u64, length: u32) {
        self.request(0, READ, cookie, offset, length).await;
    }

    /// The next reply that becomes complete, whichever request it answers.
    pub(crate) async fn reply(&mut self) -> Reply {
        loop {
            let header = self.receive(16).await;
            match Header::decode(&header).unwrap() {
                Some((Header::Simple { cookie, error }, _)) => {
                    let Cookie(cookie) = cookie;
                    let length = self.reads.remove(&cookie);
                    assert!(!self.structured || length.is_none(), "a simple reply to a READ after structured replies");
                    let part = match (error, length) {
                        (Some(error), _) => vec![Part::Error { number: error.number(), text: String::new() }],
                        (None, Some(length)) if length > 0 => {
                            vec![Part::Data { offset: u64::MAX, data: self.receive(length as usize).await }]
                        }
                        (None, _) => Vec::new(),
                    };
                    return Reply { cookie, parts: part };
                }
                _ => {
                    assert!(self.structured, "a structured reply that was not negotiated");
                    if let Some(reply) = self.chunk(header).await {
                        return reply;
                    }
                }
            }
        }
    }

    async fn chunk(&mut self, mut header: Vec<u8>) -> Option<Reply> {
        header.extend(self.receive(4).await);
        let (Header::Chunk(chunk), _) = Header::decode(&header).unwrap().unwrap() else { panic!("a chunk") };
        let payload = self.receive(chunk.length as usize).await;
        let Cookie(cookie) = chunk.cookie;
        let part = match chunk.parse(&payload).unwrap() {
            Chunk::None => None,
            Chunk::Data { offset, data } => Some(Part::Data { offset, data: data.to_vec() }),
            Chunk::Hole { offset, length } => Some(Part::Hole { offset, length }),
            Chunk::BlockStatus { context_id, extents } => {
                let extents = extents.iter().map(|extent| (extent.length, extent.flags.0));
                Some(Part::Status { context: context_id, extents: extents.collect() })
            }
            Chunk::Error { error, text, .. } => {
                assert!(text.len() <= 4096);
                Some(Part::Error { number: error.number(), text })
            }
        };
        self.open.entry(cookie).or_default().extend(part);
        if !chunk.flags.contains(ChunkFlags::DONE) {
            return None;
        }
        self.reads.remove(&cookie);
        Some(Reply { cookie, parts: self.open.remove(&cookie).unwrap() })
    }

    /// Sends a request and expects this error as its answer; gives back the text.
    pub(crate) async fn expect_error(&mut self, request: (u16, u16, u64, u32), number: u32) -> String {
        let (flags, command, offset, length) = request;
        self.request(flags, command, 77, offset, length).await;
        let reply = self.reply().await;
        assert_eq!(reply.cookie, 77);
        reply.expect_error(number)
    }
}

impl Reply {
    /// A success without data.
    pub(crate) fn expect_nothing(&self) {
        assert_eq!(self.parts, [], "cookie {}", self.cookie);
    }

    pub(crate) fn expect_error(&self, expected: u32) -> String {
        match &self.parts[..] {
            [Part::Error { number, text }] => {
                assert_eq!(*number, expected, "{text}");
                text.clone()
            }
            other => panic!("cookie {}: expected error {expected}, got {other:?}", self.cookie),
        }
    }

    /// The data of a READ: chunks that lie in the range, do not overlap, cover it and hold the right bytes.
    pub(crate) fn expect_data(&self, source: &Source, offset: u64, length: u32) {
        let mut ranges = Vec::new();
        for part in &self.parts {
            let (at, length) = match part {
                // A simple reply.
                Part::Data { offset: u64::MAX, data } => {
                    assert!(*data == source.read(offset, length.into()), "wrong bytes in {length} at {offset}");
                    (offset, data.len() as u64)
                }
                Part::Data { offset, data } => {
                    assert!(*data == source.read(*offset, data.len() as u64), "wrong bytes at {offset}");
                    (*offset, data.len() as u64)
                }
                Part::Hole { offset, length } => {
                    let zeros = source.read(*offset, (*length).into()).iter().all(|&byte| byte == 0);
                    assert!(zeros, "no hole of {length} at {offset}");
                    (*offset, u64::from(*length))
                }
                other => panic!("cookie {}: {other:?}", self.cookie),
            };
            assert!(length > 0, "an empty chunk");
            ranges.push((at, at + length));
        }
        ranges.sort_unstable();
        let mut end = offset;
        for (at, stop) in ranges {
            assert_eq!(at, end, "chunks overlap or leave a gap in {length} at {offset}");
            end = stop;
        }
        assert_eq!(end, offset + u64::from(length), "{length} at {offset} is not covered");
    }

    /// The extents of each context of a BLOCK_STATUS reply, by its id: length and flags.
    pub(crate) fn expect_statuses(&self) -> BTreeMap<u32, Vec<(u64, u32)>> {
        let one = |part: &Part| {
            let Part::Status { context, extents } = part else { panic!("{:?}", self.parts) };
            assert!(!extents.is_empty() && extents.iter().all(|extent| extent.0 > 0), "{extents:?}");
            (*context, extents.iter().map(|&(length, flags)| (length.into(), flags)).collect())
        };
        let told: BTreeMap<_, _> = self.parts.iter().map(one).collect();
        assert_eq!(told.len(), self.parts.len(), "a context twice");
        told
    }

    /// The extents of a BLOCK_STATUS reply: length and whether a hole.
    pub(crate) fn expect_status(&self) -> Vec<(u64, bool)> {
        let [Part::Status { context, extents }] = &self.parts[..] else { panic!("{:?}", self.parts) };
        assert_eq!(*context, 1, "the id that SET_META_CONTEXT gave");
        let one = |&(length, flags): &(u32, u32)| {
            // NBD_STATE_HOLE and NBD_STATE_ZERO: both or none.
            assert!(length > 0 && [0, 3].contains(&flags), "{length} {flags}");
            (u64::from(length), flags == 3)
        };
        extents.iter().map(one).collect()
    }
}

/// A request as it stands on the wire.
pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let magic = 0x2560_9513_u32;
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    [&magic.to_be_bytes()[..], &flags, &command, &cookie.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()]
        .concat()
}

/// The payload of INFO and GO.
pub(crate) fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut payload = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    payload.extend((infos.len() as u16).to_be_bytes());
    payload.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    payload
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    payload.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        payload.extend((query.len() as u32).to_be_bytes());
        payload.extend(query.as_bytes());
    }
    payload
}
