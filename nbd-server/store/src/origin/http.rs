//! A repository on a web server: kept-alive HTTP/1.1 connections, one range per request.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RANGE, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout};
use url::Url;

use super::proxy::{Dialer, Proxies, ProxyError, Via};
use super::reach::leads_inside;
use super::tls::{self, BadCertificate};
use super::{Access, Body, Origin, Promise, shown};
use crate::Error;
use crate::failure::describe;
use crate::limits::{
    CONNECT_TIMEOUT, IDLE_CONNECTION, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, ORIGIN_REQUESTS_MAX,
    REDIRECTION_KEPT, REDIRECTIONS_KEPT_MAX, REDIRECTS_MAX, RESPONSE_TIMEOUT, SKIPPED_BYTES_MAX, STALL_BYTES_MIN,
    STALL_TIMEOUT,
};

/// What our HTTP clients call themselves.
pub const AGENT: HeaderValue = HeaderValue::from_static(concat!("vmnetx/", env!("CARGO_PKG_VERSION")));

/// Opens connections, through proxies where there are some, and, for https, TLS in them.
pub type Connector = HttpsConnector<Dialer>;

/// The connections to web servers; cheap to clone, shared by all origins.
#[derive(Debug, Clone)]
pub struct HttpClient {
    plain: Client<Dialer, Empty<Bytes>>,
    /// For https, shared by those who believe the same authorities. The system's certificates are read when they are needed
    /// first, for that takes longer than everything else that a start with a warm cache has to do.
    secure: Arc<OnceLock<Client<Connector, Empty<Bytes>>>>,
    proxies: Proxies,
    access: Arc<Access>,
    redirections: Arc<Mutex<HashMap<Url, Redirection>>>,
}

/// Where a resource was found to be, for a short time.
#[derive(Debug)]
struct Redirection {
    to: Url,
    since: Instant,
}

/// Reads a repository below a URL.
#[derive(Debug)]
pub struct HttpOrigin {
    client: HttpClient,
    base: Url,
}

impl Default for HttpClient {
    /// Shows itself to no host. Opens no connection yet.
    fn default() -> Self {
        Self::with(Access::default())
    }
}

impl HttpClient {
    /// Shows itself to hosts, and believes them, as `access` says. Opens no connection yet.
    #[must_use]
    pub fn with(access: Access) -> Self {
        Self::through(access, Proxies::from_environment())
    }

    pub(super) fn through(access: Access, proxies: Proxies) -> Self {
        let (plain, secure) = (pool().build(dialer(&proxies, None)), Arc::default());
        Self { plain, secure, proxies, access: Arc::new(access), redirections: Arc::default() }
    }

    /// The same connections for someone who shows himself otherwise.
    pub(crate) fn with_access(&self, access: Access) -> Self {
        let secure = match access.authorities() == self.access.authorities() {
            true => Arc::clone(&self.secure),
            // A host that one reader believes is not to be believed by all.
            false => Arc::default(),
        };
        Self { secure, access: Arc::new(access), redirections: Arc::default(), ..self.clone() }
    }

