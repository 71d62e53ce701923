//! Both sides of the NBD protocol.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vmnetx_nbd_proto::client::{self, Client, ConnectOptions, Mode};
use vmnetx_nbd_proto::handshake::{BlockSize, Config, ExportInfo, Exports, Handshake, Listed, Progress, TlsPolicy};
use vmnetx_nbd_proto::limits::{MAX_OPTION_BYTES, MAX_PENDING_OUTPUT_BYTES};
use vmnetx_nbd_proto::option::{OPTION_HEADER_BYTES, OptionReply, OptionReplyHeader};
use vmnetx_nbd_proto::reply::{Chunk, Header};
use vmnetx_nbd_proto::request::{Checked, Request, Requests};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, RESIDENCY, TransmissionFlags};

use crate::{assert_printable, bounded};

const SIZE_BYTES: u64 = (1 << 30) + 512;

/// Two exports, one of them the default.
struct TwoDisks;

impl Exports for TwoDisks {
    type Handle = usize;

    fn find(&self, name: &str) -> Option<(ExportInfo, usize)> {
        let number = match name {
            "" | "disk0" => 0,
            "data" => 1,
            _ => return None,
        };
        let info = ExportInfo {
            name: ["disk0", "data"][number].to_owned(),
            description: "a disk".to_owned(),
            size_bytes: SIZE_BYTES,
            flags: TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF
                | TransmissionFlags::SEND_CACHE,
            block_size: BlockSize::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        };
        Some((info, number))
    }

    fn list(&self) -> Vec<Listed> {
        ["disk0", "data"].map(|name| Listed { name: name.to_owned(), description: String::new() }).into()
    }
}

