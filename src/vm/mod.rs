//! Launches a virtual machine: QEMU on disks that an NBD server holds, with what the guest writes kept on this side.
//!
//! ```text
//!   start
//!     │
//!  Preparing ─── programs, run directory, accelerator, overlays
//!     │
//!  Starting ──── QEMU runs; it connects to our sockets for its monitor and its serial port
//!     │
//!  Loading ───── with a channel: QEMU reads the state of a saved VM from it (module `incoming`)
//!     │   └───── it fails: abandoned, and the same machine may be started again, without it
//!     │ run
//!  Running ◀───▶ Standing      a disk failed; continued every few seconds (module `watch`)
//!     │  │
//!     │  └────── Ending        cancelled: QMP quit, then SIGTERM, then SIGKILL
//!     │            │
//!   Ended ◀────────┘           nothing is left: no process, no socket, no temporary overlay
//! ```
//!
//! From every state an error leads to the end, too. If this process is killed, QEMU dies with it (module `process`), and
//! the next launch removes its directory (module `run_dir`).
//!
//! This module opens no URL. QEMU runs sandboxed as the user of this process and is given paths of sockets and overlays
//! only; what the package says about the machine has passed the types of [`Machine`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use vmnetx_format::machine::{Firmware, Machine};
use vmnetx_format::{Binding, Digest, Name};

use crate::registry::{Claim, RunningDisk, RunningVm};

mod abilities;
mod accel;
mod agent;
mod command;
mod display;
mod error;
mod incoming;
mod limits;
pub(crate) mod overlay;
mod process;
pub(crate) mod qmp;
mod run_dir;
mod serial;
mod watch;

pub(crate) use abilities::Abilities;
#[cfg(test)]
pub(crate) use abilities::CpuAbility;
pub use accel::{Accel, KvmObstacle};
pub(crate) use accel::{Accelerator, kvm_obstacle};
pub use agent::{Agent, AgentError};
pub use command::Network;
pub use display::{Display, DisplayChoice};
pub use error::{Error, Part};
pub use incoming::{Incoming, Way};
pub use process::Programs;
pub(crate) use process::Searched;
#[cfg(test)]
pub(crate) use qmp::QemuVersion;
pub use qmp::QmpError;
pub use run_dir::RunDir;
pub use serial::SerialPort;

use command::{Begins, DiskFacts, Facts};
use limits::{QUIT_DEADLINE, QUIT_DEADLINE_SCRATCH, START_DEADLINE, TERM_DEADLINE};
use process::Process;
use qmp::Qmp;

/// A machine to launch.
#[derive(Debug)]
pub struct Spec {
    /// What the VM is called, for example in its window's title.
    pub name: Name,
    /// Its hardware.
    pub machine: Machine,
    /// The digest of the package's manifest, to which persistent overlays are bound.
    pub version: Digest,
    /// The package's disks, in its order.
    pub disks: Vec<DiskSpec>,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// Where the screen is shown.
    pub display: Display,
    /// What the network cards reach.
    pub network: Network,
    /// Who listens to the first serial port, if anyone does.
    pub serial: Option<SerialPort>,
    /// The state that the machine begins in; `None`: it boots.
    pub incoming: Option<Incoming>,
    /// The VM's place among those that run, where it is entered as soon as QEMU starts.
    pub claim: Option<Claim>,
    /// The programs to run.
    pub programs: Programs,
    /// Where the run keeps its sockets and temporary overlays; removed when the launch ends.
    pub run_dir: RunDir,
}

/// A disk to launch a machine with.
#[derive(Debug)]
pub struct DiskSpec {
    /// Its name in the package.
    pub name: Name,
    /// The Unix socket of the NBD server that has its pristine data.
    pub nbd_socket: PathBuf,
    /// The export to ask it for.
    pub export: String,
    /// Its true size.
    pub size_bytes: u64,
    /// The overlay that keeps what the guest writes, created when absent. `None`: a temporary one.
    pub persist: Option<PathBuf>,
}

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The user closed the window, or someone on this host told QEMU to end.
    Closed,
    /// The launch was cancelled.
    Cancelled,
}

