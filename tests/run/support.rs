//! A guest's disk, an NBD server for it, and what a guest says.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tracing_subscriber::fmt::MakeWriter;
use vmnetx_format::Digest;

/// For a boot under TCG on a busy host.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// For anything that takes no boot.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Makes a guest's disk (see `tests/guests/minimal`).
pub(crate) fn guest_image(folder: &Path, marker: &str, kernel_options: &[&str]) -> PathBuf {
    kernel_image(folder, "cloud-amd64", marker, kernel_options)
}

/// The same with a kernel of this flavour (see `tests/guests/kernel`).
pub(crate) fn kernel_image(folder: &Path, flavour: &str, marker: &str, kernel_options: &[&str]) -> PathBuf {
    let image = folder.join("guest.img");
    make(guest_script("minimal").args(["--kernel", flavour]).arg(&image).arg(marker).args(kernel_options));
    image
}

/// Makes the disk of a guest that needs no more than a BIOS (see `tests/guests/bios`).
pub(crate) fn bios_image(folder: &Path) -> PathBuf {
    let image = folder.join("guest.img");
    make(guest_script("bios").arg(&image));
    image
}

fn guest_script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests").join(name))
}

fn make(script: &mut Command) {
    let output = script.output().unwrap();
    assert!(output.status.success(), "{script:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A child that is killed and waited for on drop.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another project's NBD server, serving an image read-only as the export `disk0`.
#[derive(Debug)]
pub(crate) struct NbdServer {
    _child: Ended,
    pub(crate) socket: PathBuf,
}

impl NbdServer {
    /// Serves an image with qemu-nbd.
    pub(crate) fn start(image: &Path) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-e", "4", "-x", "disk0", "-f", "raw"]).arg(image).arg("-k");
        Self::spawn(command, image)
    }

    /// Serves an image with nbdkit; reads fail as long as the file `broken` exists.
    pub(crate) fn failing(image: &Path, broken: &Path) -> Self {
        let flag = |name: &str, path: &Path| format!("{name}={}", path.display());
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-r", "--filter=error", "file"]).arg(image);
        command.args(["error-pread=EIO", "error-pread-rate=100%", &flag("error-pread-file", broken), "-U"]);
        Self::spawn(command, image)
    }

    fn spawn(mut command: Command, image: &Path) -> Self {
        let socket = image.with_extension("nbd");
        let _ = fs::remove_file(&socket);
        let child = Ended(command.arg(&socket).stdin(Stdio::null()).spawn().unwrap());
        wait_until("the NBD server listens", DEADLINE, || socket.exists());
        Self { _child: child, socket }
    }
}

/// Waits for a condition, or fails.
pub(crate) fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < deadline, "not within {} s: {what}", deadline.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Text that someone writes and the test reads: a serial port's output, or a log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transcript(Arc<Mutex<Vec<u8>>>);

impl Transcript {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Waits until a text is there, or fails and shows what is.
    pub(crate) async fn wait_for(&self, text: &str, deadline: Duration) {
        let started = Instant::now();
        while !self.text().contains(text) {
            assert!(started.elapsed() < deadline, "{text:?} did not come; there is:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl AsyncWrite for Transcript {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Write for Transcript {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Transcript {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The digest that tests take for their version's.
pub(crate) fn version(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

/// What the guest read of its disk is what the image holds.
pub(crate) fn assert_disk_sum(said: &str, image: &Path) {
    let line = said.lines().find(|line| line.contains("VMNETX-DISK-SUM")).expect("the guest tells what it read");
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, sum, offset, length] = words.as_slice() else { panic!("{line}") };
    let (offset, length): (usize, usize) = (offset.parse().unwrap(), length.parse().unwrap());
    let mut sha256sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let data = fs::read(image).unwrap();
    sha256sum.stdin.take().unwrap().write_all(&data[offset..][..length]).unwrap();
    let output = sha256sum.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().next(), Some(*sum));
}
