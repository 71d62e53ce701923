//! Proxies: which one stands between this host and an origin, as the environment says, and how it is passed.

#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use super::AGENT;
use super::reach::is_this_host;
use crate::limits::RESPONSE_TIMEOUT;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The variables that name a proxy for http, the first one that is set and not empty. `HTTP_PROXY` is none of them, as for
/// curl: a CGI program finds a header of its client under this name.
const FOR_HTTP: [&str; 3] = ["http_proxy", "all_proxy", "ALL_PROXY"];
/// The same for https.
const FOR_HTTPS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// The variables that list hosts which are reached without a proxy.
const FOR_NONE: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Which proxy a URL is reached through. None for this host itself, whatever the environment says: a proxy elsewhere would
/// take it for its own.
#[derive(Debug, Clone)]
pub struct Proxies(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    http: Option<Named>,
    https: Option<Named>,
    /// Intercepts what is not listed as reached without a proxy.
    listed: Matcher,
}

/// What a variable names.
#[derive(Debug)]
struct Named {
    variable: &'static str,
    /// Nothing if it is no proxy that is spoken to.
    proxy: Option<Intercept>,
}

/// Why a proxy is not passed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the variable {variable} names no proxy of the kind http://[USER:PASSWORD@]HOST:PORT")]
    Variable { variable: &'static str },
    #[error("the proxy {proxy} answers {status}")]
    Status { proxy: String, status: StatusCode },
    #[error("the proxy {proxy} cannot be reached")]
    Unreachable { proxy: String, source: BoxError },
    #[error("the proxy {proxy} broke off")]
    Broken { proxy: String, source: hyper::Error },
    #[error("the proxy {proxy} does not answer within {} s", RESPONSE_TIMEOUT.as_secs())]
    Late { proxy: String },
    #[error("the proxy {proxy} cannot be asked")]
    Unaskable { proxy: String, source: hyper::http::Error },
    #[error("the proxy {proxy} says more than that it lets a connection through")]
    Talkative { proxy: String },
}

/// Opens connections to origins, or to the proxies before them.
#[derive(Debug, Clone)]
pub struct Dialer {
    tcp: HttpConnector,
    proxies: Proxies,
}

/// A connection to an origin, through a tunnel or not, or to a proxy that takes requests for it.
#[derive(Debug)]
pub struct Route {
    stream: TokioIo<TcpStream>,
    via: Option<Via>,
}

/// The proxy that took a request, as every response over its connection says.
#[derive(Debug, Clone)]
pub(super) struct Via(pub(super) String);

impl Proxies {
    /// Those that the environment names, as curl reads it.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::of(|variable| std::env::var(variable).ok())
    }

    fn of(value: impl Fn(&str) -> Option<String>) -> Self {
        let first = |variables: &[&'static str]| {
            variables.iter().find_map(|&variable| Some((variable, value(variable).filter(|text| !text.is_empty())?)))
        };
        let none = first(&FOR_NONE).map(|(_, text)| text).unwrap_or_default();
        // The matcher takes the star for names alone.
        let is_unused = none.split(',').any(|host| host.trim() == "*");
        let named = |variables| {
            let (variable, text) = first(variables).filter(|_| !is_unused)?;
            let proxy = Matcher::builder().all(text).build().intercept(&Uri::from_static("http://any/"));
            Some(Named { variable, proxy: proxy.filter(|proxy| proxy.uri().scheme_str() == Some("http")) })
        };
        let listed = Matcher::builder().all("http://any").no(none).build();
        Self(Arc::new(Rules { http: named(&FOR_HTTP), https: named(&FOR_HTTPS), listed }))
    }

    /// The proxy for a URL, if there is one.
    fn toward(&self, uri: &Uri) -> Result<Option<&Intercept>, ProxyError> {
        let Rules { http, https, listed } = &*self.0;
        let named = if is_https(uri) { https } else { http };
        let Some(Named { variable, proxy }) = named else { return Ok(None) };
        if uri.host().is_none_or(is_this_host) || listed.intercept(uri).is_none() {
            return Ok(None);
        }
        proxy.as_ref().map(Some).ok_or(ProxyError::Variable { variable })
    }

    /// The login for the proxy that takes a request to this URL itself. It belongs into the request's `Proxy-Authorization`.
    /// A tunnel's is not in the requests that go through it.
    #[must_use]
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let proxy = self.toward(uri).ok().flatten().filter(|_| !is_https(uri))?;
        proxy.basic_auth().cloned()
    }
}

impl Dialer {
    pub(super) const fn new(tcp: HttpConnector, proxies: Proxies) -> Self {
        Self { tcp, proxies }
    }
}

impl Service<Uri> for Dialer {
    type Response = Route;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Route, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Self { mut tcp, proxies } = self.clone();
        Box::pin(async move {
            let Some(proxy) = proxies.toward(&to)? else {
                return Ok(Route { stream: tcp.call(to).await?, via: None });
            };
            let dialled = tcp.call(proxy.uri().clone()).await;
            let stream =
                dialled.map_err(|source| ProxyError::Unreachable { proxy: shown(proxy), source: source.into() })?;
            if !is_https(&to) {
                return Ok(Route { stream, via: Some(Via(shown(proxy))) });
            }
            let opening = timeout(RESPONSE_TIMEOUT, tunnel(stream, proxy, &to));
            let stream = opening.await.map_err(|_| ProxyError::Late { proxy: shown(proxy) })??;
            Ok(Route { stream, via: None })
        })
    }
}

/// Lets a proxy open a tunnel (RFC 9110, 9.3.6). Unlike hyper-util's `Tunnel` it tells the status of a refusal, by which it is
/// known whether trying again can help.
async fn tunnel(stream: TokioIo<TcpStream>, proxy: &Intercept, to: &Uri) -> Result<TokioIo<TcpStream>, ProxyError> {
    let broken = |source| ProxyError::Broken { proxy: shown(proxy), source };
    let authority = format!("{}:{}", to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    // It ends when the tunnel is open or `sender` is gone; what it fails with, `sender` tells.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(&authority).header(HOST, &authority).header(USER_AGENT, AGENT);
    if let Some(login) = proxy.basic_auth() {
        request = request.header(PROXY_AUTHORIZATION, login);
    }
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|source| ProxyError::Unaskable { proxy: shown(proxy), source })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if !response.status().is_success() {
        return Err(ProxyError::Status { proxy: shown(proxy), status: response.status() });
    }
    let opened = hyper::upgrade::on(response).await.map_err(broken)?;
    match opened.downcast::<TokioIo<TcpStream>>() {
        // The client speaks first in TLS: bytes of the origin cannot be here yet.
        Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io),
        _ => Err(ProxyError::Talkative { proxy: shown(proxy) }),
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// A proxy without its login, which is not in this URI any more.
fn shown(proxy: &Intercept) -> String {
    proxy.uri().to_string().trim_end_matches('/').to_owned()
}

impl Connection for Route {
    fn connected(&self) -> Connected {
        let connected = self.stream.connected();
        match &self.via {
            // Requests carry the whole URL then.
            Some(via) => connected.proxy(true).extra(via.clone()),
            None => connected,
        }
    }
}

impl Read for Route {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Route {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
