//! A real S3 server, `s3s-fs`, which keeps a bucket as files.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{KEY_ID, SECRET};

/// For the server to listen.
const DEADLINE: Duration = Duration::from_secs(30);

/// One process that lets in whoever has the keys, and one over the same files that lets in everybody: a public bucket.
pub(super) struct S3 {
    folder: TempDir,
    private: (Ended, u16),
    public: (Ended, u16),
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl S3 {
    /// Starts it with the empty bucket `vms`.
    pub(super) fn start() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("vms")).unwrap();
        let private = serve(folder.path(), &["--access-key", KEY_ID, "--secret-key", SECRET]);
        let public = serve(folder.path(), &[]);
        Self { folder, private, public }
    }

    pub(super) fn port(&self) -> u16 {
        self.private.1
    }

    pub(super) fn public_port(&self) -> u16 {
        self.public.1
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Where readers without keys find a file of the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/vms/lab/{path}", self.public_port())
    }

    /// The file that holds an object of the repository.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join("vms/lab").join(path)
    }

    /// The paths of all objects that are in the bucket, links included, in order.
    pub(super) fn objects(&self) -> Vec<String> {
        let root = self.folder.path().join("vms/lab");
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            // The server writes aside and renames: a folder may not be there yet.
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() {
                    folders.push(path);
                } else if !file.starts_with('.') {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }
}

fn serve(folder: &Path, words: &[&str]) -> (Ended, u16) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/s3s-fs");
    assert!(program.exists(), "{} is missing: run tests/setup test", program.display());
    // A port that was free a moment ago: the server cannot be asked which one it took.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).args(words).arg(folder);
    let child = command.env("RUST_LOG", "off").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Ended(child);
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(started.elapsed() < DEADLINE, "s3s-fs does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (server, port)
}
