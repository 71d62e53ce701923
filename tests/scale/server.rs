//! `vmnetx nbd serve` as a process whose memory can be looked at.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;
use vmnetx_nbd_proto::client::{Client, ConnectOptions};

use crate::support::bad_http::BadServer;

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A running server; ends with this value.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Serves the package of an origin, and waits until it says so.
    pub(crate) async fn start(origin: &BadServer, words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx"));
        command.args(["nbd", "serve", &format!("{}vm.vmnetx", origin.url()), "--socket"]).arg(dir.path().join("nbd"));
        command.args(words).env("VMNETX_STATE_DIR", dir.path().join("state"));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut talk = BufReader::new(child.stderr.take().unwrap());
        let server = Self { child, dir };
        let serving = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            while !line.contains("serving disk0") {
                line.clear();
                assert!(talk.read_line(&mut line).unwrap() > 0, "the server ended");
            }
            // What else it says must not fill the pipe.
            std::thread::spawn(move || std::io::copy(&mut talk, &mut std::io::sink()));
        });
        tokio::time::timeout(STARTS_WITHIN, serving).await.expect("the server starts").unwrap();
        server
    }

    pub(crate) async fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("nbd")).await.unwrap();
        Client::connect(stream, &ConnectOptions::new("disk0")).await.unwrap()
    }

    /// A line of `/proc/PID/status` that gives a size, in bytes.
    pub(crate) fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