/// Splits bytes into pieces of 1 to 64 bytes, as `pattern` says.
fn pieces(pattern: u8, mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut state = u32::from(pattern) | 1;
    while !bytes.is_empty() {
        state = next(state);
        let (piece, rest) = bytes.split_at(bytes.len().min(piece_bytes(state)));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// The next of a series of pseudo-random numbers, the same for every run.
const fn next(state: u32) -> u32 {
    state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// 1 to 64.
const fn piece_bytes(state: u32) -> usize {
    (state >> 26) as usize + 1
}

/// What a handshake sent, how it ended, and what it left in the input.
fn negotiate<'a>(tls: TlsPolicy, pieces: impl IntoIterator<Item = &'a [u8]>) -> (BytesMut, String, BytesMut) {
    let (mut input, mut sent, mut output) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
    let mut handshake = Handshake::new(Config { tls });
    let mut pieces = pieces.into_iter();
    let end = loop {
        let progress = handshake.advance(&mut input, &TwoDisks, &mut output);
        // One answer can exceed the limit at which the caller is asked to send, not many.
        assert!(output.len() < 2 * MAX_PENDING_OUTPUT_BYTES);
        sent.extend_from_slice(&output.split());
        match progress {
            Progress::NeedInput => match pieces.next() {
                Some(piece) => input.put_slice(piece),
                None => break String::new(),
            },
            Progress::Continue | Progress::StartTls => {}
            Progress::Refused(error) => {
                assert_printable(&error);
                break format!("{error:?}");
            }
            end => break format!("{end:?}"),
        }
    };
    for piece in pieces {
        input.put_slice(piece);
    }
    (sent, end, input)
}

/// A server's handshake, fed at once and in pieces: it says and does the same.
pub fn nbd_handshake(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let tls = [TlsPolicy::Unsupported, TlsPolicy::Offered, TlsPolicy::Required][usize::from(choice % 3)];
    let bytes_max = 8 * bytes.len() + 8 * MAX_OPTION_BYTES as usize + 64 * OPTION_HEADER_BYTES;
    let whole = bounded(bytes_max, || negotiate(tls, [bytes]));
    let split = bounded(bytes_max, || negotiate(tls, pieces(choice, bytes)));
    // With TLS on offer bytes that come together with STARTTLS end the session.
    if tls == TlsPolicy::Unsupported {
        assert_eq!((&whole.0, &whole.1), (&split.0, &split.1));
        if whole.1.starts_with("Transmission") {
            assert_eq!(whole.2, split.2);
        }
    }
}

/// A stream of requests, split anyhow, and what a read-only export makes of them.
pub fn nbd_requests(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let read = |pieces: Vec<&[u8]>| {
        let (mut requests, mut input, mut seen) = (Requests::new(), BytesMut::new(), Vec::new());
        for piece in pieces {
            input.put_slice(piece);
            loop {
                match requests.next(&mut input) {
                    Ok(Some(request)) => seen.push(Ok(request)),
                    Ok(None) => break,
                    Err(error) => {
                        seen.push(Err(error));
                        return seen;
                    }
                }
            }
        }
        seen
    };
    let seen = read(vec![bytes]);
    assert_eq!(seen, read(pieces(choice, bytes)));
    let (_, session) = TwoDisks.find("").map(|(info, number)| (number, info)).unwrap();
    let geometry = vmnetx_nbd_proto::request::Geometry {
        size_bytes: session.size_bytes,
        flags: session.flags,
        minimum_block_bytes: session.block_size.minimum_bytes,
        max_payload_bytes: session.block_size.maximum_bytes,
        structured: choice & 1 == 0,
        block_status: choice & 2 == 0,
    };
    for request in seen.into_iter().flatten() {
        let mut written = BytesMut::new();
        request.encode(&mut written);
        assert_eq!(Request::decode(&written), Ok(Some(request)));
        match request.check(&geometry) {
            Ok(
                Checked::Read { offset, length, .. }
                | Checked::BlockStatus { offset, length, .. }
                | Checked::Cache { offset, length },
            ) => {
                assert!(offset + u64::from(length) <= SIZE_BYTES);
            }
            Ok(Checked::Flush | Checked::Disconnect) => {}
            Ok(other) => panic!("{other:?} on a read-only export"),
            Err(refusal) => assert_printable(&refusal),
        }
    }
}

/// The headers, chunks and option replies of a server.
pub fn nbd_replies(data: &[u8]) {
    match Header::decode(data) {
        Ok(Some((Header::Chunk(header), length))) => {
            let payload = &data[length..];
            let payload = &payload[..payload.len().min(header.length as usize)];
            match bounded(16 * payload.len() + 1024, || header.parse(payload)) {
                Ok(Chunk::Error { text, .. }) => assert_printable(&text),
                Ok(_) => assert_eq!(payload.len(), header.length as usize),
                Err(error) => assert_printable(&error),
            }
        }
        Ok(_) => {}
        Err(error) => assert_printable(&error),
    }
    if let Ok(Some(header)) = OptionReplyHeader::decode(data) {
        let payload = &data[20..];
        match bounded(16 * payload.len() + 1024, || OptionReply::decode(&header, payload)) {
            Ok(OptionReply::Error { text, .. }) if text.len() < 4000 => assert_printable(&text),
            Ok(_) => {}
            Err(error) => assert_printable(&error),
        }
    }
}

/// A server that sends these bytes, in pieces, whatever it is told.
struct Babbler {
    bytes: Bytes,
    pattern: u32,
}

impl Babbler {
    fn new(pattern: u8, bytes: &Bytes) -> Self {
        Self { bytes: bytes.clone(), pattern: u32::from(pattern) | 1 }
    }
}

impl AsyncRead for Babbler {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.pattern = next(self.pattern);
        let count = piece_bytes(self.pattern).min(self.bytes.len()).min(buffer.remaining());
        buffer.put_slice(&self.bytes.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Babbler {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A whole client against a server that sends these bytes: every request ends.
pub fn nbd_client(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    let Some((&choice, bytes)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    let mode = [Mode::Structured, Mode::Simple, Mode::ExportName][usize::from(choice % 3)];
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let babbler = Babbler::new(choice, &bytes);
            match choice / 3 % 8 {
                0 => drop(client::list(babbler).await),
                1 => drop(client::info(babbler, "disk0").await),
                _ => talk(babbler, mode).await,
            }
        });
    });
}

async fn talk(server: Babbler, mode: Mode) {
    let options = ConnectOptions::new("disk0").with_mode(mode).with_contexts([BASE_ALLOCATION, RESIDENCY]);
    let client = match Client::connect(server, &options).await {
        Ok(client) => client,
        Err(error) => return drop(error.to_string()),
    };
    let (read, status, flush) =
        tokio::join!(client.read_with_holes(4096, 8192), client.block_status(0, 1 << 20, false), client.flush());
    if let Ok(read) = &read {
        assert_eq!(read.data.len(), 8192);
        assert_eq!(read.pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>(), 8192);
    }
    for error in [read.map(drop).err(), status.map(drop).err(), flush.err()].into_iter().flatten() {
        assert_printable(&error);
    }
    drop(client.disconnect().await);
}
