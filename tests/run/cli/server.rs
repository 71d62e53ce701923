//! The server that runs read through: shared, started by several at once, killed, of another version, private.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::Value;

use super::*;

impl Bench {
    /// What the shared server tells, if there is one.
    pub(super) fn stats(&self) -> Option<Value> {
        let mut stats = self.vmnetx(&["nbd", "stats", "--json", "--cache-dir"]);
        let output = stats.arg(self.cache_dir()).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The process of the shared server: the one whose command line names the cache directory.
    pub(super) fn server(&self) -> Option<u32> {
        server_of(&self.cache_dir())
    }
}

/// The process of the server whose command line names this directory.
pub(super) fn server_of(dir: &Path) -> Option<u32> {
    let dir = dir.display().to_string();
    let names_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains("nbd serve") && line.contains(&dir)
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(names_it)
}

fn attachments(stats: &Value) -> usize {
    stats["attachments"].as_array().unwrap().len()
}

#[test]
fn runs_share_one_server_and_what_it_has_fetched() {
    let bench = Bench::new("shared", &[]);
    let web = WebServer::start(&bench, 0);
    // Both at once, so that they race for the directory.
    let (mut one, mut other) = (bench.start("one", &web.link()), bench.start("other", &web.link()));
    for running in [&mut one, &mut other] {
        running.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE);
    }
    let stats = bench.stats().unwrap();
    assert_eq!(attachments(&stats), 2);
    // Two boots of one image: what the one fetches, the other one finds or waits for. Nothing crosses twice.
    let counts = |number: usize| &stats["attachments"][number]["exports"][0]["counts"];
    let both = |name: &str| counts(0)[name].as_u64().unwrap() + counts(1)[name].as_u64().unwrap();
    let packs = fs::read_dir(bench.path("repository/packs")).unwrap();
    let packs = packs.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let stored: u64 = packs.map(|pack| pack.unwrap().metadata().unwrap().len()).sum();
    assert!(both("origin_bytes") > 0 && both("origin_bytes") <= stored, "{stored} are stored: {stats:#}");
    assert!(both("memory_chunks") + both("joined_chunks") + both("disk_chunks") > 0, "{stats:#}");
    for running in [&mut one, &mut other] {
        running.type_line("poweroff");
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
        assert!(running.said().contains("the guest read"), "{}", running.said());
    }
    // It stays for the next one, with nothing attached.
    assert_eq!(attachments(&bench.stats().unwrap()), 0);
    bench.assert_clean();
}

#[test]
fn a_server_that_is_killed_under_a_guest_is_replaced_and_the_guest_goes_on() {
    let bench = Bench::new("replaced", &[]);
    let web = WebServer::start(&bench, 0);
    let mut running = bench.start("replaced", &web.link());
    running.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE);
    for round in 1..=2 {
        let server = bench.server().expect("a server runs");
        kill_process(Pid::from_raw(server as i32).unwrap(), Signal::KILL).unwrap();
        // What the guest has not read yet.
        let skip = 16 + 4 * round;
        running.type_line(&format!(
            "dd if=/dev/sda4 bs=1M skip={skip} count=4 2>/dev/null | sha256sum; echo read-{round}-$((1 + 1))"
        ));
        running.wait_for(&format!("read-{round}-2"), Duration::from_secs(90));
        assert_ne!(bench.server(), Some(server));
        let data = fs::read(&bench.image).unwrap();
        let part = bench.path("part");
        fs::write(&part, &data[(32 + skip) << 20..(36 + skip) << 20]).unwrap();
        let sum = String::from_utf8(Command::new("sha256sum").arg(&part).output().unwrap().stdout).unwrap();
        assert!(running.said().contains(sum.split_whitespace().next().unwrap()), "{}", running.said());
    }
    running.type_line("dmesg | grep -c 'I/O error'; echo counted-$((1 + 1))");
    running.wait_for("counted-2", DEADLINE);
    assert!(running.said().contains("\n0\r"), "the guest saw no error: {}", running.said());
    assert!(running.said().contains("the server has ended"), "{}", running.said());
    running.type_line("poweroff");
    assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
    bench.assert_clean();
}

