//! One client's connection: handshake, then requests, answered at once where the memory tier can and otherwise as their
//! chunks arrive.
//!
//! ```text
//! handshake -> transmission -> draining -> closed
//!  ^  |  |          |             ^
//!  |  |  |          +-- DISC, end of stream, shutdown
//!  |  |  +-- ABORT, violation, deadline -> closed
//!  +--+ STARTTLS
//! ```
//!
//! One task reads, answers hits and writes; it waits for nothing but the socket. Each miss is a task of its own, so that
//! hits overtake misses and misses each other; the client tells replies apart by their cookies. CACHE requests stand in a
//! line of their own, so that no number of them keeps a READ from being taken up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmnetx_nbd_proto::handshake::{Config, Handshake, HandshakeError, Progress, Session as Negotiated, TlsPolicy};
use vmnetx_nbd_proto::reply;
use vmnetx_nbd_proto::request::{BadRequestMagic, Checked, Geometry, Request, Requests};
use vmnetx_nbd_proto::wire::{ChunkFlags, Cookie, ErrorCode};
use vmnetx_store::failure::{Class, Told, describe};
use vmnetx_store::{Image, Piece};

use crate::limits::{HANDSHAKE_TIMEOUT, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, INPUT_BYTES, OUTPUT_BYTES};
use crate::listener::Stream;
use crate::output::Output;
use crate::prefetch::{Prefetched, Prefetches, Refused};
use crate::status::{self, Contexts, Status};
use crate::{Export, Exports, Tls, cause};

/// Why a connection ended otherwise than by the client's leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Request(#[from] BadRequestMagic),
    #[error("TLS does not come about: {0}")]
    Tls(#[source] io::Error),
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
    #[error("a request was lost: {0}")]
    Lost(#[from] JoinError),
}

/// Serves one connection to its end. With `tls`, nothing is told of exports before the client has started it.
pub(crate) async fn run(
    stream: Box<dyn Stream>,
    exports: &Exports,
    tls: Option<&Tls>,
    shutdown: &CancellationToken,
) -> Result<(), SessionError> {
    let mut input = BytesMut::with_capacity(INPUT_BYTES);
    let negotiated = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        result = timeout(HANDSHAKE_TIMEOUT, negotiate(stream, exports, tls, &mut input)) => {
            result.map_err(|_| SessionError::Slow)??
        }
    };
    let Some((negotiated, stream)) = negotiated else { return Ok(()) };
    Session::new(negotiated).run(stream, input, shutdown).await
}

/// What was agreed on, and the connection, inside TLS if that was started; nothing if the client has left.
async fn negotiate(
    mut stream: Box<dyn Stream>,
    exports: &Exports,
    tls: Option<&Tls>,
    input: &mut BytesMut,
) -> Result<Option<(Negotiated<Arc<Export>>, Box<dyn Stream>)>, SessionError> {
    let policy = if tls.is_some() { TlsPolicy::Required } else { TlsPolicy::Unsupported };
    let mut handshake = Handshake::new(Config { tls: policy });
    let mut output = BytesMut::new();
    loop {
        let progress = handshake.advance(input, exports, &mut output);
        stream.write_all_buf(&mut output).await?;
        stream.flush().await?;
        match (progress, tls) {
            (Progress::Continue, _) => {}
            (Progress::NeedInput, _) => {
                if stream.read_buf(input).await? == 0 {
                    return Ok(None);
                }
            }
            (Progress::StartTls, Some(tls)) => stream = tls.accept(stream).await.map_err(SessionError::Tls)?,
            (Progress::Transmission(session), _) => return Ok(Some((session, stream))),
            (Progress::Refused(error), _) => return Err(error.into()),
            // Without TLS the policy does not let it be started.
            (Progress::Aborted | Progress::StartTls, _) => return Ok(None),
        }
    }
}

