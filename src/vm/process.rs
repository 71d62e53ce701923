//! A child process that never outlives us: QEMU, and the tools beside it.
//!
//! QEMU stands in a process group of its own, so that Ctrl-C at the terminal reaches only us and we end it in order.
//! Should we be killed, the kernel kills it: `setpriv` (util-linux) asks for that (`PR_SET_PDEATHSIG` of prctl(2))
//! before it becomes QEMU. That signal is sent when the *thread* that forked ends, so each child has a thread of its own
//! that starts it and waits for it. Were we killed before `setpriv` had asked, QEMU would find nobody on the sockets
//! it connects to, and end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{oneshot, watch};

use super::error::Error;
use super::limits::{
    EXIT_DEADLINE, KILL_DEADLINE, TOOL_DEADLINE, TOOL_OUTPUT_BYTES_MAX, WORDS_BYTES_MAX, WORDS_LINES_MAX,
};

/// Keeps QEMU's window libraries away from the desktop's message bus. Where there is none they would start one, for which the
/// sandbox kills QEMU (SIGSYS, seen with GTK and SDL); where there is one, it starts programs for whoever asks, which is what
/// the sandbox is to prevent.
const NO_SESSION_BUS: [(&str, &str); 2] = [("DBUS_SESSION_BUS_ADDRESS", "disabled:"), ("NO_AT_BRIDGE", "1")];

/// The number that a child has its first inherited file under; the others follow.
pub(super) const INHERITED_FD: RawFd = 3;

/// What stands for the words of a program that has none.
const SAID_NOTHING: &str = "it said nothing";

/// The programs that a launch runs.
#[derive(Debug, Clone)]
pub struct Programs {
    pub(super) qemu: PathBuf,
    pub(super) qemu_img: PathBuf,
    pub(super) setpriv: PathBuf,
}

/// The same as they were looked for: each is there or not.
#[derive(Debug)]
pub(crate) struct Searched {
    pub(crate) qemu: Result<PathBuf, Error>,
    pub(crate) qemu_img: Result<PathBuf, Error>,
    pub(crate) setpriv: Result<PathBuf, Error>,
}

impl Programs {
    /// Finds them. `qemu` is a path, or a name to look for in PATH; qemu-img is taken from beside it, else from PATH.
    ///
    /// # Errors
    /// [`Error::NoProgram`].
    pub fn find(qemu: &Path) -> Result<Self, Error> {
        let Searched { qemu, qemu_img, setpriv } = Searched::new(qemu);
        Ok(Self { qemu: qemu?, qemu_img: qemu_img?, setpriv: setpriv? })
    }
}

impl Searched {
    /// Looks for all of them, as [`Programs::find`] does.
    pub(crate) fn new(qemu: &Path) -> Self {
        let qemu = find(qemu, "qemu-system-x86");
        let beside = qemu.as_ref().ok().map(|qemu| qemu.with_file_name("qemu-img"));
        let qemu_img = match beside.filter(|beside| is_program(beside)) {
            Some(beside) => Ok(beside),
            None => find(Path::new("qemu-img"), "qemu-utils"),
        };
        Self { qemu, qemu_img, setpriv: find(Path::new("setpriv"), "util-linux") }
    }

    /// The programs, if all are there.
    pub(crate) fn programs(&self) -> Option<Programs> {
        let there = |path: &Result<PathBuf, Error>| path.as_ref().ok().cloned();
        Some(Programs { qemu: there(&self.qemu)?, qemu_img: there(&self.qemu_img)?, setpriv: there(&self.setpriv)? })
    }
}

fn find(program: &Path, package: &'static str) -> Result<PathBuf, Error> {
    let named = program.components().count() == 1 && !program.has_root();
    let candidates = if named {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).collect()
    } else {
        vec![program.to_owned()]
    };
    let found = candidates.into_iter().find(|candidate| is_program(candidate));
    let found = found.and_then(|path| std::path::absolute(path).ok());
    found.ok_or_else(|| Error::NoProgram { program: program.to_owned(), package })
}

fn is_program(path: &Path) -> bool {
    let executable = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    executable && path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
    pid: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
    words: Arc<Mutex<Words>>,
}

