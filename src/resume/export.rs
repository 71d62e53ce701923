//! Reading an image of a saved VM from the server, patiently: through outages of its origin, and of the server itself, but not long
//! where waiting does not help.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use vmnetx_nbd::Cause;
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions, SparseData};
use vmnetx_nbd_proto::reply::Extent;
use vmnetx_nbd_proto::wire::{RESIDENCY, StatusFlags};

use super::Error;
use super::limits::{
    ABSENT_AFTER_MAX, OUTAGE_AFTER_MAX, OUTAGE_BEFORE_MAX, READ_AGAIN_PAUSE_MAX, READ_AGAIN_PAUSE_MIN, SETTLED_MAX,
};

/// An image that the server exports.
#[derive(Debug)]
pub(super) struct Export {
    socket: PathBuf,
    name: String,
    connection: tokio::sync::Mutex<Connection>,
    outage: Arc<Outage>,
}

/// The connection to an export.
#[derive(Debug, Default)]
struct Connection {
    client: Option<Client>,
    /// How many there were before it.
    number: u64,
}

/// Outages, told once when they begin and once when they are over, whichever image they are of.
#[derive(Debug)]
pub(super) struct Outage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    guest_runs: bool,
}

/// Who is waiting for what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The guest, or everything.
    All,
    /// Nobody yet: what cannot be had is left out.
    Nobody,
}

/// The failures of one request, none between which succeeded.
#[derive(Debug)]
struct Failing {
    first: Instant,
    cause: Cause,
    /// When this cause was met first.
    since: Instant,
}

/// A run of an image that is on this host or is not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start_bytes: u64,
    pub(super) length_bytes: u64,
    pub(super) is_here: bool,
}

