//! The reads of a recorded boot, sent to an NBD server in their order, one at a time, as a guest waits for each.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions};

/// The longest trace file that is read.
const MAX_TRACE_BYTES: u64 = 64 << 20;
/// The most that replies are kept in memory for verification.
const MAX_KEPT_BYTES: u64 = 4 << 30;
/// A server that takes longer for one read is taken for dead.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks for the server's socket.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// One READ request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Where in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What to replay, and where.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The reads in their order.
    pub trace: Vec<Read>,
    /// The server's Unix socket.
    pub socket: PathBuf,
    /// The export; empty for the server's default.
    pub export: String,
    /// A raw image that the replies must be equal to; compared after the last read, outside the time.
    pub verify: Option<PathBuf>,
    /// How long the server may take until its socket accepts.
    pub wait: Duration,
}

/// How a replay went.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Report {
    /// READ requests.
    pub reads: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// From the start, the wait for the server included, to the last reply.
    pub seconds: f64,
    /// The part of it until the connection was negotiated.
    pub connect_seconds: f64,
    /// Median time of a read, in milliseconds.
    pub p50_ms: f64,
    /// Time that 99 % of the reads kept within, in milliseconds.
    pub p99_ms: f64,
}

/// A replay that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace cannot be read.
    #[error("read trace {}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The trace holds something else than reads.
    #[error("trace {}, line {line}: not 'OFFSET LENGTH' in decimal bytes; record it with benches/record-trace", path.display())]
    TraceLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The trace is of no use.
    #[error("trace {} {problem}", path.display())]
    TraceSize {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody listens at the socket.
    #[error("connect to {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The server has no such export, or speaks no NBD.
    #[error("open export '{export}' of {}", socket.display())]
    Open {
        /// The socket.
        socket: PathBuf,
        /// The export asked for.
        export: String,
        /// What the client says.
        source: ClientError,
    },
    /// The trace is of a larger disk.
    #[error("read {number} ends beyond the export's {size_bytes} bytes: the trace is of another disk")]
    Outside {
        /// Which read, counted from 1.
        number: usize,
        /// Size of the export.
        size_bytes: u64,
    },
    /// The server failed a read.
    #[error("read {number} failed")]
    Read {
        /// Which read, counted from 1.
        number: usize,
        /// What the client says.
        source: ClientError,
    },
    /// The server is silent.
    #[error("read {number} had no reply within {} s", READ_DEADLINE.as_secs())]
    Silent {
        /// Which read, counted from 1.
        number: usize,
    },
    /// More replies than memory should hold.
    #[error("the trace reads {bytes} bytes, more than can be kept to be verified: leave --verify out")]
    TooLongToVerify {
        /// What the trace reads.
        bytes: u64,
    },
    /// The image to compare with cannot be read.
    #[error("read image {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The server sent other bytes than the image has.
    #[error("read {number}: byte {offset} of the export differs from {}", path.display())]
    Differs {
        /// Which read, counted from 1.
        number: usize,
        /// The first byte that differs.
        offset: u64,
        /// The image.
        path: PathBuf,
    },
}

/// Reads a trace: a line for each read, its offset and its length in bytes, decimal.
///
/// # Errors
///
/// When the file cannot be read, is too long, is empty, or holds another line.
pub fn load_trace(path: &Path) -> Result<Vec<Read>, Error> {
    let trace_error = |source| Error::Trace { path: path.to_owned(), source };
    let size_error = |problem| Error::TraceSize { path: path.to_owned(), problem };
    if fs::metadata(path).map_err(trace_error)?.len() > MAX_TRACE_BYTES {
        return Err(size_error("is too long for a trace"));
    }
    let text = fs::read_to_string(path).map_err(trace_error)?;
    let parse =
        |(index, line)| parse_line(line).ok_or_else(|| Error::TraceLine { path: path.to_owned(), line: index + 1 });
    let trace: Vec<Read> = text.lines().enumerate().map(parse).collect::<Result<_, _>>()?;
    if trace.is_empty() {
        return Err(size_error("holds no reads"));
    }
    Ok(trace)
}

impl Replay {
    /// Connects, reads, and compares.
    ///
    /// # Errors
    ///
    /// When the server is not there in time, fails a read, or sends other bytes than the image has.
    pub async fn run(&self) -> Result<Report, Error> {
        let bytes = self.trace.iter().map(|read| u64::from(read.length)).sum();
        if self.verify.is_some() && bytes > MAX_KEPT_BYTES {
            return Err(Error::TooLongToVerify { bytes });
        }
        let started = Instant::now();
        let client = self.connect(started).await?;
        let connected = started.elapsed();
        self.check_bounds(client.export().size_bytes)?;
        let mut latencies = Vec::with_capacity(self.trace.len());
        let mut replies = Vec::new();
        for (index, read) in self.trace.iter().enumerate() {
            let number = index + 1;
            let asked = Instant::now();
            let reply = timeout(READ_DEADLINE, client.read(read.offset, read.length)).await;
            latencies.push(asked.elapsed());
            let reply = reply.map_err(|_| Error::Silent { number })?;
            let reply = reply.map_err(|source| Error::Read { number, source })?;
            if self.verify.is_some() {
                replies.push(reply);
            }
        }
        let elapsed = started.elapsed();
        if let Some(image) = &self.verify {
            self.compare(image, &replies)?;
        }
        latencies.sort_unstable();
        Ok(Report {
            reads: self.trace.len(),
            bytes,
            seconds: elapsed.as_secs_f64(),
            connect_seconds: connected.as_secs_f64(),
            p50_ms: percentile_ms(&latencies, 50),
            p99_ms: percentile_ms(&latencies, 99),
        })
    }