impl Process {
    /// Starts `program` so that it dies with us. It inherits these files, from [`INHERITED_FD`] on, and no others; they are
    /// closed on our side.
    pub(super) async fn spawn(
        programs: &Programs,
        program: &Path,
        arguments: &[OsString],
        inherited: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let mut command = Command::new(&programs.setpriv);
        command.args(["--pdeathsig", "KILL", "--no-new-privs", "--"]).arg(program).args(arguments);
        command.envs(NO_SESSION_BUS);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let failed = |source| Error::io(format!("start {}", program.display()), source);
        let mappings = inherited.into_iter().zip(INHERITED_FD..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        // No two have one number.
        command.fd_mappings(mappings).map_err(|error| failed(io::Error::other(error)))?;
        let (started, starting) = oneshot::channel();
        std::thread::Builder::new()
            .name("child-keeper".to_owned())
            .spawn(move || keep(command, started))
            .map_err(failed)?;
        let keeper_died = |_| io::Error::other("the thread that starts it ended");
        starting.await.map_err(keeper_died).and_then(|result| result).map_err(failed)
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end. May be called again, and dropped.
    pub(super) async fn exited(&mut self) -> Result<ExitStatus, Error> {
        let lost = |_| Error::io("wait for a child process", io::Error::other("the thread that waits for it ended"));
        let status = *self.exit.wait_for(Option::is_some).await.map_err(lost)?;
        status.ok_or_else(|| Error::io("wait for a child process", io::ErrorKind::NotFound.into()))
    }

    /// Waits for its end at most this long; `None` when it still runs.
    pub(super) async fn exited_within(&mut self, deadline: Duration) -> Result<Option<ExitStatus>, Error> {
        tokio::time::timeout(deadline, self.exited()).await.ok().transpose()
    }

    /// Sends a signal. A process that has ended takes none, which is no error.
    pub(super) fn signal(&self, signal: Signal) {
        // Through a pidfd: its number may by now belong to another process.
        if let Err(error) = rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            tracing::debug!(pid = self.pid, %error, "signal not sent");
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.signal(Signal::KILL);
        self.exited_within(KILL_DEADLINE).await?.ok_or(Error::Unkillable { pid: self.pid })
    }

    /// The error for a QEMU whose monitor closed before its time.
    pub(super) async fn died(&mut self) -> Error {
        let status = match self.exited_within(EXIT_DEADLINE).await {
            Ok(Some(status)) => Ok(status),
            Ok(None) => self.kill().await,
            Err(error) => Err(error),
        };
        status.map_or_else(|error| error, |status| Error::QemuDied { status, words: self.words() })
    }

    /// The last lines that it wrote to its standard error.
    pub(super) fn words(&self) -> String {
        self.said().unwrap_or_else(|| SAID_NOTHING.to_owned())
    }

    /// The same; nothing if it wrote nothing.
    pub(super) fn said(&self) -> Option<String> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).last_lines()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            self.signal(Signal::KILL);
        }
    }
}

/// The life of a child's thread.
fn keep(mut command: Command, started: oneshot::Sender<io::Result<Process>>) {
    let spawned = command.spawn();
    // With it goes our side of what the child has inherited.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = child.id();
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
    let words = Arc::new(Mutex::new(Words::default()));
    let (ended, exit) = watch::channel(None);
    // If nobody waits any more, the process is dropped right here, and so killed.
    drop(started.send(Ok(Process { pidfd, pid, exit, words: Arc::clone(&words) })));
    if let Some(mut stderr) = stderr {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            words.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..count]);
        }
    }
    match child.wait() {
        Ok(status) => drop(ended.send_replace(Some(status))),
        Err(error) => tracing::debug!(pid, %error, "cannot wait for a child process"),
    }
}

/// The end of what a program says.
#[derive(Debug, Default)]
struct Words(VecDeque<u8>);

impl Words {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(WORDS_BYTES_MAX);
        self.0.drain(..excess);
    }

    fn last_lines(&self) -> Option<String> {
        let (front, back) = self.0.as_slices();
        last_lines(&[front, back].concat())
    }
}

/// The last lines of `bytes`, without anything that could steer a terminal; nothing if there are none.
fn last_lines(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(WORDS_LINES_MAX)..).unwrap_or_default();
    let clean = |line: &&str| line.replace(|c: char| c.is_control(), "\u{fffd}");
    (!last.is_empty()).then(|| last.iter().map(clean).collect::<Vec<_>>().join("\n  "))
}

