//! Carries `object_store`'s requests over the HTTP client that everything of ours uses, with a watch on stalls.
//!
//! Answers are taken in whole: none of those that a push asks for is large. Of an answer that is an error only the server's
//! code and message are passed on, for the rest of it may repeat what was signed.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use chrono::DateTime;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{DATE, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
};
use tokio::time::{Instant, timeout, timeout_at};
use vmnetx_store::failure::describe;
use vmnetx_store::limits::IDLE_CONNECTION;
use vmnetx_store::origin::{AGENT, Access, Connector, Proxies, connector};

use crate::Error;
use crate::limits::{PUSH_ANSWER_BYTES_MAX, PUSH_ERROR_CHARS_MAX, PUSH_PARTS, PUSH_SEND_BUFFER_BYTES, PUSH_STALL};

/// The connections to the server of a bucket; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: Client<Connector, Watched>,
    proxies: Proxies,
    /// What the server's last answer said of the time, in seconds since 1970; 0 before the first.
    server_time_unix_s: Arc<AtomicI64>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The connection cannot be opened, or broke off.
    #[error("{0}")]
    Broken(String),
    /// Nothing more was sent or answered.
    #[error("nothing moved for {} s", PUSH_STALL.as_secs())]
    Stalled,
    /// The answer is longer than any that was asked for.
    #[error("the answer has more than {PUSH_ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    /// The server does not know how to do what it was asked for.
    #[error("the server answers 501 Not Implemented: {0}")]
    NotImplemented(String),
}

/// The body of a request, which takes note of the time at which its last piece was taken.
#[derive(Debug)]
struct Watched {
    body: HttpRequestBody,
    moved: Arc<Mutex<Instant>>,
}

impl Transport {
    /// Opens no connection yet.
    pub(super) fn new() -> Result<Self, Error> {
        let proxies = Proxies::from_environment();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(PUSH_PARTS)
            .build(connector(&proxies, &Access::default(), Some(PUSH_SEND_BUFFER_BYTES))?);
        Ok(Self { client, proxies, server_time_unix_s: Arc::default() })
    }

    /// The server's own time as of its last answer, in seconds since 1970; nothing if it never said.
    pub(super) fn server_time_unix_s(&self) -> Option<i64> {
        Some(self.server_time_unix_s.load(Ordering::Relaxed)).filter(|&unix_s| unix_s > 0)
    }

    fn note_time(&self, response: &Response<Incoming>) {
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        if let Some(Ok(date)) = date.map(DateTime::parse_from_rfc2822) {
            self.server_time_unix_s.store(date.timestamp(), Ordering::Relaxed);
        }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(USER_AGENT, AGENT);
        parts.headers.extend(self.proxies.authorization(&parts.uri).map(|login| (PROXY_AUTHORIZATION, login)));
        let moved = Arc::new(Mutex::new(Instant::now()));
        let request = Request::from_parts(parts, Watched { body, moved: Arc::clone(&moved) });
        let response = watch(self.client.request(request), &moved).await?;
        self.note_time(&response);
        let (parts, body) = response.into_parts();
        let body = whole(body).await?;
        if parts.status == StatusCode::NOT_IMPLEMENTED {
            // Unlike other errors of a server, this one does not pass: it must not be tried again.
            return Err(HttpError::new(HttpErrorKind::Unknown, Failure::NotImplemented(told(&body))));
        }
        let body = if parts.status.is_success() { body } else { told(&body).into() };
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl Watched {
    fn touch(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.touch();
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Waits for the head of an answer for as long as the request moves on.
async fn watch(response: legacy::ResponseFuture, moved: &Mutex<Instant>) -> Result<Response<Incoming>, HttpError> {
    let mut response = std::pin::pin!(response);
    loop {
        let due = *moved.lock().unwrap_or_else(PoisonError::into_inner) + PUSH_STALL;
        match timeout_at(due, &mut response).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => return Err(HttpError::new(kind(&error), Failure::Broken(describe(&error)))),
            Err(_) if Instant::now() < *moved.lock().unwrap_or_else(PoisonError::into_inner) + PUSH_STALL => {}
            Err(_) => return Err(HttpError::new(HttpErrorKind::Timeout, Failure::Stalled)),
        }
    }
}

/// The bytes of an answer.
async fn whole(body: Incoming) -> Result<Bytes, HttpError> {
    let collected = timeout(PUSH_STALL, Limited::new(body, PUSH_ANSWER_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(HttpError::new(HttpErrorKind::Decode, Failure::TooLarge))
        }
        Ok(Err(error)) => Err(HttpError::new(HttpErrorKind::Interrupted, Failure::Broken(describe(error.as_ref())))),
        Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, Failure::Stalled)),
    }
}

/// Whether the server may have acted on a request that failed: what it has not seen can always be sent again.
fn kind(error: &legacy::Error) -> HttpErrorKind {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<hyper::Error>());
    if error.is_connect() {
        HttpErrorKind::Connect
    } else if source.is_some_and(hyper::Error::is_canceled) {
        HttpErrorKind::Request
    } else {
        HttpErrorKind::Interrupted
    }
}

/// What a server says in an error: its code and message.
fn told(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let part = |tag: &str| Some(text.split_once(&format!("<{tag}>"))?.1.split_once('<')?.0.to_owned());
    let told = match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (code, message) => code.or(message).unwrap_or_default(),
    };
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    told.chars().take(PUSH_ERROR_CHARS_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_message_of_an_error_are_told() {
        let body =
            b"<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>No \x1b[1m match</Message>\
                     <AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>hush</StringToSign></Error>";
        assert_eq!(told(body), "SignatureDoesNotMatch: No \u{fffd}[1m match");
        assert_eq!(told(b"<html>a proxy's page</html>"), "");
        assert_eq!(told(b"<Code>half"), "");
        assert_eq!(told(&[b"<Message>".as_slice(), &[b'x'; 5000], b"</Message>"].concat()).len(), PUSH_ERROR_CHARS_MAX);
    }
}
