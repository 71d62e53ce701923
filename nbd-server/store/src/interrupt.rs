//! How a program ends when it is told to: in good order at the first signal, at once at the second.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Class;

/// A token that the first Ctrl-C, SIGTERM or SIGHUP cancels. The second one ends the process: what waits for a disk or a
/// network that does not answer is then given up. Must be called within a tokio runtime.
///
/// # Errors
/// When the system lets no signal be handled.
pub fn token() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut arrivals = signal(kind)?;
        let token = token.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                if token.is_cancelled() {
                    std::process::exit(Class::Failure.exit_code().into());
                }
                token.cancel();
            }
        });
    }
    Ok(token)
}
