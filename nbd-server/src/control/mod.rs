//! The control socket: HTTP on a Unix socket, by which clients attach packages and look at what the server does.
//!
//! Paths begin with the version of the interface, except for `/version` and `/drain`, which no version changes: by these a
//! client and a server of different versions understand each other. The user at the other end of a connection is who the
//! kernel says. `GET /v1/openapi.json` describes everything.

pub mod api;
mod client;
mod keep;
mod lines;
mod mapped;
mod metrics;
mod routes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::Peer;
use crate::limits::{
    ACCEPT_PAUSE, CONTROL_CONNECTIONS_MAX, CONTROL_CONNECTIONS_PER_UID_MAX, CONTROL_HEADER_BYTES_MAX,
    CONTROL_REQUEST_TIMEOUT, DRAIN_TIMEOUT,
};
use crate::listener::Stream;
use crate::{Host, Listener};

pub use client::{Control, Lease, Pulling};

/// Answers on the control socket until `shutdown` is cancelled. Only Unix sockets are served.
pub async fn serve_control(listener: Listener, host: Host, shutdown: CancellationToken) {
    let Listener::Unix(socket, _file) = listener else { return };
    let (router, _) = routes::router(host);
    let accept = async |socket: &UnixListener| {
        let (stream, _) = socket.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((Box::new(stream) as Box<dyn Stream>, Some(Peer::new(uid))))
    };
    serve_http(&socket, accept, &router, &shutdown).await;
}

/// Answers `GET /metrics` alone, to whoever reaches the TCP socket, until `shutdown` is cancelled.
pub async fn serve_metrics(listener: TcpListener, host: Host, shutdown: CancellationToken) {
    let router = metrics::router(host);
    let accept = async |socket: &TcpListener| Ok((Box::new(socket.accept().await?.0) as Box<dyn Stream>, None));
    serve_http(&listener, accept, &router, &shutdown).await;
}

/// The description of the control interface, as `GET /v1/openapi.json` gives it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::description()
}

/// Connections of each user other than the server's own and root.
type Guests = Arc<Mutex<HashMap<u32, usize>>>;

/// One of these connections; it is not counted any more when this is dropped.
struct Guest(Guests, u32);

impl Guest {
    /// Lets a user in; nobody has more than [`CONTROL_CONNECTIONS_PER_UID_MAX`].
    fn enter(guests: &Guests, uid: u32) -> Option<Self> {
        let mut counts = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        (*count < CONTROL_CONNECTIONS_PER_UID_MAX).then(|| {
            *count += 1;
            Self(Arc::clone(guests), uid)
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Accepts connections, so many and no more, and answers what is asked on them.
async fn serve_http<L>(
    listener: &L,
    accept: impl AsyncFn(&L) -> std::io::Result<(Box<dyn Stream>, Option<Peer>)>,
    router: &Router,
    shutdown: &CancellationToken,
) {
    let (slots, guests) = (Arc::new(Semaphore::new(CONTROL_CONNECTIONS_MAX)), Guests::default());
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            // The semaphore is never closed.
            Ok(slot) = Arc::clone(&slots).acquire_owned() => tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept(listener) => accepted.map(|(stream, peer)| (stream, peer, slot)),
            },
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let guest = match peer {
                    Some(peer) if !peer.is_master => match Guest::enter(&guests, peer.uid) {
                        Some(guest) => Some(guest),
                        None => continue,
                    },
                    _ => None,
                };
                let (router, shutdown) = (router.clone(), shutdown.clone());
                connections.spawn(async move {
                    serve_connection(stream, peer, router, shutdown).await;
                    drop((guest, slot));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("clients of the control socket are given up");
    }
}

async fn serve_connection(stream: Box<dyn Stream>, peer: Option<Peer>, router: Router, shutdown: CancellationToken) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(CONTROL_REQUEST_TIMEOUT)
        .max_buf_size(CONTROL_HEADER_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = &mut connection => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Whoever hangs is not waited for longer than the others.
            timeout(DRAIN_TIMEOUT / 2, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the control socket ends");
    }
}
