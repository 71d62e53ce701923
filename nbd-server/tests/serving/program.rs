//! The program as a server without a link: one for a cache directory, started by hand, by several at once, by systemd.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use vmnetx_nbd::cli::{ANOTHER_SERVES, control_socket};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::AttachRequest;

use crate::hosted::{client, id};
use crate::support::repository::Repository;
use crate::support::source::mixed;
use crate::within;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmnetx-nbd");

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

pub(crate) fn serve(cache_dir: &Path) -> Command {
    let mut command = program(&["serve", "--idle", "60", "--cache-dir"]);
    command.arg(cache_dir);
    command
}

pub(crate) async fn until_it_answers(control: &Control) {
    within(60, async {
        while control.versions().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn of_eight_starters_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..8).map(|_| serve(dir.path()).spawn().unwrap()).collect();
    let control = Control::new(control_socket(dir.path()));
    until_it_answers(&control).await;
    let winner = control.versions().await.unwrap().pid;
    let mut losers = 0;
    for child in children.iter_mut().filter(|child| child.id() != Some(winner)) {
        let status = within(60, child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(ANOTHER_SERVES.into()));
        losers += 1;
    }
    assert_eq!((losers, control.versions().await.unwrap().pid), (7, winner));
    // It may be killed at any time; the next one takes its place, stale sockets or not.
    let winner = children.iter_mut().find(|child| child.id() == Some(winner)).unwrap();
    winner.kill().await.unwrap();
    assert!(control.versions().await.is_err() && control.socket().exists());
    let mut next = serve(dir.path()).spawn().unwrap();
    until_it_answers(&control).await;
    signal(&next, Signal::TERM);
    assert_eq!(within(60, next.wait()).await.unwrap().code(), Some(0));
    assert!(!control.socket().exists() && !dir.path().join("control.d").exists());
}

#[tokio::test]
async fn the_socket_of_an_attachment_outlives_the_server_in_its_path() {
    let (dir, repository) = (tempfile::tempdir().unwrap(), Repository::of(&mixed()));
    let control = Control::new(control_socket(dir.path()));
    let request = AttachRequest::new(repository.link_file().to_str().unwrap());
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let mut server = serve(dir.path()).spawn().unwrap();
        until_it_answers(&control).await;
        let attached = within(60, control.attach(&id("vm"), &request)).await.unwrap();
        let lease = control.hold(&id("vm")).await.unwrap();
        let mut nbd = client(&attached).await;
        nbd.read(1, 0, 5000).await;
        nbd.reply().await.expect_data(&mixed(), 0, 5000);
        sockets.push(attached.socket);
        server.kill().await.unwrap();
        within(20, lease.ended()).await;
    }
    assert_eq!(sockets[0], sockets[1]);
}

#[tokio::test]
async fn an_idle_server_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = program(&["serve", "--idle", "1", "--cache-dir"]).arg(dir.path()).spawn().unwrap();
    assert_eq!(within(60, server.wait()).await.unwrap().code(), Some(0));
}

/// The lines that a command prints, and the command.
fn lines(command: &mut Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    (child, BufReader::new(stdout).lines())
}