    async fn request(&self, object: &str, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Error> {
        let responding = match request.uri().scheme_str() {
            Some("http") => self.plain.request(request),
            _ => self.secure()?.request(request),
        };
        responding.await.map_err(|error| unanswered(object, &error))
    }

    fn secure(&self) -> Result<&Client<Connector, Empty<Bytes>>, Error> {
        if let Some(secure) = self.secure.get() {
            return Ok(secure);
        }
        let secure = pool().build(connector(&self.proxies, &self.access, None)?);
        Ok(self.secure.get_or_init(|| secure))
    }

    /// Sends a GET and follows redirections, from where they led lately; `range` as in the HTTP header, its end not included.
    async fn get(&self, url: &Url, range: Option<&Range<u64>>) -> Result<Response<Incoming>, Error> {
        if let Some(to) = self.redirected_lately(url) {
            match self.send(&to, range).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                // Such places are often good for a while only: the first one knows where it is now.
                _ => drop(self.redirections().remove(url)),
            }
        }
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(&at, range).await?;
            if !response.status().is_redirection() {
                if at != *url && response.status().is_success() {
                    self.remember(url, at);
                }
                return Ok(response);
            }
            at = redirected(&at, &response)?;
        }
        Err(refused(&at, "too many redirections"))
    }

    fn redirected_lately(&self, url: &Url) -> Option<Url> {
        let redirections = self.redirections();
        let known = redirections.get(url).filter(|known| known.since.elapsed() < REDIRECTION_KEPT)?;
        Some(known.to.clone())
    }

    fn remember(&self, url: &Url, to: Url) {
        let mut redirections = self.redirections();
        if redirections.len() >= REDIRECTIONS_KEPT_MAX {
            redirections.clear();
        }
        redirections.insert(url.clone(), Redirection { to, since: Instant::now() });
    }

    fn redirections(&self) -> MutexGuard<'_, HashMap<Url, Redirection>> {
        // The map is whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.redirections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, url: &Url, range: Option<&Range<u64>>) -> Result<Response<Incoming>, Error> {
        let object = shown(url);
        let mut request = Request::get(url.as_str()).header(USER_AGENT, AGENT);
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        // By the host of this very URL: a redirection takes nobody's credentials along.
        if let Some(credentials) = self.access.header(url) {
            request = request.header(AUTHORIZATION, credentials);
        }
        let mut request = request.body(Empty::new()).map_err(|error| Error::network(&object, error))?;
        if let Some(login) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, login);
        }
        // The connector has its own, shorter limit; this one also covers what comes after it.
        let limit = CONNECT_TIMEOUT + RESPONSE_TIMEOUT;
        let late = |_| Error::network(&object, format_args!("no answer within {} s", limit.as_secs()));
        timeout(limit, self.request(&object, request)).await.map_err(late)?
    }

    /// Reads a whole resource of at most `max_bytes`.
    pub(crate) async fn whole(&self, url: &Url, max_bytes: u64) -> Result<Bytes, Error> {
        let object = shown(url);
        let response = self.get(url, None).await?;
        check_status(url, &response, &[StatusCode::OK])?;
        let mut body = Pieces::new(response.into_body(), object.clone());
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > max_bytes {
                return Err(Error::TooLarge { object, max_bytes });
            }
        }
        Ok(bytes.into())
    }

    async fn range(&self, url: &Url, range: Range<u64>) -> Result<Body, Error> {
        let object = shown(url);
        let response = self.get(url, Some(&range)).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(Error::Short { object });
        }
        check_status(url, &response, &[StatusCode::PARTIAL_CONTENT, StatusCode::OK])?;
        let total_bytes = total_bytes(&response);
        let skip = if response.status() == StatusCode::OK {
            // The server ignores Range and sends everything: what comes before the range is passed over.
            if range.start > SKIPPED_BYTES_MAX {
                return Err(refused(
                    url,
                    "200 OK to a request for a range: the server does not support Range requests",
                ));
            }
            range.start
        } else {
            check_content_range(&response, &range).map_err(|reason| Error::network(&object, reason))?;
            0
        };
        let (sender, pieces) = Body::channel();
        let mut body = Pieces::new(response.into_body(), object.clone());
        let mut skip = skip;
        let mut left = range.end - range.start;
        // Reading in a task of its own lets the line run while the receiver decompresses. It ends with the range, at an
        // error, after STALL_TIMEOUT, or when the receiver is gone.
        tokio::spawn(async move {
            while left > 0 {
                let Some(piece) = body.next().await else {
                    if total_bytes.is_some_and(|total| total < range.end) {
                        let _ = sender.send(Err(Error::Short { object })).await;
                    }
                    return;
                };
                let piece = piece.map(|mut piece| {
                    let passed = skip.min(piece.len() as u64);
                    skip -= passed;
                    let mut piece = piece.split_off(passed as usize);
                    piece.truncate(left.min(piece.len() as u64) as usize);
                    left -= piece.len() as u64;
                    piece
                });
                let last = piece.is_err();
                if matches!(&piece, Ok(piece) if piece.is_empty()) {
                    continue;
                }
                if sender.send(piece).await.is_err() || last {
                    return;
                }
            }
            // A body read to its end gives its connection back to the pool. A server that sends more than the range is
            // not waited for.
            let _ = timeout(Duration::from_millis(10), body.next()).await;
        });
        Ok(pieces)
    }
}

