//! QEMU's programs as children that never outlive us: `qemu-nbd` behind a socket that nobody else can reach, `qemu-img check`.
//!
//! The socket is listened at in a private directory, connected to, and its directory removed before qemu-nbd is even
//! started: it inherits the listening socket (systemd's socket activation, which names a process by its id: hence the
//! shell that becomes it). So there is nothing to wait for, nobody else finds the socket, and nothing is left behind,
//! whatever ends us. A child stands in a process group of its own and is killed by the kernel when the thread that started
//! it ends (`setpriv`, prctl(2) `PR_SET_PDEATHSIG`), so each has a thread for life. One whose parent was gone before that was
//! asked for would live on: the shell looks.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use super::error::DiskError;
use crate::Error;
use crate::limits::{PROGRAM_END_S, PROGRAM_WORDS_BYTES, PROGRAM_WORDS_LINES};

const QEMU_NBD: &str = "qemu-nbd";
const QEMU_IMG: &str = "qemu-img";
const PACKAGE: &str = "qemu-utils";

/// Becomes a program, unless its parent, whose id comes first, died before it could ask to be told of that.
const RUN: &str = r#"[ "$PPID" = "$0" ] || exit; exec "$@""#;

/// The same for a program that finds its standard input as the socket that it is to serve.
const ACTIVATE: &str = r#"[ "$PPID" = "$0" ] || exit; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 </dev/null"#;

/// A qemu-nbd that serves one image to us alone. Dropping it kills it.
#[derive(Debug)]
pub(super) struct QemuNbd {
    child: Child,
    file: PathBuf,
    /// The image as QEMU was told, which it repeats in messages.
    told: String,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
struct Child {
    pidfd: OwnedFd,
    exit: Mutex<Receiver<ExitStatus>>,
    words: Arc<Mutex<VecDeque<u8>>>,
}

impl QemuNbd {
    /// Starts it for the node tree `node` of the image `file`; gives the connection to it.
    ///
    /// # Errors
    /// [`DiskError::NoProgram`]; [`Error::File`] when it cannot be started.
    pub(super) fn start(file: &Path, node: &Value, options: &[&str]) -> Result<(Self, UnixStream), Error> {
        let program = find(QEMU_NBD, PACKAGE)?;
        let (listener, stream) = private_socket().map_err(Error::file("make a socket to read", file))?;
        let told = format!("json:{node}");
        let mut arguments: Vec<OsString> = vec![program.into_os_string(), "--read-only".into()];
        arguments.extend(options.iter().map(Into::into));
        arguments.push((&told).into());
        let child = Child::spawn(ACTIVATE, &arguments, OwnedFd::from(listener).into(), Path::new(QEMU_NBD))?;
        Ok((Self { child, file: file.to_owned(), told }, stream))
    }

    /// Its end, if it has ended or does so now, as an error.
    pub(super) fn died(&self) -> Option<DiskError> {
        self.child.ended()?;
        let words = self.child.words().replace(&self.told, &self.file.to_string_lossy());
        Some(DiskError::Program { program: QEMU_NBD, file: self.file.clone(), words })
    }

    #[cfg(test)]
    pub(super) fn kill(&self) {
        self.child.kill();
    }
}

/// Has QEMU check the image `file` by itself, without what lies below it.
///
/// # Errors
/// [`DiskError::Damaged`]; [`DiskError::Program`] when it cannot be read; [`DiskError::NoProgram`]; [`Error::File`].
pub(super) fn check(file: &Path, node: &Value) -> Result<(), Error> {
    // From the manual page of qemu-img.
    const CORRUPT: i32 = 2;
    const LEAKS: i32 = 3;
    let program = find(QEMU_IMG, PACKAGE)?;
    let told = format!("json:{node}");
    let arguments = [program.into_os_string(), "check".into(), "-q".into(), (&told).into()];
    let child = Child::spawn(RUN, &arguments, Stdio::null(), Path::new(QEMU_IMG))?;
    let status = child.wait().ok_or(Error::Stopped)?;
    let words = || child.words().replace(&told, &file.to_string_lossy());
    match status.code() {
        // Leaked clusters only waste space.
        Some(0 | LEAKS) => Ok(()),
        Some(CORRUPT) => Err(DiskError::Damaged { file: file.to_owned(), why: words() }.into()),
        _ => Err(DiskError::Program { program: QEMU_IMG, file: file.to_owned(), words: words() }.into()),
    }
}

/// A socket that is listened at under no name any more, and one that is connected to it.
fn private_socket() -> io::Result<(UnixListener, UnixStream)> {
    // Only this user may enter it.
    let folder = tempfile::Builder::new().prefix("vmnetx-pack-").tempdir()?;
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    folder.close()?;
    Ok((listener, stream))
}

/// Finds a program in PATH.
fn find(program: &'static str, package: &'static str) -> Result<PathBuf, DiskError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| {
        let executable = rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok();
        executable && candidate.is_file()
    });
    found.ok_or(DiskError::NoProgram { program, package })
}

