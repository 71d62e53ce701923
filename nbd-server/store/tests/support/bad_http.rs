//! A web server over a raw socket that serves a folder and, where it is told to, misbehaves.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vmnetx_store::Location;

/// A request as the server understood it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The path without its leading slash.
    pub(crate) path: String,
    /// The range that was asked for.
    pub(crate) range: Option<Range<u64>>,
    /// Its Authorization.
    pub(crate) authorization: Option<String>,
    /// How many requests for this path came before.
    pub(crate) before: usize,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// As a good server does.
    Good,
    /// As a good server does, but not before the value is true.
    When(watch::Receiver<bool>),
    /// With this status and an empty body.
    Status(u16),
    /// Goodly up to so many bytes of the whole response; then the connection is reset.
    Reset(usize),
    /// Goodly up to so many bytes of the whole response; then the connection is closed.
    Cut(usize),
    /// Goodly up to so many bytes of the whole response; then nothing more ever comes.
    Stall(usize),
    /// Goodly up to so many bytes of the whole response; then byte by byte with this pause before each.
    Drip(usize, Duration),
    /// With the byte at this position of the body (modulo its length) changed.
    Damaged(usize),
    /// With 200 and the whole object, although a range was asked for.
    Whole,
    /// With 206 and the range so many bytes further on, honestly labelled.
    OtherRange(u64),
    /// With the range that was asked for under this label.
    Labelled(&'static str),
    /// With so many bytes more than were asked for, and a length to match.
    More(usize),
    /// With a Content-Length that is wrong by so much; then the connection is closed.
    WrongLength(i64),
    /// With a redirection.
    Redirect(String),
    /// Goodly, but with so many bytes of header fields before the body.
    Headers(usize),
    /// With these bytes for the range that was asked for, of an object that has so many.
    Part(Vec<u8>, u64),
    /// With these bytes; then the connection is closed.
    Raw(Vec<u8>),
}

/// The server; it ends with this value.
#[derive(Debug)]
pub(crate) struct BadServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

type Behave = dyn Fn(&Asked) -> Answer + Send + Sync;

struct Site {
    root: PathBuf,
    behave: Box<Behave>,
    late: Duration,
    seen: Mutex<HashMap<String, usize>>,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl BadServer {
    /// Serves the files below `root`; `behave` says how each request is answered.
    pub(crate) async fn start(root: &Path, behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), root, behave).await
    }

    /// The same, each answer so much later.
    pub(crate) async fn start_late(
        root: &Path,
        late: Duration,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), root, late, behave).await
    }

    /// The same at an address, for instance that of a server which has ended.
    pub(crate) async fn start_at(
        address: SocketAddr,
        root: &Path,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen(address, root, Duration::ZERO, behave).await
    }

    async fn listen(
        address: SocketAddr,
        root: &Path,
        late: Duration,
        behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::<Mutex<Vec<Asked>>>::default();
        let (root, behave) = (root.to_owned(), Box::new(behave));
        let site = Site { root, behave, late, seen: Mutex::default(), log: Arc::clone(&log) };
        let site = Arc::new(site);
        let task = tokio::spawn(async move {
            // Connections end with the listener's task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let site = Arc::clone(&site);
                connections.spawn(async move {
                    let _ = site.converse(stream).await;
                });
            }
        });
        Self { address, log, task }
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the served folder.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The link `vm.vmnetx` in the served folder.
    pub(crate) fn location(&self) -> Location {
        format!("{}{}.vmnetx", self.url(), super::repository::NAME).parse().unwrap()
    }

    /// Every request so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// Requests for ranges so far.
    pub(crate) fn ranges(&self) -> usize {
        self.log().iter().filter(|asked| asked.range.is_some()).count()
    }
}