/// Opens the connections of every HTTP client of ours, with the times that [`crate::limits`] names. What is sent waits in
/// a buffer of `send_buffer_bytes`, or of whatever size the system takes.
///
/// # Errors
/// [`Error::Network`] when the system's trusted certificates cannot be used.
pub fn connector(proxies: &Proxies, access: &Access, send_buffer_bytes: Option<usize>) -> Result<Connector, Error> {
    let config = tls::client_config(access.authorities())
        .map_err(|error| Error::network("the system's trusted certificates", error))?;
    let tls = HttpsConnectorBuilder::new().with_tls_config(config);
    Ok(tls.https_or_http().enable_http1().wrap_connector(dialer(proxies, send_buffer_bytes)))
}

/// How connections are kept for the next request.
fn pool() -> legacy::Builder {
    let mut pool = Client::builder(TokioExecutor::new());
    pool.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_CONNECTION).pool_max_idle_per_host(ORIGIN_REQUESTS_MAX);
    pool
}

fn dialer(proxies: &Proxies, send_buffer_bytes: Option<usize>) -> Dialer {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_nodelay(true);
    http.set_send_buffer_size(send_buffer_bytes);
    // A connection that died with a network or in a suspended host must not be found out by a request that waits.
    http.set_keepalive(Some(KEEPALIVE_IDLE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(RESPONSE_TIMEOUT));
    http.enforce_http(false);
    Dialer::new(http, proxies.clone())
}

/// Why a request for `object` has no answer: what does not pass by itself is told apart from what may.
fn unanswered(object: &str, error: &legacy::Error) -> Error {
    if let Some(reason) = BadCertificate::behind(error) {
        return Error::Certificate { object: object.to_owned(), reason };
    }
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref()) {
        Some(ProxyError::Variable { variable }) => Error::ProxyVariable { variable },
        Some(ProxyError::Status { proxy, status }) if !may_pass(*status) => {
            Error::Proxy { object: object.to_owned(), proxy: proxy.clone(), status: status.to_string() }
        }
        _ => Error::network(object, describe(error)),
    }
}

impl HttpOrigin {
    /// The repository whose root is the URL `base`, which ends in `/`.
    #[must_use]
    pub const fn new(client: HttpClient, base: Url) -> Self {
        Self { client, base }
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path).map_err(|error| Error::network(&self.locate(path), error))
    }
}

impl Origin for HttpOrigin {
    fn locate(&self, path: &str) -> String {
        format!("{}{path}", shown(&self.base))
    }

    fn object<'a>(&'a self, path: &'a str, max_bytes: u64) -> Promise<'a, Result<Bytes, Error>> {
        Box::pin(async move { self.client.whole(&self.url(path)?, max_bytes).await })
    }

    fn range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Promise<'a, Result<Body, Error>> {
        Box::pin(async move { self.client.range(&self.url(path)?, range).await })
    }
}

/// A body as it comes in, watched for stalls.
struct Pieces {
    body: Incoming,
    /// Whose body it is, to be shown.
    object: String,
    /// Time spent waiting since `bytes` was last zero.
    waited: Duration,
    bytes: u64,
}

impl Pieces {
    const fn new(body: Incoming, object: String) -> Self {
        Self { body, object, waited: Duration::ZERO, bytes: 0 }
    }

    /// The next piece, or an error if too little comes for too long.
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let start = Instant::now();
            let frame = timeout(STALL_TIMEOUT.saturating_sub(self.waited), self.body.frame()).await;
            self.waited += start.elapsed();
            match frame {
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some(Err(Error::network(&self.object, describe(&error)))),
                Ok(Some(Ok(frame))) => {
                    // Trailers are no data.
                    let Ok(piece) = frame.into_data() else { continue };
                    self.bytes += piece.len() as u64;
                    if self.bytes >= STALL_BYTES_MIN {
                        (self.waited, self.bytes) = (Duration::ZERO, 0);
                    } else if self.waited >= STALL_TIMEOUT {
                        return Some(Err(self.stalled()));
                    }
                    return Some(Ok(piece));
                }
                Err(_) => return Some(Err(self.stalled())),
            }
        }
    }

    fn stalled(&self) -> Error {
        let (bytes, seconds) = (self.bytes, STALL_TIMEOUT.as_secs());
        Error::network(&self.object, format_args!("the response stalled: {bytes} bytes in {seconds} s"))
    }
}

