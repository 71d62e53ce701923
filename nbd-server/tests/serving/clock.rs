//! The wall clock jumps under a server and between its runs: ahead by a year, back by a day. libfaketime shows the program another
//! time of day; time that passes stays what it is, as it does when somebody sets a real clock.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use vmnetx_nbd::cli::control_socket;
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{AttachRequest, Attached, CacheReport};

use crate::hosted::{client, id};
use crate::program::{serve, signal, until_it_answers};
use crate::raw::number::{EIO, READ};
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, noise};
use crate::within;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const DAY_S: i64 = 24 * 3600;
const YEAR_S: i64 = 365 * DAY_S;

/// A repository on a web server that can be down, a cache directory, and a clock.
struct Site {
    source: Source,
    repository: Repository,
    origin: BadServer,
    is_up: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

/// A server under that clock.
struct Serving {
    child: Child,
    control: Control,
}

impl Site {
    async fn new() -> Self {
        let source = Source::of(noise(1, 3_000_000));
        let repository = Repository::of(&source);
        let (is_up, up) = watch::channel(true);
        let behave = move |asked: &Asked| match asked.path.starts_with("packs/") && !*up.borrow() {
            true => Answer::Status(503),
            false => Answer::Good,
        };
        let origin = BadServer::start(repository.root(), behave).await;
        let site = Self { source, repository, origin, is_up, dir: tempfile::tempdir().unwrap() };
        site.set_clock(0);
        site
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Sets the clock so many seconds ahead of the real one, or back.
    fn set_clock(&self, seconds: i64) {
        // Replaced as a whole, for the program may be reading it.
        let next = self.dir.path().join("clock.next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(next, self.clock()).unwrap();
    }

    fn clock(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    async fn start(&self) -> Serving {
        assert!(Path::new(LIBRARY).exists(), "tests/setup installs libfaketime");
        let mut command: Command = serve(&self.cache_dir());
        command.env("VMNETX_STATE_DIR", self.dir.path().join("state"));
        command.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", self.clock());
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        let child = command.args(["--grace", "1"]).spawn().unwrap();
        let control = Control::new(control_socket(&self.cache_dir()));
        until_it_answers(&control).await;
        Serving { child, control }
    }

    fn request(&self) -> AttachRequest {
        AttachRequest::new(self.origin.location().to_string())
    }

    async fn expect_read(&self, attached: &Attached, offset: u64, length: u32) {
        let mut nbd = client(attached).await;
        nbd.read(1, offset, length).await;
        within(60, nbd.reply()).await.expect_data(&self.source, offset, length);
    }
}

impl Serving {
    async fn attach(&self, name: &str, request: &AttachRequest) -> Attached {
        within(60, self.control.attach(&id(name), request)).await.unwrap()
    }

    async fn pull(&self, name: &str) -> CacheReport {
        let pulling = within(20, self.control.pull(&id(name))).await.unwrap();
        within(60, pulling.complete(|_| ())).await.unwrap();
        within(20, self.control.cache()).await.unwrap()
    }

    async fn stop(mut self) {
        signal(&self.child, Signal::TERM);
        assert_eq!(within(60, self.child.wait()).await.unwrap().code(), Some(0));
    }
}

/// Seconds that a time of the server's is ahead of the real one.
fn ahead_s(unix_s: u64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(unix_s).unwrap() - i64::try_from(now).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_under_a_server_neither_ends_nor_prolongs_anything() {
    let site = Site::new().await;
    let serving = site.start().await;
    let start = Instant::now();
    let vm = serving.attach("vm", &site.request()).await;
    let lease = within(20, serving.control.hold(&id("vm"))).await.unwrap();
    let mut held = client(&vm).await;
    held.read(1, 0, 100_000).await;
    held.reply().await.expect_data(&site.source, 0, 100_000);
    for (round, jump_s) in [YEAR_S, -DAY_S, 0].into_iter().enumerate() {
        let offset = 500_000 * (1 + round as u64);
        // A read in an outage is tried again for as long as real time says.
        site.is_up.send(false).unwrap();
        held.read(2, offset, 50_000).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        site.set_clock(jump_s);
        tokio::time::sleep(Duration::from_millis(500)).await;
        site.is_up.send(true).unwrap();
        within(60, held.reply()).await.expect_data(&site.source, offset, 50_000);
        // What is opened under the new clock is believed, though the link was read in the future.
        let name = format!("vm{round}");
        let later = serving.attach(&name, &site.request()).await;
        assert_eq!((later.version, &later.notices[..]), (site.repository.version.manifest, &[][..]));
        site.expect_read(&later, offset, 60_000).await;
    }
    // A deadline in the middle of which the clock goes back a day is as long as before.
    let short = AttachRequest { retry_for_s: Some(1), ..site.request() };
    let attached = serving.attach("short", &short).await;
    site.is_up.send(false).unwrap();
    let mut nbd = client(&attached).await;
    let failing = nbd.expect_error((0, READ, 2_500_000, 4096), EIO);
    let jumping = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        site.set_clock(-DAY_S);
    };
    within(60, async { tokio::join!(failing, jumping) }).await;
    site.is_up.send(true).unwrap();
    drop(nbd);
    // What nobody holds is given up after its grace period; what is held stays, and the server has not aged.
    within(60, async {
        while within(20, serving.control.stats()).await.unwrap().attachments.len() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let stats = within(20, serving.control.stats()).await.unwrap();
    assert_eq!(stats.attachments[0].id, id("vm"));
    assert!(stats.uptime_s <= start.elapsed().as_secs() + 1, "{} s", stats.uptime_s);
    drop((held, lease));
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_in_the_future_is_as_good_as_ever() {
    let site = Site::new().await;
    site.set_clock(YEAR_S);
    let serving = site.start().await;
    serving.attach("vm", &site.request()).await;
    let pinned = serving.pull("vm").await.pins[0].pinned_unix_s;
    assert!((ahead_s(pinned) - YEAR_S).abs() < 300, "the program lives in the future: {} s", ahead_s(pinned));
    serving.stop().await;
    let packs = |site: &Site| site.origin.log().iter().filter(|asked| asked.path.starts_with("packs/")).count();
    let before = packs(&site);
    for seconds in [-DAY_S, 0] {
        site.set_clock(seconds);
        let serving = site.start().await;
        let vm = serving.attach("vm", &site.request()).await;
        assert_eq!(vm.notices, []);
        assert!(within(20, serving.control.attachment(&id("vm"))).await.unwrap().complete);
        site.expect_read(&vm, 0, 3_000_000).await;
        assert_eq!(packs(&site), before, "something was fetched again");
        let offline = AttachRequest { offline: true, ..site.request() };
        site.expect_read(&serving.attach("offline", &offline).await, 0, 3_000_000).await;
        serving.stop().await;
    }
}