impl Drop for BadServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = Vec::new();
        loop {
            let head = loop {
                if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                    let rest = input.split_off(end + 4);
                    break String::from_utf8_lossy(&std::mem::replace(&mut input, rest)).into_owned();
                }
                if stream.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
            };
            let asked = self.note(&head);
            let answer = (self.behave)(&asked);
            if !self.late.is_zero() {
                tokio::time::sleep(self.late).await;
            }
            if !self.answer(&mut stream, &asked, answer).await? {
                return Ok(());
            }
        }
    }

    fn note(&self, head: &str) -> Asked {
        let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let range = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let bounds = name.eq_ignore_ascii_case("range").then_some(value)?.strip_prefix("bytes=")?;
            let (first, last) = bounds.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
        });
        let authorization = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
        });
        let mut seen = self.seen.lock().unwrap();
        let before = seen.entry(path.clone()).or_default();
        let asked = Asked { path, range, authorization, before: *before };
        *before += 1;
        self.log.lock().unwrap().push(asked.clone());
        asked
    }

    /// Answers; says whether the connection goes on.
    async fn answer(&self, stream: &mut TcpStream, asked: &Asked, answer: Answer) -> std::io::Result<bool> {
        let good = |asked: &Asked| self.good(asked, 0).join();
        match answer {
            Answer::Good => stream.write_all(&good(asked)).await?,
            Answer::When(mut open) => {
                // An error says that the test is over.
                let _ = open.wait_for(|open| *open).await;
                stream.write_all(&good(asked)).await?;
            }
            Answer::Status(status) => {
                stream.write_all(&Response::new(status, Vec::new()).join()).await?;
            }
            Answer::Reset(after) => {
                let bytes = good(asked);
                stream.write_all(&bytes[..after.min(bytes.len())]).await?;
                stream.set_zero_linger()?;
                return Ok(false);
            }
            Answer::Cut(after) => {
                let bytes = good(asked);
                stream.write_all(&bytes[..after.min(bytes.len())]).await?;
                return Ok(false);
            }
            Answer::Stall(after) => {
                let bytes = good(asked);
                stream.write_all(&bytes[..after.min(bytes.len())]).await?;
                // Until the client leaves.
                while stream.read(&mut [0; 64]).await? > 0 {}
                return Ok(false);
            }
            Answer::Drip(after, pause) => {
                let bytes = good(asked);
                let (flow, drops) = bytes.split_at(after.min(bytes.len()));
                stream.write_all(flow).await?;
                for drop in drops {
                    tokio::time::sleep(pause).await;
                    stream.write_all(&[*drop]).await?;
                }
            }
            Answer::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return Ok(false);
            }
            Answer::WrongLength(by) => {
                let mut response = self.good(asked, 0);
                response.length = response.length.saturating_add_signed(by);
                stream.write_all(&response.join()).await?;
                return Ok(false);
            }
            other => stream.write_all(&self.wrong(asked, other).join()).await?,
        }
        Ok(true)
    }

    /// The answers that are whole responses, but not the right ones.
    fn wrong(&self, asked: &Asked, answer: Answer) -> Response {
        let mut response = self.good(asked, 0);
        match answer {
            Answer::Damaged(at) if !response.body.is_empty() => {
                let at = at % response.body.len();
                response.body[at] ^= 0x55;
            }
            Answer::Whole => return self.good(&Asked { range: None, ..asked.clone() }, 0),
            Answer::OtherRange(by) => {
                let range = asked.range.clone().map(|range| range.start + by..range.end + by);
                return self.good(&Asked { range, ..asked.clone() }, 0);
            }
            Answer::Labelled(label) => {
                response.fields.retain(|(name, _)| name != "Content-Range");
                response.fields.push(("Content-Range".into(), label.into()));
            }
            Answer::More(bytes) => return self.good(asked, bytes),
            Answer::Part(bytes, total) => {
                return Response::part(bytes, asked.range.as_ref().map_or(0, |r| r.start), total);
            }
            Answer::Redirect(target) => {
                response = Response::new(302, Vec::new());
                response.fields.push(("Location".into(), target));
            }
            Answer::Headers(bytes) => response.fields.push(("X-Padding".into(), "x".repeat(bytes))),
            _ => {}
        }
        response
    }

    /// The right response, with `more` bytes too many.
    fn good(&self, asked: &Asked, more: usize) -> Response {
        let Ok(object) = std::fs::read(self.root.join(&asked.path)) else { return Response::new(404, Vec::new()) };
        let Some(range) = &asked.range else { return Response::new(200, object) };
        let total = object.len() as u64;
        if range.start >= total {
            return Response::new(416, Vec::new());
        }
        let end = range.end.min(total);
        let mut response = Response::part(object[range.start as usize..end as usize].to_vec(), range.start, total);
        response.body.extend(vec![0xee; more]);
        response.length += more as u64;
        response
    }
}

struct Response {
    status: u16,
    fields: Vec<(String, String)>,
    length: u64,
    body: Vec<u8>,
}

impl Response {
    fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, fields: Vec::new(), length: body.len() as u64, body }
    }

    /// A part of an object of `total` bytes that begins at `start`.
    fn part(body: Vec<u8>, start: u64, total: u64) -> Self {
        let label = format!("bytes {start}-{}/{total}", start + body.len() as u64 - 1);
        let mut response = Self::new(206, body);
        response.fields.push(("Content-Range".into(), label));
        response
    }

    fn join(self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Whatever\r\nContent-Length: {}\r\n", self.status, self.length);
        for (name, value) in self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        [head.into_bytes(), self.body].concat()
    }
}
