//! The task that owns a client's stream: it writes queued requests and hands out replies.

use std::future::poll_fn;
use std::mem;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ConnectionError;
use super::pending::Pending;
use super::shared::{Closing, Shared};
use crate::limits::CLIENT_BUFFER_BYTES;
use crate::reply::{CHUNK_HEADER_BYTES, ChunkHeader, DATA_HEADER_BYTES, Header};
use crate::request::Request;
use crate::wire::{ChunkType, Command, CommandFlags, Cookie, ErrorCode};

/// Data that is missing is read directly to its place if it is at least this long, in bytes; else by way of the buffer,
/// which also takes the replies behind it.
const DIRECT_READ_BYTES: usize = 32 * 1024;

/// The task.
pub(super) struct Driver<S> {
    stream: S,
    shared: Arc<Shared>,
    structured: bool,
    context_ids: Vec<u32>,
    /// Bytes on their way out, and how many of them are gone.
    writing: Vec<u8>,
    written: usize,
    said_goodbye: bool,
    input: Input,
    receiving: Receiving,
}

/// Where in the server's stream the task is.
enum Receiving {
    /// At a reply's start.
    Header,
    /// In the data of a READ, which goes to this place.
    Data { cookie: Cookie, pending: Pending, place: Range<usize>, last: bool },
    /// In a chunk that is collected before it is looked at.
    Payload { header: ChunkHeader, pending: Pending, payload: Vec<u8> },
}

impl<S> Driver<S> {
    pub(super) fn new(stream: S, shared: Arc<Shared>, structured: bool, context_ids: Vec<u32>) -> Self {
        Self {
            stream,
            shared,
            structured,
            context_ids,
            writing: Vec::new(),
            written: 0,
            said_goodbye: false,
            input: Input::new(),
            receiving: Receiving::Header,
        }
    }

    /// Fails all requests, the one that is being received too.
    fn end(&mut self, cause: ConnectionError) {
        match mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => {}
            Receiving::Data { cookie, pending, .. } => self.shared.put_back(cookie, pending),
            Receiving::Payload { header, pending, .. } => self.shared.put_back(header.cookie, pending),
        }
        self.shared.die(cause);
    }
}

impl<S> Drop for Driver<S> {
    /// Should the runtime drop the task; otherwise the cause is known already.
    fn drop(&mut self) {
        self.end(ConnectionError::Closed);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Serves until the connection ends.
    pub(super) async fn run(mut self) {
        let cause = poll_fn(|cx| self.poll(cx)).await;
        // What happens after the goodbye does not matter.
        let cause = match self.said_goodbye {
            true => ConnectionError::Closed,
            false => cause,
        };
        self.end(cause);
    }

    /// Moves bytes in both directions until neither moves.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        loop {
            if let Err(cause) = self.send(cx) {
                return Poll::Ready(cause);
            }
            match self.receive(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(cause)) => return Poll::Ready(cause),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Writes what is queued, as far as the stream takes it.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        loop {
            let (closing, in_flight) = self.shared.take(&mut self.writing, cx.waker());
            if self.writing.is_empty() {
                let idle = !in_flight && matches!(self.receiving, Receiving::Header);
                match closing {
                    Closing::No => return Ok(()),
                    Closing::Politely if !idle => return Ok(()),
                    Closing::Politely | Closing::Now => self.say_goodbye(),
                }
            }
            if self.poll_write_out(cx)?.is_pending() {
                return match closing {
                    Closing::Now => Err(ConnectionError::Closed),
                    _ => Ok(()),
                };
            }
            self.writing.clear();
            self.written = 0;
            if self.said_goodbye {
                return Err(ConnectionError::Closed);
            }
        }
    }