impl Outage {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default() }
    }

    /// From now on a guest waits for what is read, and has nothing else to go on with.
    pub(super) fn guest_runs(&self) {
        self.lock().guest_runs = true;
    }

    /// How long failures of this cause are worth further tries.
    fn patience(&self, cause: Cause, waiting: Waiting) -> Duration {
        match (cause, waiting, self.lock().guest_runs) {
            (Cause::Damaged | Cause::Absent, Waiting::Nobody, _) => Duration::ZERO,
            (Cause::Absent, _, true) => ABSENT_AFTER_MAX,
            (Cause::Damaged | Cause::Absent, ..) => SETTLED_MAX,
            (Cause::Unreachable | Cause::Failed, _, true) => OUTAGE_AFTER_MAX,
            (Cause::Unreachable | Cause::Failed, _, false) => OUTAGE_BEFORE_MAX,
        }
    }

    /// Tells of a read that has failed.
    fn failed(&self, image: &str, cause: Cause, error: &ClientError) {
        let mut state = self.lock();
        let waits = if state.guest_runs { "; the guest waits where it needs it" } else { "" };
        let is_known = state.since.is_some();
        if !is_settled(cause) {
            state.since.get_or_insert_with(Instant::now);
        }
        // Of a cause that does not go away, each page is a story of its own.
        if is_settled(cause) || !is_known {
            tracing::warn!("{image} of the saved VM cannot be read{waits}: {error}");
        }
    }

    fn succeeded(&self) {
        if let Some(since) = self.lock().since.take() {
            tracing::info!("the saved VM can be read again, after {} s", since.elapsed().as_secs());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that changes the state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failing {
    const fn new(cause: Cause, now: Instant) -> Self {
        Self { first: now, cause, since: now }
    }

    /// One more failure; whether there may be another try.
    fn again(&mut self, cause: Cause, now: Instant, patience: impl Fn(Cause) -> Duration) -> bool {
        if cause != self.cause {
            (self.cause, self.since) = (cause, now);
        }
        // Causes that take turns are an outage.
        now - self.since < patience(cause) && now - self.first < patience(Cause::Unreachable)
    }
}

/// Whether whoever waits mostly waits in vain.
const fn is_settled(cause: Cause) -> bool {
    matches!(cause, Cause::Damaged | Cause::Absent)
}

/// What the server, or the way to it, says of why.
fn cause(error: &ClientError) -> Cause {
    match error {
        ClientError::Server { text, .. } => Cause::told(text),
        _ => Cause::Failed,
    }
}

impl Export {
    pub(super) fn new(socket: PathBuf, name: String, outage: Arc<Outage>) -> Self {
        Self { socket, name, connection: tokio::sync::Mutex::default(), outage }
    }

    /// Reads bytes that are waited for.
    ///
    /// # Errors
    /// When they could not be read for so long that nobody is to wait any longer.
    pub(super) async fn read(&self, offset_bytes: u64, length_bytes: u64) -> Result<SparseData, Error> {
        let length = length(length_bytes);
        let ask = |client: Client| async move { client.read_with_holes(offset_bytes, length).await };
        self.patiently(ask, Waiting::All).await
    }

    /// Reads bytes that nobody waits for; nothing if they are damaged or absent.
    ///
    /// # Errors
    /// When an outage has lasted too long.
    pub(super) async fn read_ahead(&self, offset_bytes: u64, length_bytes: u64) -> Result<Option<SparseData>, Error> {
        let length = length(length_bytes);
        let ask = |client: Client| async move { client.read_with_holes(offset_bytes, length).await };
        unsettled(self.patiently(ask, Waiting::Nobody).await)
    }

    /// Has the server bring a range, behind all who read; false if some of it is damaged or absent.
    ///
    /// # Errors
    /// As [`Self::read_ahead`].
    pub(super) async fn bring(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool, Error> {
        let length = length(length_bytes);
        let ask = |client: Client| async move { client.cache(offset_bytes, length).await };
        Ok(unsettled(self.patiently(ask, Waiting::Nobody).await)?.is_some())
    }

    /// Which parts of a range are on this host; perhaps of the front of it alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) async fn residency(&self, offset_bytes: u64, length_bytes: u64) -> Result<Vec<Run>, Error> {
        let length = length(length_bytes);
        let ask = |client: Client| async move { client.block_status(offset_bytes, length, false).await };
        let told = self.patiently(ask, Waiting::All).await?;
        let extents = told.into_iter().flat_map(|status| status.extents);
        let run = |start_bytes: &mut u64, Extent { length, flags }: Extent| {
            let run = Run {
                start_bytes: *start_bytes,
                length_bytes: length.into(),
                is_here: !flags.contains(StatusFlags::REMOTE),
            };
            *start_bytes += u64::from(length);
            Some(run)
        };
        Ok(extents.scan(offset_bytes, run).collect())
    }

    /// Does something with a connection, on a new one when the server was started again, until it succeeds or it is too late.
    async fn patiently<T, F>(&self, ask: impl Fn(Client) -> F, waiting: Waiting) -> Result<T, Error>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let (mut pause, mut failing) = (READ_AGAIN_PAUSE_MIN, None);
        loop {
            let error = match self.client().await {
                Ok((client, number)) => match ask(client).await {
                    Ok(answer) => {
                        self.outage.succeeded();
                        return Ok(answer);
                    }
                    Err(error) => {
                        if !matches!(error, ClientError::Server { .. }) {
                            self.forget(number).await;
                        }
                        error
                    }
                },
                Err(error) => error,
            };
            let cause = cause(&error);
            let (now, is_first) = (Instant::now(), failing.is_none());
            let so_far = failing.get_or_insert(Failing::new(cause, now));
            if !so_far.again(cause, now, |cause| self.outage.patience(cause, waiting)) {
                return Err(Error::Read { image: self.name.clone(), cause, source: error });
            }
            if is_first || !is_settled(cause) {
                self.outage.failed(&self.name, cause, &error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(READ_AGAIN_PAUSE_MAX);
        }
    }

    async fn client(&self) -> Result<(Client, u64), ClientError> {
        let mut connection = self.connection.lock().await;
        if let Some(client) = &connection.client {
            return Ok((client.clone(), connection.number));
        }
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| ClientError::Connection(Arc::new(error.into())))?;
        let options = ConnectOptions::new(&self.name).with_contexts([RESIDENCY]);
        let client = Client::connect(stream, &options).await?;
        connection.client = Some(client.clone());
        Ok((client, connection.number))
    }

    /// Lets go of a connection that has ended, unless another has taken its place.
    async fn forget(&self, number: u64) {
        let mut connection = self.connection.lock().await;
        if connection.number == number {
            *connection = Connection { client: None, number: number + 1 };
        }
    }
}

/// What was read ahead; nothing for what is damaged or absent.
fn unsettled<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(Error::Read { image, cause, source }) if is_settled(cause) => {
            tracing::debug!("{image} of the saved VM cannot be read: {source}");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// A length as requests have it. RAM is read in pieces that are far shorter.
fn length(length_bytes: u64) -> u32 {
    u32::try_from(length_bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use super::*;

    /// Seconds for which a request is tried again whose failures have these causes in turn, one a second.
    fn tried_s(causes: impl IntoIterator<Item = Cause>, guest_runs: bool, waiting: Waiting) -> u64 {
        let outage = Outage::new();
        if guest_runs {
            outage.guest_runs();
        }
        let start = Instant::now();
        let mut failing = None;
        for (tried_s, cause) in (0..).zip(causes) {
            let now = start + Duration::from_secs(tried_s);
            let so_far = failing.get_or_insert(Failing::new(cause, now));
            if !so_far.again(cause, now, |cause| outage.patience(cause, waiting)) {
                return tried_s;
            }
        }
        panic!("it is tried for ever");
    }

    #[test]
    fn what_will_not_come_back_is_not_waited_for_and_outages_are() {
        let (before, after) = (OUTAGE_BEFORE_MAX.as_secs(), OUTAGE_AFTER_MAX.as_secs());
        let (settled, absent) = (SETTLED_MAX.as_secs(), ABSENT_AFTER_MAX.as_secs());
        let ways = [(Waiting::All, false), (Waiting::All, true), (Waiting::Nobody, false), (Waiting::Nobody, true)];
        for (cause, expected_s) in [
            (Cause::Damaged, [settled, settled, 0, 0]),
            (Cause::Absent, [settled, absent, 0, 0]),
            (Cause::Unreachable, [before, after, before, after]),
            (Cause::Failed, [before, after, before, after]),
        ] {
            let tried_s = |(waiting, guest_runs)| tried_s(repeat_n(cause, 10_000), guest_runs, waiting);
            assert_eq!(ways.map(tried_s), expected_s, "{cause:?}");
        }
    }

    #[test]
    fn each_cause_has_its_own_time_and_all_together_end() {
        let outage = repeat_n(Cause::Unreachable, 60).chain(repeat_n(Cause::Damaged, 100));
        assert_eq!(tried_s(outage, true, Waiting::All), 60 + SETTLED_MAX.as_secs());
        let turns = [Cause::Damaged, Cause::Unreachable].into_iter().cycle().take(10_000);
        assert_eq!(tried_s(turns, true, Waiting::All), OUTAGE_AFTER_MAX.as_secs());
    }
}
