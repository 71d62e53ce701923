//! Clients of others negotiate with the codec and read through it.
//!
//! The server is the small one of these tests; the programs are those of Debian's packages libnbd-bin, python3-libnbd
//! and qemu-utils.

mod support;

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use support::{Image, serve};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

/// Listens in a directory of its own until it is dropped.
struct Server {
    dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Server {
    fn start(image: Arc<Image>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let image = Arc::clone(&image);
                // A client that leaves in the middle is no failure of the server.
                tokio::spawn(async move { serve(stream, &image).await });
            }
        });
        Self { dir, task }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start() -> (Server, Arc<Image>) {
    let image = Arc::new(Image::sample());
    (Server::start(Arc::clone(&image)), image)
}

fn uri(server: &Server, export: &str) -> String {
    let socket = server.socket();
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("start {program}: {error}"))
}

/// What a program prints; it must succeed.
async fn printed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[tokio::test]
async fn nbdinfo_describes_the_export() {
    let (server, image) = start();
    let text = printed("/usr/bin/nbdinfo", &["--json", &uri(&server, "disk0")]).await;
    let size = format!("\"export-size\": {}", image.bytes.len());
    assert_contains(
        &text,
        &[
            "\"protocol\": \"newstyle-fixed\"",
            "\"structured\": true",
            "\"export-name\": \"disk0\"",
            "\"description\": \"a sample\"",
            "\"base:allocation\"",
            "\"is_read_only\": true",
            "\"can_df\": true",
            "\"can_multi_conn\": true",
            "\"block_size_minimum\": 1",
            &size,
        ],
    );
}

#[tokio::test]
async fn nbdinfo_lists_and_maps() {
    let (server, _) = start();
    let text = printed("/usr/bin/nbdinfo", &["--list", &uri(&server, "")]).await;
    assert_contains(&text, &["export=\"disk0\"", "base:allocation"]);

    let text = printed("/usr/bin/nbdinfo", &["--map", &uri(&server, "")]).await;
    let extents: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["0", "1048576", "0"],
        ["1048576", "2097152", "3"],
        ["3145728", "1048576", "0"],
        ["4194304", "4096", "3"],
        ["4198400", "2093059", "0"],
    ];
    assert_eq!(extents, expected);
}

#[tokio::test]
async fn nbdinfo_is_told_of_an_unknown_export() {
    let (server, _) = start();
    let output = run("/usr/bin/nbdinfo", &[&uri(&server, "no")]).await;
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_contains(&errors, &["No such file or directory for export: no"]);
}

#[tokio::test]
async fn nbdcopy_copies_in_every_manner() {
    let (server, image) = start();
    for (i, manner) in
        [&[][..], &["--synchronous"], &["--no-extents"], &["--connections=4", "--requests=64"]].into_iter().enumerate()
    {
        let copy = server.dir().join(format!("copy{i}"));
        let source = uri(&server, "disk0");
        let arguments = [manner, &[&source, copy.to_str().unwrap()]].concat();
        printed("/usr/bin/nbdcopy", &arguments).await;
        assert!(std::fs::read(&copy).unwrap() == image.bytes, "{manner:?}");
    }
}

#[tokio::test]
async fn qemu_reads_and_maps() {
    let (server, image) = start();
    let copy = server.dir().join("copy");
    let copy = copy.to_str().unwrap();
    let source = uri(&server, "disk0");
    let convert = ["convert", "-n", "-m", "16", "-W", "-f", "raw", "-O", "raw"];
    std::fs::write(copy, vec![0xff; image.bytes.len()]).unwrap();
    printed("/usr/bin/qemu-img", &[&convert[..], &[&source, copy]].concat()).await;
    let copied = std::fs::read(copy).unwrap();
    assert!(copied.starts_with(&image.bytes));

    let text = printed("/usr/bin/qemu-img", &["map", "--output=json", "-f", "raw", &source]).await;
    assert_contains(
        &text,
        &["\"start\": 1048576, \"length\": 2097152, \"depth\": 0, \"present\": true, \"zero\": true, \"data\": false"],
    );
}

#[tokio::test]
async fn qemu_writes_nothing() {
    // Case 34: it does not even open a read-only export for writing.
    let (server, _) = start();
    let source = uri(&server, "disk0");
    let output = run("/usr/bin/qemu-io", &["-f", "raw", "-c", "write 0 4k", &source]).await;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_contains(&text, &["Permission denied"]);
    let text =
        printed("/usr/bin/qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 1M 2M", "-c", "read 0 64k", &source]).await;
    assert_contains(&text, &["read 2097152/2097152", "read 65536/65536"]);
    assert!(!text.contains("failed"), "{text}");
}

/// Illegal requests that libnbd sends when it is told not to mind.
const ILLEGAL: &str = "
import errno, nbd
def refused(number, action):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError('accepted')
h.set_strict_mode(0)
size = h.get_size()
refused(errno.EPERM, lambda: h.pwrite(b'x' * 100000, 0))                 # case 34
refused(errno.EPERM, lambda: h.trim(4096, 0))
refused(errno.EPERM, lambda: h.zero(4096, 0))
refused(errno.EINVAL, lambda: h.pread(2, size - 1))                      # case 30
refused(errno.EINVAL, lambda: h.pread(512, (1 << 63) - 256))             # case 31
refused(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE))     # case 29
refused(errno.EINVAL, lambda: h.pwrite(b'x' * 4096, 0, 1 << 12))
refused(errno.EINVAL, lambda: h.cache(2, size - 1))
refused(errno.EINVAL, lambda: h.block_status(2, size - 1, lambda *a: 0))
assert h.pread(0, 0) == b''                                              # case 32
assert len(h.pread(3, 5)) == 3                                           # case 33
assert len(h.pread(512, 0, nbd.CMD_FLAG_FUA)) == 512                     # case 42
assert h.pread_structured(65536, (1 << 20) - 4096, lambda *a: 0, nbd.CMD_FLAG_DF) # case 40
h.flush()
h.cache(65536, 0)
print('alive')
";

#[tokio::test]
async fn libnbd_is_refused_what_is_illegal() {
    let (server, _) = start();
    let arguments = ["-u", &uri(&server, "disk0"), "-c", ILLEGAL];
    let text = printed_with_system_python("/usr/bin/nbdsh", &arguments).await;
    assert_eq!(text, "alive\n");
}

/// nbdsh takes the first python3 of the path, which must be Debian's.
async fn printed_with_system_python(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/bin:/bin")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn crate_nbd_reads_by_export_name() {
    let (server, image) = start();
    let socket = server.socket();
    tokio::task::spawn_blocking(move || read_with_crate_nbd(&socket, &image)).await.unwrap();
}

fn read_with_crate_nbd(socket: &Path, image: &Image) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk0").unwrap();
    assert_eq!(export.size, image.bytes.len() as u64);
    assert!(export.readonly);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let mut bytes = vec![0; 100_000];
    for offset in [0, 1_000_000, 3_100_001] {
        client.seek(SeekFrom::Start(offset)).unwrap();
        client.read_exact(&mut bytes).unwrap();
        assert!(bytes == image.slice(offset, 100_000));
    }
}
