//! Reading repositories through the public interface: every tier, whole images, caches that are damaged and servers that
//! misbehave.

mod access;
mod conformance;
mod disk;
mod faulty_tier;
mod flight;
mod https;
mod mirrors;
mod model;
mod order;
mod origin;
mod pull;
mod residency;
mod warm;

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests of other crates use other parts")]
mod support;

use std::future::Future;
use std::time::Duration;

/// Ends a test that hangs.
pub(crate) async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    let deadline = Duration::from_secs(seconds);
    tokio::time::timeout(deadline, work).await.expect("the test hangs")
}
