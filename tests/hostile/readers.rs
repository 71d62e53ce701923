//! Every program that reads a package, run as its users run it, within bounds of memory and time.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vmnetx_nbd_proto::client::{Client, ConnectOptions};

use super::evil::Evil;

/// Bytes of data, stacks included, that a reader may use: `RLIMIT_DATA` of getrlimit(2).
const DATA_BYTES_MAX: u64 = 256 << 20;

/// Time in which a reader must have refused, on a host that does other things too.
const DEADLINE: Duration = Duration::from_secs(60);

/// A command that reads a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Info,
    Verify,
    Export,
    Serve,
    Run,
    /// A run in this mode of `--resume`.
    Resume(&'static str),
}

impl Reader {
    pub(crate) const ALL: [Self; 5] = [Self::Info, Self::Verify, Self::Export, Self::Serve, Self::Run];

    fn arguments(self, link: &str, scratch: &Path) -> Vec<OsString> {
        let file = |name: &str| scratch.join(name).into_os_string();
        let line: &[&str] = match self {
            Self::Info => &["pack", "info", link],
            Self::Verify => &["pack", "verify", link],
            Self::Export => &["pack", "export", "--quiet", link, "disk0"],
            Self::Serve => &["nbd", "serve", link, "--retry-for", "1", "--socket"],
            Self::Run | Self::Resume(_) => &["run", link, "--accel", "tcg", "--display", "none", "--disk-cache", "0"],
        };
        let mut arguments: Vec<OsString> = line.iter().map(Into::into).collect();
        match self {
            Self::Export => arguments.push(file("out")),
            Self::Serve => arguments.push(file("socket")),
            Self::Resume(mode) => arguments.extend(["--resume", mode].map(Into::into)),
            _ => {}
        }
        arguments
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Told {
    /// Nothing when a signal ended it.
    pub(crate) code: Option<i32>,
    /// All that it said.
    pub(crate) text: String,
}

/// A folder of its own for a reader, its home and its only place to write, and another one for what it remembers of links.
pub(crate) struct Scratch {
    home: TempDir,
    state: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    fn command(&self, reader: Reader, link: &str) -> Command {
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={DATA_BYTES_MAX}:unlimited")).arg(assert_cmd::cargo::cargo_bin!("vmnetx"));
        command.args(reader.arguments(link, self.path()));
        if let Reader::Resume(_) = reader {
            command.arg("--qemu").arg(self.unlimited_qemu());
        }
        command.current_dir(self.path());
        command.env("HOME", self.path()).env("TMPDIR", self.path()).env_remove("XDG_CACHE_HOME");
        command.env("XDG_STATE_HOME", self.state.path());
        command.env("VMNETX_LOG", "debug").env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// QEMU, which is no reader of ours and may have more memory.
    fn unlimited_qemu(&self) -> PathBuf {
        let program = self.state.path().join("qemu");
        fs::write(&program, "#!/bin/sh\nulimit -S -d unlimited\nexec qemu-system-x86_64 \"$@\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    /// Starts a reader that goes on.
    pub(crate) fn start(&self, reader: Reader, link: &str) -> Child {
        self.command(reader, link).spawn().unwrap()
    }

    /// Runs a reader to its end. It must come to one, and leave nothing behind.
    pub(crate) fn run(&self, reader: Reader, link: &str) -> Told {
        let told = finish(self.start(reader, link));
        let left: Vec<_> = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(told.code == Some(0) || left.is_empty(), "{reader:?} of {link} left {left:?}: {}", told.text);
        told
    }
}

/// Waits for a reader's end and looks at what it said.
pub(crate) fn finish(mut child: Child) -> Told {
    // What it says must not fill a pipe while it is waited for.
    let mut pipes: Vec<Box<dyn Read + Send>> = Vec::new();
    pipes.extend(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    pipes.extend(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let readers: Vec<_> = pipes.into_iter().map(|mut pipe| std::thread::spawn(move || read(&mut pipe))).collect();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("no end within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output: Vec<u8> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    let text = String::from_utf8(output).expect("what is said is UTF-8");
    assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "what is said steers a terminal: {text:?}");
    assert!(!text.contains("panicked"), "{text}");
    Told { code: status.code(), text }
}

fn read(pipe: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Whether a program's output says all of these.
pub(crate) fn says(output: &str, words: &[&str]) -> bool {
    words.iter().all(|word| output.contains(word))
}

/// A tool's output, for tests that need one.
pub(crate) fn tool(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// A server of a package, ended with this value.
pub(crate) struct Serving {
    scratch: Scratch,
    child: Option<Child>,
}

impl Serving {
    pub(crate) fn start(evil: &Evil) -> Self {
        let scratch = Scratch::new();
        let mut child = scratch.start(Reader::Serve, evil.link().to_str().unwrap());
        let start = Instant::now();
        // The file is there a moment before anybody listens.
        while std::os::unix::net::UnixStream::connect(scratch.path().join("socket")).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended: {:?}", finish(child));
            assert!(start.elapsed() < DEADLINE, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { scratch, child: Some(child) }
    }

    /// Reads from the disk over NBD.
    pub(crate) fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(self.scratch.path().join("socket")).await.unwrap();
            let client = Client::connect(stream, &ConnectOptions::new("disk0")).await.unwrap();
            let read = tokio::time::timeout(DEADLINE, client.read(offset, length)).await.expect("no answer");
            read.map_err(|error| error.to_string())
        })
    }

    /// Ends it as its user does, which must succeed: a bad package fails reads, never the server.
    pub(crate) fn stop(mut self) -> Told {
        let child = self.child.take().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).unwrap();
        let told = finish(child);
        assert_eq!(told.code, Some(0), "{}", told.text);
        told
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