/// The transmission phase of a connection.
struct Session {
    export: Arc<Export>,
    geometry: Geometry,
    structured: bool,
    contexts: Contexts,
    output: Output,
    pieces: Vec<Piece>,
    misses: JoinSet<Answer>,
    in_flight_bytes: u64,
    prefetches: Prefetches,
}

/// What a miss ends with.
struct Answer {
    cookie: Cookie,
    offset: u64,
    length: u32,
    /// Bytes that the answer was expected to have.
    expected_bytes: u64,
    result: Result<Payload, vmnetx_store::Error>,
}

enum Payload {
    Read { pieces: Vec<Piece>, whole: bool },
    Status(Vec<Status>),
}

impl Session {
    fn new(negotiated: Negotiated<Arc<Export>>) -> Self {
        let geometry = negotiated.geometry();
        negotiated.handle.counters.connections.fetch_add(1, Ordering::Relaxed);
        Self {
            geometry,
            structured: negotiated.structured,
            contexts: Contexts::new(&negotiated.contexts),
            prefetches: Prefetches::new(Arc::clone(negotiated.handle.image())),
            export: negotiated.handle,
            output: Output::default(),
            pieces: Vec::new(),
            misses: JoinSet::new(),
            in_flight_bytes: 0,
        }
    }

    async fn run(
        mut self,
        mut stream: Box<dyn Stream>,
        mut input: BytesMut,
        shutdown: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut requests = Requests::new();
        let mut open = true;
        loop {
            // What has ended first: it makes room, and nothing may make room after requests were last looked at, or they
            // would wait in the input for bytes that never come.
            while let Some(answer) = self.misses.try_join_next() {
                self.finish(answer?);
            }
            while let Some(prefetched) = self.prefetches.try_next() {
                self.finish_cache(prefetched?);
            }
            while open && self.has_room() {
                match requests.next(&mut input)? {
                    Some(request) => open = self.take(&request),
                    None => break,
                }
            }
            let full = self.output.len() >= OUTPUT_BYTES;
            self.output.write_to(&mut stream).await?;
            if full {
                continue;
            }
            if !open {
                // Nobody is left to read what they would bring.
                self.prefetches.end();
            }
            if !open && self.misses.is_empty() && self.prefetches.is_empty() {
                stream.shutdown().await?;
                return Ok(());
            }
            if input.capacity() - input.len() < INPUT_BYTES / 2 {
                input.reserve(INPUT_BYTES);
            }
            tokio::select! {
                read = stream.read_buf(&mut input), if open && self.may_read() => open = read? > 0,
                Some(answer) = self.misses.join_next() => self.finish(answer?),
                Some(prefetched) = self.prefetches.next() => self.finish_cache(prefetched?),
                () = shutdown.cancelled(), if open => open = false,
            }
        }
    }

    /// Whether another request may be taken up before something is written or arrives.
    fn has_room(&self) -> bool {
        self.may_read() && self.output.len() < OUTPUT_BYTES
    }

    fn may_read(&self) -> bool {
        self.misses.len() < IN_FLIGHT_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }

