//! The server that a VM reads through: the one of the cache directory, which is found or started, or a private one.
//!
//! ```text
//!  cache directory usable? ──no──▶ private: no disk tier, ends with the run
//!       │ yes                           ▲
//!  control socket answers? ──yes──▶ speaks our version, not draining? ──no: asked to drain
//!       │ no                            │ yes
//!  start one; its lock decides          ▼
//!  between two starters ──────────▶  shared
//! ```

mod lease;
mod limits;

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use vmnetx_nbd::cli::{ANOTHER_SERVES, control_socket};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{API_VERSION, Versions};
use vmnetx_nbd::limits::{RANDOM_ID_BYTES, SOCKET_PATH_BYTES_MAX};
use vmnetx_store::failure::{Class, Told};

use crate::vm::{self, RunDir};

pub(crate) use lease::Lease;

use limits::{LOG_BYTES_MAX, LOG_WORDS_BYTES_MAX, PRIVATE_IDLE, SHARED_IDLE, START_DEADLINE, START_LOOK};

/// The control socket of a private server in its directory.
pub(crate) const PRIVATE_CONTROL: &str = "control.sock";

/// What a server says goes into this file of its directory.
const LOG: &str = "server.log";

/// Variables by which a service manager speaks to us, and not to a server that we start.
const MANAGER_VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"];

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache directory cannot be used.
    #[error("cache directory {}", dir.display())]
    CacheDir {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A server cannot be started.
    #[error("start a server")]
    Start(#[source] io::Error),
    /// A server ended at once.
    #[error("the server that was started ended ({status}): {words}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last that it said.
        words: String,
    },
    /// No server answers in time.
    #[error("no server answers at {} within {} s", socket.display(), START_DEADLINE.as_secs())]
    Late {
        /// The control socket.
        socket: PathBuf,
    },
    /// The server that was named is of no use.
    #[error("the server at {} {why}", socket.display())]
    Unfit {
        /// The control socket.
        socket: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A directory for a private server.
    #[error(transparent)]
    Dir(#[from] vm::Error),
    /// The server does not do what it was asked for.
    #[error(transparent)]
    Asked(#[from] vmnetx_nbd::Error),
}

/// Which server is wanted.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// The one of this directory. Where nobody has named the directory, a private one will do.
    Shared {
        /// The cache directory.
        dir: PathBuf,
        /// Whether the user has named it.
        is_named: bool,
    },
    /// One for this run alone, without a disk tier.
    Private,
    /// The one that listens on this control socket.
    Given(PathBuf),
}

/// How a server is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Bytes of chunks in its memory.
    pub(crate) memory_bytes: u64,
    /// Bytes of chunks in its cache directory.
    pub(crate) disk_bytes: u64,
}

/// A server that answers.
#[derive(Debug)]
pub(crate) struct Server {
    control: Control,
    sizes: Sizes,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Shared(PathBuf),
    /// Its process ends with this value, and so does its directory.
    Private(Child, RunDir),
    Given,
}

/// What is at a control socket.
#[derive(Debug)]
pub(crate) enum Found {
    /// A server that can be used.
    Fit(Versions),
    /// One that speaks another version, or is about to end.
    Unfit(Versions),
    /// None.
    Nobody,
}

impl Server {
    /// Finds the server that is wanted or starts it.
    ///
    /// # Errors
    /// [`Error`] when neither can be done.
    pub(crate) async fn find_or_start(wanted: &Wanted, sizes: Sizes) -> Result<Self, Error> {
        let (dir, is_named) = match wanted {
            Wanted::Private => return Self::private(sizes).await,
            Wanted::Given(socket) => return Self::given(socket, sizes).await,
            Wanted::Shared { dir, is_named } => (dir, *is_named),
        };
        match Self::shared(dir, sizes).await {
            Ok(Some(server)) => Ok(server),
            Ok(None) => Self::private(sizes).await,
            // Nobody asked for this directory, so what is wrong with it is no reason not to run.
            Err(error) if !is_named => {
                tracing::warn!("nothing is kept for the next time: {}", vmnetx_store::failure::describe(&error));
                Self::private(sizes).await
            }
            Err(error) => Err(error),
        }
    }

    /// The server again after it has died, under the same control socket.
    async fn again(&mut self) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Given => match look(&self.control).await? {
                Found::Fit(_) => Ok(()),
                Found::Unfit(_) | Found::Nobody => Err(Error::Late { socket: self.control.socket().to_owned() }),
            },
            Kind::Shared(dir) => match Self::shared(dir, self.sizes).await? {
                Some(_) => Ok(()),
                None => Err(Error::Late { socket: self.control.socket().to_owned() }),
            },
            Kind::Private(child, dir) => {
                // It may only be deaf.
                child.kill().await.map_err(Error::Start)?;
                *child = start_private(&self.control, dir, self.sizes).await?;
                Ok(())
            }
        }
    }

    pub(crate) const fn control(&self) -> &Control {
        &self.control
    }

    async fn given(socket: &Path, sizes: Sizes) -> Result<Self, Error> {
        let control = Control::new(socket);
        let versions = control.versions().await?;
        if let Some(why) = unfit(&versions) {
            return Err(Error::Unfit { socket: socket.to_owned(), why });
        }
        Ok(Self { control, sizes, kind: Kind::Given })
    }

    async fn private(sizes: Sizes) -> Result<Self, Error> {
        let dir = RunDir::temporary().await?;
        let control = Control::new(dir.socket(PRIVATE_CONTROL)?);
        let child = start_private(&control, &dir, sizes).await?;
        Ok(Self { control, sizes, kind: Kind::Private(child, dir) })
    }

    /// The server of a directory; nothing if there is one that cannot be used.
    async fn shared(dir: &Path, sizes: Sizes) -> Result<Option<Self>, Error> {
        let cannot = |source| Error::CacheDir { dir: dir.to_owned(), source };
        let dir = prepare(dir).map_err(cannot)?;
        let control = Control::new(control_socket(&dir));
        if !has_room_for_sockets(&control) {
            return Err(cannot(io::Error::other("its path is too long for sockets in it")));
        }
        let (deadline, mut child) = (Instant::now() + START_DEADLINE, None::<Child>);
        loop {
            match look(&control).await {
                Ok(Found::Fit(_)) => return Ok(Some(Self { control, sizes, kind: Kind::Shared(dir) })),
                Ok(Found::Unfit(versions)) => {
                    give_up(&control, &versions).await;
                    return Ok(None);
                }
                Ok(Found::Nobody) if child.is_none() => child = Some(start_shared(&dir, sizes)?),
                Ok(Found::Nobody) => {}
                // It is about to end, or to begin.
                Err(error) => tracing::debug!(%error, "the server does not answer"),
            }
            let exited = match &mut child {
                Some(child) => child.try_wait().map_err(Error::Start)?,
                None => None,
            };
            match exited {
                // Another launcher's server has the lock and will answer, or is ending and will leave it.
                Some(status) if status.code() == Some(ANOTHER_SERVES.into()) => child = None,
                Some(status) => return Err(Error::Ended { status, words: words(&dir.join(LOG)) }),
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(Error::Late { socket: control.socket().to_owned() });
            }
            sleep(START_LOOK).await;
        }
    }
}

