//! Resumes a saved VM: what a package holds of it becomes the incoming migration of a QEMU.
//!
//! ```text
//!  modes ──▶ QEMU starts and waits, the device state is read
//!              │
//!              ├─ lazy     postcopy: the guest runs at once, its memory follows (module `lazy`); refused ──▶ the next mode
//!              ├─ mapped   its main memory is there already, as what the server shares: a stream of the rest
//!              ├─ stream   all of its memory, then the guest runs (module `stream`)
//!              ▼
//!            the guest runs          fails before: the machine is abandoned and given back, to boot it
//! ```
//!
//! A saved VM is read over NBD from the server that has its disks, so its memory shares their tiers, retries and order.
//! `docs/migration.md` has the streams.

mod error;
mod export;
mod lazy;
mod limits;
mod mapped;
mod progress;
mod saved;
mod stream;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_store::failure::describe;

use crate::vm::{self, Agent, Incoming, Outcome, QmpError, Spec, Started, Way};

use limits::END_DEADLINE;

pub use error::Error;
pub use mapped::{map, map_soon};
pub use progress::Progress;
pub use saved::Saved;
pub use stream::{MainRam, send};

/// How a saved VM is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The guest runs when its devices are loaded, and its memory follows. Needs userfaultfd.
    Lazy,
    /// The guest runs when all of its memory is there.
    Stream,
    /// The main memory is a private mapping of what the server holds for all VMs of one state; the rest comes as a stream.
    Mapped,
}

/// Which memory a guest that runs lazily is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// What it asks for, what it probably will, and in the end all.
    All,
    /// What it asks for and nothing else, as long as it runs: to see what that is.
    OnDemand,
}

/// A machine whose guest goes on from where it was saved.
#[derive(Debug)]
pub struct Resumed {
    started: Started,
    mode: Mode,
    qemu_took: Duration,
    feeder: Feeder,
}

/// The task that writes to QEMU.
type Feeder = AbortOnDropHandle<Result<(), Error>>;

/// A machine that was not resumed.
#[derive(Debug)]
pub struct Failed {
    /// Why not.
    pub error: Error,
    /// What it was to be started from, if it can be started otherwise.
    pub spec: Option<Box<Spec>>,
}

/// What is to be resumed, and how.
#[derive(Debug)]
pub struct Plan {
    /// The modes to try, the best first: the next one is taken when QEMU, or this host, has not what the one before needs.
    pub modes: Vec<Mode>,
    /// All of the main memory, for [`Mode::Mapped`].
    pub ram: Option<OwnedFd>,
    /// What a guest is given that runs lazily.
    pub fill: Fill,
    /// Told of how far it is.
    pub progress: Arc<Progress>,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lazy => "lazy",
            Self::Stream => "stream",
            Self::Mapped => "mapped",
        })
    }
}

impl Mode {
    const fn way(self) -> Way {
        match self {
            Self::Lazy => Way::Lazy,
            // The pages that are mapped are not sent, which QEMU takes: it asks for none.
            Self::Stream | Self::Mapped => Way::Stream,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, spec: None }
    }
}

/// Starts a machine with the state of a saved VM, which is read meanwhile, and waits until its guest runs. `None` when cancelled
/// before; nothing is left then.
///
/// # Errors
/// [`Failed`]; QEMU has been ended by then.
pub async fn start(
    mut spec: Spec,
    saved: impl Future<Output = Result<Saved, Error>>,
    mut plan: Plan,
    shutdown: &CancellationToken,
) -> Result<Option<Resumed>, Failed> {
    let (ours, theirs) = channel().map_err(|error| Error::Channel(error).into_failed())?;
    spec.incoming = Some(Incoming { channel: theirs.into(), ram: plan.ram.take() });
    let saved = async { shutdown.run_until_cancelled(saved).await.transpose() };
    let (started, saved) = tokio::join!(vm::start(spec, shutdown), saved);
    let Some(mut started) = started.map_err(Error::from)? else { return Ok(None) };
    let outcome = match saved {
        Ok(None) => Ok(None),
        Ok(Some(saved)) => shutdown.run_until_cancelled(load(&mut started, saved, ours, plan)).await.transpose(),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(Some((mode, feeder))) => {
            let qemu_took = started.age();
            Ok(Some(Resumed { started, mode, qemu_took, feeder }))
        }
        Ok(None) => started.abandon().await.map_err(Error::from).map(|_| None).map_err(Error::into_failed),
        Err(error) => match started.abandon().await {
            Ok(spec) => Err(Failed { error, spec: Some(Box::new(spec)) }),
            Err(other) => {
                tracing::warn!("{other}");
                Err(error.into())
            }
        },
    }
}

