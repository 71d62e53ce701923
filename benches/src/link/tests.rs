//! The link measured from outside, through sockets.

use std::net::Ipv4Addr;

use tokio::time::timeout;

use super::*;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SHAPE: Shape = Shape { rate_bits_per_s: 100_000_000, rtt: Duration::from_millis(20) };
const DEADLINE: Duration = Duration::from_secs(20);

/// A server that answers each byte, whose value is n, with n * 64 KiB (0: with one byte).
async fn start_server() -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                socket.set_nodelay(true).expect("nodelay");
                while let Ok(count) = socket.read_u8().await {
                    let answer = if count == 0 { vec![0] } else { vec![count; usize::from(count) << 16] };
                    if socket.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn start_link(shape: Shape) -> (Link, SocketAddr) {
    let mut link = Link::new(shape).expect("start");
    let address = link.forward(LOCAL, start_server().await).await.expect("forward");
    (link, address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).await.expect("connect");
    socket.set_nodelay(true).expect("nodelay");
    socket
}

/// Time until the one byte that answers a zero is there.
async fn ping(socket: &mut TcpStream) -> Duration {
    let started = Instant::now();
    socket.write_all(&[0]).await.expect("write");
    socket.read_u8().await.expect("answer");
    started.elapsed()
}

/// Asks for `count` * 64 KiB and returns when the first and the last of the bytes arrived.
async fn download(socket: &mut TcpStream, count: u8) -> (Instant, Instant) {
    socket.write_all(&[count]).await.expect("write");
    let mut left_bytes = usize::from(count) << 16;
    let mut buffer = vec![0; 64 << 10];
    let mut first = None;
    while left_bytes > 0 {
        let length = socket.read(&mut buffer).await.expect("read");
        assert!(length > 0 && length <= left_bytes, "{length} of {left_bytes} bytes");
        assert!(buffer[..length].iter().all(|byte| *byte == count));
        first.get_or_insert_with(Instant::now);
        left_bytes -= length;
    }
    (first.expect("bytes"), Instant::now())
}

/// Measures until it takes the expected time. A busy machine makes it longer now and then, so one good try of a few will
/// do; nothing makes it shorter, so no try may be.
async fn expect(expected: Duration, tolerance: Duration, mut measure: impl AsyncFnMut() -> Duration) {
    const TRIES: usize = 12;
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let measured = timeout(DEADLINE, measure()).await.expect("in time");
        assert!(measured + tolerance >= expected, "{measured:?}, which is less than {expected:?} by {tolerance:?}");
        if measured <= expected + tolerance {
            return;
        }
        seen.push(measured);
    }
    panic!("{seen:?}, never {expected:?} within {tolerance:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_gets_the_rate() {
    let (link, address) = start_link(SHAPE).await;
    let mut socket = connect(address).await;
    ping(&mut socket).await;
    let bytes = 100 << 16;
    let expected = SHAPE.rtt + Duration::from_secs_f64(f64::from(bytes) * 8.0 / SHAPE.rate_bits_per_s as f64);
    expect(expected, expected * 3 / 100, async || {
        let before = link.totals();
        let started = Instant::now();
        let (_, last) = download(&mut socket, 100).await;
        let after = link.totals();
        assert_eq!((after.up_bytes - before.up_bytes, after.down_bytes - before.down_bytes), (1, bytes as u64));
        last - started
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_share_the_rate_evenly() {
    let (link, address) = start_link(SHAPE).await;
    let (mut one, mut two) = (connect(address).await, connect(address).await);
    tokio::join!(ping(&mut one), ping(&mut two));
    let expected = SHAPE.rtt + Duration::from_secs_f64(f64::from(100 << 16) * 8.0 / SHAPE.rate_bits_per_s as f64);
    expect(expected, expected * 3 / 100, async || {
        let started = Instant::now();
        let ((_, one_last), (_, two_last)) = tokio::join!(download(&mut one, 50), download(&mut two, 50));
        // Served in turns, they end together; one after the other, the first would end at half the time.
        let (first, last) = (one_last.min(two_last) - started, one_last.max(two_last) - started);
        assert!(first > last * 8 / 10, "{first:?} and {last:?}");
        last
    })
    .await;
    assert_eq!(link.totals().connections, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_takes_the_round_trip_and_the_first_one_two() {
    let (_link, address) = start_link(SHAPE).await;
    expect(2 * SHAPE.rtt, Duration::from_millis(3), async || ping(&mut connect(address).await).await).await;
    let mut socket = connect(address).await;
    ping(&mut socket).await;
    expect(SHAPE.rtt, Duration::from_millis(2), async || {
        let measured = ping(&mut socket).await;
        assert!(measured >= SHAPE.rtt, "no answer is early");
        measured
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_does_not_wait_behind_the_queue_of_another_connection() {
    let (_link, address) = start_link(SHAPE).await;
    let (mut bulk, mut other) = (connect(address).await, connect(address).await);
    tokio::join!(ping(&mut bulk), ping(&mut other));
    let pinging = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        expect(SHAPE.rtt, Duration::from_millis(3), async || ping(&mut other).await).await;
        Instant::now()
    };
    let ((_, bulk_last), pinged) = tokio::join!(download(&mut bulk, 100), pinging);
    assert!(pinged < bulk_last, "the line was idle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard_after_two_round_trips() {
    let listener = TcpListener::bind(LOCAL).await.expect("bind");
    let server = listener.local_addr().expect("address");
    let mut link = Link::new(SHAPE).expect("start");
    let address = link.forward(LOCAL, server).await.expect("forward");
    expect(2 * SHAPE.rtt, Duration::from_millis(3), async || {
        let speaking = async {
            let (mut socket, _) = listener.accept().await.expect("accept");
            socket.write_all(b"hello").await.expect("write");
            socket.shutdown().await.expect("shutdown");
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.expect("read");
            rest
        };
        let hearing = async {
            let started = Instant::now();
            let mut socket = connect(address).await;
            let mut greeting = Vec::new();
            socket.read_to_end(&mut greeting).await.expect("read");
            let took = started.elapsed();
            assert_eq!(greeting, b"hello");
            // One direction's end leaves the other open.
            socket.write_all(b"bye").await.expect("write");
            took
        };
        let (said, took) = tokio::join!(speaking, hearing);
        assert_eq!(said, b"bye");
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_holds_back_only_its_own_sender() {
    let (link, address) = start_link(SHAPE).await;
    let mut stalled = connect(address).await;
    stalled.write_all(&[200]).await.expect("write");
    let mut other = connect(address).await;
    timeout(DEADLINE, download(&mut other, 20)).await.expect("in time");
    // The rest of the 13 MB is held back by the window and the sockets' own buffers.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(link.totals().down_bytes < 200 << 16, "{:?}", link.totals());
}

#[tokio::test]
async fn an_absent_server_ends_the_connection() {
    let unused = TcpListener::bind(LOCAL).await.expect("bind").local_addr().expect("address");
    let mut link = Link::new(SHAPE).expect("start");
    let address = link.forward(LOCAL, unused).await.expect("forward");
    let mut socket = connect(address).await;
    let ended = timeout(DEADLINE, socket.read_u8()).await.expect("in time");
    assert!(ended.is_err());
}

#[tokio::test]
async fn a_dropped_link_closes_its_connections() {
    let (link, address) = start_link(SHAPE).await;
    let mut socket = connect(address).await;
    ping(&mut socket).await;
    drop(link);
    assert!(timeout(DEADLINE, socket.read_u8()).await.expect("in time").is_err());
}

#[test]
fn a_line_without_rate_is_refused() {
    assert!(Link::new(Shape { rate_bits_per_s: 0, rtt: Duration::ZERO }).is_err());
}