impl Child {
    fn spawn(script: &str, arguments: &[OsString], stdin: Stdio, name: &Path) -> Result<Self, Error> {
        let mut command = Command::new(find("setpriv", "util-linux")?);
        command.args(["--pdeathsig", "KILL", "--no-new-privs", "--", "/bin/sh", "-c", script]);
        command.arg(std::process::id().to_string()).args(arguments).env("LC_ALL", "C");
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let (started, starting) = sync_channel(1);
        let keeper = std::thread::Builder::new().name("child-keeper".to_owned()).spawn(move || keep(command, &started));
        let started = keeper.and_then(|_| starting.recv().map_err(io::Error::other).and_then(|result| result));
        started.map_err(Error::file("start", name))
    }

    fn kill(&self) {
        // Through a pidfd: its number may by now belong to another process. One that has ended takes no signal.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// How it ended, if it has, or does so soon.
    fn ended(&self) -> Option<ExitStatus> {
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        exit.recv_timeout(Duration::from_secs(PROGRAM_END_S)).ok()
    }

    /// Waits for its end, however long its work takes.
    fn wait(&self) -> Option<ExitStatus> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// The last lines that it wrote to its standard error, without anything that could steer a terminal.
    fn words(&self) -> String {
        let bytes: Vec<u8> = self.words.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(PROGRAM_WORDS_LINES)..];
        let clean = |line: &&str| line.replace(char::is_control, "\u{fffd}");
        if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            last.iter().map(clean).collect::<Vec<_>>().join("\n  ")
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // Its locks on the image are gone when it is.
        let _ = self.ended();
    }
}

/// The life of a child's thread.
fn keep(mut command: Command, started: &SyncSender<io::Result<Child>>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    // What it inherited is ours no longer: a connection to a program that has died must be seen to end.
    drop(command);
    let stderr = child.stderr.take();
    // Not yet waited for, so the number is still its own.
    let pidfd = match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(errno) => {
            let _ = child.kill();
            let _ = child.wait();
            let _ = started.send(Err(errno.into()));
            return;
        }
    };
    let words = Arc::new(Mutex::new(VecDeque::new()));
    let (ended, exit) = sync_channel(1);
    let _ = started.send(Ok(Child { pidfd, exit: Mutex::new(exit), words: Arc::clone(&words) }));
    if let Some(mut stderr) = stderr {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            words.extend(&buffer[..count]);
            let excess = words.len().saturating_sub(PROGRAM_WORDS_BYTES);
            words.drain(..excess);
        }
    }
    if let Ok(status) = child.wait() {
        let _ = ended.send(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_does_not_start_when_its_parent_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // Another parent than the one that was named is what a child finds when that one has died.
        for (parent, starts) in [(std::process::id() + 1, false), (std::process::id(), true)] {
            for script in [RUN, ACTIVATE] {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", script]).arg(parent.to_string()).arg("touch").arg(&file);
                assert!(command.stdin(Stdio::null()).status().unwrap().code().is_some());
                assert_eq!(std::fs::remove_file(&file).is_ok(), starts, "{script}");
            }
        }
    }

    #[test]
    fn a_failing_program_is_quoted_and_cannot_steer_a_terminal() {
        let script = r#"printf 'first\nlast \033[31m\n' >&2; exit 3"#;
        let child = Child::spawn(script, &[], Stdio::null(), Path::new("sh")).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(child.words(), "first\n  last \u{fffd}[31m");
    }
}
