//! Our programs, nginx, and disks worth publishing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// For anything that takes no boot.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A child that is ended and waited for on drop.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program that this package builds, with a subcommand.
pub(crate) fn vmnetx(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx"));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What these programs remember of links is none of the user's; ports come again from one run to the next.
    let state = format!("{}/state-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    command.env("VMNETX_STATE_DIR", state);
    command
}

/// Runs a program to its end; what it says on standard output.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} ends with {}:\n{}", output.status, talk(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a program says on standard error.
pub(crate) fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Another program with its arguments.
pub(crate) fn tool(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits for a condition, or fails.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "not within {} s: {what}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago, for programs that cannot be asked which one they took.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder with a repository, and an nginx that serves it.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    port: u16,
    /// More directives of nginx's server: where else it listens, and how.
    pub(crate) directives: String,
    nginx: Option<Ended>,
}

impl Site {
    /// Publishes a raw disk as `vm` and serves the repository.
    pub(crate) fn publish(disk: &[u8]) -> Self {
        let mut site = Self::empty();
        fs::write(site.disk(), disk).unwrap();
        site.build();
        site.start_nginx();
        site
    }

    /// A site without a repository, not served yet.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, port: free_port(), directives: String::new(), nginx: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.path("disk.img")
    }

    pub(crate) fn link(&self) -> String {
        self.url("vm.vmnetx")
    }

    /// Where nginx serves a file of the repository.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Publishes the disk.
    pub(crate) fn build(&self) {
        let mut command = vmnetx(&["pack", "build"]);
        said(command.arg(self.path("repository")).args(["vm", "--disk"]).arg(self.disk()));
    }

    pub(crate) fn start_nginx(&mut self) {
        let dir = self.dir.path().display();
        let temporary = |name: &str| format!("{name}_temp_path {dir}/{name};");
        let temporaries: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temporary).concat();
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nginx.conf");
        // As root, nginx would read the files as another user, who may not enter a temporary directory.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "daemon off; {user} worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;\n\
             events {{}}\n\
             http {{ access_log {dir}/access.log; {temporaries}\n\
             server {{ listen 127.0.0.1:{}; {} root {dir}/repository; include {recipe}; }} }}\n",
            self.port, self.directives
        );
        fs::write(self.path("nginx.conf"), config).unwrap();
        let mut command = tool("nginx", &["-p"]);
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        let child = command.arg(self.dir.path()).arg("-c").arg(self.path("nginx.conf")).spawn();
        self.nginx = Some(Ended(child.expect("nginx")));
        let port = self.port;
        wait_until("nginx listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Stops nginx; connections break off.
    pub(crate) fn stop_nginx(&mut self) {
        if let Some(mut nginx) = self.nginx.take() {
            // A kill would leave nginx's worker behind.
            let pid = rustix::process::Pid::from_child(&nginx.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            nginx.0.wait().unwrap();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop_nginx();
    }
}

/// `vmnetx nbd serve`.
pub(crate) struct Served {
    child: Ended,
    /// Its URI for the export disk0.
    pub(crate) uri: String,
}

impl Served {
    /// Serves a link and waits until it says where.
    pub(crate) fn start(link: &str, words: &[&str]) -> Self {
        let mut command = vmnetx(&["nbd", "serve", link, "--retry-for", "20"]);
        let mut child = Ended(command.args(words).spawn().unwrap());
        let mut talk = BufReader::new(child.0.stderr.take().unwrap());
        let mut uri = None;
        let mut line = String::new();
        while uri.is_none() {
            line.clear();
            assert!(talk.read_line(&mut line).unwrap() > 0, "the server ended");
            uri = line.contains("serving disk0").then(|| line.split_whitespace().last().unwrap().to_owned());
        }
        // What else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut talk, &mut std::io::sink()));
        Self { child, uri: uri.unwrap() }
    }

    /// Serves a link on a Unix socket.
    pub(crate) fn unix(link: &str, socket: &Path) -> Self {
        Self::start(link, &["--socket", socket.to_str().unwrap()])
    }

    /// Ends it as a terminal would; it must end well.
    pub(crate) fn stop(mut self) {
        self.interrupt();
        assert!(self.child.0.wait().unwrap().success());
    }

    /// Tells it to end twice, as an impatient user does; with what it ended, and how long after the second time.
    pub(crate) fn stop_at_once(mut self) -> (ExitStatus, Duration) {
        self.interrupt();
        std::thread::sleep(Duration::from_millis(500));
        assert!(self.child.0.try_wait().unwrap().is_none(), "nothing was under way");
        let second = Instant::now();
        self.interrupt();
        (self.child.0.wait().unwrap(), second.elapsed())
    }

    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }
}

/// A disk of `blocks` blocks of 4 KiB and a half: holes, text, noise, and copies of earlier parts.
pub(crate) fn disk(blocks: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data = Vec::with_capacity((blocks + 1) * 4096);
    while data.len() < blocks * 4096 {
        let run = (random() % 40 + 1) as usize * 4096;
        match random() % 4 {
            0 => data.resize(data.len() + run * 4, 0),
            1 => data.extend((0..run / 8).flat_map(|_| random().to_le_bytes())),
            2 => data.extend(format!("line {} of a file\n", random() % 1000).bytes().cycle().take(run)),
            _ => {
                let from = (random() as usize % (data.len() / 4096 + 1)) * 4096;
                data.extend_from_within(from..(from + run).min(data.len()));
            }
        }
    }
    data.truncate(blocks * 4096);
    data.extend([0x5a; 2048]);
    data
}
