//! Saved RAM that VMs map: held once, never changed, never wrong, and given back.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, fstat, ftruncate};
use serde_json::json;
use tokio::process::Command;
use tokio::sync::watch;
use vmnetx_nbd::control::api::{AttachRequest, MapProgress, MapRequest, Problem};
use vmnetx_nbd::{Error, HostOptions};
use vmnetx_store::failure::Class;

use crate::hosted::{Hosted, as_nobody, ask_as_nobody, id};
use crate::support::bad_http::{Answer, Asked};
use crate::support::repository::Repository;
use crate::support::source::{Source, mixed, noise};
use crate::within;

const MIB: u64 = 1 << 20;
/// Bytes of [`ram`].
const RAM_BYTES: u64 = 40 * MIB;
/// Bytes of it that are not zero.
const DATA_BYTES: u64 = 5 * MIB;
/// The system's own: one in a home is no other user's.
const PYTHON: &str = "/usr/bin/python3";
const BRING: MapRequest = MapRequest { bring: true };

/// RAM with data at its beginning, around the border of two leaves of its index, and at its end.
fn ram() -> Source {
    let ram = Source::zeros(RAM_BYTES).with(0, noise(1, MIB as usize)).with(15 * MIB, noise(2, 3 * MIB as usize));
    ram.with(RAM_BYTES - MIB, noise(3, MIB as usize))
}