/// Who listens on a control socket.
pub(crate) async fn look(control: &Control) -> Result<Found, Error> {
    match control.versions().await {
        Ok(versions) if unfit(&versions).is_some() => Ok(Found::Unfit(versions)),
        Ok(versions) => Ok(Found::Fit(versions)),
        Err(vmnetx_nbd::Error::NoServer { .. }) => Ok(Found::Nobody),
        Err(error) => Err(error.into()),
    }
}

/// Why a server cannot be used, if so.
pub(crate) fn unfit(versions: &Versions) -> Option<&'static str> {
    if !versions.api.contains(&API_VERSION) {
        Some("speaks another version of the control interface")
    } else if versions.draining {
        Some("is about to end")
    } else {
        None
    }
}

/// Lets a server of another version end, so that the next run finds the directory free.
async fn give_up(control: &Control, versions: &Versions) {
    let why = unfit(versions).unwrap_or_default();
    tracing::warn!(
        "the server of the cache directory (process {}, version {}) {why}; this run keeps nothing for the next time",
        versions.pid,
        versions.program
    );
    if !versions.draining
        && let Err(error) = control.drain().await
    {
        tracing::warn!("it cannot be asked to end when nobody needs it any more: {error}");
    }
}

/// Makes the cache directory, or sees to it that it is this user's. Gives its whole path.
fn prepare(dir: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    whole(dir)
}

