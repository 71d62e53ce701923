//! Origins: where a repository's objects are read from, and the tier that fetches frames from their packs.

mod access;
mod dir;
mod http;
mod job;
mod meter;
mod mirrors;
mod pace;
mod proxy;
mod ranges;
mod reach;
mod retry;
mod slots;
mod tier;
mod tls;

use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::mpsc;
use url::Url;

#[cfg(feature = "clap")]
pub use access::AccessArgs;
pub use access::{Access, AccessError};
pub use dir::DirOrigin;
pub use http::{AGENT, Connector, HttpClient, HttpOrigin, connector};
pub use mirrors::{MirrorState, Mirrors};
pub use proxy::{Dialer, Proxies, Route};
pub use tier::{OriginCounts, OriginTier};
pub use tls::BadCertificate;

use crate::Error;

pub(crate) use job::open_frame;
pub(crate) use meter::Meter;
pub(crate) use pace::Pace;
pub(crate) use reach::leads_inside;
pub(crate) use retry::Retry;

/// A future that a trait object returns.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place that holds a repository, read by paths relative to the repository's root.
///
/// One call is one try: whoever calls decides about trying again.
pub trait Origin: Debug + Send + Sync + 'static {
    /// Where an object lies, to be shown: without secrets.
    fn locate(&self, path: &str) -> String;

    /// Reads a whole object of at most `max_bytes`.
    fn object<'a>(&'a self, path: &'a str, max_bytes: u64) -> Promise<'a, Result<Bytes, Error>>;

    /// Starts to read `range` of an object.
    fn range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Promise<'a, Result<Body, Error>>;

    /// What it gave of an object was damaged: if it has the object from elsewhere too, it should look there.
    fn distrust(&self, _path: &str, _error: &Error) {}
}

/// The bytes of a range as they arrive. They may end early: the reader counts.
#[derive(Debug)]
pub struct Body(mpsc::Receiver<Result<Bytes, Error>>);

impl Body {
    /// The next piece; nothing at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        self.0.recv().await
    }

    /// Makes both ends of a body.
    #[must_use]
    pub fn channel() -> (mpsc::Sender<Result<Bytes, Error>>, Self) {
        // A few pieces ahead are enough to keep the line busy while a chunk is decoded.
        const PIECES: usize = 16;
        let (sender, receiver) = mpsc::channel(PIECES);
        (sender, Self(receiver))
    }
}

/// A URL as it may be shown: without user name, password and query, for redirections may carry signatures in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}
