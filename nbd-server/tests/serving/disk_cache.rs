//! The program with a cache directory in which things go wrong: killed at any moment, no space, files that are damaged,
//! removed or replaced; and the commands that look after it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use vmnetx_nbd_proto::client::{Client, ConnectOptions};

use crate::support::bad_http::{Answer, BadServer};
use crate::support::repository::Repository;
use crate::support::source::{Source, noise, prose};
use crate::within;

const BLOCK: u64 = 4096;

/// A repository on a web server, and a cache directory.
struct Site {
    source: Source,
    repository: Repository,
    origin: BadServer,
    dir: tempfile::TempDir,
}

/// A running `vmnetx-nbd serve`; it is killed with this value.
struct Serving {
    child: Child,
    socket: PathBuf,
}

impl Site {
    async fn new(bytes: usize) -> Self {
        let source = Source::of([noise(1, bytes / 2), prose(2, bytes / 2)].concat());
        let repository = Repository::of(&source);
        let origin = BadServer::start(repository.root(), |_| Answer::Good).await;
        Self { source, repository, origin, dir: tempfile::tempdir().unwrap() }
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx-nbd"));
        command.args(words).arg("--cache-dir").arg(self.cache_dir());
        command.env("VMNETX_STATE_DIR", self.dir.path().join("state")).stdin(Stdio::null());
        command
    }

    fn serve_command(&self, size: &str) -> Command {
        let link = self.origin.location().to_string();
        // No memory tier: every read comes from the disk or the origin.
        let mut command = self.command(&["serve", &link, "--disk-cache", size, "--memory-cache", "0"]);
        command.arg("--socket").arg(self.dir.path().join("nbd"));
        command
    }

    fn start(&self, size: &str) -> Serving {
        Serving::start(self.serve_command(size), self.dir.path().join("nbd"))
    }

    async fn output(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        within(60, tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap()
    }

    /// Reads at `reads` pseudo-random places, and compares.
    async fn read(&self, client: &Client, seed: u64, reads: usize) -> bool {
        let blocks = self.source.size_bytes() / BLOCK;
        for draw in noise(seed, reads * 8).chunks_exact(8) {
            let draw = u64::from_le_bytes(draw.try_into().unwrap());
            let offset = draw % blocks * BLOCK;
            let length = (1 + (draw >> 40) % 12).min(blocks - offset / BLOCK) * BLOCK;
            match within(60, client.read(offset, length as u32)).await {
                Ok(data) => assert!(data == self.source.read(offset, length), "wrong bytes at {offset}"),
                Err(_) => return false,
            }
        }
        true
    }

    async fn read_everything(&self, client: &Client) {
        for offset in (0..self.source.size_bytes()).step_by(256 << 10) {
            let length = (256 << 10).min(self.source.size_bytes() - offset);
            let data = within(60, client.read(offset, length as u32)).await.unwrap();
            assert!(data == self.source.read(offset, length), "wrong bytes at {offset}");
        }
    }

    fn pack_requests(&self) -> usize {
        self.origin.log().iter().filter(|asked| asked.path.starts_with("packs/")).count()
    }
}

impl Serving {
    fn start(mut command: Command, socket: PathBuf) -> Self {
        let _ = std::fs::remove_file(&socket);
        Self { child: command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap(), socket }
    }

