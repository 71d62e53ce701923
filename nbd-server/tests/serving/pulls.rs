//! Pulls through a running server, attachments that are offline, and the server's cache directory looked after.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;
use vmnetx_nbd::Error;
use vmnetx_nbd::control::api::{AttachRequest, Attached, AttachmentStats, PruneRequest, PullProgress, UnpinRequest};
use vmnetx_nbd::limits::PULLS_PER_UID_MAX;
use vmnetx_store::Pulled;
use vmnetx_store::failure::Class;

use crate::hosted::{Hosted, as_nobody, ask_as_nobody, client, id};
use crate::support::bad_http::Answer;
use crate::support::source::{Source, mixed, noise};
use crate::within;

const MIB: u64 = 1 << 20;

async fn pull(hosted: &Hosted, name: &str) -> Result<Pulled, Error> {
    within(60, async { hosted.control.pull(&id(name)).await?.complete(|_| ()).await }).await
}

async fn stats(hosted: &Hosted, name: &str) -> AttachmentStats {
    within(20, hosted.control.attachment(&id(name))).await.unwrap()
}

fn refusal(error: Error) -> (Class, String) {
    match error {
        Error::Refused(problem) => (problem.class, problem.message),
        other => panic!("{other}"),
    }
}

async fn attach_offline(hosted: &Hosted, name: &str) -> Result<Attached, Error> {
    let request = AttachRequest { offline: true, ..hosted.request() };
    within(60, hosted.control.attach(&id(name), &request)).await
}

/// A server whose origin gives packs while the value is true.
async fn gated(source: Source) -> (Hosted, watch::Sender<bool>) {
    let (open, gate) = watch::channel(true);
    let behave = move |asked: &crate::support::bad_http::Asked| match asked.path.starts_with("packs/") {
        true => Answer::When(gate.clone()),
        false => Answer::Good,
    };
    (Hosted::keeping(source, 64 * MIB, behave).await, open)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn what_runs_is_made_complete_and_needs_no_origin_then() {
    let source = Source::of(noise(1, 2_000_000));
    let hosted = Hosted::keeping(source, 64 * MIB, |_| Answer::Good).await;
    let attached = hosted.attach("vm").await;
    let mut nbd = client(&attached).await;
    nbd.read(1, 0, 100_000).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 100_000);
    assert!(!stats(&hosted, "vm").await.complete);
    // Another client pulls the same package, as `vmnetx-nbd pull` does.
    hosted.attach("pull").await;
    let mut seen = Vec::new();
    let pulling = within(60, hosted.control.pull(&id("pull"))).await.unwrap();
    let pulled = within(60, pulling.complete(|progress| seen.push(progress.clone()))).await.unwrap();
    assert!(pulled.bytes > 2_000_000 && pulled.fetched_bytes > 1_000_000, "{pulled:?}");
    let last = seen.pop().unwrap();
    assert_eq!((last.complete, last.done_bytes, last.total_bytes), (true, pulled.bytes, pulled.bytes));
    assert!(seen.iter().all(|before| !before.complete && before.problem.is_none()), "{seen:?}");
    for name in ["vm", "pull"] {
        let stats = stats(&hosted, name).await;
        assert!(stats.complete && stats.pull.is_none(), "{stats:?}");
    }
    // Once more it only looks.
    assert_eq!(pull(&hosted, "vm").await.unwrap(), Pulled { fetched_bytes: 0, ..pulled });
    let before = hosted.origin.log().len();
    let offline = attach_offline(&hosted, "offline").await.unwrap();
    assert_eq!(offline.notices, []);
    for attached in [&attached, &offline] {
        let size = hosted.source.size_bytes() as u32;
        let mut nbd = client(attached).await;
        nbd.read(1, 0, size).await;
        nbd.reply().await.expect_data(&hosted.source, 0, size);
    }
    assert_eq!(hosted.origin.log().len(), before, "something was asked for");
    let (class, message) = refusal(hosted.control.attach(&id("offline"), &hosted.request()).await.unwrap_err());
    assert!(class == Class::Usage && message.contains("other options"), "{message}");
}

