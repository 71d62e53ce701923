//! Accepts connections and gives each a session, until it is told to stop.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN_TIMEOUT};
use crate::{Exports, Listener, session};

/// Serves `exports` on `listener` until `shutdown` is cancelled; requests under way are then answered, for a while.
pub async fn serve(listener: Listener, exports: Exports, shutdown: CancellationToken) {
    serve_admitted(listener, exports, CONNECTIONS_MAX, |_| Some(()), shutdown).await;
}

/// The same for those clients that `admit` lets in, given the user at the other end of a Unix socket. What it gives is kept
/// until the connection ends.
pub(crate) async fn serve_admitted<G: Send + 'static>(
    listener: Listener,
    exports: Exports,
    connections_max: usize,
    admit: impl Fn(Option<u32>) -> Option<G>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    let sessions = TaskTracker::new();
    let tls = listener.tls_in_use().cloned();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            // The semaphore is never closed.
            Ok(slot) = Arc::clone(&slots).acquire_owned() => tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted.map(|(stream, uid)| (stream, uid, slot)),
            },
        };
        match accepted {
            Ok((stream, uid, slot)) => {
                let Some(guest) = admit(uid) else { continue };
                let (exports, tls, shutdown) = (exports.clone(), tls.clone(), shutdown.clone());
                sessions.spawn(async move {
                    if let Err(error) = session::run(stream, &exports, tls.as_ref(), &shutdown).await {
                        tracing::debug!(%error, "connection ends");
                    }
                    drop((guest, slot));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    sessions.close();
    if timeout(DRAIN_TIMEOUT, sessions.wait()).await.is_err() {
        tracing::warn!(connections = sessions.len(), "requests under way are given up");
    }
}