    async fn client(&self) -> Client {
        within(60, async {
            loop {
                if let Ok(stream) = UnixStream::connect(&self.socket).await {
                    return Client::connect(stream, &ConnectOptions::new("")).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Ends it in good order; what it has said.
    async fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut stderr = self.child.stderr.take().unwrap();
        let said = tokio::task::spawn_blocking(move || std::io::read_to_string(&mut stderr).unwrap());
        within(60, said).await.unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Twelve times killed with SIGKILL, while it writes and evicts: the cache has an eighth of the image.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_leaves_a_good_cache() {
    let site = Site::new(6_000_000).await;
    for round in 0..12_u64 {
        // A small one that is always evicting and one that holds everything take turns.
        let serving = site.start(if round % 4 == 3 { "64M" } else { "1M" });
        let client = serving.client().await;
        let after = Duration::from_micros(u64::from(noise(round, 1)[0]) * 500);
        let reading = site.read(&client, 100 + round, 100_000);
        tokio::select! {
            went_well = reading => assert!(went_well, "a read failed"),
            () = tokio::time::sleep(after) => {}
        }
        serving.kill();
    }
    // What is left is read from to the last byte, and all of it is good.
    let serving = site.start("64M");
    site.read_everything(&serving.client().await).await;
    let said = serving.stop().await;
    assert!(!said.contains("damaged"), "{said}");
    let verified = site.output(&["cache", "verify"]).await;
    assert!(verified.status.success(), "{verified:?}");
    let asked = site.pack_requests();
    let serving = site.start("64M");
    site.read_everything(&serving.client().await).await;
    serving.stop().await;
    assert_eq!(site.pack_requests(), asked, "something was fetched again");
}

/// Whatever happens to the files between two runs: wrong bytes are never served and the program starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_directory_that_is_damaged_at_random_is_used_as_far_as_it_goes() {
    let site = Site::new(3_000_000).await;
    for round in 0..8_u64 {
        let serving = site.start("8M");
        let client = serving.client().await;
        if round % 3 == 0 {
            site.read_everything(&client).await;
        } else {
            assert!(site.read(&client, round, 200).await, "a read failed");
        }
        drop(client);
        serving.stop().await;
        let mut files = Vec::new();
        list(&site.cache_dir(), &mut files);
        let draws = noise(1000 + round, files.len());
        for (file, draw) in files.iter().zip(draws) {
            break_file(file, draw, &files);
        }
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => list(&entry.path(), files),
            kind if kind.is_file() && entry.file_name() != "lock" => files.push(entry.path()),
            _ => {}
        }
    }
    files.sort();
}

fn break_file(file: &Path, draw: u8, others: &[PathBuf]) {
    let mut bytes = std::fs::read(file).unwrap_or_default();
    let at = usize::from(draw) * 7919 % bytes.len().max(1);
    match draw % 12 {
        0 => std::fs::remove_file(file).unwrap(),
        1 => {
            let _ = std::fs::copy(&others[usize::from(draw) % others.len()], file);
        }
        2 => {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir(file).unwrap();
        }
        3 => {
            std::fs::remove_file(file).unwrap();
            symlink("/dev/zero", file).unwrap();
        }
        4 => std::fs::write(file, noise(draw.into(), 10_000)).unwrap(),
        5 => {
            bytes.truncate(at);
            std::fs::write(file, bytes).unwrap();
        }
        6 => std::fs::File::options().write(true).open(file).unwrap().set_len(1 << 33).unwrap(),
        7..=9 if !bytes.is_empty() => {
            bytes[at] ^= draw | 1;
            std::fs::write(file, bytes).unwrap();
        }
        _ => {}
    }
}

/// A file system of two megabytes. The mount is in a namespace of the server's own and ends with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_writing_with_one_warning_and_reading_goes_on() {
    let site = Site::new(8_000_000).await;
    std::fs::create_dir(site.cache_dir()).unwrap();
    let serve = site.serve_command("64M");
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@""#;
    command.args(["--mount", "--map-root-user", "sh", "-c", script]).arg(site.cache_dir());
    command.arg(serve.get_program()).args(serve.get_args());
    for (name, value) in serve.get_envs() {
        command.env(name, value.unwrap());
    }
    let serving = Serving::start(command, site.dir.path().join("nbd"));
    let client = serving.client().await;
    let packs_before = site.pack_requests();
    for _ in 0..2 {
        site.read_everything(&client).await;
    }
    // What was kept before the disk was full is still read from it.
    let asked = site.pack_requests() - packs_before;
    assert!(asked > 0);
    drop(client);
    let said = serving.stop().await;
    assert_eq!(said.matches("keeps nothing new").count(), 1, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    let disk_chunks = said.split("disk_chunks=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(disk_chunks.parse::<u64>().unwrap() > 20, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_is_looked_after_from_the_command_line() {
    let site = Site::new(2_000_000).await;
    let absent = site.output(&["cache", "du"]).await;
    assert_eq!(absent.status.code(), Some(6), "{absent:?}");
    assert!(!site.cache_dir().exists());
    let link = site.origin.location().to_string();
    let pulled = site.output(&["pull", &link]).await;
    assert!(pulled.status.success(), "{pulled:?}");
    assert!(String::from_utf8_lossy(&pulled.stdout).ends_with("complete: safe to disconnect\n"), "{pulled:?}");
    let json = |output: &Output| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    let usage = json(&site.output(&["cache", "du", "--json"]).await);
    assert_eq!(usage["pins"][0]["manifest"], site.repository.version.manifest.to_string());
    assert!(usage["usage"]["pinned_bytes"].as_u64().unwrap() > 1_000_000);
    // What is kept for good is not pruned; then it is let go of.
    let records = |usage: &serde_json::Value| usage["usage"]["records"].as_u64().unwrap();
    let pruned = json(&site.output(&["cache", "prune", "--json"]).await);
    assert_eq!(records(&pruned), records(&usage));
    let offline = site.output(&["pull", &link, "--offline", "--json"]).await;
    assert_eq!(json(&offline)["fetched_bytes"], 0);
    let wrong = site.output(&["cache", "pin", "--remove", "nothing"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(site.output(&["cache", "pin", "--remove", &link]).await.status.success());
    assert!(site.output(&["cache", "pin", "--list"]).await.stdout.is_empty());
    // A chunk is damaged, found and dropped.
    let segment = site.cache_dir().join("000000000000.segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let damaged = site.output(&["cache", "verify", "--json"]).await;
    assert_eq!((damaged.status.code(), json(&damaged)["verified"]["damaged"].as_u64()), (Some(4), Some(1)));
    assert!(site.output(&["cache", "verify"]).await.status.success());
    let half = json(&site.output(&["cache", "prune", "--to", "1M", "--json"]).await);
    assert!(half["usage"]["bytes"].as_u64().unwrap() <= 1 << 20, "{half}");
}

/// What a command has said but for the second in which something was pinned, which each pull sets anew.
fn timeless(output: &Output) -> (Option<i32>, String, String) {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    let mut parts = stdout.split("\"pinned_unix_s\":");
    let mut said = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        said += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    (output.status.code(), said, stderr)
}

/// Whoever has the directory, the commands say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_what_the_commands_do_alone() {
    let site = Site::new(2_000_000).await;
    let link = site.origin.location().to_string();
    let text = |output: &Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout.clone()).unwrap()
    };
    let serving = site.start("64M");
    let client = serving.client().await;
    let pulled = text(&site.output(&["pull", &link]).await);
    assert!(pulled.ends_with("complete: safe to disconnect\n"), "{pulled}");
    let again = text(&site.output(&["pull", &link, "--rate", "1M", "--json"]).await);
    let commands = [
        &["pull", &link, "--offline", "--json"][..],
        &["cache", "du"],
        &["cache", "du", "--json"],
        &["cache", "prune", "--json"],
        &["cache", "verify"],
        &["cache", "verify", "--json"],
        &["cache", "pin", "--list"],
        &["cache", "pin", "--list", "--json"],
        &["cache", "pin", "--remove", "nothing"],
    ];
    let mut served = Vec::new();
    for words in commands {
        served.push(site.output(words).await);
    }
    let attachments = text(&site.output(&["stats", "--json"]).await);
    let stats: serde_json::Value = serde_json::from_str(&attachments).unwrap();
    // The pulls' own attachments are gone, and what is served is whole.
    assert_eq!(
        (stats["attachments"].as_array().unwrap().len(), &stats["attachments"][0]["complete"]),
        (1, &true.into())
    );
    site.read_everything(&client).await;
    drop(client);
    serving.stop().await;
    assert_eq!(text(&site.output(&["pull", &link, "--json"]).await), again);
    for (words, served) in commands.iter().zip(served) {
        let alone = site.output(words).await;
        assert_eq!(timeless(&served), timeless(&alone), "{words:?}");
    }
    // The other way round: what a command has pulled, and lets go of by a server.
    let serving = site.start("64M");
    serving.client().await;
    assert!(text(&site.output(&["cache", "pin", "--remove", &link]).await).starts_with("vm version"));
    assert_eq!(text(&site.output(&["cache", "pin", "--list"]).await), "");
    let refused = site.output(&["pull", &link.replace("vm.vmnetx", "none.vmnetx")]).await;
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    serving.stop().await;
}

/// A command that has the directory for itself is not taken for a server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_the_directory_and_does_not_answer_is_told() {
    let site = Site::new(100_000).await;
    let _alone = vmnetx_store::DiskCache::open(&site.cache_dir(), 1 << 20).unwrap();
    let busy = site.output(&["cache", "prune"]).await;
    assert_eq!(busy.status.code(), Some(6));
    let said = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(said.contains(&format!("process {} uses it", std::process::id())), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_keeps_to_the_rate_that_it_is_given() {
    let site = Site::new(2 << 20).await;
    let link = site.origin.location().to_string();
    // More than a megabyte of it does not compress, in packs of a quarter; the last request is not waited for.
    let start = std::time::Instant::now();
    let pulled = site.output(&["pull", &link, "--rate", "512K"]).await;
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert!(start.elapsed() >= Duration::from_millis(1200), "{:?}", start.elapsed());
    let never = site.output(&["pull", &link, "--rate", "0"]).await;
    assert_eq!(never.status.code(), Some(2));
}