#[tokio::test]
async fn what_is_not_here_is_told_offline() {
    let (hosted, _open) = gated(Source::of(noise(1, 2_000_000))).await;
    let (class, message) = refusal(attach_offline(&hosted, "vm").await.unwrap_err());
    assert!(class == Class::Network && message.contains("offline"), "{message}");
    assert_eq!(hosted.origin.log().len(), 0);
    // Opened once, and a part of it read.
    let online = hosted.attach("online").await;
    let mut nbd = client(&online).await;
    nbd.read(1, 0, 10_000).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 10_000);
    // Link, manifest and layout are written by and by.
    until("it can be opened offline", async || attach_offline(&hosted, "vm").await.is_ok()).await;
    let offline = attach_offline(&hosted, "vm").await.unwrap();
    let [notice] = &offline.notices[..] else { panic!("one notice: {:?}", offline.notices) };
    assert!(notice.warning && notice.text.contains("not all of vm is here"), "{notice:?}");
    let before = hosted.origin.log().len();
    let mut nbd = client(&offline).await;
    nbd.expect_error((0, crate::raw::number::READ, 1_900_000, 4096), crate::raw::number::EIO).await;
    let (class, message) = refusal(pull(&hosted, "vm").await.unwrap_err());
    assert!(class == Class::Network && message.contains("offline"), "{message}");
    assert_eq!(hosted.origin.log().len(), before, "something was asked for");
}

#[tokio::test]
async fn a_pull_ends_with_its_client_and_another_one_goes_on() {
    let (hosted, open) = gated(Source::of(noise(1, 2_000_000))).await;
    let attached = hosted.attach("vm").await;
    let mut nbd = client(&attached).await;
    nbd.read(1, 0, 1_000_000).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 1_000_000);
    open.send(false).unwrap();
    let pulling = within(20, hosted.control.pull(&id("vm"))).await.unwrap();
    let is_half = |pull: &PullProgress| pull.done_bytes >= 900_000 && pull.done_bytes < pull.total_bytes;
    until("half is there", async || stats(&hosted, "vm").await.pull.as_ref().is_some_and(is_half)).await;
    let (class, message) = refusal(pull(&hosted, "vm").await.unwrap_err());
    assert!(class == Class::Failure && message.contains("being pulled already"), "{message}");
    drop(pulling);
    until("it is given up", async || stats(&hosted, "vm").await.pull.is_none()).await;
    assert!(!stats(&hosted, "vm").await.complete);
    open.send(true).unwrap();
    let pulled = pull(&hosted, "vm").await.unwrap();
    assert!(pulled.fetched_bytes < pulled.bytes * 2 / 3, "{pulled:?}");
    assert!(stats(&hosted, "vm").await.complete);
}

#[tokio::test]
async fn a_pull_ends_with_its_attachment_and_says_so() {
    let (hosted, open) = gated(Source::of(noise(1, 500_000))).await;
    hosted.attach("vm").await;
    open.send(false).unwrap();
    let pulling = within(20, hosted.control.pull(&id("vm"))).await.unwrap();
    let detaching = async {
        until("it is held", async || stats(&hosted, "vm").await.pull.is_some()).await;
        hosted.control.detach(&id("vm")).await.unwrap();
    };
    let (ended, ()) = within(60, async { tokio::join!(pulling.complete(|_| ()), detaching) }).await;
    let (class, message) = refusal(ended.unwrap_err());
    assert!(class == Class::Failure && message.contains("not attached any more"), "{message}");
    hosted.until_empty().await;
}

#[tokio::test]
async fn a_server_without_a_directory_pulls_nothing() {
    let hosted = Hosted::new(mixed(), std::time::Duration::from_secs(60)).await;
    hosted.attach("vm").await;
    let (class, message) = refusal(pull(&hosted, "vm").await.unwrap_err());
    assert!(class == Class::Host && message.contains("no directory"), "{message}");
    let (_, message) = refusal(hosted.control.cache().await.unwrap_err());
    assert!(message.contains("no cache directory"), "{message}");
    assert!(matches!(hosted.control.pull(&id("none")).await, Err(Error::Refused(_))));
}

