//! Attachments: who gets them, what keeps them, what ends them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;
use vmnetx_format::{Digest, PublicKey, SecretKey};
use vmnetx_nbd::Error;
use vmnetx_nbd::control::api::AttachRequest;
use vmnetx_nbd::limits::{ATTACH_GRACE, ATTACHMENTS_PER_UID_MAX};
use vmnetx_store::failure::Class;

use crate::hosted::{Hosted, as_nobody, ask_as_nobody, client, exists, id};
use crate::raw::Raw;
use crate::support::bad_http::Answer;
use crate::support::source::{Source, mixed, noise};
use crate::within;

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(300);

fn refusal(error: Error) -> (Class, String) {
    match error {
        Error::Refused(problem) => (problem.class, problem.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_attachment_has_a_socket_of_its_own() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let (one, other) = (hosted.attach("one").await, hosted.attach("other").await);
    assert_ne!(one.socket, other.socket);
    assert_eq!((one.name.as_str(), one.version), ("vm", hosted.repository.version.manifest));
    assert_eq!((&one.exports[0].name[..], one.exports[0].size_bytes), ("disk0", hosted.source.size_bytes()));
    assert_eq!(Digest::of(one.manifest.get().as_bytes()), one.version);
    let metadata = std::fs::metadata(&one.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o077, 0);
    for attached in [&one, &other] {
        let mut client = client(attached).await;
        client.read(1, 0, 70_000).await;
        client.reply().await.expect_data(&hosted.source, 0, 70_000);
    }
    let stats = within(20, hosted.control.detach(&id("one"))).await.unwrap();
    assert_eq!((stats.exports[0].connections, stats.exports[0].counts.read_bytes), (1, 70_000));
    assert!(!exists(&one.socket) && exists(&other.socket));
    assert_eq!(hosted.ids().await, ["other"]);
    // What the first has fetched, the second one found.
    let stats = within(20, hosted.control.attachment(&id("other"))).await.unwrap();
    assert_eq!((stats.exports[0].counts.read_bytes, stats.exports[0].counts.origin_chunks), (70_000, 0));
}

#[tokio::test]
async fn attaching_is_idempotent_by_the_clients_id() {
    let hosted = Hosted::new(mixed(), LONG).await;
    // At once and one after the other.
    let (first, second) = tokio::join!(hosted.attach("vm1"), hosted.attach("vm1"));
    let links = hosted.origin.log().iter().filter(|asked| asked.path.ends_with(".vmnetx")).count();
    assert_eq!(links, 1, "one opening for both");
    let third = hosted.attach("vm1").await;
    assert!(first.socket == second.socket && second.socket == third.socket);
    assert_eq!(hosted.ids().await, ["vm1"]);
    // The version that is attached may be asked for, as after a server's death; another one may not.
    let pinned = |version| AttachRequest { version: Some(version), ..hosted.request() };
    let again = hosted.control.attach(&id("vm1"), &pinned(first.version)).await.unwrap();
    assert_eq!(again.socket, first.socket);
    let others = [
        pinned(Digest::of(b"another")),
        AttachRequest { record: true, ..hosted.request() },
        AttachRequest { exports: vec!["disk0".into()], ..hosted.request() },
        AttachRequest::new(hosted.link() + "?x"),
    ];
    for request in others {
        let (class, message) = refusal(hosted.control.attach(&id("vm1"), &request).await.unwrap_err());
        assert!(class == Class::Usage && message.contains("taken"), "{message}");
    }
}

#[tokio::test]
async fn what_cannot_be_attached_is_told_and_leaves_nothing() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let refused = async |request: AttachRequest| refusal(hosted.control.attach(&id("x"), &request).await.unwrap_err());
    let (class, message) = refused(AttachRequest { exports: vec!["disk7".into()], ..hosted.request() }).await;
    assert!(class == Class::Usage && message.contains("it has disk0"), "{message}");
    let (class, message) = refused(AttachRequest::new("ftp://h/a.vmnetx")).await;
    assert!(class == Class::Usage && message.contains("ftp"), "{message}");
    let (class, message) = refused(AttachRequest::new("relative/vm.vmnetx")).await;
    assert!(class == Class::Usage && message.contains("absolute"), "{message}");
    let (class, _) = refused(AttachRequest::new(hosted.link().replace("vm.vmnetx", "none.vmnetx"))).await;
    assert_eq!(class, Class::Network);
    let unused = AttachRequest { retry_for_s: Some(0), ..AttachRequest::new("http://127.0.0.1:1/vm.vmnetx") };
    assert_eq!(refused(unused).await.0, Class::Network);
    assert_eq!(hosted.ids().await, [""; 0]);
    // The id is free.
    hosted.attach("x").await;
}

/// A client whose request hangs at the origin goes away: its claim to the id goes, too.
#[tokio::test]
async fn a_client_that_leaves_while_it_attaches_leaves_nothing() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let behave = move |_: &_| Answer::When(gate.clone());
    let hosted = Hosted::with_origin(mixed(), LONG, behave).await;
    let request = hosted.request();
    let vm = id("vm");
    let attaching = hosted.control.attach(&vm, &request);
    assert!(tokio::time::timeout(SHORT, attaching).await.is_err());
    let unused = within(20, hosted.host.until_unused(Some(Duration::ZERO)));
    unused.await;
    drop(open);
}

