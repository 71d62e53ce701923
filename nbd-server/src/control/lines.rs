//! Answers that go on: a line of JSON at once and then now and again, until one of both ends has enough. This module has the
//! server's and the client's side.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::Error;
use crate::limits::{LINE_BYTES_MAX, SILENCE_MAX};

/// The media type of such an answer.
pub(super) const CONTENT: &str = "application/x-ndjson";

/// An answer that goes on until its [`Teller`] is dropped.
pub(super) struct Lines(mpsc::Receiver<Bytes>);

/// The end that says the lines.
pub(super) struct Teller(mpsc::Sender<Bytes>);

/// The client's end.
#[derive(Debug)]
pub(super) struct Listened {
    socket: PathBuf,
    body: Incoming,
    buffer: BytesMut,
    _connection: AbortOnDropHandle<()>,
}

impl Lines {
    pub(super) fn new() -> (Teller, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (Teller(sender), Self(receiver))
    }
}

impl Teller {
    /// Returns when the client is gone.
    pub(super) async fn is_alone(&self) {
        self.0.closed().await;
    }

    /// Says a line, unless the client has not read the one before: it still holds its connection.
    pub(super) fn say(&self, line: &impl Serialize) {
        let _ = self.0.try_send(encoded(line));
    }

    /// Says the last line, for which a client that is slow is waited for.
    pub(super) async fn say_last(self, line: &impl Serialize) {
        // Fails when nobody is there any more.
        let _ = self.0.send(encoded(line)).await;
    }
}

fn encoded(line: &impl Serialize) -> Bytes {
    // Numbers and text always serialise.
    let mut line = serde_json::to_vec(line).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, CONTENT)], Body::new(self)).into_response()
    }
}

impl Listened {
    pub(super) fn new(socket: PathBuf, body: Incoming, connection: AbortOnDropHandle<()>) -> Self {
        Self { socket, body, buffer: BytesMut::new(), _connection: connection }
    }

    /// The next line; nothing when the server ends the answer.
    ///
    /// # Errors
    /// [`Error::Control`] when the server is gone, has not been heard for [`SILENCE_MAX`], or says something else.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|error| self.wrong(&error));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.wrong(&"a line is too long"));
            }
            let frame = timeout(SILENCE_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| self.wrong(&"it is silent"))?;
            match frame.transpose().map_err(|error| self.wrong(&error))? {
                Some(frame) => frame.data_ref().into_iter().for_each(|data| self.buffer.extend_from_slice(data)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.wrong(&"a line is cut")),
            }
        }
    }

    /// The server has ended the answer too early.
    pub(super) fn cut(&self) -> Error {
        self.wrong(&"it has ended its answer before its work")
    }

    fn wrong(&self, reason: &impl ToString) -> Error {
        Error::Control { socket: self.socket.display().to_string(), reason: reason.to_string() }
    }
}