/// A rate that a client asks for holds for its pull, and nothing is asked of a rate at which nothing ever comes.
#[tokio::test]
async fn a_pull_keeps_to_its_clients_rate() {
    let hosted = Hosted::keeping(Source::of(noise(1, 2 << 20)), 64 * MIB, |_| Answer::Good).await;
    let request = |rate| AttachRequest { background_bytes_per_s: Some(rate), ..hosted.request() };
    assert!(matches!(hosted.control.attach(&id("vm"), &request(0)).await, Err(Error::Refused(_))));
    within(60, hosted.control.attach(&id("vm"), &request(1 << 20))).await.unwrap();
    let start = std::time::Instant::now();
    pull(&hosted, "vm").await.unwrap();
    // The last request is not waited for.
    assert!(start.elapsed() >= std::time::Duration::from_millis(1200), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_server_looks_after_its_directory_while_it_serves() {
    let hosted = Hosted::keeping(Source::of(noise(1, 1_000_000)), 64 * MIB, |_| Answer::Good).await;
    let attached = hosted.attach("vm").await;
    pull(&hosted, "vm").await.unwrap();
    let report = within(20, hosted.control.cache()).await.unwrap();
    assert_eq!(Path::new(&report.dir), hosted.cache_dir());
    let [pin] = &report.pins[..] else { panic!("one pin: {report:?}") };
    assert_eq!((&pin.name[..], &pin.link[..]), ("vm", &hosted.link()[..]));
    assert!(report.usage.pinned_bytes > 1_000_000);
    let verified = within(60, hosted.control.verify()).await.unwrap();
    assert_eq!((verified.records, verified.damaged), (report.usage.records, 0));
    // What is kept for good is not pruned.
    let pruned = within(60, hosted.control.prune(PruneRequest { to_bytes: 0 })).await.unwrap();
    assert_eq!(pruned.usage.records, report.usage.records);
    let unpin = async |which: &str| within(20, hosted.control.unpin(&UnpinRequest { which: which.to_owned() })).await;
    let (class, message) = refusal(unpin("nothing").await.unwrap_err());
    assert!(class == Class::Usage && message.contains("nothing"), "{message}");
    let unpinned = unpin("vm").await.unwrap();
    assert_eq!((unpinned.removed, unpinned.pins), (vec![pin.clone()], vec![]));
    assert!(!stats(&hosted, "vm").await.complete);
    let pruned = within(60, hosted.control.prune(PruneRequest { to_bytes: 0 })).await.unwrap();
    assert_eq!(pruned.usage.records, 0);
    // Whoever reads goes on.
    let mut nbd = client(&attached).await;
    nbd.read(1, 0, 900_000).await;
    nbd.reply().await.expect_data(&hosted.source, 0, 900_000);
    hosted.host.drain();
    let (_, message) = refusal(hosted.control.cache().await.unwrap_err());
    assert!(message.contains("ends when"), "{message}");
}

/// curl as `nobody` that pulls, once it has read its first line.
async fn pull_as_nobody(hosted: &Hosted, name: &str) -> Child {
    let mut command = as_nobody("curl");
    command.args(["--silent", "--no-buffer", "--request", "POST", "--unix-socket"]).arg(hosted.control.socket());
    command.arg(format!("http://localhost/v1/attachments/{name}/pull"));
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = within(60, lines.next_line()).await.unwrap().unwrap();
    assert!(line.contains("\"complete\":false") && !line.contains("problem"), "{line}");
    // Its end would be the pull's.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

#[tokio::test]
async fn another_user_pulls_what_is_its_own_and_looks_after_nothing() {
    let (hosted, open) = gated(Source::of(noise(1, 500_000))).await;
    let control = hosted.control.socket();
    std::fs::set_permissions(control, PermissionsExt::from_mode(0o666)).unwrap();
    let ask = async |method: &str, path: &str, body: &str| ask_as_nobody(control, method, path, body).await;
    hosted.attach("ours").await;
    assert_eq!(ask("POST", "/v1/attachments/ours/pull", "").await.0, 403);
    for (method, path, body) in [
        ("GET", "/v1/cache", ""),
        ("POST", "/v1/cache/verify", ""),
        ("POST", "/v1/cache/prune", "{\"to_bytes\":0}"),
        ("POST", "/v1/cache/unpin", "{\"which\":\"vm\"}"),
    ] {
        assert_eq!(ask(method, path, body).await.0, 403, "{path}");
    }
    let wanted = json!({ "link": hosted.link() }).to_string();
    for number in 0..=PULLS_PER_UID_MAX {
        assert_eq!(ask("PUT", &format!("/v1/attachments/theirs{number}"), &wanted).await.0, 200);
    }
    open.send(false).unwrap();
    let mut pulls = Vec::new();
    for number in 0..PULLS_PER_UID_MAX {
        pulls.push(pull_as_nobody(&hosted, &format!("theirs{number}")).await);
    }
    let (status, problem) = ask("POST", &format!("/v1/attachments/theirs{PULLS_PER_UID_MAX}/pull"), "").await;
    assert_eq!((status, problem["message"].as_str()), (429, Some("there are too many pulls")));
    // The server's own user is not kept from pulling by others.
    open.send(true).unwrap();
    pull(&hosted, "ours").await.unwrap();
    for mut pull in pulls {
        assert!(within(60, pull.wait()).await.unwrap().success());
    }
}