    /// The server may be starting at this moment: its socket is waited for.
    async fn connect(&self, started: Instant) -> Result<Client, Error> {
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() < self.wait && may_come(&error) => sleep(CONNECT_PAUSE).await,
                Err(source) => return Err(Error::Connect { socket: self.socket.clone(), source }),
            }
        };
        let mut options = ConnectOptions::new(&self.export);
        options.contexts.clear();
        Client::connect(stream, &options).await.map_err(|source| Error::Open {
            socket: self.socket.clone(),
            export: self.export.clone(),
            source,
        })
    }

    fn check_bounds(&self, size_bytes: u64) -> Result<(), Error> {
        let is_outside =
            |read: &Read| read.offset.checked_add(u64::from(read.length)).is_none_or(|end| end > size_bytes);
        match self.trace.iter().position(is_outside) {
            Some(index) => Err(Error::Outside { number: index + 1, size_bytes }),
            None => Ok(()),
        }
    }

    fn compare(&self, image: &Path, replies: &[Vec<u8>]) -> Result<(), Error> {
        let image_error = |source| Error::Image { path: image.to_owned(), source };
        let file = File::open(image).map_err(image_error)?;
        for (index, (read, reply)) in self.trace.iter().zip(replies).enumerate() {
            let mut expected = vec![0; reply.len()];
            file.read_exact_at(&mut expected, read.offset).map_err(image_error)?;
            if let Some(at) = expected.iter().zip(reply).position(|(left, right)| left != right) {
                let offset = read.offset + at as u64;
                return Err(Error::Differs { number: index + 1, offset, path: image.to_owned() });
            }
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Option<Read> {
    let (offset, length) = line.split_once(' ')?;
    Some(Read { offset: offset.parse().ok()?, length: length.parse().ok()? })
}

fn may_come(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The smallest of the sorted times that `percent` of them do not exceed.
fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    const MIB: usize = 1 << 20;

    /// A folder with an image that nbdkit serves.
    struct Fixture {
        folder: tempfile::TempDir,
        server: Child,
    }

    impl Fixture {
        fn start() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let bytes: Vec<u8> = (0..MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
            fs::write(folder.path().join("disk"), bytes).expect("write");
            let server = Command::new("nbdkit")
                .args(["-f", "-r", "-U"])
                .arg(folder.path().join("socket"))
                .arg("file")
                .arg(folder.path().join("disk"))
                .spawn()
                .expect("nbdkit is installed: run tests/setup");
            Self { folder, server }
        }

        fn replay(&self, trace: &[(u64, u32)]) -> Replay {
            Replay {
                trace: trace.iter().map(|(offset, length)| Read { offset: *offset, length: *length }).collect(),
                socket: self.folder.path().join("socket"),
                export: String::new(),
                verify: Some(self.folder.path().join("disk")),
                wait: Duration::from_secs(20),
            }
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }

    #[tokio::test]
    async fn every_read_is_sent_and_compared() {
        let fixture = Fixture::start();
        let replay = fixture.replay(&[(0, 512), (MIB as u64 - 4096, 4096), (0, 512), (65_536, 300_000)]);
        let report = replay.run().await.expect("replay");
        assert_eq!((report.reads, report.bytes), (4, 512 + 4096 + 512 + 300_000));
        assert!(report.p50_ms > 0.0 && report.p50_ms <= report.p99_ms && report.p99_ms / 1000.0 < report.seconds);
    }

    #[tokio::test]
    async fn other_bytes_are_found() {
        let fixture = Fixture::start();
        let other = fixture.folder.path().join("other");
        let mut bytes = fs::read(fixture.folder.path().join("disk")).expect("read");
        bytes[70_001] ^= 1;
        fs::write(&other, bytes).expect("write");
        let replay = Replay { verify: Some(other), ..fixture.replay(&[(0, 65_536), (65_536, 8192)]) };
        let error = replay.run().await.expect_err("a difference");
        assert!(matches!(error, Error::Differs { number: 2, offset: 70_001, .. }), "{error}");
    }

    #[tokio::test]
    async fn the_trace_of_a_larger_disk_is_refused() {
        let fixture = Fixture::start();
        for read in [(MIB as u64 - 511, 512), (u64::MAX, 512)] {
            let error = fixture.replay(&[(0, 512), read]).run().await.expect_err("outside");
            assert!(matches!(error, Error::Outside { number: 2, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_never_comes_is_not_waited_for_too_long() {
        let fixture = Fixture::start();
        let socket = fixture.folder.path().join("nobody");
        let replay = Replay { socket, wait: Duration::from_millis(30), ..fixture.replay(&[(0, 512)]) };
        let error = replay.run().await.expect_err("no server");
        assert!(matches!(error, Error::Connect { .. }), "{error}");
    }

    #[test]
    fn a_trace_is_pairs_of_numbers() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("trace");
        fs::write(&path, "0 512\n2147418112 4096\n").expect("write");
        let reads = [Read { offset: 0, length: 512 }, Read { offset: 2_147_418_112, length: 4096 }];
        assert_eq!(load_trace(&path).expect("trace"), reads);
        for bad in ["", "0 512\n\n", "0\n", "0x0 512\n", "0 4294967296\n", "0 512 7\n"] {
            fs::write(&path, bad).expect("write");
            assert!(load_trace(&path).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!((percentile_ms(&times, 50), percentile_ms(&times, 99)), (100.0, 198.0));
        assert_eq!(percentile_ms(&times[..1], 99), 1.0);
    }
}
