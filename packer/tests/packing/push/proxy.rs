//! A proxy before the S3 server that keeps count and does to requests what bad networks and other servers do.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    Pass,
    /// The server is overloaded.
    Unavailable,
    /// The server does not know this.
    NotImplemented,
    /// The connection breaks before the server sees the request.
    Broken,
    /// The server acts, but its answer is lost.
    AnswerLost,
    /// Nothing comes back for a long time.
    Stalled,
    /// The server does not see any conditions.
    Unconditional,
    /// It waits for another one like it before it passes.
    Meets(Arc<Barrier>),
}

/// A request: its method, its path in the bucket, its query and headers.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
}

/// Decides by a request and its number.
type Rule = dyn Fn(&Seen, usize) -> Fate + Send + Sync;

/// The proxy; it ends when it is dropped.
pub(super) struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Stands before the server that listens at `port` of this host.
    pub(super) fn start(port: u16, rule: impl Fn(&Seen, usize) -> Fate + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (rule, log): (Arc<Rule>, _) = (Arc::new(rule), Arc::clone(&seen));
        // Conditional puts pass one by one: a server must act on each as a whole, and this one does not promise it.
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (rule, log, turn) = (Arc::clone(&rule), Arc::clone(&log), Arc::clone(&turn));
                let service = service_fn(move |request| {
                    answer(request, port, Arc::clone(&rule), Arc::clone(&log), Arc::clone(&turn))
                });
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, seen, runtime: Some(runtime) }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, which are forgotten with it.
    pub(super) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seen {
    /// Whether it adds or changes an object: an upload, a part of one, or the end of one in parts.
    pub(super) fn uploads(&self) -> bool {
        self.method == "PUT" || (self.method == "POST" && self.path != "vms")
    }

    pub(super) fn is_conditional(&self) -> bool {
        self.headers.contains_key("if-match") || self.headers.contains_key("if-none-match")
    }
}

async fn answer(
    request: Request<Incoming>,
    port: u16,
    rule: Arc<Rule>,
    log: Arc<Mutex<Vec<Seen>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
) -> io::Result<Response<Full<Bytes>>> {
    let (mut parts, body) = request.into_parts();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().trim_matches('/').to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.clone(),
    };
    let conditional = seen.is_conditional();
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len()
    };
    let fate = rule(&seen, number);
    let broken = || Err(io::Error::other("broken by the test"));
    let status = |status, code: &str| {
        let body = format!("<Error><Code>{code}</Code><Message>as the test wants</Message></Error>");
        Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
    };
    match &fate {
        Fate::Broken => return broken(),
        Fate::Unavailable => return status(503, "SlowDown"),
        Fate::NotImplemented => return status(501, "NotImplemented"),
        Fate::Stalled => tokio::time::sleep(Duration::from_secs(3600)).await,
        Fate::Unconditional => {
            // The server without keys does not know what to do with a signature.
            for header in ["if-match", "if-none-match", "authorization"] {
                parts.headers.remove(header);
            }
        }
        Fate::Meets(barrier) => {
            barrier.wait().await;
        }
        Fate::Pass | Fate::AnswerLost => {}
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    parts.uri = format!("http://127.0.0.1:{port}{}", parts.uri).parse::<Uri>().unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let _turn = if conditional { Some(turn.lock().await) } else { None };
    let response = client.request(Request::from_parts(parts, Full::new(body))).await.map_err(io::Error::other)?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if matches!(fate, Fate::AnswerLost) {
        return broken();
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}
