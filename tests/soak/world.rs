//! A repository, its origin, a server with small caches in front of it, and what befalls them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::faults::Fault;
use crate::readers;
use crate::report::Report;
use crate::support::bad_http::{Answer, Asked, BadServer};
use crate::support::source::{noise, prose};

/// Bytes of the image: two leaves.
const IMAGE_BYTES: usize = (20 << 20) + 1234;
/// So little that most reads miss, and both tiers evict all the time.
const MEMORY_CACHE: &str = "1M";
const DISK_CACHE: &str = "4M";
/// The file system of the cache directory.
const DISK: &str = "size=8m,mode=700";
/// How long the server tries again, and how much later a read that joined such a fetch may fail: the time for which an origin
/// may be silent, twice.
const RETRY_FOR_S: u64 = 3;
const EXCUSED_FOR: Duration = Duration::from_secs(RETRY_FOR_S + 20);
/// After a fault has ended, reads are answered within this time.
const RECOVERS_WITHIN: Duration = Duration::from_secs(45);
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A running server, and what its clients must read.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) socket: PathBuf,
    pub(crate) image: Arc<Vec<u8>>,
    ended: AtomicBool,
}

impl Serving {
    /// Whether it was killed or told to end.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Numbers as a seed gives them.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A fault of the origin, and when it was over.
#[derive(Debug, Clone, Copy)]
struct Spell {
    fault: Fault,
    to: Option<Instant>,
}

/// Everything around the readers.
pub(crate) struct World {
    seed: u64,
    random: Mutex<Random>,
    dir: TempDir,
    _disk: Mounted,
    origin: tokio::sync::Mutex<Option<BadServer>>,
    weather: Arc<Mutex<Vec<Spell>>>,
    server: tokio::sync::Mutex<Option<Child>>,
    serving: Mutex<Arc<Serving>>,
    image: Mutex<Arc<Vec<u8>>>,
    link: String,
    report: Arc<Mutex<Report>>,
    stopping: AtomicBool,
}

/// A small file system; unmounted with this value.
struct Mounted(PathBuf);

impl Mounted {
    fn at(dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&dir).status().unwrap();
        assert!(mounted.success(), "the soak mounts a small file system to fill it: run it as root");
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a server that failed a test may still be using it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = self.server.get_mut() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl World {
    /// Publishes a first version and serves it.
    pub(crate) async fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Mounted::at(dir.path().join("disk"));
        let image = Arc::new(first_image(seed));
        publish(dir.path(), &image).await;
        let weather = Arc::default();
        let origin = BadServer::start(&dir.path().join("repository"), behave(seed, Arc::clone(&weather))).await;
        let nobody = Serving { socket: PathBuf::new(), image: Arc::clone(&image), ended: AtomicBool::new(true) };
        let world = Self {
            seed,
            random: Mutex::new(Random::new(seed)),
            _disk: disk,
            link: format!("{}vm.vmnetx", origin.url()),
            origin: tokio::sync::Mutex::new(Some(origin)),
            weather,
            server: tokio::sync::Mutex::default(),
            serving: Mutex::new(Arc::new(nobody)),
            image: Mutex::new(image),
            report: Arc::new(Mutex::new(Report { seed, versions: 1, ..Report::default() })),
            stopping: AtomicBool::new(false),
            dir,
        };
        world.start_server().await;
        world
    }

    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving.lock().unwrap())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub(crate) fn stop_readers(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(crate) fn count(&self, note: impl FnOnce(&mut Report)) {
        note(&mut self.report.lock().unwrap());
    }

    /// A read that began at `begun` has failed: what the origin did since, or shortly before, is the reason.
    pub(crate) fn failed(&self, begun: Instant, error: &str) {
        let weather = self.weather.lock().unwrap();
        let excuse = weather.iter().rev().find(|spell| spell.to.is_none_or(|to| begun < to + EXCUSED_FOR));
        let fault = excuse.map(|spell| spell.fault);
        drop(weather);
        self.count(|report| match fault {
            Some(fault) => *report.failed.entry(fault).or_default() += 1,
            None => report.complain(format!("a read fails while nothing is wrong: {error}")),
        });
    }

    /// Until nothing of the past excuses a read that fails, and a little longer.
    pub(crate) async fn rest(&self) {
        sleep(EXCUSED_FOR + self.some_seconds()).await;
    }

    /// Lets a fault happen and ends it.
    pub(crate) async fn suffer(&self, fault: Fault) {
        self.count(|report| *report.faults.entry(fault).or_default() += 1);
        match fault {
            Fault::Published => self.publish_next().await,
            Fault::Killed => self.restart(rustix::process::Signal::KILL).await,
            Fault::Restarted => self.restart(rustix::process::Signal::TERM).await,
            Fault::CacheDamaged => self.damage_cache().await,
            Fault::DiskFull => {
                let filler = self.cache_dir().with_file_name("filler");
                // Until there is no more room; what was written stays.
                let _ = std::fs::write(&filler, vec![0xff; 64 << 20]);
                sleep(self.some_seconds()).await;
                std::fs::remove_file(filler).unwrap();
            }
            Fault::OriginDown => {
                self.weather.lock().unwrap().push(Spell { fault, to: None });
                let address = self.origin.lock().await.take().map(|origin| origin.address()).unwrap();
                sleep(self.some_seconds()).await;
                let behave = behave(self.seed, Arc::clone(&self.weather));
                let again = BadServer::start_at(address, &self.dir.path().join("repository"), behave).await;
                *self.origin.lock().await = Some(again);
                self.clear_up();
            }
            _ => {
                self.weather.lock().unwrap().push(Spell { fault, to: None });
                sleep(self.some_seconds()).await;
                self.clear_up();
            }
        }
    }

    fn clear_up(&self) {
        if let Some(spell) = self.weather.lock().unwrap().last_mut() {
            spell.to = Some(Instant::now());
        }
    }

    /// Between half a second and two and a half.
    fn some_seconds(&self) -> Duration {
        Duration::from_millis(500 + self.random.lock().unwrap().below(2000))
    }

    /// After a fault, a new connection reads again; and the server that should run does.
    pub(crate) async fn recovers(&self) {
        if let Some(status) = self.server.lock().await.as_mut().and_then(|server| server.try_wait().unwrap()) {
            panic!("the server has ended by itself: {status}\n{}", self.report.lock().unwrap());
        }
        let serving = self.serving();
        let started = Instant::now();
        let offset = self.random.lock().unwrap().below(IMAGE_BYTES as u64 - 4096);
        while started.elapsed() < RECOVERS_WITHIN {
            if let Some(client) = readers::connect(self, &serving).await
                && let Ok(Ok(found)) = tokio::time::timeout(RECOVERS_WITHIN, client.read(offset, 4096)).await
            {
                assert!(found == serving.image[offset as usize..offset as usize + 4096], "wrong bytes at {offset}");
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.count(|report| report.complain(format!("no read is answered {} s after", RECOVERS_WITHIN.as_secs())));
    }

    /// Another program reads all of the disk.
    pub(crate) async fn copy_all(&self) {
        let serving = self.serving();
        let copy = self.dir.path().join("copy");
        let uri = format!("nbd+unix:///disk0?socket={}", serving.socket.display());
        let mut command = tokio::process::Command::new("nbdcopy");
        let copying = command.arg("--requests=16").arg(uri).arg(&copy).kill_on_drop(true).output();
        match tokio::time::timeout(RECOVERS_WITHIN, copying).await {
            Ok(Ok(output)) if output.status.success() => {
                let found = std::fs::read(&copy).unwrap();
                let wrong = found.iter().zip(&*serving.image).filter(|(found, image)| found != image).count();
                self.count(|report| {
                    report.copies += 1;
                    report.wrong_bytes += (wrong + found.len().abs_diff(serving.image.len())) as u64;
                });
            }
            Ok(ended) => self.count(|report| report.complain(format!("nbdcopy: {ended:?}"))),
            Err(_) => self.count(|report| report.hung_reads += 1),
        }
    }

    /// Ends the server; with what was counted.
    pub(crate) async fn report(&self, elapsed: Duration) -> Report {
        self.end_server(rustix::process::Signal::TERM).await;
        Report { seconds: elapsed.as_secs_f64(), ..self.report.lock().unwrap().clone() }
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("disk/cache")
    }

    /// Some blocks are others, and the rest stays.
    async fn publish_next(&self) {
        let mut image = self.image.lock().unwrap().to_vec();
        for _ in 0..20 {
            let (at, seed) = {
                let mut random = self.random.lock().unwrap();
                (random.below(IMAGE_BYTES as u64 - 65_536) as usize, random.below(u64::MAX))
            };
            image[at..at + 65_536].copy_from_slice(&noise(seed, 65_536));
        }
        publish(self.dir.path(), &image).await;
        *self.image.lock().unwrap() = Arc::new(image);
        self.count(|report| report.versions += 1);
    }

    /// Any file but the lock, of which nothing is read.
    async fn damage_cache(&self) {
        let files = files_below(&self.cache_dir());
        for path in files.iter().filter(|path| !path.ends_with("lock")) {
            let mut random = self.random.lock().unwrap();
            let length = std::fs::metadata(path).map_or(0, |file| file.len());
            // A segment may be evicted at this moment: then there is nothing to damage.
            let Ok(file) = std::fs::File::options().write(true).open(path) else { continue };
            match random.below(6) {
                0 => drop(std::fs::remove_file(path)),
                1 => drop(file.set_len(random.below(length + 1))),
                _ => {
                    for _ in 0..=random.below(100) {
                        let at = random.below(length.max(1));
                        let _ = std::os::unix::fs::FileExt::write_at(&file, &noise(random.below(1000), 7), at);
                    }
                }
            }
        }
        sleep(Duration::from_secs(1)).await;
    }

    async fn restart(&self, signal: rustix::process::Signal) {
        self.end_server(signal).await;
        self.count(|report| report.restarts += 1);
        self.start_server().await;
    }

    async fn end_server(&self, signal: rustix::process::Signal) {
        self.serving().ended.store(true, Ordering::SeqCst);
        let Some(mut server) = self.server.lock().await.take() else { return };
        rustix::process::kill_process(rustix::process::Pid::from_child(&server), signal).unwrap();
        let status = tokio::task::spawn_blocking(move || server.wait().unwrap()).await.unwrap();
        if signal != rustix::process::Signal::KILL && !status.success() {
            self.count(|report| report.complain(format!("the server was told to end, and did with {status}")));
        }
    }

    /// Serves the newest version.
    async fn start_server(&self) {
        let restarts = self.report.lock().unwrap().restarts;
        let socket = self.dir.path().join(format!("nbd-{restarts}"));
        let mut command = vmnetx(self.dir.path(), &["nbd", "serve", &self.link]);
        command.args(["--memory-cache", MEMORY_CACHE, "--disk-cache", DISK_CACHE, "--cache-dir"]).arg(self.cache_dir());
        command.args(["--retry-for", &RETRY_FOR_S.to_string(), "--socket"]).arg(&socket).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut talk = BufReader::new(server.stderr.take().unwrap());
        let (tell, told) = tokio::sync::oneshot::channel();
        let report = Arc::clone(&self.report);
        std::thread::spawn(move || {
            let mut tell = Some(tell);
            let mut line = String::new();
            while talk.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if line.contains("serving disk0")
                    && let Some(tell) = tell.take()
                {
                    let _ = tell.send(());
                }
                if line.contains("panicked") {
                    report.lock().unwrap().complain(std::mem::take(&mut line));
                }
                line.clear();
            }
        });
        *self.server.lock().await = Some(server);
        tokio::time::timeout(STARTS_WITHIN, told).await.expect("the server starts").expect("the server serves");
        let image = Arc::clone(&self.image.lock().unwrap());
        *self.serving.lock().unwrap() = Arc::new(Serving { socket, image, ended: AtomicBool::new(false) });
    }
}

fn behave(seed: u64, weather: Arc<Mutex<Vec<Spell>>>) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let random = Mutex::new(Random::new(seed ^ 7));
    move |_| {
        let now = weather.lock().unwrap().last().filter(|spell| spell.to.is_none()).copied();
        now.map_or(Answer::Good, |spell| spell.fault.answer(&mut random.lock().unwrap()))
    }
}

/// Data that does and does not compress, and holes.
fn first_image(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut image = Vec::with_capacity(IMAGE_BYTES);
    while image.len() < IMAGE_BYTES {
        let bytes = (random.below(64) as usize + 1) * 4096;
        match random.below(5) {
            0 => image.resize(image.len() + bytes, 0),
            1 | 2 => image.extend(noise(random.below(u64::MAX), bytes)),
            _ => image.extend(prose(random.below(u64::MAX), bytes)),
        }
    }
    image.truncate(IMAGE_BYTES);
    image
}

async fn publish(dir: &Path, image: &[u8]) {
    let disk = dir.join("disk.img");
    std::fs::write(&disk, image).unwrap();
    let mut command = vmnetx(dir, &["pack", "build", "--quiet"]);
    command.arg(dir.join("repository")).args(["vm", "--disk"]).arg(disk);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "publishing: {output:?}");
}

fn vmnetx(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx"));
    command.args(words).env("VMNETX_STATE_DIR", dir.join("state")).stdin(Stdio::null());
    command
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