/// The whole path of a cache directory that is there and this user's.
pub(crate) fn whole(dir: &Path) -> io::Result<PathBuf> {
    let dir = dir.canonicalize()?;
    if dir.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    Ok(dir)
}

/// Whether the sockets of attachments, in the folder beside the control socket, have paths that sockets can have.
pub(crate) fn has_room_for_sockets(control: &Control) -> bool {
    let folder = control.socket().with_extension("d");
    folder.as_os_str().len() + 1 + 2 * RANDOM_ID_BYTES <= SOCKET_PATH_BYTES_MAX
}

fn start_shared(dir: &Path, sizes: Sizes) -> Result<Child, Error> {
    let mut command = serve(dir, sizes)?;
    command.arg("--cache-dir").arg(dir).args(["--disk-cache", &sizes.disk_bytes.to_string()]);
    command.args(["--idle", &SHARED_IDLE.as_secs().to_string()]);
    command.spawn().map_err(Error::Start)
}

async fn start_private(control: &Control, dir: &RunDir, sizes: Sizes) -> Result<Child, Error> {
    let mut command = serve(dir.path(), sizes)?;
    command.arg("--control").arg(control.socket()).args(["--idle", &PRIVATE_IDLE.as_secs().to_string()]);
    let mut child = command.kill_on_drop(true).spawn().map_err(Error::Start)?;
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Ok(Found::Fit(_)) = look(control).await {
            return Ok(child);
        }
        if let Some(status) = child.try_wait().map_err(Error::Start)? {
            return Err(Error::Ended { status, words: words(&dir.path().join(LOG)) });
        }
        if Instant::now() >= deadline {
            return Err(Error::Late { socket: control.socket().to_owned() });
        }
        sleep(START_LOOK).await;
    }
}

/// This program as a server that speaks into the log of its directory and has nothing else of ours.
fn serve(dir: &Path, sizes: Sizes) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe().map_err(Error::Start)?);
    command.args(["nbd", "serve", "--detached", "--memory-cache", &sizes.memory_bytes.to_string()]);
    for variable in MANAGER_VARIABLES {
        command.env_remove(variable);
    }
    let log = log(&dir.join(LOG)).map_err(Error::Start)?;
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// Opens a log, to which several starters may write; a long one begins anew.
fn log(path: &Path) -> io::Result<File> {
    let log = File::options().create(true).append(true).mode(0o600).open(path)?;
    if log.metadata()?.len() > LOG_BYTES_MAX {
        log.set_len(0)?;
    }
    Ok(log)
}

/// The end of a log.
fn words(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut log = File::open(path)?;
        let start = log.metadata()?.len().saturating_sub(LOG_WORDS_BYTES_MAX);
        log.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        log.take(LOG_WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // The last line says why it has ended; one before may be of another time.
        let lines: Vec<_> = text.lines().rev().take(2).collect();
        Ok(lines.into_iter().rev().collect::<Vec<_>>().join("; "))
    };
    read().unwrap_or_else(|error| format!("its log {} cannot be read: {error}", path.display()))
}

impl Told for Error {
    fn class(&self) -> Class {
        match self {
            Self::CacheDir { .. } | Self::Start(_) | Self::Ended { .. } => Class::Host,
            Self::Late { .. } | Self::Unfit { .. } => Class::Failure,
            Self::Dir(error) => error.class(),
            Self::Asked(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::CacheDir { .. } | Self::Ended { .. } | Self::Late { .. } => {
                Some("name another directory with --cache-dir, or use none with --disk-cache 0".into())
            }
            Self::Start(_) | Self::Unfit { .. } => None,
            Self::Dir(error) => error.hint(),
            Self::Asked(error) => error.hint(),
        }
    }
}

#[cfg(test)]
mod tests;
