//! What the clones of a client and its task share: queued requests, requests in flight, and the end.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::{Semaphore, oneshot, watch};

use super::pending::{Assembly, Job, Outcome, Pending};
use super::{ClientError, ConnectionError};
use crate::limits::MAX_IN_FLIGHT;
use crate::request::Request;
use crate::wire::Cookie;

/// What the clones of a client and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    places: Arc<Semaphore>,
    ended: watch::Receiver<()>,
}

#[derive(Debug)]
struct Queue {
    /// Encoded requests that the task has not taken yet.
    outgoing: Vec<u8>,
    pending: HashMap<Cookie, Pending>,
    next_cookie: u64,
    closing: Closing,
    /// Why the task has ended.
    dead: Option<Arc<ConnectionError>>,
    task: Option<Waker>,
    /// Dropped when the task has ended.
    end: Option<watch::Sender<()>>,
}

/// Whether the connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// After the requests in flight.
    Politely,
    /// Nobody waits for anything any more.
    Now,
}

impl Shared {
    pub(super) fn new() -> Self {
        let (end, ended) = watch::channel(());
        Self {
            queue: Mutex::new(Queue {
                outgoing: Vec::new(),
                pending: HashMap::new(),
                next_cookie: 1,
                closing: Closing::No,
                dead: None,
                task: None,
                end: Some(end),
            }),
            places: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            ended,
        }
    }

    /// Sends a request and waits for its reply.
    pub(super) async fn submit(&self, job: Job, assembly: Assembly) -> Result<Outcome, ClientError> {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return Err(self.cause());
        };
        let (waiter, reply) = oneshot::channel();
        let pending = Pending::new(job, assembly, waiter, place);
        let task = self.lock().push(pending).ok_or_else(|| self.cause())?;
        if let Some(task) = task {
            task.wake();
        }
        reply.await.unwrap_or_else(|_| Err(self.cause()))
    }

    /// Lets no new request in, and returns when those in flight are done and the server was told.
    pub(super) async fn close(&self) -> Result<(), ClientError> {
        self.begin_close(Closing::Politely);
        let mut ended = self.ended.clone();
        // The channel carries nothing; its end is the task's end.
        while ended.changed().await.is_ok() {}
        let dead = self.lock().dead.clone();
        match dead {
            Some(cause) if !matches!(*cause, ConnectionError::Closed) => Err(ClientError::Connection(cause)),
            _ => Ok(()),
        }
    }

    /// Nobody has an interest in the connection any more.
    pub(super) fn abandon(&self) {
        self.begin_close(Closing::Now);
    }

    fn begin_close(&self, closing: Closing) {
        let task = {
            let mut queue = self.lock();
            queue.closing = closing;
            queue.task.take()
        };
        self.places.close();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Moves queued requests to the empty `writing`, and remembers whom to wake for more. Says whether the connection
    /// is to end, and whether requests are in flight.
    pub(super) fn take(&self, writing: &mut Vec<u8>, task: &Waker) -> (Closing, bool) {
        let mut queue = self.lock();
        if writing.is_empty() {
            mem::swap(writing, &mut queue.outgoing);
        }
        if !queue.task.as_ref().is_some_and(|old| old.will_wake(task)) {
            queue.task = Some(task.clone());
        }
        (queue.closing, !queue.pending.is_empty())
    }

    /// Takes the request of this cookie out of those in flight.
    pub(super) fn remove(&self, cookie: Cookie) -> Option<Pending> {
        self.lock().pending.remove(&cookie)
    }

    /// Puts a request back that has more of its reply to come.
    pub(super) fn put_back(&self, cookie: Cookie, pending: Pending) {
        self.lock().pending.insert(cookie, pending);
    }

    /// Fails all that wait; the first cause counts.
    pub(super) fn die(&self, cause: ConnectionError) {
        let cause = Arc::new(cause);
        let (pending, end) = {
            let mut queue = self.lock();
            if queue.dead.is_some() {
                return;
            }
            queue.dead = Some(Arc::clone(&cause));
            (mem::take(&mut queue.pending), queue.end.take())
        };
        self.places.close();
        for pending in pending.into_values() {
            pending.wake(Err(ClientError::Connection(Arc::clone(&cause))));
        }
        drop(end);
    }

    fn cause(&self) -> ClientError {
        let dead = self.lock().dead.clone();
        ClientError::Connection(dead.unwrap_or_else(|| Arc::new(ConnectionError::Closed)))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Queues a request; the task to wake, or `None` if the connection takes no more.
    fn push(&mut self, pending: Pending) -> Option<Option<Waker>> {
        if self.dead.is_some() || self.closing != Closing::No {
            return None;
        }
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        let Job { command, flags, offset, length } = pending.job;
        let request = Request { flags, command, cookie, offset, length };
        request.encode(&mut self.outgoing);
        self.pending.insert(cookie, pending);
        Some(self.task.take())
    }
}
