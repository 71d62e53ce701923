//! An origin that is not asked: reading offline, from what the cache directory has.

use std::ops::Range;

use bytes::Bytes;
use url::Url;

use crate::Error;
use crate::origin::{Body, Origin, Promise, shown};

/// Stands for a repository to which no request is sent.
#[derive(Debug)]
pub(crate) struct OfflineOrigin {
    base: Url,
}

impl OfflineOrigin {
    /// The repository at `base`.
    pub(crate) const fn new(base: Url) -> Self {
        Self { base }
    }

    fn error(&self, path: &str) -> Error {
        Error::Offline { object: self.locate(path) }
    }
}

impl Origin for OfflineOrigin {
    fn locate(&self, path: &str) -> String {
        self.base.join(path).map_or_else(|_| path.to_owned(), |url| shown(&url))
    }

    fn object<'a>(&'a self, path: &'a str, _max_bytes: u64) -> Promise<'a, Result<Bytes, Error>> {
        Box::pin(std::future::ready(Err(self.error(path))))
    }

    fn range<'a>(&'a self, path: &'a str, _range: Range<u64>) -> Promise<'a, Result<Body, Error>> {
        Box::pin(std::future::ready(Err(self.error(path))))
    }
}
