//! The client against servers that break the protocol, stall or leave: every request ends, with the cause.

mod support;

use std::time::Duration;

use bytes::BytesMut;
use support::{Image, negotiate, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions, Mode, NegotiateError};
use vmnetx_nbd_proto::limits::MAX_IN_FLIGHT;
use vmnetx_nbd_proto::reply::{self, Extent};
use vmnetx_nbd_proto::request::{REQUEST_BYTES, Request};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, ChunkFlags, Command, Cookie, ErrorCode, RESIDENCY, StatusFlags};

const DONE: ChunkFlags = ChunkFlags::DONE;
const MORE: ChunkFlags = ChunkFlags::EMPTY;

/// A server that negotiates well and then is the test's to play.
struct Puppet {
    stream: DuplexStream,
}

impl Puppet {
    async fn start(mode: Mode) -> (Self, Client) {
        Self::start_with(&ConnectOptions::new("disk0").with_mode(mode)).await
    }

    async fn start_with(options: &ConnectOptions) -> (Self, Client) {
        let (near, mut far) = duplex(1 << 20);
        let server = tokio::spawn(async move {
            let mut input = BytesMut::new();
            let session = negotiate(&mut far, &mut input, &Image::sample()).await;
            assert!(session.unwrap().is_some() && input.is_empty());
            far
        });
        let client = Client::connect(near, options).await.unwrap();
        let stream = server.await.unwrap();
        (Self { stream }, client)
    }

    async fn request(&mut self) -> Request {
        let mut bytes = [0; REQUEST_BYTES];
        self.stream.read_exact(&mut bytes).await.unwrap();
        Request::decode(&bytes).unwrap().unwrap()
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }
}

type Reply = fn(&mut Vec<u8>, Cookie);

fn spawn_read(client: &Client, offset: u64, length: u32) -> JoinHandle<Result<Vec<u8>, ClientError>> {
    let client = client.clone();
    tokio::spawn(async move { client.read(offset, length).await })
}

fn connection_error(error: ClientError) -> String {
    match error {
        ClientError::Connection(cause) => format!("{cause:?}"),
        error => panic!("{error}"),
    }
}

/// What becomes of a READ of 4096 bytes at 4096 that is answered like this; another request waits meanwhile.
async fn read_answered(mode: Mode, reply: Reply) -> String {
    let (mut puppet, client) = Puppet::start(mode).await;
    let waiting = spawn_read(&client, 0, 1);
    puppet.request().await;
    let read = spawn_read(&client, 4096, 4096);
    let request = puppet.request().await;
    let mut bytes = Vec::new();
    reply(&mut bytes, request.cookie);
    puppet.send(&bytes).await;
    let error = connection_error(read.await.unwrap().unwrap_err());
    // Who had nothing to do with it is told the same, and so is who comes later.
    assert_eq!(connection_error(waiting.await.unwrap().unwrap_err()), error);
    assert_eq!(connection_error(client.read(0, 1).await.unwrap_err()), error);
    error
}

fn put_data(output: &mut Vec<u8>, cookie: Cookie, flags: ChunkFlags, offset: u64, length: u32) {
    reply::data_header(output, cookie, flags, offset, length);
    output.extend(vec![7; length as usize]);
}

#[tokio::test]
async fn data_that_does_not_cover_the_read_is_not_believed() {
    // Case 38.
    let replies: [Reply; 10] = [
        // More pieces than bytes, and no end of them.
        |out, cookie| {
            reply::hole(out, cookie, MORE, 4096, 4096);
            reply::hole(out, cookie, MORE, 8191, 1);
        },
        |out, cookie| reply::done(out, cookie),
        |out, cookie| put_data(out, cookie, DONE, 4096, 4095),
        |out, cookie| put_data(out, cookie, DONE, 4097, 4095),
        |out, cookie| put_data(out, cookie, DONE, 4095, 4096),
        |out, cookie| put_data(out, cookie, DONE, 4096, 4097),
        |out, cookie| put_data(out, cookie, DONE, u64::MAX - 10, 4096),
        |out, cookie| reply::hole(out, cookie, DONE, 4096, u32::MAX),
        |out, cookie| {
            put_data(out, cookie, MORE, 4096, 2048);
            put_data(out, cookie, DONE, 4096, 2048);
        },
        |out, cookie| {
            reply::hole(out, cookie, MORE, 4096, 4096);
            reply::hole(out, cookie, DONE, 4096, 4096);
        },
    ];
    for reply in replies {
        assert_eq!(read_answered(Mode::Structured, reply).await, "BadCover");
    }
}

