//! Web servers that are hostile, and links that lead where they should not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::evil::{Evil, Stage};
use super::readers::{Reader, Scratch, says};

/// A server for the files below a folder; `answer` may answer in its place, with a head and a body that may never end.
pub(crate) struct Server {
    address: std::net::SocketAddr,
}

pub(crate) type Answer = (String, Box<dyn Iterator<Item = Vec<u8>> + Send>);
/// Of a path, and the range in bytes that is asked for.
type Behave = dyn Fn(&str, Option<Range<usize>>) -> Option<Answer> + Send + Sync;

impl Server {
    /// The listening thread ends with the test's process.
    pub(crate) fn start(
        root: &Path,
        answer: impl Fn(&str, Option<Range<usize>>) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (root, answer): (PathBuf, Arc<Behave>) = (root.to_owned(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (root, answer) = (root.clone(), Arc::clone(&answer));
                std::thread::spawn(move || converse(stream.unwrap(), &root, &*answer));
            }
        });
        Self { address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

/// Answers one request. Who is answered too much leaves, which is no error here.
fn converse(mut stream: TcpStream, root: &Path, answer: &Behave) {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend(&piece[..count]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let (fields, body) = answer(&path, range(&head)).unwrap_or_else(|| match std::fs::read(root.join(&path)) {
        Ok(bytes) => (format!("200 OK\r\nContent-Length: {}", bytes.len()), Box::new(std::iter::once(bytes))),
        Err(_) => ("404 Not Found\r\nContent-Length: 0".to_owned(), Box::new(std::iter::empty())),
    });
    if write!(stream, "HTTP/1.1 {fields}\r\nConnection: close\r\n\r\n").is_ok() {
        let _ = body.map(|bytes| stream.write_all(&bytes)).take_while(Result::is_ok).count();
    }
}

/// The range that a request asks for.
fn range(head: &str) -> Option<Range<usize>> {
    let field =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned))?;
    let (first, last) = field.split_once('-')?;
    Some(first.parse().ok()?..last.trim().parse::<usize>().ok()? + 1)
}

fn nothing(fields: impl Into<String>) -> Option<Answer> {
    Some((fields.into(), Box::new(std::iter::empty())))
}

/// Every program, given the URL of the package on a server, ends with this code and these words.
fn all_end(case: &str, url: &str, code: i32, words: &[&str]) {
    for reader in Reader::ALL {
        let told = Scratch::new().run(reader, url);
        assert_eq!(told.code, Some(code), "{reader:?} of {case}: {}", told.text);
        assert!(says(&told.text, words), "{reader:?} of {case} does not say {words:?}: {}", told.text);
    }
}

#[test]
fn redirections_end_and_stay_on_the_web() {
    let evil = Evil::good();
    for (case, target, words) in [
        ("a loop", "/vm.vmnetx", "too many redirections"),
        ("a file", "file:///etc/passwd", "not followed"),
        ("another protocol", "ftp://example.org/vm.vmnetx", "not followed"),
        ("nowhere", "http://", "redirection to nowhere"),
    ] {
        let server = Server::start(evil.root(), move |_, _| {
            nothing(format!("302 Found\r\nLocation: {target}\r\nContent-Length: 0"))
        });
        all_end(case, &format!("{}vm.vmnetx", server.url()), 5, &[words]);
    }
}

#[test]
fn encoded_bodies_are_refused_by_name() {
    let evil = Evil::good();
    for encoding in ["gzip", "br", "x\t\u{80}"] {
        let server = Server::start(evil.root(), move |_, _| {
            nothing(format!("200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: 0"))
        });
        all_end(encoding, &format!("{}vm.vmnetx", server.url()), 5, &["content encoding"]);
    }
}

#[test]
fn objects_without_end_are_cut_off_at_their_limit() {
    let evil = Evil::good();
    let endless = |of: &'static str| {
        move |path: &str, _| {
            let body = std::iter::repeat(vec![b' '; 64 << 10]);
            path.contains(of).then(|| ("200 OK".to_owned(), Box::new(body) as _))
        }
    };
    for (object, words) in [
        ("vm.vmnetx", "vm.vmnetx is larger than the 1048576 bytes"),
        ("manifests/", "is larger than"),
        ("layouts/", "is larger than"),
    ] {
        let server = Server::start(evil.root(), endless(object));
        all_end(object, &format!("{}vm.vmnetx", server.url()), 4, &[object, words]);
    }
}

#[test]
fn what_a_server_says_of_itself_steers_no_terminal() {
    let evil = Evil::good();
    let server = Server::start(evil.root(), |_, _| nothing("403 \u{202e}owned\r\nContent-Length: 0"));
    all_end("a status", &format!("{}vm.vmnetx", server.url()), 5, &["403 Forbidden"]);
}

#[test]
fn a_link_that_was_handed_on_leads_to_the_package_that_it_names() {
    // What the pointer's server calls `vm` says itself that it is another package.
    let other = Evil::replaced(Stage::Link, "\"name\":\"vm\"", "\"name\":\"other\"");
    let server = Server::start(other.root(), |_, _| None);
    let at = format!("\"serial\":1,\"repositories\":[\"{}\"],", server.url());
    let pointer = Evil::replaced(Stage::Link, "\"serial\":1,", &at);
    // Outside of a repository it is a link that was handed on.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.vmnetx");
    std::fs::copy(pointer.link(), &file).unwrap();
    for reader in [Reader::Info, Reader::Export, Reader::Serve, Reader::Run] {
        let told = Scratch::new().run(reader, file.to_str().unwrap());
        assert_eq!(told.code, Some(4), "{reader:?}: {}", told.text);
        assert!(says(&told.text, &["is the link of other"]), "{reader:?}: {}", told.text);
    }
}

#[test]
fn a_machine_with_more_memory_than_the_host_is_not_run() {
    let evil = Evil::replaced(Stage::Manifest, "\"memory_mib\":64", "\"memory_mib\":4194304");
    let told = Scratch::new().run(Reader::Run, evil.link().to_str().unwrap());
    assert_eq!(told.code, Some(6), "{}", told.text);
    assert!(says(&told.text, &["memory_mib", "4194304 MiB"]), "{}", told.text);
}
