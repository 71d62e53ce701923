//! The control socket while the server runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use vmnetx_nbd::{Error, Listener, Stats, serve_control};
use vmnetx_store::failure::{Class, Told};

use crate::raw::number::*;
use crate::rig::Rig;
use crate::support::source::mixed;
use crate::within;

fn control(rig: &Rig) -> (PathBuf, JoinHandle<()>) {
    let path = rig.dir.path().join("control.sock");
    let listener = Listener::unix(&path).unwrap();
    let (package, exports) = (Arc::clone(&rig.package), rig.exports.clone());
    let serving = serve_control(listener, rig.store.clone(), package, exports, rig.shutdown.clone());
    (path, tokio::spawn(serving))
}

#[tokio::test]
async fn counts_can_be_asked_for_at_any_time() {
    let rig = Rig::new(mixed()).await;
    let (path, _serving) = control(&rig);
    let before = within(20, Stats::ask(&path)).await.unwrap();
    assert_eq!((&before.package[..], &before.version), ("vm", &rig.repository.version.manifest.to_string()));
    let [export] = &before.exports[..] else { panic!("one export") };
    assert_eq!((&export.name[..], export.size_bytes), ("disk0", rig.source.size_bytes()));
    assert_eq!((export.connections, export.requests, before.origin_requests), (0, 0, 0));
    assert!(before.origin_bytes > 0, "link, manifest and layout count");

    let size = rig.source.size_bytes() as u32;
    let mut client = rig.client().await;
    for cookie in 0..3 {
        client.read(cookie, 0, size).await;
        client.reply().await.expect_data(&rig.source, 0, size);
    }
    client.expect_error((0, TRIM, 0, 1), EPERM).await;
    let after = within(20, Stats::ask(&path)).await.unwrap();
    let [export] = &after.exports[..] else { panic!("one export") };
    assert_eq!(
        (export.connections, export.requests, export.inline_reads, export.refused, export.failed),
        (1, 4, 2, 1, 0)
    );
    assert_eq!(export.counts.read_bytes, 3 * u64::from(size));
    assert_eq!(export.counts.origin_chunks as usize, rig.repository.chunks.len());
    let stored: u64 = rig.repository.packs().iter().map(|pack| pack.metadata().unwrap().len()).sum();
    assert!(after.origin_bytes > stored / 2 && after.origin_bytes <= stored + before.origin_bytes, "{after:?}");
    let plain: u64 = rig.repository.chunks.iter().map(|frame| u64::from(frame.wanted.plain_len)).sum();
    assert!(after.memory_bytes >= plain, "{} of {plain}", after.memory_bytes);
}

/// Sends bytes and takes whatever comes back until the server closes or the patience is over.
async fn ask_raw(path: &PathBuf, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn other_questions_are_refused_and_do_no_harm() {
    let rig = Rig::new(mixed()).await;
    let (path, _serving) = control(&rig);
    assert!(ask_raw(&path, b"GET /v9/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.contains(" 404 "));
    assert!(ask_raw(&path, b"PUT /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.contains(" 405 "));
    ask_raw(&path, &[0; 1000]).await;
    ask_raw(&path, b"IHAVEOPT").await;
    within(20, Stats::ask(&path)).await.unwrap();
}

/// Whoever asks the wrong socket, or nobody, is told so.
#[tokio::test]
async fn answers_that_are_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let expect_told = async || {
        let error = within(20, Stats::ask(&path)).await.unwrap_err();
        assert!(matches!(error, Error::Control { .. }) && error.class() == Class::Failure, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    };
    expect_told().await;
    let answers: [&[u8]; 5] = [
        b"NBDMAGICIHAVEOPT\0\x03",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{",
        b"",
    ];
    let listener = UnixListener::bind(&path).unwrap();
    for answer in answers {
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1000]).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(serve, expect_told());
    }
}

/// Clients of the control socket that hang do not keep the server from stopping.
#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_cannot_prevent_a_stop() {
    let rig = Rig::new(mixed()).await;
    let (path, serving) = control(&rig);
    let mut held = Vec::new();
    for bytes in [&b""[..], b"GET /v1", b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        held.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.shutdown.cancel();
    within(30, serving).await.unwrap();
    assert!(!path.exists());
}