    fn say_goodbye(&mut self) {
        let request = Request {
            flags: CommandFlags::EMPTY,
            command: Command::DISC,
            cookie: Cookie::default(),
            offset: 0,
            length: 0,
        };
        request.encode(&mut self.writing);
        self.said_goodbye = true;
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ConnectionError> {
        let mut stream = Pin::new(&mut self.stream);
        while let Some(left @ [_, ..]) = self.writing.get(self.written..) {
            match stream.as_mut().poll_write(cx, left) {
                Poll::Ready(Ok(0)) => return Err(ConnectionError::ServerClosed),
                Poll::Ready(count) => self.written += count?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        match stream.as_mut().poll_flush(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => return Ok(Poll::Pending),
        }
        if self.said_goodbye {
            match stream.poll_shutdown(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Reads once and uses what came.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let stream = Pin::new(&mut self.stream);
        let count = match &mut self.receiving {
            Receiving::Data { pending, place, .. } if self.input.is_empty() && place.len() >= DIRECT_READ_BYTES => {
                let mut buffer = ReadBuf::new(pending.data(place.clone()));
                std::task::ready!(stream.poll_read(cx, &mut buffer))?;
                let count = buffer.filled().len();
                place.start += count;
                count
            }
            _ => std::task::ready!(self.input.poll_fill(stream, cx))?,
        };
        if count == 0 {
            return Poll::Ready(Err(ConnectionError::ServerClosed));
        }
        while self.advance()? {}
        Poll::Ready(Ok(()))
    }

    /// Uses buffered bytes for one step; `false` when more are needed.
    fn advance(&mut self) -> Result<bool, ConnectionError> {
        match &mut self.receiving {
            Receiving::Header => self.header(),
            Receiving::Data { pending, place, .. } => {
                let count = self.input.copy_to(pending.data(place.clone()));
                place.start += count;
                if place.start < place.end {
                    return Ok(false);
                }
                if let Receiving::Data { cookie, pending, last, .. } =
                    mem::replace(&mut self.receiving, Receiving::Header)
                {
                    self.end_chunk(cookie, pending, last)?;
                }
                Ok(true)
            }
            Receiving::Payload { header, payload, .. } => {
                let left = (header.length as usize).saturating_sub(payload.len());
                let bytes = self.input.filled();
                let bytes = bytes.get(..left).unwrap_or(bytes);
                payload.extend_from_slice(bytes);
                let count = bytes.len();
                self.input.consume(count);
                if count < left {
                    return Ok(false);
                }
                if let Receiving::Payload { header, pending, payload } =
                    mem::replace(&mut self.receiving, Receiving::Header)
                {
                    self.whole_chunk(&header, pending, &payload)?;
                }
                Ok(true)
            }
        }
    }

    fn header(&mut self) -> Result<bool, ConnectionError> {
        let Some((header, header_bytes)) = Header::decode(self.input.filled())? else {
            return Ok(false);
        };
        match header {
            Header::Simple { cookie, error } => {
                self.input.consume(header_bytes);
                self.simple(cookie, error)?;
            }
            Header::Chunk(header) if header.kind == ChunkType::OFFSET_DATA => {
                let Some(offset) = self.input.filled().get(CHUNK_HEADER_BYTES..).and_then(|rest| rest.first_chunk())
                else {
                    return Ok(false);
                };
                let offset = u64::from_be_bytes(*offset);
                self.input.consume(DATA_HEADER_BYTES);
                let pending = self.chunk_of(header.cookie)?;
                let length = header.length.saturating_sub(8);
                self.begin_data(header.cookie, pending, offset, length, header.is_last())?;
            }
            Header::Chunk(header) => {
                self.input.consume(CHUNK_HEADER_BYTES);
                let pending = self.chunk_of(header.cookie)?;
                let payload_bytes = header.length as usize;
                match self.input.filled().get(..payload_bytes) {
                    Some(payload) => {
                        self.whole_chunk(&header, pending, payload)?;
                        self.input.consume(payload_bytes);
                    }
                    None => self.receiving = Receiving::Payload { header, pending, payload: Vec::new() },
                }
            }
        }
        Ok(true)
    }

    fn simple(&mut self, cookie: Cookie, error: Option<ErrorCode>) -> Result<(), ConnectionError> {
        let mut pending = self.request(cookie)?;
        let job = pending.job;
        if job.command == Command::READ && self.structured {
            let cause = ConnectionError::WrongReply(job.command);
            return Err(self.broken(cookie, pending, cause));
        }
        match error {
            Some(error) => pending.error(error, String::new()),
            None if job.command == Command::READ && job.length > 0 => {
                return self.begin_data(cookie, pending, job.offset, job.length, true);
            }
            None => {}
        }
        self.end_chunk(cookie, pending, true)
    }

    /// The request that a chunk belongs to.
    fn chunk_of(&self, cookie: Cookie) -> Result<Pending, ConnectionError> {
        let pending = self.request(cookie)?;
        if self.structured {
            return Ok(pending);
        }
        let cause = ConnectionError::WrongReply(pending.job.command);
        Err(self.broken(cookie, pending, cause))
    }

    fn request(&self, cookie: Cookie) -> Result<Pending, ConnectionError> {
        let pending = self.shared.remove(cookie);
        pending.ok_or(ConnectionError::UnknownCookie(cookie.0))
    }

    fn begin_data(
        &mut self,
        cookie: Cookie,
        mut pending: Pending,
        offset: u64,
        length: u32,
        last: bool,
    ) -> Result<(), ConnectionError> {
        match pending.piece(offset, length, false) {
            Ok(place) => {
                self.receiving = Receiving::Data { cookie, pending, place, last };
                Ok(())
            }
            Err(cause) => Err(self.broken(cookie, pending, cause)),
        }
    }

    fn whole_chunk(&self, header: &ChunkHeader, mut pending: Pending, payload: &[u8]) -> Result<(), ConnectionError> {
        let chunk = header.parse(payload).map_err(ConnectionError::from);
        match chunk.and_then(|chunk| pending.chunk(chunk)) {
            Ok(()) => self.end_chunk(header.cookie, pending, header.is_last()),
            Err(cause) => Err(self.broken(header.cookie, pending, cause)),
        }
    }

    fn end_chunk(&self, cookie: Cookie, mut pending: Pending, last: bool) -> Result<(), ConnectionError> {
        if !last {
            self.shared.put_back(cookie, pending);
            return Ok(());
        }
        match pending.result(&self.context_ids) {
            Ok(result) => pending.wake(result),
            Err(cause) => return Err(self.broken(cookie, pending, cause)),
        }
        Ok(())
    }

    /// Puts a request back so that it is told of the connection's end as all others are.
    fn broken(&self, cookie: Cookie, pending: Pending, cause: ConnectionError) -> ConnectionError {
        self.shared.put_back(cookie, pending);
        cause
    }
}

/// Bytes that came and were not used yet: `bytes[start..end]`.
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { bytes: vec![0; CLIENT_BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    const fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Moves as much as there is and fits.
    fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let count = self.filled().len().min(target.len());
        if let (Some(target), Some(bytes)) = (target.get_mut(..count), self.filled().get(..count)) {
            target.copy_from_slice(bytes);
        }
        self.consume(count);
        count
    }

    /// Reads behind what is there; what is left of it, less than a header or a small chunk, moves to the front.
    fn poll_fill(&mut self, stream: Pin<&mut impl AsyncRead>, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut buffer = ReadBuf::new(self.bytes.get_mut(self.end..).unwrap_or_default());
        std::task::ready!(stream.poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}
