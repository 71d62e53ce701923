//! A slow network line for benchmarks and tests: a TCP forwarder whose connections share one rate and one round trip.
//!
//! ```text
//! client --socket--> queue --+                            +--> delay --socket--> server
//! client --socket--> queue --+--> line (rate, in turns) --+--> delay --socket--> server      and the same way back
//! ```
//!
//! Each direction is a line: the connections take turns on it, a packet at a time, each packet keeps it busy for
//! its length over the rate, and arrives half a round trip later. A new connection costs one more round trip, as TCP's
//! handshake would. Bytes are counted as an application sends them; headers, loss and slow start are not modelled.

mod line;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use line::{Flow, Line};

/// What a connection may have waiting for the line, each way: beyond it the forwarder stops reading from the sender.
const QUEUE_BYTES: u32 = 256 << 10;
/// The most that one read from a sender takes.
const READ_BYTES: u32 = 16 << 10;
/// The most that a line of great delay and rate adds to a connection's queue.
const MAX_FLYING_BYTES: u32 = 64 << 20;
/// Connections of one forwarder at a time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 1024;

/// The properties of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rate of each direction, in bit/s, of all connections together; not zero.
    pub rate_bits_per_s: u64,
    /// Time there and back of a packet on an idle line.
    pub rtt: Duration,
}

/// What a line has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Bytes from clients to servers.
    pub up_bytes: u64,
    /// Bytes from servers to clients.
    pub down_bytes: u64,
    /// Connections that clients have opened.
    pub connections: u64,
}

/// A line and its forwarders; dropping it closes every connection.
#[derive(Debug)]
pub struct Link {
    ends: Arc<Ends>,
    forwarders: Vec<AbortHandle>,
}

impl Link {
    /// Starts an idle line; it has a thread for each direction.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread, or the rate is zero.
    pub fn new(shape: Shape) -> io::Result<Self> {
        if shape.rate_bits_per_s == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a line needs a rate above 0 bit/s"));
        }
        let one_way = shape.rtt / 2;
        let flying_bytes = u128::from(shape.rate_bits_per_s) * one_way.as_micros() / 8_000_000;
        let flying_bytes = u32::try_from(flying_bytes).map_or(MAX_FLYING_BYTES, |bytes| bytes.min(MAX_FLYING_BYTES));
        let ends = Ends {
            up: Line::start("line-up", shape.rate_bits_per_s, one_way)?,
            down: Line::start("line-down", shape.rate_bits_per_s, one_way)?,
            connections: AtomicU64::new(0),
            rtt: shape.rtt,
            window_bytes: QUEUE_BYTES + flying_bytes,
        };
        Ok(Self { ends: Arc::new(ends), forwarders: Vec::new() })
    }

    /// Forwards what arrives at `listen` to `to` over this line, and returns the address it listens on (for port 0).
    /// May be called several times: the forwarders share the line.
    ///
    /// # Errors
    ///
    /// When `listen` cannot be bound. A server that is not there closes the connections of its clients.
    pub async fn forward(&mut self, listen: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        self.forwarders.push(tokio::spawn(accept(listener, to, Arc::clone(&self.ends))).abort_handle());
        Ok(address)
    }

    /// What the line has carried until now.
    pub fn totals(&self) -> Totals {
        Totals {
            up_bytes: self.ends.up.carried_bytes(),
            down_bytes: self.ends.down.carried_bytes(),
            connections: self.ends.connections.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for forwarder in &self.forwarders {
            forwarder.abort();
        }
    }
}

/// What the connections share.
#[derive(Debug)]
struct Ends {
    up: Line,
    down: Line,
    connections: AtomicU64,
    rtt: Duration,
    window_bytes: u32,
}

/// Bytes on their way, with the share of their connection's window that they hold until they are written.
#[derive(Debug)]
struct Packet {
    bytes: Bytes,
    share: OwnedSemaphorePermit,
}

async fn accept(listener: TcpListener, to: SocketAddr, ends: Arc<Ends>) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) if connections.len() < MAX_CONNECTIONS => {
                    ends.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(carry(client, to, Arc::clone(&ends), Instant::now()));
                }
                Ok(_) => {}
                // Out of file descriptors: those of ending connections come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until both sides have ended it or one of them fails, which ends the other.
async fn carry(client: TcpStream, to: SocketAddr, ends: Arc<Ends>, accepted: Instant) -> io::Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The client may send when the answer to its SYN is back, the server when the client's ACK has come.
    let (up, up_arrivals) = ends.up.open(accepted + ends.rtt);
    let (down, down_arrivals) = ends.down.open(accepted + ends.rtt * 3 / 2);
    tokio::try_join!(
        send(from_client, up, ends.window_bytes),
        receive(up_arrivals, to_server),
        send(from_server, down, ends.window_bytes),
        receive(down_arrivals, to_client),
    )?;
    Ok(())
}

/// Puts what the sender writes on the line.
async fn send(mut from: OwnedReadHalf, flow: Flow, window_bytes: u32) -> io::Result<()> {
    let window = Arc::new(Semaphore::new(window_bytes as usize));
    loop {
        let share = Arc::clone(&window).acquire_many_owned(READ_BYTES).await;
        let mut share = share.map_err(io::Error::other)?;
        let mut buffer = BytesMut::with_capacity(READ_BYTES as usize);
        let length = (&mut from).take(u64::from(READ_BYTES)).read_buf(&mut buffer).await?;
        if length == 0 {
            flow.finish();
            return Ok(());
        }
        drop(share.split(READ_BYTES as usize - length));
        flow.send(Packet { bytes: buffer.freeze(), share });
    }
}

/// Writes what comes off the line to the receiver.
async fn receive(mut arrivals: mpsc::UnboundedReceiver<Packet>, mut to: OwnedWriteHalf) -> io::Result<()> {
    while let Some(packet) = arrivals.recv().await {
        to.write_all(&packet.bytes).await?;
        drop(packet.share);
    }
    to.shutdown().await
}