#[tokio::test]
async fn attach_and_stats_and_drain_are_commands() {
    let (dir, repository) = (tempfile::tempdir().unwrap(), Repository::of(&mixed()));
    let mut server = serve(dir.path()).spawn().unwrap();
    let control = Control::new(control_socket(dir.path()));
    until_it_answers(&control).await;
    let link = repository.link_file();
    let words = ["attach", link.to_str().unwrap(), "--cache-dir", dir.path().to_str().unwrap()];
    let (mut attaching, mut uris) = lines(&mut program(&words));
    let uri = within(60, uris.next_line()).await.unwrap().unwrap();
    let copy = within(60, Command::new("nbdcopy").args([&uri, "null:"]).output()).await.unwrap();
    assert!(copy.status.success(), "{uri}: {}", String::from_utf8_lossy(&copy.stderr));
    let output = program(&["stats", "--json", "--cache-dir"]).arg(dir.path()).stdout(Stdio::piped()).output();
    let stats: serde_json::Value = serde_json::from_slice(&within(60, output).await.unwrap().stdout).unwrap();
    let read = stats["attachments"][0]["exports"][0]["counts"]["read_bytes"].as_u64();
    assert!(read > Some(0), "{stats}");
    let attachment = &stats["attachments"][0];
    assert!(attachment["origin"]["requests"].as_u64() > Some(0), "{stats}");
    assert!(attachment["origin"]["demand_bytes"].as_u64() > Some(0), "{stats}");
    let mirrors = attachment["mirrors"].as_array().unwrap();
    assert!(mirrors.len() == 1 && mirrors[0]["requests"].as_u64() > Some(2), "{stats}");
    assert_eq!((&mirrors[0]["failures"], &mirrors[0]["resting"]), (&0.into(), &false.into()), "{stats}");
    let output = program(&["stats", "--cache-dir"]).arg(dir.path()).stdout(Stdio::piped()).output();
    let told = String::from_utf8(within(60, output).await.unwrap().stdout).unwrap();
    let place = format!("mirror {}/", repository.root().display());
    assert!(told.contains(&place) && told.contains("prefetched"), "{told}");
    let told = within(60, program(&["drain", "--control"]).arg(control.socket()).status()).await.unwrap();
    assert!(told.success());
    signal(&attaching, Signal::TERM);
    assert_eq!(within(60, attaching.wait()).await.unwrap().code(), Some(0));
    assert_eq!(within(60, server.wait()).await.unwrap().code(), Some(0));
    // Nobody is there any more.
    let output = program(&words).stderr(Stdio::piped()).output();
    let output = within(60, output).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no server listens"), "{output:?}");
}

#[tokio::test]
async fn without_a_link_there_must_be_a_way_to_attach() {
    for words in [&["serve"][..], &["serve", "--socket", "/tmp/x"], &["serve", "http://h/a.vmnetx"]] {
        assert_eq!(within(60, program(words).status()).await.unwrap().code(), Some(2), "{words:?}");
    }
}

#[tokio::test]
async fn systemd_gives_the_control_socket_and_is_told_when_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, notify) = (dir.path().join("run.sock"), dir.path().join("notify"));
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&socket).arg("--setenv").arg(format!("NOTIFY_SOCKET={}", notify.display()));
    command.args([PROGRAM, "serve", "--cache-dir"]).arg(dir.path().join("cache"));
    let server = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn();
    let mut server = server.unwrap();
    let control = Control::new(&socket);
    until_it_answers(&control).await;
    let ready = tokio::task::spawn_blocking(move || {
        let mut text = [0; 100];
        let length = told.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    });
    assert!(within(60, ready).await.unwrap().contains("READY=1"));
    let repository = Repository::of(&mixed());
    let request = AttachRequest::new(repository.link_file().to_str().unwrap());
    let attached = within(60, control.attach(&id("vm"), &request)).await.unwrap();
    assert_eq!(Path::new(&attached.socket), dir.path().join("run.d/vm"));
    signal(&server, Signal::TERM);
    assert_eq!(within(60, server.wait()).await.unwrap().code(), Some(0));
    assert!(socket.exists(), "the socket is systemd's");
}

/// The units are understood by systemd, and leave the service few rights.
#[tokio::test]
async fn the_units_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let units = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let service = std::fs::read_to_string(units.join("vmnetx-nbd.service")).unwrap();
    // An executable file that is there, whatever is installed.
    let service = service.replace("/usr/bin/vmnetx-nbd", "/usr/bin/env");
    std::fs::write(dir.path().join("vmnetx-nbd.service"), service).unwrap();
    std::fs::copy(units.join("vmnetx-nbd.socket"), dir.path().join("vmnetx-nbd.socket")).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let analyze = async |words: &[&str]| {
        let output = Command::new("systemd-analyze").args(words).current_dir(dir.path()).output();
        let output = within(60, output).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (sound, said) = analyze(&["verify", "./vmnetx-nbd.service", "./vmnetx-nbd.socket"]).await;
    assert!(sound && !said.contains("vmnetx-nbd"), "{said}");
    let (safe, said) = analyze(&["security", "--offline=true", "--threshold=20", "./vmnetx-nbd.service"]).await;
    assert!(safe, "{said}");
}