/// Whether a server or a proxy says with a status how it is itself, which passes, and nothing of the object.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY)
}

fn check_status(url: &Url, response: &Response<Incoming>, good: &[StatusCode]) -> Result<(), Error> {
    let status = response.status();
    if good.contains(&status) {
        return check_encoding(url, response);
    }
    match response.extensions().get() {
        _ if may_pass(status) => Err(Error::network(&shown(url), format_args!("the server answers {status}"))),
        // Only proxies say that.
        Some(Via(proxy)) if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(Error::Proxy { object: shown(url), proxy: proxy.clone(), status: status.to_string() })
        }
        Some(Via(proxy)) => Err(refused(url, format_args!("{status}, through the proxy {proxy}"))),
        None => Err(refused(url, status)),
    }
}

/// Objects are asked for as they are. Encoded ones would have to be decoded, to any length, and ranges of them mean nothing.
fn check_encoding(url: &Url, response: &Response<Incoming>) -> Result<(), Error> {
    match response.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let (status, encoding) = (response.status(), String::from_utf8_lossy(encoding.as_bytes()));
            Err(refused(url, format_args!("{status} with the content encoding {encoding:?}, which was not asked for")))
        }
        _ => Ok(()),
    }
}

/// A 206 must carry the range that was asked for, or bytes would be taken for others and only fail their digests.
fn check_content_range(response: &Response<Incoming>, range: &Range<u64>) -> Result<(), String> {
    let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let start =
        header.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()).and_then(|text| text.parse().ok());
    if start == Some(range.start) {
        return Ok(());
    }
    Err(format!("asked for the range at {}, the server answers {header:?}", range.start))
}

/// Bytes of the whole object, if a good response to a request for a range tells them.
fn total_bytes(response: &Response<Incoming>) -> Option<u64> {
    if response.status() == StatusCode::OK {
        return response.body().size_hint().exact();
    }
    response.headers().get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

fn redirected<B>(url: &Url, response: &Response<B>) -> Result<Url, Error> {
    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = target.and_then(|text| url.join(text).ok()).ok_or_else(|| refused(url, "a redirection to nowhere"))?;
    if leads_inside(url, &target) {
        let reason = format_args!("a redirection into a private network, to {}, which is not followed", shown(&target));
        return Err(refused(url, reason));
    }
    match (url.scheme(), target.scheme()) {
        ("http", "http" | "https") | ("https", "https") => Ok(target),
        _ => Err(refused(url, format_args!("a redirection to {}, which is not followed", shown(&target)))),
    }
}

fn refused(url: &Url, status: impl ToString) -> Error {
    Error::Refused { object: shown(url), status: status.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(url: &str, target: &str) -> Result<String, Error> {
        let response = Response::builder().status(302).header(LOCATION, target).body(()).unwrap();
        redirected(&url.parse().unwrap(), &response).map(|url| url.to_string())
    }

    #[test]
    fn redirections_do_not_lead_into_a_private_network() {
        for target in ["http://127.0.0.1/a", "https://10.0.0.1/", "http://router.local/", "http://[::1]:631/"] {
            let error = follow("http://vms.example.org/a", target).unwrap_err();
            assert!(error.to_string().contains("private network"), "{target}: {error}");
        }
        assert_eq!(follow("http://127.0.0.1:8080/a", "http://127.0.0.1/b").unwrap(), "http://127.0.0.1/b");
    }

    #[test]
    fn redirections_never_give_up_encryption() {
        assert_eq!(follow("http://h/a", "https://h/a").unwrap(), "https://h/a");
        assert_eq!(follow("https://h/a/b", "../c").unwrap(), "https://h/c");
        assert_eq!(follow("https://h/a", "//other/c").unwrap(), "https://other/c");
        assert_eq!(follow("http://h/a", "http://other/c").unwrap(), "http://other/c");
        for target in ["http://h/a", "http://h:443/a", "ftp://h/a", "file:///a", "data:,x"] {
            let error = follow("https://h/a", target).unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{target}: {error}");
        }
        let error = follow("https://h/a", "http://user:secret@h/a").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
