//! The control socket while the server runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use vmnetx_nbd::control::api::{API_VERSION, AttachRequest};
use vmnetx_nbd::control::{Control, openapi, serve_metrics};
use vmnetx_nbd::limits::{CONTROL_REQUEST_BYTES_MAX, CONTROL_REQUEST_TIMEOUT};
use vmnetx_nbd::{Error, HostOptions};
use vmnetx_store::failure::{Class, Told};

use crate::hosted::{Hosted, client, id};
use crate::raw::number::*;
use crate::support::bad_http::Answer;
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise};
use crate::within;

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn counts_can_be_asked_for_at_any_time() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let attached = hosted.attach("vm").await;
    let before = within(20, hosted.control.attachment(&attached.id)).await.unwrap();
    assert_eq!((&before.package[..], &before.version), ("vm", &hosted.repository.version.manifest.to_string()));
    let [export] = &before.exports[..] else { panic!("one export") };
    assert_eq!((&export.name[..], export.size_bytes), ("disk0", hosted.source.size_bytes()));
    assert_eq!((export.connections, export.requests), (0, 0));
    assert!(before.origin_bytes > 0, "link, manifest and layout count");

    let size = hosted.source.size_bytes() as u32;
    let mut client = client(&attached).await;
    for cookie in 0..3 {
        client.read(cookie, 0, size).await;
        client.reply().await.expect_data(&hosted.source, 0, size);
    }
    client.expect_error((0, TRIM, 0, 1), EPERM).await;
    let after = within(20, hosted.control.attachment(&attached.id)).await.unwrap();
    let [export] = &after.exports[..] else { panic!("one export") };
    assert_eq!(
        (export.connections, export.requests, export.inline_reads, export.refused, export.failed),
        (1, 4, 2, 1, 0)
    );
    assert_eq!((after.holders, export.counts.read_bytes), (1, 3 * u64::from(size)));
    assert_eq!(export.counts.origin_chunks as usize, hosted.repository.chunks.len());
    let stored: u64 = hosted.repository.packs().iter().map(|pack| pack.metadata().unwrap().len()).sum();
    assert!(after.origin_bytes > stored / 2 && after.origin_bytes <= stored + before.origin_bytes, "{after:?}");
    let plain: u64 = hosted.repository.chunks.iter().map(|frame| u64::from(frame.wanted.plain_len)).sum();
    let stats = within(20, hosted.control.stats()).await.unwrap();
    assert!(stats.memory_bytes >= plain, "{} of {plain}", stats.memory_bytes);
    assert_eq!(stats.attachments, [after]);
}

/// Sends bytes and takes whatever comes back until the server closes or the patience is over.
async fn ask_raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asks as curl would; gives status and body.
async fn ask(path: &Path, method: &str, target: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(30, stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
async fn other_questions_are_refused_and_do_no_harm() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let path = hosted.control.socket();
    let status = async |method, target, body| ask(path, method, target, body).await.0;
    assert_eq!(status("GET", "/v9/stats", "").await, 404);
    assert_eq!(status("PUT", "/v1/stats", "").await, 405);
    assert_eq!(status("GET", "/v1/attachments/none", "").await, 404);
    for target in ["/v1/attachments/a.b", "/v1/attachments/..%2fx", "/v1/attachments/%00"] {
        assert_eq!(status("GET", target, "").await, 400, "{target}");
    }
    let put = async |body| status("PUT", "/v1/attachments/a", body).await;
    for body in ["", "{}", "[]", r#"{"link":7}"#, r#"{"link":"http://h/a.vmnetx","x":1}"#, "\u{0}"] {
        assert_eq!(put(body).await, 400, "{body}");
    }
    let many = json!({ "link": "http://h/a.vmnetx", "exports": vec!["x"; 65] }).to_string();
    assert_eq!(put(&many).await, 400);
    let long = format!(r#"{{"link":"{}"}}"#, "x".repeat(CONTROL_REQUEST_BYTES_MAX));
    assert_eq!(put(&long).await, 400);
    ask_raw(path, &[0; 1000]).await;
    ask_raw(path, b"IHAVEOPT").await;
    let head = [b"GET /version HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may close before it has all.
    let _ = stream.write_all(&head).await;
    within(20, hosted.control.stats()).await.unwrap();
}

/// Whoever asks the wrong socket, or nobody, is told so.
#[tokio::test]
async fn answers_that_are_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let control = Control::new(&path);
    let error = within(20, control.stats()).await.unwrap_err();
    assert!(matches!(error, Error::NoServer { .. }) && error.hint().is_some(), "{error}");
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
        let expect_told = async {
            let error = within(20, control.stats()).await.unwrap_err();
            assert!(matches!(error, Error::Control { .. }) && error.class() == Class::Failure, "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        };
        tokio::join!(serve, expect_told);
    }
}

/// What stays the same in all versions may say more in later ones.
#[tokio::test]
async fn the_versions_of_a_newer_server_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::new(dir.path().join("socket"));
    let listener = UnixListener::bind(control.socket()).unwrap();
    let newer = json!({ "api": [7, 8], "program": "9.1", "pid": 5, "draining": false, "colour": "blue" }).to_string();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1000];
        let length = stream.read(&mut request).await.unwrap();
        assert!(request[..length].starts_with(b"GET /version "));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{newer}", newer.len());
        stream.write_all(head.as_bytes()).await.unwrap();
    };
    let (versions, ()) = within(20, async { tokio::join!(control.versions(), serve) }).await;
    assert_eq!(versions.unwrap().api, [7, 8]);
}