/// Loads the state in the first mode that QEMU can, until the guest runs.
async fn load(started: &mut Started, saved: Saved, channel: UnixStream, plan: Plan) -> Result<(Mode, Feeder), Error> {
    let mode = receive(started, &plan.modes).await?;
    let mut feeder = feed(mode, Arc::new(saved), channel, plan);
    let mut is_fed = false;
    let running = started.until_running();
    tokio::pin!(running);
    loop {
        tokio::select! {
            // If both fail, what was sent is mostly why QEMU did.
            biased;
            fed = &mut feeder, if !is_fed => {
                match fed.map_err(|_| Error::Task).flatten() {
                    Ok(()) => is_fed = true,
                    // QEMU has closed its channel, and will say why.
                    Err(error) if error.is_of_qemu() => {
                        let ended = timeout(END_DEADLINE, &mut running).await;
                        return Err(ended.ok().and_then(Result::err).map_or(error, Error::from));
                    }
                    Err(error) => return Err(error),
                }
            }
            ran = &mut running => {
                ran?;
                let feeder = if is_fed { AbortOnDropHandle::new(tokio::spawn(async { Ok(()) })) } else { feeder };
                return Ok((mode, feeder));
            }
        }
    }
}

/// Has QEMU wait for its state in the first of these modes that it can.
async fn receive(started: &mut Started, modes: &[Mode]) -> Result<Mode, Error> {
    let mut refusal = Error::NoMode;
    for &mode in modes {
        match started.receive(mode.way()).await {
            Ok(()) => return Ok(mode),
            Err(vm::Error::Qmp(source @ QmpError::Refused { .. })) => {
                refusal = Error::Refused { mode, source };
                tracing::info!("{}", describe(&refusal));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(refusal)
}

fn feed(mode: Mode, saved: Arc<Saved>, channel: UnixStream, plan: Plan) -> Feeder {
    let Plan { fill, progress, .. } = plan;
    AbortOnDropHandle::new(tokio::spawn(async move {
        match mode {
            Mode::Lazy => lazy::serve(saved, channel, fill, &progress).await,
            Mode::Stream => send(&saved, channel, MainRam::Sent, &progress).await,
            Mode::Mapped => send(&saved, channel, MainRam::Mapped, &progress).await,
        }
    }))
}

fn channel() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// Sets the clock of a guest that goes on. It does without, if its agent does.
async fn set_clock(agent: Agent) {
    match agent.set_clock().await {
        Ok(()) => tracing::info!("the guest's clock is set"),
        Err(error) => tracing::info!("the guest's clock is as it was when it was saved: {}", describe(&error)),
    }
}

impl Resumed {
    /// How it was resumed.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// From QEMU's start until the guest ran.
    #[must_use]
    pub const fn qemu_took(&self) -> Duration {
        self.qemu_took
    }

    /// Runs the machine until it ends or `shutdown` is cancelled, and sends the rest of its memory meanwhile.
    ///
    /// # Errors
    /// [`Error`], also when the rest of the memory cannot be had; the machine has been ended by then.
    pub async fn run(self, shutdown: &CancellationToken) -> Result<Outcome, Error> {
        let Self { started, mut feeder, .. } = self;
        // It stands where it stood when the guest was saved.
        let _clock = started.agent().map(|agent| AbortOnDropHandle::new(tokio::spawn(set_clock(agent))));
        let lost = shutdown.child_token();
        let running = started.run(&lost);
        tokio::pin!(running);
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            fed = &mut feeder => if let Err(error) = fed.map_err(|_| Error::Task).flatten() {
                // A QEMU that ends, for whatever reason, closes its channel first.
                if error.is_of_qemu()
                    && let Ok(outcome) = timeout(END_DEADLINE, &mut running).await
                {
                    return Ok(outcome?);
                }
                // Without its memory the guest can only stand still.
                tracing::warn!("the VM is ended: its guest cannot run without a part of its memory that cannot be had");
                lost.cancel();
                // How it ends does not matter.
                let _ = running.await;
                return Err(error);
            }
        }
        Ok(running.await?)
    }
}
