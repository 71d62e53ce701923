//! The client against qemu-nbd, the server that it reads foreign images from.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use vmnetx_nbd_proto::client::{
    Client, ClientError, ConnectOptions, ConnectionError, Mode, NegotiateError, info, list,
};
use vmnetx_nbd_proto::handshake::Listed;
use vmnetx_nbd_proto::wire::{
    BASE_ALLOCATION, Command as NbdCommand, ErrorCode, OptionReplyType, StatusFlags, TransmissionFlags,
};

const MIB: u64 = 1 << 20;

/// The image: data, a hole, data up to an odd end.
const HOLE: std::ops::Range<u64> = MIB..9 * MIB;
const SIZE: u64 = 40 * MIB;

/// A qemu-nbd with one export, ended with this value.
struct QemuNbd {
    process: Child,
    dir: TempDir,
    image: Vec<u8>,
}

impl QemuNbd {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        write_image(&path);
        let socket = dir.path().join("socket");
        let process = Command::new("/usr/bin/qemu-nbd")
            .args(["--read-only", "--persistent", "--shared=8", "--format=raw"])
            .args(["--export-name=disk0", "--description=a disk"])
            .arg("--socket")
            .arg(&socket)
            .arg(&path)
            .kill_on_drop(true)
            .spawn()
            .expect("start /usr/bin/qemu-nbd (Debian package qemu-utils)");
        let image = fs::read(&path).unwrap();
        let server = Self { process, dir, image };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.socket()).await.is_err() {
            assert!(Instant::now() < deadline, "qemu-nbd does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    async fn stream(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }

    async fn client(&self, mode: Mode) -> Client {
        let options = ConnectOptions::new("disk0").with_mode(mode);
        Client::connect(self.stream().await, &options).await.unwrap()
    }

    fn bytes(&self, offset: u64, length: u32) -> &[u8] {
        &self.image[offset as usize..][..length as usize]
    }

    async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }
}

fn write_image(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let pattern =
        |range: std::ops::Range<u64>| -> Vec<u8> { range.map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8 | 1).collect() };
    file.write_all_at(&pattern(0..HOLE.start), 0).unwrap();
    file.write_all_at(&pattern(HOLE.end..SIZE), HOLE.end).unwrap();
}

#[tokio::test]
async fn every_mode_reads_the_same_bytes() {
    let server = QemuNbd::start().await;
    for mode in [Mode::Structured, Mode::Simple, Mode::ExportName] {
        let client = server.client(mode).await;
        let export = client.export();
        assert_eq!(export.size_bytes, SIZE);
        assert!(export.flags.contains(TransmissionFlags::READ_ONLY));
        assert_eq!(export.structured, mode == Mode::Structured);
        assert_eq!(export.contexts.len(), usize::from(export.structured));
        assert_eq!(export.block_size.is_some(), mode != Mode::ExportName);
        let reads = [
            (0, 1),
            (1, 1),
            (511, 513),
            (5, 3),
            (HOLE.start - 4096, 8192),
            (HOLE.start, 4096),
            (HOLE.end - 1, 2),
            (SIZE - 1, 1),
            (0, 32 << 20),
        ];
        for (offset, length) in reads {
            let data = client.read(offset, length).await.unwrap();
            assert!(data == server.bytes(offset, length), "{mode:?} {offset}");
        }
        assert_eq!(client.read(77, 0).await.unwrap(), []);
        client.flush().await.unwrap();
        client.cache(0, 65536).await.unwrap();
        client.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn holes_are_told() {
    let server = QemuNbd::start().await;
    let client = server.client(Mode::Structured).await;
    let (offset, length) = (HOLE.start - 65536, 131_072);
    let read = client.read_with_holes(offset, length).await.unwrap();
    assert!(read.data == server.bytes(offset, length));
    let pieces: Vec<_> = read.pieces.iter().map(|piece| (piece.offset, piece.length, piece.hole)).collect();
    assert_eq!(pieces, [(offset, 65536, false), (HOLE.start, 65536, true)]);
}

#[tokio::test]
async fn block_status_tells_the_hole() {
    let server = QemuNbd::start().await;
    let client = server.client(Mode::Structured).await;
    let hole = StatusFlags::HOLE | StatusFlags::ZERO;
    let status = client.block_status(0, SIZE as u32, false).await.unwrap();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].context, BASE_ALLOCATION);
    let extents: Vec<_> = status[0].extents.iter().map(|extent| (u64::from(extent.length), extent.flags)).collect();
    let expected =
        [(HOLE.start, StatusFlags::EMPTY), (HOLE.end - HOLE.start, hole), (SIZE - HOLE.end, StatusFlags::EMPTY)];
    assert_eq!(extents, expected);

    let status = client.block_status(HOLE.start, 4096, true).await.unwrap();
    assert_eq!(status[0].extents.len(), 1);
    assert_eq!(status[0].extents[0].length, 4096);
    assert_eq!(status[0].extents[0].flags, hole);

    let client = server.client(Mode::Simple).await;
    let error = client.block_status(0, 4096, true).await.unwrap_err();
    assert!(matches!(error, ClientError::NoContext));
}