/// Clients of the control socket that hang do not keep the server from stopping.
#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_cannot_prevent_a_stop() {
    let mut hosted = Hosted::new(mixed(), LONG).await;
    let path = hosted.control.socket().to_owned();
    let mut held = Vec::new();
    for bytes in [&b""[..], b"GET /v1", b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        held.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    hosted.shutdown.cancel();
    within(30, &mut hosted.serving).await.unwrap();
    assert!(!path.exists());
}

/// Who asks slowly is not waited for.
#[tokio::test(start_paused = true)]
async fn slow_requests_are_given_up() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let starts = [
        &b""[..],
        b"GET /v1/stats HTTP/1.1\r\nHo",
        b"PUT /v1/attachments/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ];
    for bytes in starts {
        let mut stream = UnixStream::connect(hosted.control.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        within(CONTROL_REQUEST_TIMEOUT.as_secs() * 3, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.contains(" 400 ") || answer.contains(" 408 "), "{answer}");
    }
    hosted.control.stats().await.unwrap();
}

/// A checker of answers against the description, by the name of their type.
struct Description(Value);

impl Description {
    fn expect(&self, schema: &Value, answer: &Value, what: &str) {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{what}: {errors:?}\n{answer:#}");
    }

    /// What is described for an answer.
    fn answer(&self, path: &str, method: &str, status: u16) -> &Value {
        let answer = &self.0["paths"][path][method]["responses"][status.to_string()]["content"];
        let (_, content) =
            answer.as_object().unwrap_or_else(|| panic!("{method} {path}: {status}")).iter().next().unwrap();
        &content["schema"]
    }
}

#[tokio::test]
async fn answers_are_as_they_are_described() {
    let (disk, map) = (mixed(), "/v1/attachments/{id}/map");
    let repository = Repository::with_memory(&disk, &Source::of(noise(1, 1 << 20)));
    let hosted = Hosted::serving(disk, repository, Some(64 << 20), HostOptions::default(), |_| Answer::Good).await;
    let socket = hosted.control.socket();
    let (status, text) = ask(socket, "GET", "/v1/openapi.json", "").await;
    let description = Description(serde_json::from_str(&text).unwrap());
    assert_eq!((status, &description.0), (200, &serde_json::to_value(openapi()).unwrap()));
    let wanted = AttachRequest { record: true, memory: true, ..hosted.request() };
    let request = serde_json::to_value(&wanted).unwrap();
    let described = &description.0["paths"]["/v1/attachments/{id}"]["put"]["requestBody"]["content"];
    description.expect(&described["application/json"]["schema"], &request, "the request");
    let (wanted, one) = (request.to_string(), "/v1/attachments/{id}");
    let asked = [
        ("get", "/version", "", 200),
        ("get", "/v1/stats", "", 200),
        ("put", one, "{}", 400),
        ("get", one, "", 404),
        ("put", one, &wanted, 200),
        ("put", one, &json!({ "link": hosted.link() + "?x" }).to_string(), 409),
        ("get", one, "", 200),
        ("get", "/v1/attachments", "", 200),
        ("get", "/v1/attachments/{id}/record", "", 200),
        ("get", "/v1/attachments/{id}/order", "", 200),
        ("post", map, "{}", 409),
        ("post", map, r#"{"brnig":true}"#, 400),
        ("post", "/v1/attachments/{id}/pull", "", 200),
        ("post", map, "{}", 200),
        ("get", "/v1/cache", "", 200),
        ("post", "/v1/cache/verify", "", 200),
        ("post", "/v1/cache/prune", "{}", 400),
        ("post", "/v1/cache/prune", r#"{"to_bytes":0}"#, 200),
        ("post", "/v1/cache/unpin", r#"{"which":"nothing"}"#, 400),
        ("post", "/v1/cache/unpin", r#"{"which":"vm"}"#, 200),
        ("delete", one, "", 200),
        ("post", map, "{}", 404),
        ("post", "/v1/attachments/{id}/pull", "", 404),
        ("get", "/v1/attachments/{id}/record", "", 404),
        ("get", "/v1/attachments/{id}/order", "", 404),
        ("get", "/v1/openapi.json", "", 200),
        ("post", "/drain", "", 202),
        ("put", one, &wanted, 503),
    ];
    let mut seen = BTreeSet::from([("/metrics".to_owned(), "get".to_owned())]);
    for (method, path, body, expected) in asked {
        let (status, answer) = ask(socket, &method.to_uppercase(), &path.replace("{id}", "vm"), body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        // Answers that go on have several lines, and come in pieces of which each has its length on a line of its own.
        let objects = answer.lines().filter(|line| line.starts_with(['{', '[']));
        let mut described = 0;
        for object in objects {
            let object = serde_json::from_str(object).unwrap();
            description.expect(description.answer(path, method, status), &object, &format!("{method} {path}"));
            described += 1;
        }
        assert!(described > 0, "{method} {path}: {answer}");
        seen.insert((path.to_owned(), method.to_owned()));
    }
    // A lease's lines are asked for elsewhere.
    seen.insert(("/v1/attachments/{id}/hold".to_owned(), "get".to_owned()));
    let paths = description.0["paths"].as_object().unwrap().iter();
    let all = paths
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone())));
    assert_eq!(all.collect::<BTreeSet<_>>(), seen, "every route is asked");
    // Nothing has fields that are not described, but for what all versions answer.
    for (name, schema) in description.0["components"]["schemas"].as_object().unwrap() {
        if schema["type"] == "object" && name != "Versions" {
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
    }
}

#[tokio::test]
async fn every_version_answers_to_the_same_first_question() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let versions = hosted.control.versions().await.unwrap();
    assert_eq!((&versions.api[..], versions.pid, versions.draining), (&[API_VERSION][..], std::process::id(), false));
}

/// The names of metrics in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = text.split(|character| !is_name(character)).filter(|word| word.starts_with("vmnetx_"));
    words.map(str::to_owned).collect()
}

fn repository_file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn metrics_are_what_the_documents_say() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let attached = hosted.attach("vm").await;
    let mut nbd = client(&attached).await;
    nbd.read(1, 0, 70_000).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 70_000);
    let (status, text) = ask(hosted.control.socket(), "GET", "/metrics", "").await;
    assert_eq!(status, 200);
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in\n{text}")).parse().unwrap()
    };
    assert_eq!((value("vmnetx_read_bytes_total"), value("vmnetx_nbd_requests_total")), (70_000.0, 1.0));
    assert_eq!((value("vmnetx_attachments"), value("vmnetx_holders")), (1.0, 1.0));
    let origin = value("vmnetx_origin_bytes_total");
    assert!(origin > 0.0);
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
    let names: BTreeSet<String> = samples.map(str::to_owned).collect();
    assert_eq!(metric_names(&repository_file("docs/operations.md")), names);
    let dashboard = metric_names(&repository_file("docs/grafana-dashboard.json"));
    assert!(!dashboard.is_empty() && dashboard.is_subset(&names), "{:?}", dashboard.difference(&names));
    // What has gone still counts.
    drop(nbd);
    hosted.control.detach(&id("vm")).await.unwrap();
    let (_, after) = ask(hosted.control.socket(), "GET", "/metrics", "").await;
    assert!(after.contains("vmnetx_read_bytes_total 70000\n") && after.contains("vmnetx_attachments 0\n"), "{after}");
}

#[tokio::test]
async fn metrics_on_tcp_are_nothing_but_metrics() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve_metrics(listener, hosted.host.clone(), shutdown.clone()));
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(20, stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    assert!(get("/metrics").await.contains("vmnetx_attachments 0\n"));
    for path in ["/version", "/v1/stats", "/v1/attachments"] {
        assert!(get(path).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
    shutdown.cancel();
    within(20, serving).await.unwrap();
}
