//! Reading an image of a saved VM from the server, patiently: through outages of its origin, and of the server itself.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions, SparseData};
use vmnetx_nbd_proto::reply::Extent;
use vmnetx_nbd_proto::wire::{RESIDENCY, StatusFlags};

use super::Error;
use super::limits::{OUTAGE_AFTER_MAX, OUTAGE_BEFORE_MAX, READ_AGAIN_PAUSE_MAX, READ_AGAIN_PAUSE_MIN};

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

/// What is known of failing reads; told once when they begin and once when they are over, whichever image they are of.
#[derive(Debug)]
pub(super) struct Outage {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    patience: Duration,
    guest_runs: bool,
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
        let state = State { since: None, patience: OUTAGE_BEFORE_MAX, guest_runs: false };
        Self { state: Mutex::new(state) }
    }

    /// From now on a guest waits for what is read, and has nothing else to go on with.
    pub(super) fn guest_runs(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.patience, state.guest_runs) = (OUTAGE_AFTER_MAX, true);
    }

    /// A read has failed; whether it is to be tried again.
    fn failed(&self, image: &str, error: &ClientError) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = state.since else {
            state.since = Some(Instant::now());
            let waits = if state.guest_runs { "; the guest waits where it needs it" } else { "" };
            tracing::warn!("{image} of the saved VM cannot be read{waits}: {error}");
            return true;
        };
        since.elapsed() < state.patience
    }

    fn succeeded(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.since.take() {
            tracing::info!("the saved VM can be read again, after {} s", since.elapsed().as_secs());
        }
    }
}

impl Export {
    pub(super) fn new(socket: PathBuf, name: String, outage: Arc<Outage>) -> Self {
        Self { socket, name, connection: tokio::sync::Mutex::default(), outage }
    }

    /// Reads bytes, whatever it takes.
    ///
    /// # Errors
    /// When they could not be read for so long that nobody is to wait any longer.
    pub(super) async fn read(&self, offset_bytes: u64, length_bytes: u64) -> Result<SparseData, Error> {
        let length = length(length_bytes);
        self.patiently(|client| async move { client.read_with_holes(offset_bytes, length).await }).await
    }

    /// Has the server bring a range, behind all who read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) async fn bring(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), Error> {
        let length = length(length_bytes);
        self.patiently(|client| async move { client.cache(offset_bytes, length).await }).await
    }

    /// Which parts of a range are on this host; perhaps of the front of it alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) async fn residency(&self, offset_bytes: u64, length_bytes: u64) -> Result<Vec<Run>, Error> {
        let length = length(length_bytes);
        let ask = |client: Client| async move { client.block_status(offset_bytes, length, false).await };
        let told = self.patiently(ask).await?;
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
    async fn patiently<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut pause = READ_AGAIN_PAUSE_MIN;
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
            if !self.outage.failed(&self.name, &error) {
                return Err(Error::Read { image: self.name.clone(), source: error });
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

/// A length as requests have it. RAM is read in pieces that are far shorter.
fn length(length_bytes: u64) -> u32 {
    u32::try_from(length_bytes).unwrap_or(u32::MAX)
}