#[tokio::test]
async fn many_requests_are_in_flight() {
    // Cases 46 and 48: cookies bring each reply to its request, disconnecting waits for all.
    let server = QemuNbd::start().await;
    for mode in [Mode::Structured, Mode::Simple] {
        let client = server.client(mode).await;
        let reads: Vec<_> = (0..2000u64)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move {
                    let offset = i * 7919 * 512 % (SIZE - 100_000);
                    let length = (i % 97) as u32 * 1021;
                    (offset, length, client.read(offset, length).await.unwrap())
                })
            })
            .collect();
        for read in reads {
            let (offset, length, data) = read.await.unwrap();
            assert!(data == server.bytes(offset, length));
        }
        client.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn dropped_reads_do_no_harm() {
    let server = QemuNbd::start().await;
    let client = server.client(Mode::Structured).await;
    for i in 0..200 {
        let read = client.read(0, 4 << 20);
        let _ = timeout(Duration::from_micros(i * 10), read).await;
    }
    let data = client.read(12_345, 678).await.unwrap();
    assert_eq!(data, server.bytes(12_345, 678));
}

#[tokio::test]
async fn one_failing_request_fails_alone() {
    let server = QemuNbd::start().await;
    for mode in [Mode::Structured, Mode::ExportName] {
        let client = server.client(mode).await;
        let (good, bad) = tokio::join!(client.read(0, 4096), client.read(SIZE - 1, 4096));
        assert_eq!(good.unwrap(), server.bytes(0, 4096));
        match bad.unwrap_err() {
            ClientError::Server { command, error, offset, length, .. } => {
                assert_eq!(command, NbdCommand::READ);
                assert_eq!(error, ErrorCode::INVAL);
                assert_eq!((offset, length), (SIZE - 1, 4096));
            }
            error => panic!("{error}"),
        }
        let error = client.read(0, u32::MAX).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLong { .. }), "{error}");
        assert_eq!(client.read(9, 9).await.unwrap(), server.bytes(9, 9));
    }
}

#[tokio::test]
async fn list_and_info_describe_the_export() {
    let server = QemuNbd::start().await;
    let expected = Listed { name: "disk0".to_owned(), description: "a disk".to_owned() };
    assert_eq!(list(server.stream().await).await.unwrap(), [expected]);

    let export = info(server.stream().await, "disk0").await.unwrap();
    assert_eq!(export.name, "disk0");
    assert_eq!(export.description, "a disk");
    assert_eq!(export.size_bytes, SIZE);
    assert!(export.flags.contains(TransmissionFlags::SEND_DF));
    assert!(export.contexts.iter().any(|c| c.name == BASE_ALLOCATION));
    let sizes = export.block_size.unwrap();
    assert_eq!(sizes.maximum_bytes, 32 << 20);
}

#[tokio::test]
async fn unknown_export_is_refused() {
    let server = QemuNbd::start().await;
    let options = ConnectOptions::new("no");
    let error = Client::connect(server.stream().await, &options).await.unwrap_err();
    match &error {
        ClientError::Negotiate(error) => match &**error {
            NegotiateError::Refused { kind, .. } => {
                assert_eq!(*kind, OptionReplyType::ERR_UNKNOWN);
            }
            error => panic!("{error}"),
        },
        error => panic!("{error}"),
    }
    let options = options.with_mode(Mode::ExportName);
    let error = Client::connect(server.stream().await, &options).await;
    assert!(matches!(error, Err(ClientError::Negotiate(_))));
}

#[tokio::test]
async fn death_of_the_server_fails_everything() {
    let mut server = QemuNbd::start().await;
    let client = server.client(Mode::Structured).await;
    assert_eq!(client.read(0, 1).await.unwrap(), server.bytes(0, 1));
    server.kill().await;
    for _ in 0..3 {
        match client.read(0, 4096).await.unwrap_err() {
            ClientError::Connection(cause) => {
                assert!(matches!(*cause, ConnectionError::ServerClosed | ConnectionError::Io(_)), "{cause}")
            }
            error => panic!("{error}"),
        }
    }
    assert!(client.disconnect().await.is_err());
}

#[tokio::test]
async fn nbdkit_is_read_too() {
    // Its plugin `pattern` has the offset, in eight bytes, at every multiple of eight.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _nbdkit = Command::new("/usr/bin/nbdkit")
        .args(["--foreground", "--readonly", "--exit-with-parent", "-U"])
        .arg(&socket)
        .args(["pattern", "size=1G"])
        .kill_on_drop(true)
        .spawn()
        .expect("start /usr/bin/nbdkit (Debian package nbdkit)");
    let deadline = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(&socket).await.is_err() {
        assert!(Instant::now() < deadline, "nbdkit does not listen");
        sleep(Duration::from_millis(20)).await;
    }
    for mode in [Mode::Structured, Mode::Simple, Mode::ExportName] {
        let stream = UnixStream::connect(&socket).await.unwrap();
        let options = ConnectOptions::new("").with_mode(mode);
        let client = Client::connect(stream, &options).await.unwrap();
        assert_eq!(client.export().size_bytes, 1 << 30);
        let data = client.read(512 * MIB, 4096).await.unwrap();
        let expected: Vec<u8> = (0..512u64).flat_map(|i| (512 * MIB + 8 * i).to_be_bytes()).collect();
        assert_eq!(data, expected);
        client.disconnect().await.unwrap();
    }
    let stream = UnixStream::connect(&socket).await.unwrap();
    assert_eq!(list(stream).await.unwrap().len(), 1);
}