/// Runs a tool to its end and returns its standard output.
///
/// # Errors
/// [`Error::Tool`] with what it said when it fails, and when it takes too long or says too much.
pub(super) async fn run_tool(doing: &str, program: &Path, arguments: &[OsString]) -> Result<Vec<u8>, Error> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TOOL_DEADLINE, command.output()).await;
    let tool = |words: String| Error::Tool { doing: doing.to_owned(), words };
    let output = output.map_err(|_| tool(format!("no end within {} s", TOOL_DEADLINE.as_secs())))?;
    let output = output.map_err(|source| Error::io(format!("{doing}: run {}", program.display()), source))?;
    if !output.status.success() {
        return Err(tool(last_lines(&output.stderr).unwrap_or_else(|| SAID_NOTHING.to_owned())));
    }
    if output.stdout.len() > TOOL_OUTPUT_BYTES_MAX {
        return Err(tool(format!("{} bytes of output", output.stdout.len())));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use vmnetx_store::failure::Told;

    use super::*;

    fn programs() -> Programs {
        let shell = PathBuf::from("/bin/sh");
        Programs { qemu: shell.clone(), qemu_img: shell, setpriv: find(Path::new("setpriv"), "util-linux").unwrap() }
    }

    async fn shell(script: &str) -> Process {
        inheriting(script, Vec::new()).await
    }

    async fn inheriting(script: &str, inherited: Vec<OwnedFd>) -> Process {
        Process::spawn(&programs(), Path::new("/bin/sh"), &["-c".into(), script.into()], inherited).await.unwrap()
    }

    #[tokio::test]
    async fn tells_the_end_and_the_last_words() {
        let mut process = shell("echo first >&2; printf 'last \\033[31m' >&2; exit 3").await;
        assert_eq!(process.exited().await.unwrap().code(), Some(3));
        assert_eq!(process.words(), "first\n  last \u{fffd}[31m");
        process.signal(Signal::KILL);
    }

    #[tokio::test]
    async fn inherits_what_it_is_given_and_nothing_is_kept_of_it() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut process = inheriting("echo over the channel >&4", vec![other.into(), theirs.into()]).await;
        let mut said = String::new();
        // Ends only when no other process, and we neither, has the other side.
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "over the channel\n");
        assert!(process.exited().await.unwrap().success());
    }

    #[tokio::test]
    async fn is_killed_when_dropped() {
        let process = shell("exec sleep 1000").await;
        let status = format!("/proc/{}/status", process.pid());
        let mut exit = process.exit.clone();
        assert!(Path::new(&status).exists());
        drop(process);
        tokio::time::timeout(KILL_DEADLINE, exit.wait_for(Option::is_some)).await.unwrap().unwrap();
        assert!(!Path::new(&status).exists());
    }

    #[tokio::test]
    async fn stands_in_a_group_of_its_own() {
        let process = shell("exec sleep 1000").await;
        let pid = Pid::from_raw(process.pid().cast_signed()).unwrap();
        assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    }

    #[tokio::test]
    async fn has_no_message_bus_to_start_programs_by() {
        let mut process = shell("echo $DBUS_SESSION_BUS_ADDRESS >&2").await;
        process.exited().await.unwrap();
        assert_eq!(process.words(), "disabled:");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let missing = Path::new("no-such-qemu");
        let error = Programs::find(missing).unwrap_err();
        assert!(matches!(error, Error::NoProgram { ref program, .. } if program == missing), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("qemu-system-x86")));
        assert!(Programs::find(Path::new("/etc/passwd")).is_err());
    }

    #[tokio::test]
    async fn a_failing_tool_is_quoted() {
        let script = ["-c".into(), "echo out of luck >&2; exit 1".into()];
        let error = run_tool("ask the shell", Path::new("/bin/sh"), &script).await.unwrap_err();
        assert_eq!(error.to_string(), "ask the shell: out of luck");
    }

    #[test]
    fn keeps_only_the_end_of_many_words() {
        let mut words = Words::default();
        for line in 0..10_000 {
            words.push(format!("line {line}\n").as_bytes());
        }
        assert!(words.0.len() <= WORDS_BYTES_MAX);
        let last = words.last_lines().unwrap();
        assert!(last.starts_with("line 9992\n") && last.ends_with("line 9999"), "{last}");
    }
}
