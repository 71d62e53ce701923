//! Saves a running VM, disks and memory as they are at one moment, into files that are packed as a version of a package.
//!
//! ```text
//!  Vm::open ── what is it, and can a package say so?                                   module `facts`
//!     │ capture
//!  Guarded ─── a process stands by that lets the guest go on should we be killed       module `guard`
//!     │
//!  Copying ─── the guest runs; its disks are copied, and what it writes again          module `disks`
//!     │
//!  Standing ── the guest is stopped; the rest of the disks, then memory and devices    module `memory`
//!     │
//!  Running ─── it goes on, or stands still until its files are published and it ends   module `undo`
//! ```
//!
//! Whatever fails or interrupts this, the VM is set going again, with its monitor's settings as they were. Nobody but QEMU opens
//! a file that QEMU has open.

mod disks;
mod error;
mod facts;
mod guard;
mod limits;
mod memory;
mod monitor;
mod undo;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Binding, Digest, Name};
use vmnetx_pack::{DiskFile, MemoryFile, Progress};

use self::disks::{Copies, Disk, JOB_PREFIX, job_of};
use self::facts::Facts;
use self::guard::Guard;
use self::limits::SAVE_RATE;
use self::monitor::Monitor;
use self::undo::Undo;
use crate::registry::RunningVm;
use crate::vm::{Programs, RunDir};

pub use error::Error;
pub use guard::{GUARD_COMMAND, guard};

/// A VM that may be captured.
#[derive(Debug)]
pub struct Vm {
    socket: PathBuf,
    monitor: Monitor,
    facts: Facts,
    disks: Vec<Disk>,
}

/// How a VM is to be captured.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Its hardware.
    pub machine: &'a Machine,
    /// The published version of which only what differs is wanted; nothing for whole disks.
    pub base: Option<Digest>,
    /// Whether it is to stand still until [`Captured::stop`] or [`Captured::let_run`].
    pub hold: bool,
    /// The programs to run.
    pub programs: &'a Programs,
    /// Is told how far the copying of disks is.
    pub progress: &'a dyn Progress,
}

/// A VM that was captured.
#[derive(Debug)]
pub struct Captured {
    /// Its disks, ready to be packed; overlays are bound to the base.
    pub disks: Vec<DiskFile>,
    /// Its memory, ready to be packed.
    pub memory: MemoryFile,
    /// How long its guest stood still; nothing if it did so before, or still does.
    pub stood_still: Option<Duration>,
    held: Option<Session>,
    /// Holds the files.
    _run_dir: RunDir,
}

/// A VM to which something has been done.
#[derive(Debug)]
struct Session {
    monitor: Monitor,
    undo: Undo,
    guard: Guard,
}

impl Vm {
    /// Looks at the VM behind a QMP socket. Nothing is done to it.
    ///
    /// # Errors
    /// [`Error`] when there is none or it cannot be captured as it is.
    pub async fn open(socket: &Path) -> Result<Self, Error> {
        let mut monitor = Monitor::open(socket).await?;
        let facts = Facts::ask(&mut monitor).await?;
        let named = |(index, drive): (usize, &facts::Drive)| {
            let name = format!("disk{index}").parse().ok()?;
            Some(Disk { name, node: drive.node.clone(), size_bytes: drive.size_bytes, over: None })
        };
        let disks = facts.drives.iter().enumerate().filter_map(named).collect();
        Ok(Self { socket: socket.to_owned(), monitor, facts, disks })
    }

    /// Looks at a VM that was launched here: its disks have the names of its package.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Unplugged`].
    pub async fn open_running(vm: &RunningVm) -> Result<Self, Error> {
        let mut opened = Self::open(&vm.control).await?;
        let drives = &opened.facts.drives;
        let disks = vm.disks.iter().map(|disk| {
            let drive = drives.iter().find(|drive| drive.node == disk.node);
            let drive = drive.ok_or_else(|| Error::Unplugged(disk.name.clone()))?;
            Ok(Disk { name: disk.name.clone(), node: disk.node.clone(), size_bytes: drive.size_bytes, over: None })
        });
        let disks = disks.collect::<Result<Vec<_>, Error>>()?;
        if let Some(other) = drives.iter().find(|drive| disks.iter().all(|disk| disk.node != drive.node)) {
            return Err(Error::NotRepresented(format!("another disk than its package ({})", other.node)));
        }
        opened.disks = disks;
        Ok(opened)
    }

