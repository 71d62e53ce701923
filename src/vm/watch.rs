//! Watches a running VM until it ends, and sets it going again when a disk that failed it is back.
//!
//! ```text
//!              STOP, status io-error            every CONTINUE_PERIOD: cont
//!    ┌─────────┐ ────────────────▶ ┌──────────┐ ────────────────────▶ ┌─────────┐
//!    │ Running │                   │ Standing │                       │ Proving │
//!    └─────────┘ ◀───┐             └──────────┘ ◀──────────────────── └─────────┘
//!                    │                           STOP, status io-error     │
//!                    └─────────────────────────────────────────────────────┘
//!                                 no such STOP within STEADY_PERIOD
//! ```
//!
//! A VM that stands still for another reason, such as its user's wish, is left alone.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmnetx_format::Name;

use super::limits::{CONTINUE_PERIOD, EXIT_DEADLINE, STEADY_PERIOD};
use super::process::Process;
use super::qmp::{BlockIoError, Event, MigrationStatus, Qmp, QmpError, ShutdownReason, Status};
use super::{Error, Outcome, command};

/// A VM that runs.
pub(super) struct Vm<'a> {
    process: &'a mut Process,
    qmp: &'a mut Qmp,
    /// The disks' names in the order of their block nodes.
    disks: Vec<Name>,
    /// Whether memory is still on its way into it. Without that, a migration that fails is one out of it, which harms nobody.
    is_loading: bool,
    guest: Guest,
    /// The last failed request, until it has been told.
    failed: Option<BlockIoError>,
}

#[derive(Debug, Clone, Copy)]
enum Guest {
    Running,
    Standing { since: Instant, continue_at: Instant },
    Proving { since: Instant, until: Instant },
}

impl<'a> Vm<'a> {
    pub(super) const fn new(process: &'a mut Process, qmp: &'a mut Qmp, disks: Vec<Name>, is_loading: bool) -> Self {
        Self { process, qmp, disks, is_loading, guest: Guest::Running, failed: None }
    }

    /// Waits until the machine has ended. With [`Outcome::Cancelled`], `shutdown` was cancelled and it still runs.
    pub(super) async fn watch(mut self, shutdown: &CancellationToken) -> Result<Outcome, Error> {
        shutdown.run_until_cancelled(self.run()).await.unwrap_or(Ok(Outcome::Cancelled))
    }

    async fn run(&mut self) -> Result<Outcome, Error> {
        loop {
            let due = match self.guest {
                Guest::Running => None,
                Guest::Standing { continue_at, .. } => Some(continue_at),
                Guest::Proving { until, .. } => Some(until),
            };
            let alarm = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.qmp.event() => Some(event),
                () = alarm => None,
            };
            match event {
                Some(Ok(Event::Shutdown(reason))) => return self.ended(reason).await,
                Some(Ok(Event::BlockIoError(error))) => self.failed = Some(error),
                Some(Ok(Event::Stop)) => self.stopped().await?,
                Some(Ok(Event::Migration(MigrationStatus::Failed | MigrationStatus::Paused))) if self.is_loading => {
                    return Err(Error::MemoryLost);
                }
                Some(Ok(Event::Migration(MigrationStatus::Completed))) => self.is_loading = false,
                Some(Ok(Event::Resume | Event::Migration(_) | Event::Other)) => {}
                Some(Err(QmpError::Closed)) => return Err(self.process.died().await),
                Some(Err(error)) => return Err(error.into()),
                None => self.alarm().await?,
            }
        }
    }

    /// The machine's end has been announced: waits for QEMU's.
    async fn ended(&mut self, reason: ShutdownReason) -> Result<Outcome, Error> {
        let status = match self.process.exited_within(EXIT_DEADLINE).await? {
            Some(status) => status,
            None => {
                tracing::warn!("QEMU does not end although its machine did; it is killed");
                self.process.kill().await?
            }
        };
        if !status.success() {
            return Err(Error::QemuDied { status, words: self.process.words() });
        }
        Ok(match reason {
            ShutdownReason::Guest => Outcome::PoweredOff,
            ShutdownReason::Window | ShutdownReason::Host => Outcome::Closed,
        })
    }

    async fn stopped(&mut self) -> Result<(), Error> {
        if patient(self.qmp.status().await)? != Some(Status::IoError) {
            return Ok(());
        }
        let now = Instant::now();
        let since = match self.guest {
            Guest::Running => {
                tracing::warn!("{}; the guest stands still until it works again", self.complaint());
                now
            }
            Guest::Standing { since, .. } | Guest::Proving { since, .. } => since,
        };
        self.failed = None;
        self.guest = Guest::Standing { since, continue_at: now + CONTINUE_PERIOD };
        Ok(())
    }

    async fn alarm(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        match self.guest {
            Guest::Running => {}
            Guest::Standing { since, .. } => {
                let status = patient(self.qmp.status().await)?;
                let continued = status == Some(Status::IoError) && patient(self.qmp.cont().await)?.is_some();
                // Someone else may have continued it, or stopped it for good.
                self.guest = if continued || status == Some(Status::Running) {
                    Guest::Proving { since, until: now + STEADY_PERIOD }
                } else {
                    Guest::Standing { since, continue_at: now + CONTINUE_PERIOD }
                };
            }
            Guest::Proving { since, .. } => {
                tracing::info!("the guest runs again, {} s after it stopped", since.elapsed().as_secs());
                self.guest = Guest::Running;
            }
        }
        Ok(())
    }

    fn complaint(&self) -> String {
        let Some(failed) = &self.failed else { return "a disk failed".to_owned() };
        let named = |(index, _): &(usize, &Name)| failed.node.as_deref() == Some(&command::overlay_node(*index));
        let disk = self.disks.iter().enumerate().find(named).map_or("a disk", |(_, name)| name.as_str());
        if failed.no_space {
            return format!("{disk} cannot be written: no space is left where its overlay is");
        }
        let done = if failed.write { "written" } else { "read" };
        format!("{disk} cannot be {done} ({})", failed.reason)
    }
}

/// Takes a late or refused answer for "not now": a QEMU that waits for its disk may be slow.
fn patient<T>(answer: Result<T, QmpError>) -> Result<Option<T>, QmpError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (QmpError::Late { .. } | QmpError::Refused { .. })) => {
            tracing::debug!("{error}");
            Ok(None)
        }
        // What the monitor still had to say comes with its events.
        Err(QmpError::Closed) => Ok(None),
        Err(error) => Err(error),
    }
}
