//! Runs a machine through a libvirt of this host: as a transient domain on overlays of ours, whose pristine data is on our server.
//!
//! ```text
//!  package's hardware ──▶ domain XML with this run's overlays ──▶ created             (boot)
//!                                │                      restored from a FIFO ◀── head, then the saved VM as it is fetched (stream)
//!                                ▼
//!                        looked at until it has ended; cancelled: destroyed; then nothing of the run is left
//! ```
//!
//! libvirt is told of no path but those of this run: what a package keeps for it is reduced to its hardware before
//! (`vmnetx_pack::domain::Hardware`). `docs/decisions/016-libvirt-restores-from-a-pipe.md` says why it is done so.

mod connection;
mod domain;
mod error;
mod limits;
mod uri;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::machine::Machine;
use vmnetx_format::migration::{Compression, SaveFile};
use vmnetx_format::{Digest, Manifest, Memory, Name};
use vmnetx_nbd::control::api::AttachmentId;
use vmnetx_pack::domain::{Hardware, Part};
use vmnetx_store::failure::describe;

use self::connection::Connection;
use self::domain::{Host, HostDisk};
use self::limits::{
    AGENT_DEADLINE, AGENT_PERIOD, DESTROY_DEADLINE, END_LOOK, GIVE_UP_DEADLINE, NAME_MARK_CHARS, OPEN_LOOK,
    REACH_DEADLINE,
};
use crate::resume::{self, MainRam, Progress, Saved};
use crate::vm::{self, Accel, DiskSpec, Outcome, Programs, RunDir};

pub use error::Error;
pub use uri::{Uri, UriError};

/// A machine that libvirt is to run.
#[derive(Debug)]
pub struct Spec {
    /// Which libvirt.
    pub uri: Uri,
    /// What the VM is called; the domain's name begins so.
    pub name: Name,
    /// The digest of the package's manifest, to which persistent overlays are bound.
    pub version: Digest,
    /// The package's disks, in its order.
    pub disks: Vec<DiskSpec>,
    /// The file that gets the first serial port's output; `None`: a terminal, which `virsh console` shows.
    pub serial: Option<PathBuf>,
    /// The programs that make overlays.
    pub programs: Programs,
    /// Where the run keeps temporary overlays and the pipe; removed when the launch ends.
    pub run_dir: RunDir,
}

/// The hardware of a machine, as libvirt is to make it.
#[derive(Debug)]
pub struct Plugged {
    domain: Part,
    /// What the disks are plugged in as, in the order of the package.
    targets: Vec<String>,
}

impl Plugged {
    /// The hardware of the VM that libvirt saved, if the package has its memory from libvirt.
    ///
    /// # Errors
    /// [`Error::Hardware`] when what the package keeps of it is not to be believed.
    pub fn saved(manifest: &Manifest) -> Result<Option<Self>, Error> {
        let Some(Memory { libvirt: Some(xml), .. }) = &manifest.memory else { return Ok(None) };
        let hardware = Hardware::of_package(xml).map_err(Error::Hardware)?;
        let targets = hardware.targets(&manifest.machine, manifest.disks.len()).map_err(Error::Hardware)?;
        Ok(Some(Self { domain: hardware.into_domain(), targets }))
    }

    /// The hardware of a machine description, to be booted.
    #[must_use]
    pub fn described(machine: &Machine, disks: &[Name], accel: Accel) -> Self {
        let kvm = match accel {
            Accel::Kvm => true,
            Accel::Tcg => false,
            // As with QEMU: what this user may open.
            Accel::Auto => {
                rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok()
            }
        };
        let (domain, targets) = domain::of_machine(machine, disks, if kvm { "kvm" } else { "qemu" });
        Self { domain, targets }
    }
}

/// A domain that runs. It is to be run to its end.
#[derive(Debug)]
#[must_use]
pub struct Running {
    connection: Connection,
    domain: String,
    /// Sets the clock of a guest that was saved, which stands where it stood then.
    clock: Option<AbortOnDropHandle<()>>,
    // Goes last: the domain uses what is in its run directory.
    spec: Spec,
}

/// Sees whether a libvirt is there whose machines can use what a run makes.
///
/// # Errors
/// [`Error::Connect`], [`Error::OtherUser`], [`Error::Late`].
pub async fn reach(uri: &Uri) -> Result<(), Error> {
    let reached = timeout(REACH_DEADLINE, connect(uri)).await;
    reached.map_err(|_| Error::Late { what: "answer" })?.map(drop)
}

