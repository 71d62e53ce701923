//! The CACHE requests of a connection: some bring their ranges, the others wait for their turn.
//!
//! A CACHE is answered when its range is at hand, as qemu-nbd and nbdkit do: a client that waits knows that it was brought,
//! or why not, and sets its own pace. The protocol would let a server answer at once, but then a client that leaves after
//! the answer, as one-line scripts do, would have been promised what nobody brings.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use vmnetx_nbd_proto::wire::Cookie;
use vmnetx_store::{Error, Image};

use crate::limits::{CACHES_AT_ONCE_MAX, CACHES_WAITING_MAX};

/// The CACHE requests of a connection; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Prefetches {
    image: Arc<Image>,
    /// In the order in which they came.
    waiting: VecDeque<Range>,
    under_way: JoinSet<Prefetched>,
    /// Cancelled when no answer is worth waiting for any more.
    ended: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Range {
    cookie: Cookie,
    offset: u64,
    length: u32,
}

/// A CACHE request that is to be answered.
#[derive(Debug)]
pub(crate) struct Prefetched {
    pub(crate) cookie: Cookie,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// Nothing when it was ended before it had brought its range.
    pub(crate) result: Option<Result<(), Error>>,
}

/// There are too many already.
#[derive(Debug, thiserror::Error)]
#[error("{CACHES_WAITING_MAX} other CACHE requests of this connection wait; wait for their answers")]
pub(crate) struct Refused;

impl Prefetches {
    pub(crate) fn new(image: Arc<Image>) -> Self {
        let (waiting, under_way, ended) = (VecDeque::new(), JoinSet::new(), CancellationToken::new());
        Self { image, waiting, under_way, ended }
    }

    /// Takes up a request, whose range lies in the image.
    pub(crate) fn add(&mut self, cookie: Cookie, offset: u64, length: u32) -> Result<(), Refused> {
        if self.waiting.len() >= CACHES_WAITING_MAX {
            return Err(Refused);
        }
        self.waiting.push_back(Range { cookie, offset, length });
        self.start();
        Ok(())
    }

    /// The next one that ends; nothing when there is none.
    pub(crate) async fn next(&mut self) -> Option<Result<Prefetched, JoinError>> {
        let ended = self.under_way.join_next().await;
        self.start();
        ended
    }

    /// The next one that has ended already.
    pub(crate) fn try_next(&mut self) -> Option<Result<Prefetched, JoinError>> {
        let ended = self.under_way.try_join_next();
        self.start();
        ended
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.waiting.is_empty()
    }

    /// Ends them all; they are still to be answered.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    fn start(&mut self) {
        while self.under_way.len() < CACHES_AT_ONCE_MAX
            && let Some(Range { cookie, offset, length }) = self.waiting.pop_front()
        {
            let (image, ended) = (Arc::clone(&self.image), self.ended.clone());
            self.under_way.spawn(async move {
                let work = image.prefetch(offset, length.into());
                let result = ended.run_until_cancelled(work).await;
                Prefetched { cookie, offset, length, result }
            });
        }
    }
}