/// Boots a machine and runs it until it ends or `shutdown` is cancelled.
///
/// When this returns nothing of the run is left but persistent overlays. Dropping the future kills QEMU at once.
///
/// # Errors
/// [`Error`]; whatever was started has been ended by then.
pub async fn launch(spec: Spec, shutdown: CancellationToken) -> Result<Outcome, Error> {
    match start(spec, &shutdown).await? {
        Some(started) => started.run(&shutdown).await,
        None => Ok(Outcome::Cancelled),
    }
}

/// Starts a machine; `None` when cancelled before it was up. With [`Spec::incoming`] it waits for the state to begin in,
/// else it boots.
///
/// # Errors
/// [`Error`]; whatever was started has been ended by then.
pub async fn start(mut spec: Spec, shutdown: &CancellationToken) -> Result<Option<Started>, Error> {
    check(&spec)?;
    let Some(prepared) = shutdown.run_until_cancelled(prepare(&spec)).await else { return Ok(None) };
    let (monitor, monitor_path) = listen(&spec.run_dir, "monitor")?;
    let serial = spec.serial.is_some().then(|| listen(&spec.run_dir, "serial")).transpose()?;
    let [vnc, control] = [spec.run_dir.socket("vnc")?, spec.run_dir.socket("control")?];
    let agent = spec.run_dir.socket(agent::SOCKET)?;
    let prepared = prepared?;
    let serial_path = serial.as_ref().map(|(_, path)| path.as_path());
    let facts = facts(&spec, &prepared, [&monitor_path, &control, &vnc, &agent], serial_path);
    let arguments = command::arguments(&spec.machine, &facts)?;
    tracing::debug!(?arguments, "start {}", spec.programs.qemu.display());
    enter(&mut spec, &prepared, control)?;
    let inherited = spec.incoming.take().map_or_else(Vec::new, Incoming::into_inherited);
    let begun = Instant::now();
    let mut process = Process::spawn(&spec.programs, &spec.programs.qemu, &arguments, inherited).await?;
    let connecting = connect(&mut process, &monitor, serial.as_ref().map(|(listener, _)| listener));
    let (qmp, serial) = match shutdown.run_until_cancelled(connecting).await {
        Some(Ok(connected)) => connected,
        // Nothing may go on when this returns, so the end is waited for.
        Some(Err(error)) => {
            let error = error.of_start(&spec.machine, &spec.programs.qemu);
            return process.kill().await.and(Err(error));
        }
        None => return process.kill().await.map(|_| None),
    };
    tracing::info!(pid = process.pid(), "{} runs", spec.name);
    if spec.display == Display::Vnc {
        tracing::info!("the screen is on the VNC socket {}", vnc.display());
    }
    let serial = serial.zip(spec.serial.take()).map(|(stream, port)| serial::Carrier::start(stream, port));
    Ok(Some(Started { process, qmp, serial, begun, is_loading: false, spec }))
}

fn check(spec: &Spec) -> Result<(), Error> {
    let names: Vec<_> = spec.disks.iter().map(|disk| disk.name.clone()).collect();
    check_machine(&spec.machine, &names)?;
    if spec.serial.is_some() && !spec.machine.serial {
        return Err(Error::NoSerial);
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("QEMU runs as root, because vmnetx does; run it as another user where you can");
    }
    Ok(())
}

/// Whether a machine with these disks can be launched here, as far as its description tells.
///
/// # Errors
/// [`Error::Machine`], [`Error::NotHandled`], [`Error::Memory`].
pub(crate) fn check_machine(machine: &Machine, disks: &[Name]) -> Result<(), Error> {
    machine.validate(disks)?;
    if machine.firmware == Firmware::Uefi {
        return Err(Error::NotHandled("UEFI firmware"));
    }
    check_memory(machine.memory_mib.mib())
}