async fn hosted(options: HostOptions, behave: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Hosted {
    let disk = mixed();
    let repository = Repository::with_memory(&disk, &ram());
    Hosted::serving(disk, repository, Some(64 * MIB), options, behave).await
}

async fn good() -> Hosted {
    hosted(HostOptions::default(), |_| Answer::Good).await
}

async fn attach(hosted: &Hosted, name: &str) {
    let request = AttachRequest { memory: true, ..hosted.request() };
    within(60, hosted.control.attach(&id(name), &request)).await.unwrap();
}

async fn map(hosted: &Hosted, name: &str, request: MapRequest) -> Result<OwnedFd, Error> {
    within(60, hosted.control.map(&id(name), request, RAM_BYTES, |_| ())).await
}

async fn mapped_bytes(hosted: &Hosted) -> u64 {
    within(20, hosted.control.stats()).await.unwrap().mapped_bytes
}

fn refusal(error: Error) -> (Class, String) {
    match error {
        Error::Refused(problem) => (problem.class, problem.message),
        other => panic!("{other}"),
    }
}

fn assert_is_ram(memfd: &OwnedFd) {
    let mut read = vec![1; RAM_BYTES as usize];
    File::from(memfd.try_clone().unwrap()).read_exact_at(&mut read, 0).unwrap();
    assert!(read == ram().bytes(), "the memfd has other bytes");
}

fn inode(memfd: &OwnedFd) -> u64 {
    fstat(memfd).unwrap().st_ino
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn attachments_of_the_same_ram_share_it_and_the_last_one_gives_it_back() {
    let hosted = good().await;
    attach(&hosted, "one").await;
    attach(&hosted, "two").await;
    // At once: one of them reads, the other one waits for it.
    let (one, two) = tokio::join!(map(&hosted, "one", BRING), map(&hosted, "two", BRING));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(inode(&one), inode(&two));
    assert_is_ram(&one);
    let before = hosted.origin.log().len();
    attach(&hosted, "three").await;
    let three = map(&hosted, "three", MapRequest::default()).await.unwrap();
    assert_eq!(inode(&one), inode(&three));
    let packs = hosted.origin.log().iter().skip(before).filter(|asked| asked.path.starts_with("packs/")).count();
    assert_eq!(packs, 0, "what was held was fetched again");
    // Zero pages take no memory, and what is shared counts once.
    assert_eq!(File::from(one.try_clone().unwrap()).metadata().unwrap().blocks() * 512, DATA_BYTES);
    assert_eq!(mapped_bytes(&hosted).await, DATA_BYTES);
    let of_one = within(20, hosted.control.attachment(&id("one"))).await.unwrap();
    assert_eq!(of_one.mapped_bytes, Some(DATA_BYTES));
    for name in ["one", "two"] {
        within(20, hosted.control.detach(&id(name))).await.unwrap();
        assert_eq!(mapped_bytes(&hosted).await, DATA_BYTES);
    }
    within(20, hosted.control.detach(&id("three"))).await.unwrap();
    until("it is given back", async || mapped_bytes(&hosted).await == 0).await;
    let sockets = std::fs::read_dir(hosted.dir.path().join("control.d")).unwrap().count();
    assert_eq!(sockets, 0);
}

#[tokio::test]
async fn nobody_can_change_it_and_it_outlives_the_server() {
    let hosted = good().await;
    attach(&hosted, "vm").await;
    let memfd = map(&hosted, "vm", BRING).await.unwrap();
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let name = std::fs::read_link(&path).unwrap();
    assert_eq!(name, Path::new("/memfd:vmnetx-ram (deleted)"));
    let mut reopened = File::options().read(true).write(true).open(&path).unwrap();
    for refused in [
        reopened.write_all(b"x").unwrap_err().raw_os_error(),
        ftruncate(&memfd, 0).map_err(|error| error.raw_os_error()).err(),
        ftruncate(&memfd, RAM_BYTES * 2).map_err(|error| error.raw_os_error()).err(),
        fallocate(&memfd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)
            .map_err(|error| error.raw_os_error())
            .err(),
    ] {
        assert_eq!(refused, Some(rustix::io::Errno::PERM.raw_os_error()));
    }
    within(20, hosted.host.end()).await;
    drop(hosted);
    assert_is_ram(&memfd);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_frees_what_it_took() {
    let options = HostOptions { mapped_bytes_max: Some(DATA_BYTES - 1), ..HostOptions::default() };
    let hosted = hosted(options, |_| Answer::Good).await;
    attach(&hosted, "vm").await;
    let (class, message) = refusal(map(&hosted, "vm", BRING).await.unwrap_err());
    assert!(class == Class::Host && message.contains("exceeds the server's limit: 0 of 5242879"), "{message}");
    assert_eq!(mapped_bytes(&hosted).await, 0);
}

#[tokio::test]
async fn what_is_not_here_is_fetched_only_when_that_is_asked_for() {
    let hosted = good().await;
    attach(&hosted, "vm").await;
    let (class, message) = refusal(map(&hosted, "vm", MapRequest::default()).await.unwrap_err());
    assert!(class == Class::Failure && message == "not all of the saved memory is on this host", "{message}");
    within(60, async { hosted.control.pull(&id("vm")).await.unwrap().complete(|_| ()).await.unwrap() }).await;
    let before = hosted.origin.log().len();
    assert_is_ram(&map(&hosted, "vm", MapRequest::default()).await.unwrap());
    assert_eq!(hosted.origin.log().len(), before, "something was asked for");
    // Without its memory there is none to map.
    hosted.attach("disks").await;
    let (class, message) = refusal(map(&hosted, "disks", BRING).await.unwrap_err());
    assert!(class == Class::Usage && message.contains("no saved memory"), "{message}");
}

/// The pack with the last chunk of RAM, and where in it the middle of that chunk is.
fn last_chunk(repository: &Repository) -> (PathBuf, usize) {
    let bytes = noise(3, MIB as usize);
    let is_last = |plain: &[u8]| bytes.ends_with(plain);
    let frame = repository.chunks.iter().find(|frame| is_last(&frame.plain)).unwrap().wanted.clone();
    let pack = repository.root().join(vmnetx_format::pack_path(&frame.place.pack));
    (pack, (frame.place.offset + u64::from(frame.place.stored_len) / 2) as usize)
}

/// RAM of which a chunk cannot be had is refused in words, and the server is there for who asks again when it is repaired.
#[tokio::test]
async fn a_damaged_or_absent_chunk_is_never_handed_over_and_may_be_repaired() {
    let hosted = good().await;
    attach(&hosted, "vm").await;
    let (pack, middle) = last_chunk(&hosted.repository);
    let whole = std::fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[middle] ^= 1;
    std::fs::write(&pack, damaged).unwrap();
    let (class, message) = refusal(map(&hosted, "vm", BRING).await.unwrap_err());
    assert!(class == Class::Integrity && message.contains("packs/"), "{message}");
    assert!(message.contains("is damaged"), "{message}");
    assert_eq!(mapped_bytes(&hosted).await, 0);
    assert!(within(20, hosted.control.attachment(&id("vm"))).await.unwrap().mapped_bytes.is_none());
    std::fs::remove_file(&pack).unwrap();
    let (class, message) = refusal(map(&hosted, "vm", BRING).await.unwrap_err());
    assert!(class == Class::Network && message.contains("packs/") && message.contains("404"), "{message}");
    assert_eq!(mapped_bytes(&hosted).await, 0);
    std::fs::write(&pack, whole).unwrap();
    assert_is_ram(&map(&hosted, "vm", BRING).await.unwrap());
    assert_eq!(mapped_bytes(&hosted).await, DATA_BYTES);
}

/// The client leaves while half of it is there; nothing stays of it, and who asks next gets all of it.
#[tokio::test]
async fn whoever_gives_up_leaves_nothing_behind() {
    let (open, gate) = watch::channel(true);
    let served = AtomicUsize::new(0);
    let behave = move |asked: &Asked| {
        let held = asked.path.starts_with("packs/") && served.fetch_add(1, Ordering::Relaxed) > 4;
        if held { Answer::When(gate.clone()) } else { Answer::Good }
    };
    let hosted = hosted(HostOptions::default(), behave).await;
    attach(&hosted, "vm").await;
    open.send(false).unwrap();
    {
        let control = hosted.control.clone();
        let mapping = tokio::spawn(async move { control.map(&id("vm"), BRING, RAM_BYTES, |_| ()).await });
        until("it has begun", async || mapped_bytes(&hosted).await == DATA_BYTES).await;
        assert!(!mapping.is_finished());
        mapping.abort();
    }
    until("it is given back", async || mapped_bytes(&hosted).await == 0).await;
    open.send(true).unwrap();
    assert_is_ram(&map(&hosted, "vm", BRING).await.unwrap());
}

/// Several want the same RAM at once; the one for whom it is read leaves, and the next one is detached. The others get it.
#[tokio::test]
async fn who_reads_it_for_all_may_leave() {
    let (open, gate) = watch::channel(false);
    let disk = mixed();
    let repository = Repository::with_memory(&disk, &ram());
    let packs: HashSet<_> =
        repository.chunks.iter().map(|frame| vmnetx_format::pack_path(&frame.wanted.place.pack)).collect();
    // The index is in packs of its own.
    let behave = move |asked: &Asked| {
        if packs.contains(&asked.path) { Answer::When(gate.clone()) } else { Answer::Good }
    };
    let hosted = Hosted::serving(disk, repository, Some(64 * MIB), HostOptions::default(), behave).await;
    let mapping = |name: &'static str| {
        let control = hosted.control.clone();
        tokio::spawn(async move { control.map(&id(name), BRING, RAM_BYTES, |_| ()).await })
    };
    let is_held = async |name: &str| within(20, hosted.control.attachment(&id(name))).await.unwrap().holders == 1;
    for name in ["first", "second", "third", "fourth"] {
        attach(&hosted, name).await;
    }
    let first = mapping("first");
    until("the first one reads", async || mapped_bytes(&hosted).await == DATA_BYTES).await;
    let second = mapping("second");
    until("the second one waits", async || is_held("second").await).await;
    let [third, fourth] = ["third", "fourth"].map(mapping);
    until("the others wait", async || is_held("third").await && is_held("fourth").await).await;
    first.abort();
    within(20, hosted.control.detach(&id("second"))).await.unwrap();
    let (_, message) = refusal(within(60, second).await.unwrap().unwrap_err());
    assert!(message.contains("not attached any more"), "{message}");
    open.send(true).unwrap();
    let [third, fourth] = [within(60, third).await, within(60, fourth).await].map(|mapped| mapped.unwrap().unwrap());
    assert_is_ram(&third);
    assert_eq!(inode(&third), inode(&fourth));
    assert_eq!(mapped_bytes(&hosted).await, DATA_BYTES);
}

/// What another user is told at last who maps.
async fn map_as_nobody(hosted: &Hosted, name: &str) -> MapProgress {
    let mut command = as_nobody("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--request", "POST"]);
    command.args(["--data", &json!({ "bring": true }).to_string(), "--unix-socket"]).arg(hosted.control.socket());
    let output = within(60, command.arg(format!("http://localhost/v1/attachments/{name}/map")).output()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn another_user_leaves_half_of_the_room_to_others() {
    for (limit_bytes, fits) in [(2 * DATA_BYTES - 1, false), (2 * DATA_BYTES, true)] {
        let options = HostOptions { mapped_bytes_max: Some(limit_bytes), ..HostOptions::default() };
        let hosted = hosted(options, |_| Answer::Good).await;
        std::fs::set_permissions(hosted.control.socket(), PermissionsExt::from_mode(0o666)).unwrap();
        let wanted = json!({ "link": hosted.link(), "memory": true }).to_string();
        let (status, _) = ask_as_nobody(hosted.control.socket(), "PUT", "/v1/attachments/theirs", &wanted).await;
        assert_eq!(status, 200);
        let told = map_as_nobody(&hosted, "theirs").await;
        match told.problem {
            None => assert!(fits && told.socket.is_some(), "{limit_bytes}"),
            Some(Problem { class, message, .. }) => {
                let words = format!("mapping {DATA_BYTES} bytes of saved memory exceeds what one user may have");
                assert!(!fits && class == Class::Host && message.starts_with(&words), "{message}");
            }
        }
        // The server's own user may have all.
        attach(&hosted, "ours").await;
        assert_is_ram(&map(&hosted, "ours", BRING).await.unwrap());
    }
}

#[tokio::test]
async fn another_user_is_given_nothing() {
    let hosted = good().await;
    std::fs::set_permissions(hosted.control.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    attach(&hosted, "ours").await;
    let mut socket = String::new();
    let show = |progress: &MapProgress| socket = progress.socket.clone().unwrap_or_default();
    within(60, hosted.control.map(&id("ours"), BRING, RAM_BYTES, show)).await.unwrap();
    let ask = json!({ "bring": true }).to_string();
    let (status, _) = ask_as_nobody(hosted.control.socket(), "POST", "/v1/attachments/ours/map", &ask).await;
    assert_eq!(status, 403);
    // Even if the file lets it in, the peer is looked at.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let connect = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                   m, fds, _, _ = socket.recv_fds(s, 1, 1); print(len(m), len(fds))";
    // Bytes and descriptors that come: none for another user, one of each for its owner.
    for (mut python, expected) in [(as_nobody(PYTHON), "0 0\n"), (Command::new(PYTHON), "1 1\n")] {
        let output = within(60, python.args(["-c", connect, &socket]).output()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_client_takes_only_what_has_the_right_size() {
    let hosted = good().await;
    attach(&hosted, "vm").await;
    let wrong = within(60, hosted.control.map(&id("vm"), BRING, RAM_BYTES - 4096, |_| ())).await.unwrap_err();
    assert!(matches!(&wrong, Error::HandOver { reason, .. } if reason.contains("bytes instead of")), "{wrong}");
}