#[tokio::test]
async fn a_lease_or_a_connection_keeps_it_and_a_crash_releases_it() {
    let hosted = Hosted::new(mixed(), SHORT).await;
    let attached = hosted.attach("vm").await;
    let lease = hosted.control.hold(&attached.id).await.unwrap();
    tokio::time::sleep(SHORT * 4).await;
    assert_eq!(hosted.ids().await, ["vm"], "the lease keeps it");
    let mut nbd = client(&attached).await;
    drop(lease);
    tokio::time::sleep(SHORT * 4).await;
    assert_eq!(hosted.ids().await, ["vm"], "the connection keeps it");
    nbd.read(1, 0, 100).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 100);
    drop(nbd);
    hosted.until_empty().await;
    assert!(!exists(&attached.socket));
    assert!(matches!(hosted.control.hold(&attached.id).await, Err(Error::Refused(_))));
}

/// QEMU comes back within its reconnect-delay; the grace period is no shorter.
#[tokio::test(start_paused = true)]
async fn whoever_comes_back_within_the_grace_period_finds_it() {
    let hosted = Hosted::new(mixed(), ATTACH_GRACE).await;
    let attached = hosted.attach("vm").await;
    for _ in 0..3 {
        tokio::time::sleep(ATTACH_GRACE.mul_f64(0.8)).await;
        drop(UnixStream::connect(&attached.socket).await.expect("it is still there"));
        // The server takes note of the connection and of its end.
        for _ in 0..100 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokio::time::sleep(ATTACH_GRACE.mul_f64(1.2)).await;
    hosted.until_empty().await;
}

#[tokio::test]
async fn a_lease_ends_with_its_attachment_and_with_its_server() {
    let hosted = Hosted::new(mixed(), LONG).await;
    for name in ["one", "two"] {
        hosted.attach(name).await;
    }
    let (one, two) = (hosted.control.hold(&id("one")).await.unwrap(), hosted.control.hold(&id("two")).await.unwrap());
    hosted.control.detach(&id("one")).await.unwrap();
    within(20, one.ended()).await;
    let ending = async {
        hosted.host.end().await;
        hosted.shutdown.cancel();
    };
    within(20, async { tokio::join!(two.ended(), ending) }).await;
    assert_eq!(std::fs::read_dir(hosted.dir.path().join("control.d")).unwrap().count(), 0, "no socket is left");
}

#[tokio::test]
async fn a_drained_server_takes_nothing_new_and_ends_with_the_last_one() {
    let hosted = Hosted::new(mixed(), LONG).await;
    hosted.attach("old").await;
    assert!(!hosted.control.versions().await.unwrap().draining);
    assert!(hosted.control.drain().await.unwrap().draining);
    assert!(hosted.control.versions().await.unwrap().draining);
    let (class, message) = refusal(hosted.control.attach(&id("new"), &hosted.request()).await.unwrap_err());
    assert!(class == Class::Failure && message.contains("no more attachments"), "{message}");
    // Who is there already may come again.
    hosted.attach("old").await;
    let unused = hosted.host.until_unused(None);
    let mut unused = std::pin::pin!(unused);
    assert!(tokio::time::timeout(SHORT, &mut unused).await.is_err());
    hosted.control.detach(&id("old")).await.unwrap();
    within(20, unused).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_server_ends_when_nothing_was_attached_for_long_enough() {
    let hosted = Hosted::new(mixed(), ATTACH_GRACE).await;
    let idle = Duration::from_secs(30);
    let host = hosted.host.clone();
    let unused = tokio::spawn(async move { host.until_unused(Some(idle)).await });
    let attached = hosted.attach("vm").await;
    let _nbd = client(&attached).await;
    tokio::time::sleep(idle * 10).await;
    assert!(!unused.is_finished());
    hosted.control.detach(&id("vm")).await.unwrap();
    let start = tokio::time::Instant::now();
    unused.await.unwrap();
    assert!(start.elapsed() >= idle - Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(hosted.control.attach(&id("late"), &hosted.request()).await.is_err());
}

/// Each chunk crosses once, though 64 attachments ask for all of them at once.
#[tokio::test]
async fn what_many_read_is_fetched_once() {
    let hosted = Hosted::new(Source::of(noise(3, 3_000_000)), LONG).await;
    let size = hosted.source.size_bytes() as u32;
    let readers = (0..64).map(|number| {
        let attaching = hosted.attach(Box::leak(format!("vm{number}").into_boxed_str()));
        async {
            let attached = attaching.await;
            let mut client = client(&attached).await;
            client.read(1, 0, size).await;
            client.reply().await.expect_data(&hosted.source, 0, size);
        }
    });
    within(120, futures_util::future::join_all(readers)).await;
    let stats = hosted.control.stats().await.unwrap();
    assert_eq!(stats.attachments.len(), 64);
    let fetched: u64 = stats.attachments.iter().map(|one| one.exports[0].counts.origin_chunks).sum();
    assert_eq!(fetched as usize, hosted.repository.chunks.len());
}

#[tokio::test]
async fn another_user_gets_attachments_of_its_own_and_no_others() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let control = hosted.control.socket();
    let ours = hosted.attach("ours").await;
    let ask = async |method: &str, path: &str, body: &str| ask_as_nobody(control, method, path, body).await;
    // The control socket is its owner's alone, until somebody opens it.
    assert_eq!(std::fs::metadata(control).unwrap().mode() & 0o077, 0);
    std::fs::set_permissions(control, PermissionsExt::from_mode(0o666)).unwrap();

    let wanted = json!({ "link": hosted.link() }).to_string();
    for method in ["GET", "DELETE"] {
        assert_eq!(ask(method, "/v1/attachments/ours", "").await.0, 403);
    }
    assert_eq!(ask("GET", "/v1/attachments/ours/hold", "").await.0, 403);
    assert_eq!(ask("PUT", "/v1/attachments/ours", &wanted).await.0, 403);
    assert_eq!(ask("POST", "/drain", "").await.0, 403);
    assert_eq!(ask("GET", "/v1/attachments", "").await, (200, json!([])));
    // The server would read with its own rights.
    let path = json!({ "link": hosted.repository.link_file() }).to_string();
    let (status, problem) = ask("PUT", "/v1/attachments/theirs", &path).await;
    assert_eq!((status, problem["class"].as_str()), (403, Some("usage")), "{problem}");

    let token = json!({ "link": hosted.link(), "token_files": [{ "host": "h", "file": "/etc/shadow" }] }).to_string();
    assert_eq!(ask("PUT", "/v1/attachments/theirs", &token).await.0, 403);
    let authority = json!({ "link": hosted.link(), "ca_file": "/etc/shadow" }).to_string();
    assert_eq!(ask("PUT", "/v1/attachments/theirs", &authority).await.0, 403);

    let (status, theirs) = ask("PUT", "/v1/attachments/theirs", &wanted).await;
    assert_eq!(status, 200, "{theirs}");
    let (_, listed) = ask("GET", "/v1/attachments", "").await;
    assert_eq!((listed[0]["id"].as_str(), listed[0]["uid"].as_u64()), (Some("theirs"), Some(65534)));
    assert_eq!(hosted.ids().await, ["ours", "theirs"], "the server's user sees all");

    let uri = |socket: &str| format!("nbd+unix:///?socket={socket}");
    let info = async |socket: &str| within(60, as_nobody("nbdinfo").arg(uri(socket)).output()).await.unwrap().status;
    assert!(info(theirs["socket"].as_str().unwrap()).await.success());
    assert!(!info(&ours.socket).await.success());
    // Not even where the file's mode lets it connect: the kernel says who it is.
    std::fs::set_permissions(&ours.socket, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(!info(&ours.socket).await.success());
    let mut raw = Raw::new(UnixStream::connect(&ours.socket).await.unwrap());
    raw.negotiate(true).await;
}

#[tokio::test]
async fn where_the_server_demands_keys_no_client_takes_others() {
    let key = |byte: u8| SecretKey::from_seed(&[byte; 32]).public();
    let hosted = Hosted::demanding(mixed(), vec![key(1)]).await;
    let refused = async |keys: Vec<PublicKey>| {
        let request = AttachRequest { trust_keys: keys, accept_unsigned: true, ..hosted.request() };
        refusal(hosted.control.attach(&id("vm"), &request).await.unwrap_err())
    };
    // The link is not signed at all.
    for keys in [vec![], vec![key(1)], vec![key(1), key(2)]] {
        assert_eq!(refused(keys).await.0, Class::Integrity);
    }
    let (class, message) = refused(vec![key(2)]).await;
    assert!(class == Class::Usage && message.contains("other keys"), "{message}");
}

#[tokio::test]
async fn one_user_cannot_take_all_attachments() {
    let hosted = Hosted::new(mixed(), LONG).await;
    let control = hosted.control.socket();
    std::fs::set_permissions(control, PermissionsExt::from_mode(0o666)).unwrap();
    let wanted = json!({ "link": hosted.link() }).to_string();
    // One curl for all.
    let mut command = as_nobody("curl");
    command.args(["--silent", "--write-out", "%{stderr}%{http_code}\n", "--unix-socket"]).arg(control);
    command.args(["--request", "PUT", "--data", &wanted]);
    command.arg(format!("http://localhost/v1/attachments/vm[1-{}]", ATTACHMENTS_PER_UID_MAX + 1));
    let output = within(120, command.output()).await.unwrap();
    let statuses = String::from_utf8(output.stderr).unwrap();
    let count = |status: &str| statuses.lines().filter(|line| *line == status).count();
    assert_eq!((count("200"), count("429")), (ATTACHMENTS_PER_UID_MAX, 1), "{statuses}");
    hosted.attach("ours").await;
}