/// QEMU would take memory as the guest touches it, until the host has none left.
fn check_memory(wanted_mib: u64) -> Result<(), Error> {
    let host = rustix::system::sysinfo();
    let host_mib = (host.totalram as u64).saturating_mul(host.mem_unit.into()) >> 20;
    if wanted_mib <= host_mib { Ok(()) } else { Err(Error::Memory { wanted_mib, host_mib }) }
}

/// What must be known and there before QEMU starts.
struct Prepared {
    accelerator: Accelerator,
    disks: Vec<DiskFacts>,
}

fn facts<'a>(
    spec: &'a Spec,
    prepared: &'a Prepared,
    [monitor, control, vnc, agent]: [&'a Path; 4],
    serial: Option<&'a Path>,
) -> Facts<'a> {
    let Spec { name, display, network, .. } = spec;
    let begins = spec.incoming.as_ref().map_or(Begins::Booting, Incoming::begins);
    let (accelerator, disks) = (prepared.accelerator, &prepared.disks);
    let (display, network) = (*display, *network);
    Facts { name, accelerator, display, network, monitor, control, agent, serial, vnc, disks, begins }
}

async fn prepare(spec: &Spec) -> Result<Prepared, Error> {
    let accelerator = accel::choose(spec.accel, &spec.programs, &spec.run_dir).await?;
    let mut disks = Vec::new();
    for disk in &spec.disks {
        disks.push(prepare_disk(disk, spec).await?);
    }
    Ok(Prepared { accelerator, disks })
}

/// Makes the overlay of a disk, or checks one that is kept; `version` is that of its package.
///
/// # Errors
/// [`Error`] when it cannot be made, or is another disk's.
pub(crate) async fn overlay_of(
    disk: &DiskSpec,
    version: Digest,
    programs: &Programs,
    run_dir: &RunDir,
) -> Result<PathBuf, Error> {
    let binding = Binding { version, disk: disk.name.clone() };
    match &disk.persist {
        Some(file) => overlay::persist(programs, file, &binding, disk.size_bytes).await,
        None => {
            let file = run_dir.file(&format!("{}.qcow2", disk.name));
            overlay::create(programs, &file, &binding, disk.size_bytes).await?;
            Ok(file)
        }
    }
}

async fn prepare_disk(disk: &DiskSpec, spec: &Spec) -> Result<DiskFacts, Error> {
    let overlay = overlay_of(disk, spec.version, &spec.programs, &spec.run_dir).await?;
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| Error::io(format!("find socket {}", path.display()), source))
    };
    Ok(DiskFacts {
        name: disk.name.clone(),
        nbd_socket: absolute(&disk.nbd_socket)?,
        export: disk.export.clone(),
        overlay,
        scratch: disk.persist.is_none(),
    })
}

/// Enters the VM among those that run.
fn enter(spec: &mut Spec, prepared: &Prepared, control: PathBuf) -> Result<(), Error> {
    let Some(claim) = &mut spec.claim else { return Ok(()) };
    let disk = |(index, disk): (usize, &DiskFacts)| RunningDisk {
        name: disk.name.clone(),
        node: command::overlay_node(index),
        overlay: disk.overlay.clone(),
        persistent: !disk.scratch,
        nbd_socket: disk.nbd_socket.clone(),
        export: disk.export.clone(),
    };
    Ok(claim.publish(RunningVm {
        control,
        version: spec.version,
        machine: spec.machine.clone(),
        accelerator: prepared.accelerator.recorded(),
        disks: prepared.disks.iter().enumerate().map(disk).collect(),
    })?)
}

/// A QEMU that has come up.
#[derive(Debug)]
pub struct Started {
    process: Process,
    qmp: Qmp,
    serial: Option<serial::Carrier>,
    /// When QEMU was started.
    begun: Instant,
    /// Whether memory that the machine began in is still on its way.
    is_loading: bool,
    // Goes last: the others use what is in its run directory.
    spec: Spec,
}