    /// Answers a request or starts to; false when the client leaves.
    fn take(&mut self, request: &Request) -> bool {
        let counters = &self.export.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let cookie = request.cookie;
        match request.check(&self.geometry) {
            Err(refusal) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                self.fail(cookie, refusal.error(), &refusal.to_string());
            }
            Ok(Checked::Read { offset, length, whole }) => self.read(cookie, offset, length, whole),
            Ok(Checked::BlockStatus { offset, length, one_extent }) => self.status(cookie, offset, length, one_extent),
            Ok(Checked::Flush) => self.succeed(cookie),
            Ok(Checked::Cache { offset, length }) => {
                if let Err(Refused) = self.prefetches.add(cookie, offset, length) {
                    self.fail(cookie, ErrorCode::IO, &Refused.to_string());
                }
            }
            Ok(Checked::Disconnect) => return false,
            // The check does not let them through on a read-only export.
            Ok(Checked::Write { .. } | Checked::Trim { .. } | Checked::WriteZeroes { .. }) => {
                self.fail(cookie, ErrorCode::INVAL, "this export does not take this command");
            }
        }
        true
    }

    fn read(&mut self, cookie: Cookie, offset: u64, length: u32, whole: bool) {
        let image = self.export.image();
        if image.read_now(offset, length.into(), &mut self.pieces) {
            self.export.counters.inline.fetch_add(1, Ordering::Relaxed);
            let mut pieces = std::mem::take(&mut self.pieces);
            self.reply_read(cookie, offset, &mut pieces, whole);
            self.pieces = pieces;
            return;
        }
        self.miss(cookie, offset, length, length.into(), move |image| async move {
            let pieces = image.read(offset, length.into()).await?;
            Ok(Payload::Read { pieces, whole })
        });
    }

    fn status(&mut self, cookie: Cookie, offset: u64, length: u32, one_extent: bool) {
        let contexts = self.contexts;
        // The answer is small, whatever the question's range.
        self.miss(cookie, offset, length, 0, move |image| async move {
            status::ask(&image, contexts, offset, length, one_extent).await.map(Payload::Status)
        });
    }

    fn miss<F>(
        &mut self,
        cookie: Cookie,
        offset: u64,
        length: u32,
        expected_bytes: u64,
        work: impl FnOnce(Arc<Image>) -> F,
    ) where
        F: Future<Output = Result<Payload, vmnetx_store::Error>> + Send + 'static,
    {
        let work = work(Arc::clone(self.export.image()));
        self.in_flight_bytes += expected_bytes;
        self.misses.spawn(async move { Answer { cookie, offset, length, expected_bytes, result: work.await } });
    }

    /// Puts a miss's answer into the output.
    fn finish(&mut self, Answer { cookie, offset, length, expected_bytes, result }: Answer) {
        self.in_flight_bytes -= expected_bytes;
        match result {
            Ok(Payload::Read { mut pieces, whole }) => self.reply_read(cookie, offset, &mut pieces, whole),
            Ok(Payload::Status(told)) => status::reply(self.output.header(), cookie, &told),
            Err(error) => self.fail_to_have(cookie, offset, length, &error),
        }
    }

    fn finish_cache(&mut self, prefetched: Prefetched) {
        let Prefetched { cookie, offset, length, result } = prefetched;
        match result {
            Some(Ok(())) => self.succeed(cookie),
            Some(Err(error)) => self.fail_to_have(cookie, offset, length, &error),
            None => self.fail(cookie, ErrorCode::SHUTDOWN, "the connection ends, and what it prefetches with it"),
        }
    }

    /// Tells the client, and the log, that something of a range cannot be had.
    fn fail_to_have(&mut self, cookie: Cookie, offset: u64, length: u32, error: &vmnetx_store::Error) {
        self.export.counters.failed.fetch_add(1, Ordering::Relaxed);
        let export = self.export.image().name();
        tracing::warn!(export, offset, length, error = describe(error), "request failed");
        let code = if error.class() == Class::Usage { ErrorCode::INVAL } else { ErrorCode::IO };
        self.fail(cookie, code, &cause::tell(error));
    }

    fn reply_read(&mut self, cookie: Cookie, offset: u64, pieces: &mut Vec<Piece>, whole: bool) {
        if self.structured {
            self.output.structured_read(cookie, offset, pieces, whole);
        } else {
            self.output.simple_read(cookie, pieces);
        }
    }

    fn succeed(&mut self, cookie: Cookie) {
        if self.structured {
            reply::done(self.output.header(), cookie);
        } else {
            reply::simple(self.output.header(), cookie, None);
        }
    }

    fn fail(&mut self, cookie: Cookie, error: ErrorCode, text: &str) {
        if self.structured {
            reply::error(self.output.header(), cookie, ChunkFlags::DONE, error, text);
        } else {
            reply::simple(self.output.header(), cookie, Some(error));
        }
    }
}