/// Boots a machine; `None` when cancelled before it ran.
///
/// # Errors
/// [`Error`]; nothing is left of the machine then.
pub async fn boot(spec: Spec, plugged: Plugged, shutdown: &CancellationToken) -> Result<Option<Running>, Error> {
    let prepared = async {
        let connection = connect(&spec.uri).await?;
        let host = host(&spec, plugged.targets).await?;
        let xml = domain::complete(plugged.domain, &host)?;
        Ok::<_, Error>((connection, host.name, xml))
    };
    let Some(prepared) = shutdown.run_until_cancelled(prepared).await else { return Ok(None) };
    let (connection, domain, xml) = prepared?;
    // Not interrupted: a domain that is being created cannot be ended yet.
    let booted = connection.boot(xml).await;
    let running = Running { connection, domain, clock: None, spec };
    match booted {
        Ok(()) => Ok(Some(running.told())),
        Err(error) => Err(running.given_up(error).await),
    }
}

/// Resumes a saved VM with the hardware that it was saved with; `None` when cancelled before it ran.
///
/// # Errors
/// [`Error`]; nothing is left of the machine then.
pub async fn resume(
    spec: Spec,
    plugged: Plugged,
    saved: impl Future<Output = Result<Saved, resume::Error>>,
    progress: &Progress,
    shutdown: &CancellationToken,
) -> Result<Option<Running>, Error> {
    let has_agent = domain::has_agent(&plugged.domain);
    let prepared = async {
        let connection = connect(&spec.uri).await?;
        let host = host(&spec, plugged.targets).await?;
        let xml = domain::complete(plugged.domain, &host)?;
        let save = SaveFile { xml, cookie: None, was_running: true, compression: Compression::Raw };
        let head = save.encode().map_err(Error::Head)?;
        Ok::<_, Error>((connection, host.name, head, Arc::new(saved.await?)))
    };
    let Some(prepared) = shutdown.run_until_cancelled(prepared).await else { return Ok(None) };
    let (connection, domain, head, saved) = prepared?;
    let fifo = make_fifo(&spec.run_dir)?;
    let feeding = feed(&fifo, &head, &saved, progress);
    let restored = restore(&connection, &fifo, feeding, shutdown).await;
    let mut running = Running { connection, domain, clock: None, spec };
    match restored {
        Ok(true) => {
            let setting = || tokio::spawn(set_clock(running.connection.clone(), running.domain.clone()));
            running.clock = has_agent.then(|| AbortOnDropHandle::new(setting()));
            Ok(Some(running.told()))
        }
        Ok(false) => running.destroy().await.map(|()| None),
        Err(error) => Err(running.given_up(error).await),
    }
}

/// Sets a guest's clock. It does without, if its agent does.
async fn set_clock(connection: Connection, domain: String) {
    let begun = Instant::now();
    loop {
        match connection.set_clock(&domain).await {
            Ok(()) => return tracing::info!("the guest's clock is set"),
            Err(error) if begun.elapsed() >= AGENT_DEADLINE => {
                return tracing::info!("the guest's clock is as it was when it was saved: {}", describe(&error));
            }
            // libvirt may not have heard of the agent yet.
            Err(_) => sleep(AGENT_PERIOD).await,
        }
    }
}

impl Running {
    /// Looks at the domain until it ends, or ends it when `shutdown` is cancelled. A daemon of libvirt's that goes meanwhile, as it does
    /// when it is upgraded, is waited for: the guest runs on.
    ///
    /// # Errors
    /// [`Error`] when libvirt cannot be asked any more, or does not end it.
    pub async fn run(mut self, shutdown: &CancellationToken) -> Result<Outcome, Error> {
        loop {
            let looking = async {
                sleep(END_LOOK).await;
                self.connection.runs(&self.domain).await
            };
            match shutdown.run_until_cancelled(looking).await {
                Some(Ok(true)) => {}
                Some(Ok(false)) => return Ok(Outcome::PoweredOff),
                Some(Err(error)) => return Err(self.left_alone(error)),
                None => return self.destroy().await.map(|()| Outcome::Cancelled),
            }
        }
    }

    fn told(self) -> Self {
        tracing::info!("{} runs as libvirt's domain {}", self.spec.name, self.domain);
        self
    }

    /// Ends what may be there of a domain that did not come to run. Why it did not is what counts.
    async fn given_up(self, error: Error) -> Error {
        if let Err(other) = self.destroy().await {
            tracing::warn!("{}", describe(&other));
        }
        error
    }

    async fn destroy(mut self) -> Result<(), Error> {
        let destroyed = timeout(DESTROY_DEADLINE, self.connection.destroy(&self.domain)).await;
        let destroyed = destroyed.unwrap_or(Err(Error::Late { what: "end the domain" }));
        destroyed.map_err(|error| self.left_alone(error))
    }