/// A server of the future: says which versions it speaks and takes note of what else it is asked for.
pub(super) fn other_version(path: &Path) -> std::sync::mpsc::Receiver<String> {
    let listener = UnixListener::bind(path).unwrap();
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let answer = r#"{"api":[99],"program":"99.0","pid":1,"draining":false,"mood":"good"}"#;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).unwrap();
            if sender.send(first).is_err() {
                return;
            }
        }
    });
    asked
}

#[test]
fn a_server_of_another_version_is_drained_and_a_private_one_used() {
    let bench = Bench::new("versions", &["vmnetx.poweroff"]);
    fs::create_dir_all(bench.cache_dir()).unwrap();
    let socket = bench.cache_dir().join("control.sock");
    let asked = other_version(&socket);
    let output = finish(bench.run(&bench.link(), &[]));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("another version") && log.contains("keeps nothing"), "{log}");
    assert_disk_sum(&String::from_utf8_lossy(&output.stdout), &bench.image);
    let asked: Vec<_> = asked.try_iter().collect();
    assert!(asked.iter().any(|line| line.starts_with("POST /drain ")), "{asked:?}");
    bench.assert_clean();
}

#[test]
fn without_a_cache_directory_a_run_has_a_server_of_its_own() {
    let bench = Bench::new("private", &["vmnetx.poweroff"]);
    let said = bench.run_to_the_end(&bench.link(), &["--disk-cache", "0"]);
    assert_disk_sum(&said, &bench.image);
    assert!(!bench.cache_dir().exists());
    // One that is in the way is told of; one that was asked for must work.
    fs::create_dir_all(bench.path("cache")).unwrap();
    fs::write(bench.cache_dir(), "a file").unwrap();
    let output = finish(bench.run(&bench.link(), &[]));
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("nothing is kept for the next time"), "{log}");
    let (code, complaint) = failure(bench.run(&bench.link(), &["--cache-dir", bench.cache_dir().to_str().unwrap()]));
    assert!(code == HOST && complaint.contains("cache directory"), "{complaint}");
    bench.assert_clean();
}

/// The server runs and may ask whom it likes; the run may not, and there is nobody to be asked.
#[test]
fn a_guest_whose_package_was_pulled_runs_offline() {
    let bench = Bench::new("offline", &["vmnetx.poweroff"]);
    let web = WebServer::start(&bench, 0);
    let link = web.link();
    let (code, complaint) = failure(bench.run(&link, &["--offline"]));
    assert!(code == NETWORK && complaint.contains("offline") && complaint.contains("vmnetx-nbd pull"), "{complaint}");
    let server = bench.server();
    assert!(server.is_some());
    let pulled = finish(bench.vmnetx(&["nbd", "pull", &link]));
    assert_eq!(pulled.status.code(), Some(0), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert!(String::from_utf8_lossy(&pulled.stdout).ends_with("complete: safe to disconnect\n"));
    drop(web);
    let said = bench.run_to_the_end(&link, &["--offline"]);
    assert_disk_sum(&said, &bench.image);
    assert_eq!(bench.server(), server, "one server did it all");
    bench.assert_clean();
}

#[test]
fn a_service_of_the_host_is_used_when_it_is_named() {
    let bench = Bench::new("service", &["vmnetx.poweroff"]);
    let web = WebServer::start(&bench, 0);
    let control = bench.path("service.sock");
    let (code, complaint) = failure(bench.run(&web.link(), &["--server", control.to_str().unwrap()]));
    assert!(code == 1 && complaint.contains("no server listens"), "{complaint}");
    let mut service = bench.vmnetx(&["nbd", "serve", "--control"]);
    let _service = Ended(service.arg(&control).stderr(Stdio::null()).spawn().unwrap());
    wait_until("the service listens", DEADLINE, || control.exists());
    let mode = fs::metadata(&control).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
    let said = bench.run_to_the_end(&web.link(), &["--server", control.to_str().unwrap()]);
    assert_disk_sum(&said, &bench.image);
    assert!(!bench.cache_dir().exists(), "no other server was started");
}