#[tokio::test]
async fn replies_of_the_wrong_kind_are_not_believed() {
    // Case 37.
    let simple: Reply = |out, cookie| {
        reply::simple(out, cookie, None);
        out.extend([0; 4096]);
    };
    let error = read_answered(Mode::Structured, simple).await;
    assert_eq!(error, "WrongReply(Command(READ))");
    let failed: Reply = |out, cookie| reply::simple(out, cookie, Some(ErrorCode::INVAL));
    let error = read_answered(Mode::Structured, failed).await;
    assert_eq!(error, "WrongReply(Command(READ))");
    let chunk: Reply = |out, cookie| put_data(out, cookie, DONE, 4096, 4096);
    let error = read_answered(Mode::Simple, chunk).await;
    assert_eq!(error, "WrongReply(Command(READ))");
    let status: Reply = |out, cookie| {
        let flags = StatusFlags::EMPTY;
        reply::block_status(out, cookie, DONE, 1, &[Extent { length: 1, flags }]);
    };
    let error = read_answered(Mode::Structured, status).await;
    assert_eq!(error, "WrongReply(Command(READ))");
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    let error = read_answered(Mode::Structured, |out, _| out.extend(b"nonsense")).await;
    assert!(error.contains("BadMagic"), "{error}");
    let stranger: Reply = |out, _| reply::done(out, Cookie(99));
    let error = read_answered(Mode::Structured, stranger).await;
    assert_eq!(error, "UnknownCookie(99)");
    let twice: Reply = |out, cookie| {
        put_data(out, cookie, MORE, 4096, 4096);
        out.extend([0; 20]);
    };
    let error = read_answered(Mode::Structured, twice).await;
    assert!(error.contains("BadMagic"), "{error}");
}

#[tokio::test]
async fn an_error_after_data_fails_the_read_alone() {
    // Case 39.
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    let read = spawn_read(&client, 4096, 4096);
    let cookie = puppet.request().await.cookie;
    let mut bytes = Vec::new();
    put_data(&mut bytes, cookie, MORE, 4096, 4096);
    reply::error_at(&mut bytes, cookie, MORE, ErrorCode::IO, "a bad chunk", 4100);
    reply::done(&mut bytes, cookie);
    puppet.send(&bytes).await;
    let error = read.await.unwrap().unwrap_err();
    let expected = "READ of 4096 bytes at 4096: the NBD server answered: input/output error: a bad chunk";
    assert_eq!(error.to_string(), expected);

    let read = spawn_read(&client, 0, 2);
    let cookie = puppet.request().await.cookie;
    let mut bytes = Vec::new();
    put_data(&mut bytes, cookie, DONE, 0, 2);
    puppet.send(&bytes).await;
    assert_eq!(read.await.unwrap().unwrap(), [7, 7]);
}