    fn left_alone(self, error: Error) -> Error {
        Error::LeftAlone { domain: self.domain, source: Box::new(error) }
    }
}

/// Connects to libvirt, if its machines can use what this run makes.
async fn connect(uri: &Uri) -> Result<Connection, Error> {
    let connection = Connection::open(uri).await?;
    match connection.machine_user().await? {
        Some(user) if user != 0 && user != rustix::process::geteuid().as_raw() => Err(Error::OtherUser(user)),
        _ => Ok(connection),
    }
}

/// Makes the overlays, and a name that no other domain has.
async fn host(spec: &Spec, targets: Vec<String>) -> Result<Host, Error> {
    let mark = AttachmentId::random().map_err(Error::Pipe)?;
    let mark: String = mark.as_str().chars().take(NAME_MARK_CHARS).collect();
    let mut disks = Vec::new();
    for (disk, target) in spec.disks.iter().zip(targets) {
        disks.push(HostDisk {
            name: disk.name.clone(),
            target,
            overlay: vm::overlay_of(disk, spec.version, &spec.programs, &spec.run_dir).await?,
            scratch: disk.persist.is_none(),
            nbd_socket: std::path::absolute(&disk.nbd_socket).map_err(Error::Pipe)?,
            export: disk.export.clone(),
        });
    }
    Ok(Host { name: format!("{}-{mark}", spec.name), serial: spec.serial.clone(), disks })
}

fn make_fifo(run_dir: &RunDir) -> Result<PathBuf, Error> {
    let path = run_dir.path().join("saved");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|errno| Error::Pipe(errno.into()))?;
    Ok(path)
}

/// Writes the head and the saved VM into the pipe once libvirt reads it.
async fn feed(fifo: &Path, head: &[u8], saved: &Arc<Saved>, progress: &Progress) -> Result<(), Error> {
    let mut sender = loop {
        match pipe::OpenOptions::new().open_sender(fifo) {
            Ok(sender) => break sender,
            // Nobody reads yet.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                sleep(OPEN_LOOK).await
            }
            Err(error) => return Err(Error::Pipe(error)),
        }
    };
    sender.write_all(head).await.map_err(resume::Error::Channel)?;
    Ok(resume::send(saved, sender, MainRam::Sent, progress).await?)
}

/// Has libvirt restore what is fed; gives whether the guest runs, which it does not when cancelled.
async fn restore(
    connection: &Connection,
    fifo: &Path,
    feeding: impl Future<Output = Result<(), Error>>,
    shutdown: &CancellationToken,
) -> Result<bool, Error> {
    let path = fifo.to_str().ok_or_else(|| vm::Error::PathNotText(fifo.to_owned()))?;
    let restoring = connection.restore(path.to_owned());
    tokio::pin!(restoring);
    let fed = {
        tokio::pin!(feeding);
        tokio::select! {
            restored = &mut restoring => return restored.map(|()| true),
            fed = &mut feeding => Some(fed),
            () = shutdown.cancelled() => None,
        }
        // What was not fed to its end ends here: the pipe is closed.
    };
    let failure = match fed {
        Some(Ok(())) => tokio::select! {
            restored = &mut restoring => return restored.map(|()| true),
            () = shutdown.cancelled() => None,
        },
        Some(Err(error)) => Some(error),
        None => None,
    };
    let given_up = timeout(GIVE_UP_DEADLINE, async {
        tokio::select! {
            restored = &mut restoring => restored,
            never = release(fifo) => match never {},
        }
    });
    let restored = given_up.await.map_err(|_| Error::Late { what: "give up restoring the domain" })?;
    match (failure, restored) {
        (None, _) => Ok(false),
        // libvirt has stopped reading, and says why.
        (Some(Error::Resume(resume::Error::Channel(_))), Err(error)) => Err(error),
        (Some(error), _) => Err(error),
    }
}

/// What no section of a migration stream begins with, nor libvirt's head: whoever reads it gives up.
const NO_SECTION: u8 = 0xff;

/// Lets whoever waits for a writer of the pipe, or for what is in it, find that nothing good is. A QEMU that has not read from a pipe
/// yet waits for something to read, and does not see that the pipe has ended before.
async fn release(fifo: &Path) -> std::convert::Infallible {
    loop {
        let opened: io::Result<_> = pipe::OpenOptions::new().open_sender(fifo);
        // Nobody may read, or read so soon.
        let _ = opened.and_then(|sender| sender.try_write(&[NO_SECTION]));
        sleep(OPEN_LOOK).await;
    }
}