    /// The names of its disks.
    #[must_use]
    pub fn disk_names(&self) -> Vec<Name> {
        self.disks.iter().map(|disk| disk.name.clone()).collect()
    }

    /// Captures it.
    ///
    /// # Errors
    /// [`Error`]; the VM is as it was then. With [`Error::Interrupted`], `shutdown` was cancelled.
    pub async fn capture(self, plan: Plan<'_>, shutdown: &CancellationToken) -> Result<Captured, Error> {
        let Self { socket, mut monitor, facts, mut disks } = self;
        facts.check(plan.machine)?;
        for disk in &mut disks {
            disk.over = plan.base.map(|version| Binding { version, disk: disk.name.clone() });
        }
        let run_dir = RunDir::temporary().await?;
        clear(&mut monitor).await?;
        let undo = Undo {
            runs: facts.is_running,
            jobs: (0..disks.len()).map(job_of).collect(),
            capabilities: facts.capabilities.clone(),
            rate: facts.rate,
        };
        let guard = Guard::start(&socket, &undo, run_dir.path()).await?;
        let mut session = Session { monitor, undo, guard };
        let saving = session.save(disks, plan, &facts, &run_dir);
        let saved = shutdown.run_until_cancelled(saving).await.unwrap_or(Err(Error::Interrupted));
        let (disks, memory, stood_still) = match saved {
            Ok(saved) => saved,
            Err(error) => {
                // What went wrong first is what the user should know.
                if let Err(also) = session.release().await {
                    tracing::warn!("the VM is not as it was: {}", vmnetx_store::failure::describe(&also));
                }
                return Err(error);
            }
        };
        let held = if plan.hold {
            Some(session)
        } else {
            session.release().await?;
            None
        };
        let memory = MemoryFile { file: memory, accelerator: Some(facts.accelerator), qemu: Some(facts.qemu) };
        Ok(Captured { disks, memory, stood_still, held, _run_dir: run_dir })
    }
}

/// Ends what a capture may have left that was killed together with its guard.
async fn clear(monitor: &mut Monitor) -> Result<(), Error> {
    let jobs = monitor.jobs().await?.into_iter().map(|job| job.id).filter(|id| id.starts_with(JOB_PREFIX)).collect();
    Undo { jobs, ..Undo::default() }.apply(monitor).await
}

impl Session {
    /// Copies the disks, stops the guest and saves its memory; gives the files, and how long the guest stood still if it runs
    /// again.
    async fn save(
        &mut self,
        disks: Vec<Disk>,
        plan: Plan<'_>,
        facts: &Facts,
        run_dir: &RunDir,
    ) -> Result<(Vec<DiskFile>, PathBuf, Option<Duration>), Error> {
        let monitor = &mut self.monitor;
        // Each of them may change what is saved, or where it goes.
        monitor.set_capabilities(&facts.capabilities, false).await?;
        monitor.set_rate(SAVE_RATE).await?;
        let copies = Copies::begin(monitor, disks, plan.programs, run_dir).await?;
        copies.until_ready(monitor, plan.progress).await?;
        let stopped = Instant::now();
        monitor.stop().await?;
        let disks = copies.finish(monitor).await?;
        let memory = memory::save(monitor, run_dir).await?;
        if plan.hold || !facts.is_running {
            return Ok((disks, memory, None));
        }
        monitor.cont().await?;
        Ok((disks, memory, Some(stopped.elapsed())))
    }

    /// Makes the VM what it was before.
    async fn release(mut self) -> Result<(), Error> {
        self.undo.apply(&mut self.monitor).await?;
        self.guard.dismiss().await;
        Ok(())
    }
}

impl Captured {
    /// Ends a VM that was held: what it was is published.
    ///
    /// # Errors
    /// [`Error`] when QEMU does not take it.
    pub async fn stop(self) -> Result<(), Error> {
        let Some(mut session) = self.held else { return Ok(()) };
        session.monitor.quit().await?;
        session.guard.dismiss().await;
        Ok(())
    }

    /// Lets a VM that was held go on after all.
    ///
    /// # Errors
    /// [`Error`] when it does not.
    pub async fn let_run(self) -> Result<(), Error> {
        match self.held {
            Some(session) => session.release().await,
            None => Ok(()),
        }
    }
}
