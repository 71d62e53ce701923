//! The control socket: HTTP over a Unix socket, for those who may use the server's files.

use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use vmnetx_store::{OrderCounts, Package, Store};

use crate::limits::{CONTROL_BYTES_MAX, DRAIN_TIMEOUT};
use crate::{Error, ExportStats, Exports, Listener};

/// Where the counts are asked for. The number is the version of the control interface.
const STATS_PATH: &str = "/v1/stats";

/// What a server did so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The package's name.
    pub package: String,
    /// The digest of the version that is served.
    pub version: String,
    /// Requests for ranges of packs that were sent to the origin.
    pub origin_requests: u64,
    /// Bytes of bodies that came from the origin: link, manifest, layout, index and chunks.
    pub origin_bytes: u64,
    /// Bytes of plain chunks in the memory tier.
    pub memory_bytes: u64,
    /// Bytes of stored chunks in the disk tier.
    pub disk_bytes: u64,
    /// What came of the package's recorded order; absent if it has none or none is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderCounts>,
    /// The exports.
    pub exports: Vec<ExportStats>,
}

impl Stats {
    /// The counts now.
    #[must_use]
    pub fn now(store: &Store, package: &Package, exports: &Exports) -> Self {
        Self {
            package: package.link().name.to_string(),
            version: package.version().manifest.to_string(),
            origin_requests: package.origin_requests(),
            origin_bytes: package.origin_bytes(),
            memory_bytes: store.memory().bytes(),
            disk_bytes: store.disk().map_or(0, vmnetx_store::DiskCache::bytes),
            order: package.order_counts(),
            exports: exports.all().iter().map(|export| export.stats()).collect(),
        }
    }

    /// Asks the server whose control socket is `socket`.
    ///
    /// # Errors
    /// [`Error::Control`] when there is no server or it answers otherwise than this program expects.
    pub async fn ask(socket: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Control { socket: socket.display().to_string(), reason };
        let stream = UnixStream::connect(socket).await.map_err(|error| wrong(error.to_string()))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut requests, connection) = handshake.await.map_err(|error| wrong(error.to_string()))?;
        tokio::spawn(connection);
        let request =
            hyper::Request::get(STATS_PATH).header(hyper::header::HOST, "localhost").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| wrong(error.to_string()))?;
        let response = requests.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
        if !response.status().is_success() {
            return Err(wrong(format!("it answers {}", response.status())));
        }
        let body = Limited::new(response.into_body(), CONTROL_BYTES_MAX).collect().await;
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))
    }
}

/// Answers on the control socket until `shutdown` is cancelled. Only Unix sockets are served.
pub async fn serve_control(
    listener: Listener,
    store: Store,
    package: Arc<Package>,
    exports: Exports,
    shutdown: CancellationToken,
) {
    let Listener::Unix(socket, _file) = listener else {
        return;
    };
    let stats = |State((store, package, exports)): State<(Store, Arc<Package>, Exports)>| async move {
        Json(Stats::now(&store, &package, &exports))
    };
    let router = Router::new().route(STATS_PATH, get(stats)).with_state((store, package, exports));
    let served = axum::serve(socket, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    // A client that stops in the middle of its request must not keep the server from ending.
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = served.into_future() => if let Err(error) = result {
            tracing::warn!(%error, "control socket ends");
        },
        () = given_up => tracing::warn!("clients of the control socket are given up"),
    }
}