fn listen(run_dir: &RunDir, name: &str) -> Result<(UnixListener, PathBuf), Error> {
    let path = run_dir.socket(name)?;
    // A QEMU that was abandoned has used it.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path);
    let listener = listener.map_err(|source| Error::io(format!("listen on {}", path.display()), source))?;
    Ok((listener, path))
}

/// Waits for QEMU on the sockets that it was told of, and for its greeting, which comes when it has opened its disks.
async fn connect(
    process: &mut Process,
    monitor: &UnixListener,
    serial: Option<&UnixListener>,
) -> Result<(Qmp, Option<UnixStream>), Error> {
    let accept = async |listener: &UnixListener| {
        let accepted = listener.accept().await;
        accepted.map(|(stream, _)| stream).map_err(|source| Error::io("accept QEMU's connection", source))
    };
    let connected = tokio::time::timeout(START_DEADLINE, async {
        let monitor = accept(monitor).await?;
        let serial = match serial {
            Some(listener) => Some(accept(listener).await?),
            None => None,
        };
        Ok((Qmp::open(monitor).await?, serial))
    });
    let outcome = tokio::select! {
        outcome = connected => outcome,
        status = process.exited() => return Err(Error::QemuDied { status: status?, words: process.words() }),
    };
    match outcome {
        Ok(Err(Error::Qmp(QmpError::Closed))) => Err(process.died().await),
        Ok(outcome) => outcome,
        Err(_) => Err(Error::StartTimeout { words: process.words() }),
    }
}

impl Started {
    /// Watches the machine until it ends or `shutdown` is cancelled. When this returns nothing of the run is left but persistent
    /// overlays; dropping the future kills QEMU at once.
    ///
    /// # Errors
    /// [`Error`]; the machine has been ended by then.
    pub async fn run(mut self, shutdown: &CancellationToken) -> Result<Outcome, Error> {
        let disks = self.spec.disks.iter().map(|disk| disk.name.clone()).collect();
        let vm = watch::Vm::new(&mut self.process, &mut self.qmp, disks, self.is_loading);
        let outcome = vm.watch(shutdown).await;
        // Ended or not, there must be no QEMU after this.
        let ended = if matches!(outcome, Ok(Outcome::Cancelled)) {
            self.end().await
        } else {
            self.process.kill().await.map(drop)
        };
        if let Some(serial) = self.serial {
            serial.drain().await;
        }
        ended.and(outcome)
    }

    /// How long ago QEMU was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The guest's agent, if the machine has a port for one. Whether the guest runs one shows when it is asked.
    #[must_use]
    pub fn agent(&self) -> Option<Agent> {
        self.spec.machine.guest_agent.then(|| Agent::new(self.spec.run_dir.path()))
    }

    /// Ends a machine whose guest has not run, and gives back what it was started from, to start it again otherwise.
    ///
    /// # Errors
    /// [`Error`] when QEMU does not end.
    pub async fn abandon(mut self) -> Result<Spec, Error> {
        self.process.kill().await?;
        let Self { mut spec, serial, .. } = self;
        if let Some(serial) = serial {
            spec.serial = serial.drain().await;
        }
        Ok(spec)
    }

    /// Ends a machine that runs.
    async fn end(&mut self) -> Result<(), Error> {
        let persistent = self.spec.disks.iter().any(|disk| disk.persist.is_some());
        let deadline = if persistent { QUIT_DEADLINE } else { QUIT_DEADLINE_SCRATCH };
        // Its answer does not matter: what counts is that QEMU ends.
        let quit = tokio::time::timeout(deadline, self.qmp.quit());
        if let Ok(Err(error)) = quit.await {
            tracing::debug!(%error, "QEMU does not take `quit`");
        }
        if self.process.exited_within(deadline).await?.is_none() {
            tracing::debug!("QEMU does not quit; it is terminated");
            self.process.signal(Signal::TERM);
            if self.process.exited_within(TERM_DEADLINE).await?.is_none() {
                tracing::debug!("QEMU does not terminate; it is killed");
                self.process.kill().await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