#[tokio::test]
async fn replies_come_in_any_order_and_in_pieces() {
    // Cases 38 and 46: chunks of several replies are mixed, bytes come one by one.
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    let first = spawn_read(&client, 0, 6);
    let one = puppet.request().await.cookie;
    let second = spawn_read(&client, 100, 4);
    let two = puppet.request().await.cookie;
    let mut bytes = Vec::new();
    put_data(&mut bytes, one, MORE, 4, 2);
    put_data(&mut bytes, two, MORE, 100, 1);
    reply::hole(&mut bytes, one, MORE, 0, 4);
    put_data(&mut bytes, two, DONE, 101, 3);
    reply::done(&mut bytes, one);
    for byte in bytes {
        puppet.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(first.await.unwrap().unwrap(), [0, 0, 0, 0, 7, 7]);
    assert_eq!(second.await.unwrap().unwrap(), [7; 4]);
}

#[tokio::test]
async fn contexts_are_told_exactly_once() {
    // Case 41.
    let extent = |length| Extent { length, flags: StatusFlags::ZERO };
    let replies: [&[u32]; 3] = [&[], &[2], &[1, 1]];
    for ids in replies {
        let (mut puppet, client) = Puppet::start(Mode::Structured).await;
        let status = tokio::spawn(async move { client.block_status(0, 10, false).await });
        let cookie = puppet.request().await.cookie;
        let mut bytes = Vec::new();
        for id in ids {
            reply::block_status(&mut bytes, cookie, MORE, *id, &[extent(3)]);
        }
        reply::done(&mut bytes, cookie);
        puppet.send(&bytes).await;
        let error = connection_error(status.await.unwrap().unwrap_err());
        assert_eq!(error, "BadContexts");
    }

    // One of two is missing, or comes twice.
    let options = ConnectOptions::new("disk0").with_contexts([RESIDENCY, BASE_ALLOCATION]);
    for (ids, good) in [(&[1][..], false), (&[2], false), (&[1, 2, 1], false), (&[1, 2, 3], false), (&[2, 1], true)] {
        let (mut puppet, client) = Puppet::start_with(&options).await;
        let status = tokio::spawn(async move { client.block_status(0, 10, false).await });
        let cookie = puppet.request().await.cookie;
        let mut bytes = Vec::new();
        for id in ids {
            reply::block_status(&mut bytes, cookie, MORE, *id, &[extent(3)]);
        }
        reply::done(&mut bytes, cookie);
        puppet.send(&bytes).await;
        match status.await.unwrap() {
            Ok(told) => {
                assert!(good);
                assert_eq!([&told[0].context[..], &told[1].context], [RESIDENCY, BASE_ALLOCATION]);
            }
            Err(error) => assert!(!good && connection_error(error) == "BadContexts"),
        }
    }

    // More extents than the buffer holds.
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    let status = tokio::spawn(async move { client.block_status(0, 100_000, false).await });
    let cookie = puppet.request().await.cookie;
    let extents = vec![extent(1); 100_000];
    let mut bytes = Vec::new();
    reply::block_status(&mut bytes, cookie, DONE, 1, &extents);
    puppet.send(&bytes).await;
    assert!(status.await.unwrap().unwrap()[0].extents == extents);
}

#[tokio::test]
async fn server_that_leaves_fails_everything() {
    // In the middle of a reply's data, where its request is in the task's hands.
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    let waiting = spawn_read(&client, 0, 1);
    puppet.request().await;
    let read = spawn_read(&client, 0, 1 << 20);
    let cookie = puppet.request().await.cookie;
    let mut bytes = Vec::new();
    put_data(&mut bytes, cookie, DONE, 0, 1 << 20);
    puppet.send(&bytes[..500_000]).await;
    drop(puppet);
    for read in [read, waiting] {
        assert_eq!(connection_error(read.await.unwrap().unwrap_err()), "ServerClosed");
    }
    let closed = client.disconnect().await.unwrap_err();
    assert_eq!(connection_error(closed), "ServerClosed");
}

#[tokio::test]
async fn disconnecting_waits_for_what_is_in_flight() {
    // Case 48.
    let (mut puppet, client) = Puppet::start(Mode::Simple).await;
    let read = spawn_read(&client, 0, 3);
    let cookie = puppet.request().await.cookie;
    let other = client.clone();
    let mut disconnecting = tokio::spawn(client.disconnect());
    let early = timeout(Duration::from_millis(100), &mut disconnecting).await;
    assert!(early.is_err());
    let refused = connection_error(other.read(0, 1).await.unwrap_err());
    assert_eq!(refused, "Closed");
    let mut bytes = Vec::new();
    reply::simple(&mut bytes, cookie, None);
    bytes.extend(b"abc");
    puppet.send(&bytes).await;
    assert_eq!(read.await.unwrap().unwrap(), b"abc");
    assert_eq!(puppet.request().await.command, Command::DISC);
    disconnecting.await.unwrap().unwrap();
    assert_eq!(puppet.stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn dropped_client_says_goodbye() {
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    drop(client);
    assert_eq!(puppet.request().await.command, Command::DISC);
    assert_eq!(puppet.stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    // Dropped requests keep their place until their replies are in.
    let (mut puppet, client) = Puppet::start(Mode::Structured).await;
    for _ in 0..MAX_IN_FLIGHT + 5 {
        tokio::select! {
            biased;
            _ = client.flush() => panic!("nobody answers"),
            () = tokio::task::yield_now() => {}
        }
    }
    let mut cookies = Vec::new();
    while let Ok(request) = timeout(Duration::from_millis(200), puppet.request()).await {
        cookies.push(request.cookie);
    }
    assert_eq!(cookies.len(), MAX_IN_FLIGHT);
    let flush = tokio::spawn(async move { client.flush().await });
    let mut bytes = Vec::new();
    cookies.drain(1..).for_each(|cookie| reply::done(&mut bytes, cookie));
    puppet.send(&bytes).await;
    let cookie = puppet.request().await.cookie;
    let mut bytes = Vec::new();
    reply::simple(&mut bytes, cookie, None);
    puppet.send(&bytes).await;
    flush.await.unwrap().unwrap();
}

#[tokio::test]
async fn client_and_codec_agree() {
    let (near, far) = duplex(10_000);
    let server = tokio::spawn(async move { serve(far, &Image::sample()).await });
    let image = Image::sample();
    let client = Client::connect(near, &ConnectOptions::new("")).await.unwrap();
    assert_eq!(client.export().name, "disk0");
    let size = image.bytes.len() as u64;
    for (offset, length) in [(0, 4096), (1_048_000, 3000), (size - 3, 3), (0, size as u32)] {
        let read = client.read_with_holes(offset, length).await.unwrap();
        assert!(read.data == image.slice(offset, length));
        let pieces = read.pieces.iter().map(|p| (p.offset, p.length, p.hole));
        assert!(pieces.eq(image.runs(offset, length)));
    }
    client.disconnect().await.unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn strangers_are_told_apart() {
    let greet = async |bytes: &'static [u8]| {
        let (near, mut far) = duplex(1000);
        far.write_all(bytes).await.unwrap();
        drop(far);
        match Client::connect(near, &ConnectOptions::new("")).await {
            Err(ClientError::Negotiate(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let error = greet(b"HTTP/1.1 400 Bad Request\r\n").await;
    assert!(matches!(*error, NegotiateError::NotNbd(_)), "{error}");
    let error = greet(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53").await;
    assert!(matches!(*error, NegotiateError::NotNewstyle(_)), "{error}");
    let error = greet(b"NBDMAGICIHAVEOPT").await;
    assert!(matches!(*error, NegotiateError::Io(_)), "{error}");
}
