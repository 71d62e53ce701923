//! The server over real sockets: raw bytes that no library would send, origins that are slow or fail, starting and
//! stopping. The numbers in names and comments are those of the list of NBD test cases.

mod attachments;
mod clock;
mod control;
mod disk_cache;
mod handshake;
mod hosted;
mod in_flight;
mod lifecycle;
mod mapped;
mod prefetch;
mod program;
mod pulls;
mod raw;
mod residency;
mod rig;
mod tls;
mod transmission;

#[path = "../../store/tests/support/certificates.rs"]
mod certificates;
#[path = "../../store/tests/support/mod.rs"]
#[allow(dead_code, reason = "the tests of other crates use other parts")]
mod support;

use std::future::Future;
use std::time::Duration;

/// Ends a test that hangs.
pub(crate) async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    let deadline = Duration::from_secs(seconds);
    tokio::time::timeout(deadline, work).await.expect("the test hangs")
}
