//! Listening, idle and silent clients, stopping. Case 26, and what the protocol's text leaves to servers.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use vmnetx_nbd::limits::{DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT};
use vmnetx_nbd::{Error, Listener};
use vmnetx_nbd_proto::client::{Client, ConnectOptions, Mode, info, list};
use vmnetx_store::failure::{Class, Told};

use crate::raw::number::*;
use crate::rig::Rig;
use crate::support::bad_http::{Answer, Asked};
use crate::support::source::{Source, mixed, noise};
use crate::within;

async fn ended(rig: &Rig) {
    while !rig.serving.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn case_26_idle_clients_block_nobody() {
    let rig = Rig::new(mixed()).await;
    let mut idle = Vec::new();
    for number in 0..200 {
        let mut raw = rig.connect().await;
        // Some say nothing, some stop in the handshake, some are connected and quiet.
        match number % 4 {
            0 => {}
            1 => raw.greet(FIXED_NEWSTYLE).await,
            2 => raw.send(&[0, 0]).await,
            _ => raw.negotiate(true).await,
        }
        idle.push(raw);
    }
    let start = Instant::now();
    rig.expect_served(0, 70_000).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for quiet in idle.iter_mut().skip(3).step_by(4) {
        quiet.read(1, 0, 100).await;
        quiet.reply().await.expect_data(&rig.source, 0, 100);
    }
}

#[tokio::test(start_paused = true)]
async fn case_26_silent_clients_are_dropped_at_the_deadline() {
    let rig = Rig::new(mixed()).await;
    let mut silent = rig.connect().await;
    let mut halfway = rig.connect().await;
    halfway.greet(FIXED_NEWSTYLE).await;
    halfway.send(b"IHAVE").await;
    let start = Instant::now();
    assert_eq!(silent.receive(18).await[..8], *b"NBDMAGIC");
    silent.expect_closed().await;
    halfway.expect_closed().await;
    let took = start.elapsed();
    assert!(took > HANDSHAKE_TIMEOUT / 2 && took < HANDSHAKE_TIMEOUT * 2, "{took:?}");
    // Who goes on talking is dropped too.
    let mut chatty = rig.connect().await;
    chatty.greet(FIXED_NEWSTYLE).await;
    for _ in 0..HANDSHAKE_TIMEOUT.as_secs() - 1 {
        chatty.expect_option(99, b"", UNSUP).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    chatty.expect_closed().await;
    // Whoever has negotiated may be silent for as long as it likes.
    let mut client = rig.client().await;
    tokio::time::sleep(HANDSHAKE_TIMEOUT * 100).await;
    client.read(1, 0, 100).await;
    client.reply().await.expect_data(&rig.source, 0, 100);
}

/// A server whose chunks come when the gate opens, a client with a request under way, and a connection that is idle.
async fn busy() -> (Rig, watch::Sender<bool>, crate::raw::Raw, crate::raw::Raw) {
    let (open, gate) = watch::channel(true);
    let behave = move |_: &Asked| if *gate.borrow() { Answer::Good } else { Answer::When(gate.clone()) };
    let rig = Rig::with_origin(Source::of(noise(1, 1_000_000)), behave).await;
    rig.expect_served(0, 100).await;
    open.send(false).unwrap();
    let (mut client, idle) = (rig.client().await, rig.client().await);
    client.read(1, 600_000, 1000).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    (rig, open, client, idle)
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_answers_what_is_under_way() {
    let (rig, open, mut client, mut idle) = busy().await;
    let mut handshaking = rig.connect().await;
    handshaking.receive(18).await;
    rig.shutdown.cancel();
    idle.expect_closed().await;
    handshaking.expect_closed().await;
    // Nobody is let in any more, and the socket's file is gone.
    assert!(!rig.socket().exists());
    assert!(!rig.serving.is_finished());
    open.send(true).unwrap();
    client.reply().await.expect_data(&rig.source, 600_000, 1000);
    client.expect_closed().await;
    within(DRAIN_TIMEOUT.as_secs(), ended(&rig)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_ever() {
    let (rig, _open, _client, _idle) = busy().await;
    let start = Instant::now();
    rig.shutdown.cancel();
    within(DRAIN_TIMEOUT.as_secs() + 1, ended(&rig)).await;
    assert!(start.elapsed() >= DRAIN_TIMEOUT);
}

/// A client that asks for much and reads nothing keeps the server from writing, not from stopping.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_cannot_prevent_a_stop() {
    let rig = Rig::new(Source::of(noise(1, 4_000_000))).await;
    let mut client = rig.client().await;
    for number in 0..20 {
        client.read(number, 0, 4_000_000).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.shutdown.cancel();
    within(DRAIN_TIMEOUT.as_secs() + 1, ended(&rig)).await;
}

#[tokio::test]
async fn tcp_stops_too() {
    let rig = Rig::on_tcp(mixed()).await;
    rig.expect_served(0, 100_000).await;
    let mut client = rig.client().await;
    rig.shutdown.cancel();
    client.expect_closed().await;
    within(20, ended(&rig)).await;
}

#[tokio::test]
async fn the_socket_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let listener = Listener::unix(&path).unwrap();
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o077, 0, "{:o}", metadata.permissions().mode());
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    // The file outlives its listener, as after a kill.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let live = Listener::unix(&path).unwrap();
    let error = Listener::unix(&path).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }) && error.class() == Class::Host, "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()));
    UnixStream::connect(&path).await.unwrap();
    drop(live);
    drop(Listener::unix(&path).unwrap());
}

#[tokio::test]
async fn a_server_that_ends_leaves_its_successors_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let ending = Listener::unix(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let successor = Listener::unix(&path).unwrap();
    drop(ending);
    UnixStream::connect(&path).await.unwrap();
    drop(successor);
    assert!(!path.exists());
}

#[tokio::test]
async fn files_that_are_no_sockets_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let link = dir.path().join("link");
    symlink(&file, &link).unwrap();
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nowhere"), &dangling).unwrap();
    let long = dir.path().join("x".repeat(120));
    for path in [&file, &link, &dangling, &dir.path().to_owned(), &dir.path().join("no/dir"), &long] {
        let error = Listener::unix(path).unwrap_err();
        assert!(matches!(error, Error::Listen { .. }) && error.class() == Class::Host, "{path:?}: {error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert!(link.is_symlink() && dangling.is_symlink());
}

#[tokio::test]
async fn addresses_that_cannot_be_listened_on_are_told() {
    let taken = Listener::tcp("127.0.0.1:0").await.unwrap();
    let address = taken.tcp_address().unwrap().to_string();
    for address in [&address[..], "192.0.2.1:1", "127.0.0.1", "127.0.0.1:99999", ""] {
        let error = Listener::tcp(address).await.unwrap_err();
        assert!(matches!(error, Error::Listen { .. }) && error.class() == Class::Host, "{address}: {error}");
        assert!(error.to_string().contains(address));
    }
}

/// The other half of the protocol crate, in all its modes, against this server.
#[tokio::test]
async fn the_client_of_the_protocol_crate_reads_all() {
    let rig = Rig::new(mixed()).await;
    let size = rig.source.size_bytes();
    for mode in [Mode::Structured, Mode::Simple, Mode::ExportName] {
        for name in ["", "disk0"] {
            let options = ConnectOptions::new(name).with_mode(mode);
            let stream = UnixStream::connect(rig.socket()).await.unwrap();
            let client = within(20, Client::connect(stream, &options)).await.unwrap();
            assert_eq!(client.export().size_bytes, size);
            for offset in (0..size).step_by(100_000) {
                let length = 100_000.min(size - offset) as u32;
                let data = within(20, client.read(offset, length)).await.unwrap();
                assert!(data == rig.source.read(offset, length.into()), "{mode:?} {offset}");
            }
            within(20, client.flush()).await.unwrap();
            within(20, client.disconnect()).await.unwrap();
        }
    }
    let connect = || async { UnixStream::connect(rig.socket()).await.unwrap() };
    let listed = within(20, list(connect().await)).await.unwrap();
    assert_eq!(listed.iter().map(|export| &export.name[..]).collect::<Vec<_>>(), ["disk0"]);
    assert_eq!(within(20, info(connect().await, "disk0")).await.unwrap().size_bytes, size);
}

#[tokio::test]
async fn two_addresses_are_two_servers() {
    let rig = Rig::on_tcp(mixed()).await;
    let other = Listener::tcp("127.0.0.1:0").await.unwrap();
    let address = other.tcp_address().unwrap();
    drop(other);
    let error = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    rig.expect_served(0, 10).await;
}
