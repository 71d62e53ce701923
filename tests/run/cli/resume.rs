//! Saved VMs that go on: lazily, as a stream, through outages, and what happens where they cannot.
//!
//! The lazy ones need userfaultfd: root, or `vm.unprivileged_userfaultfd=1`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::*;

/// Fills memory with what no zeros and no file of the guest's are, and tells its sum.
const FILL: &str =
    r#"dd if=/dev/urandom of=/memory bs=1M count=24 2>/dev/null; s=$(sha256sum </memory); echo "FILLED""-${s%% *}""#;
pub(super) const SUM: &str = r#"s=$(sha256sum </memory); echo "SUM""-${s%% *}""#;
/// Writes to the disk what it reads again past its page cache.
const WRITE: &str = r#"d=$(ls /dev/[sv]da3); dd if=/memory of=$d bs=4k seek=300 count=64 conv=notrunc,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
dd if=$d bs=4k skip=300 count=64 2>/dev/null | cmp -s - /dev/fd/3 3</memory; dd if=$d bs=4k skip=300 count=64 of=/w 2>/dev/null; dd if=/memory bs=4k count=64 of=/v 2>/dev/null; cmp /w /v && echo "WROTE""-IT""#;

/// A guest that was saved at work, published with the order of its resume.
pub(super) struct SavedGuest {
    pub(super) bench: Bench,
    /// Its last tick before it was saved.
    tick: u64,
    /// Of what its memory was filled with.
    sum: String,
}

impl SavedGuest {
    pub(super) fn new(marker: &str, arguments: &[&str]) -> Self {
        let bench = Bench::new(marker, &["vmnetx.tick=0.05"]);
        let mut running = bench.start_ticking();
        running.type_line(FILL);
        let sum = running.word_after("FILLED-");
        let tick = running.ticks_after(0);
        let output = finish(bench.capture("guest", &[&["--yes", "--json", "--stop"], arguments].concat()));
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report.get("order").is_some(), arguments.is_empty(), "{report}\n{log}");
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
        Self { bench, tick, sum }
    }

    pub(super) fn resume(&self, name: &str, link: &str, arguments: &[&str]) -> Running {
        self.bench.start_with(name, link, arguments)
    }

    /// The guest has gone on: with the ticks that follow, its memory and its disk.
    pub(super) fn check(&self, running: &mut Running) {
        let tick = running.ticks_after(0);
        assert!(tick >= self.tick, "{tick} is a tick of a guest that has booted again");
        assert!(!running.said().contains("VMNETX-GUEST-READY"), "{}", running.said());
        running.type_line(SUM);
        assert_eq!(running.word_after("SUM-"), self.sum);
        running.type_line(WRITE);
        running.wait_for("WROTE-IT", DEADLINE);
        running.ticks_on();
    }

    /// A figure of `smaps_rollup` (proc(5)), summed over the QEMUs that run.
    fn qemu_memory_kib(&self, field: &str) -> u64 {
        let of = |pid: u32| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = rollup.lines().filter(|_| is_qemu(pid)).find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        self.bench.qemus().into_iter().map(of).sum()
    }

    pub(super) fn end(&self, mut running: Running) {
        running.type_line("poweroff");
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
        self.bench.assert_clean();
    }
}

impl Running {
    /// Waits for the word that follows this one.
    pub(super) fn word_after(&mut self, before: &str) -> String {
        let started = Instant::now();
        loop {
            let said = self.said();
            let word = said.rsplit_once(before).map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
            if let Some(word) = word.filter(|word| word.len() == 64) {
                return word.to_owned();
            }
            assert!(started.elapsed() < DEADLINE, "{before} did not come:\n{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_captured_guest_goes_on_in_every_mode() {
    let guest = SavedGuest::new("resumed", &[]);
    let web = WebServer::start(&guest.bench, 0);
    // With a mode that is demanded first: what is then on this host would be mapped.
    for (mode, told) in [("auto", "(lazy"), ("lazy", "(lazy"), ("stream", "(stream"), ("mapped", "(mapped")] {
        let mut running = guest.resume(mode, &web.link(), &["--resume", mode]);
        guest.check(&mut running);
        running.wait_for(told, DEADLINE);
        if told == "(lazy" {
            running.wait_for("all of the guest's memory is here", DEADLINE);
            guest.check(&mut running);
        }
        guest.end(running);
    }
    // What was recorded when it was captured is brought ahead.
    let mut stats = guest.resume("order", &web.link(), &["--disk-cache", "0"]);
    guest.check(&mut stats);
    stats.signal(Signal::TERM);
    assert_eq!(stats.ended(DEADLINE).code(), Some(0));
    assert!(stats.said().contains("MB ahead, as recorded"), "{}", stats.said());
}

/// What happens to a resume.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The web server is away for so long.
    Origin(Duration),
    /// The server that reads it is killed.
    Server,
    /// QEMU is killed.
    Qemu,
    /// The launcher is told to end.
    Told,
    /// The launcher is killed.
    Killed,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Origin(_) => "the web server is away",
            Self::Server => "the server is killed",
            Self::Qemu => "QEMU is killed",
            Self::Told => "the launcher is told to end",
            Self::Killed => "the launcher is killed",
        }
    }
}

/// Lazy resumes from an empty cache, each with a fault at a random moment: every one ends in a right guest or a clear error, and none
/// hangs. `VMNETX_RESUMES` says how many, `VMNETX_RESUMES_SEED` which.
#[test]
#[allow(clippy::print_stdout, reason = "what came of it is the output of benches/resume-faults")]
fn resumes_survive_faults_or_end_in_words() {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().expect(name));
    let (resumes, seed) = (number("VMNETX_RESUMES", 20), number("VMNETX_RESUMES_SEED", 1));
    let guest = SavedGuest::new("faults", &[]);
    let mut web = Some(WebServer::start(&guest.bench, 0));
    let (link, port) = (web.as_ref().unwrap().link(), web.as_ref().unwrap().port);
    // A generator of pseudo-random numbers (Knuth's MMIX), of which the high bits are good.
    let mut state: u64 = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut outcomes = BTreeMap::new();
    for number in 0..resumes {
        let after = Duration::from_millis(below(1500));
        let fault = match number % 5 {
            0 => Fault::Origin(Duration::from_millis(below(3000))),
            1 => Fault::Server,
            2 => Fault::Qemu,
            3 => Fault::Told,
            _ => Fault::Killed,
        };
        let what = format!("resume {number} of seed {seed}: {fault:?} after {after:?}");
        let cache = guest.bench.path("tmp").join(format!("cache-{number}"));
        let order = if below(2) == 0 { "auto" } else { "off" };
        let arguments = ["--resume", "lazy", "--order", order, "--cache-dir", cache.to_str().unwrap()];
        let mut running = guest.resume("faults", &link, &arguments);
        std::thread::sleep(after);
        let kill = |pid: u32| kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        let qemu = || guest.bench.qemus().into_iter().find(|pid| is_qemu(*pid));
        match fault {
            Fault::Origin(lasts) => {
                drop(web.take());
                std::thread::sleep(lasts);
                web = Some(WebServer::start(&guest.bench, port));
            }
            Fault::Server => drop(server::server_of(&cache).map(kill)),
            Fault::Qemu => {
                wait_until(&what, BOOT_DEADLINE, || qemu().is_some());
                qemu().map(kill).unwrap().unwrap();
            }
            Fault::Told => running.signal(Signal::TERM),
            Fault::Killed => running.signal(Signal::KILL),
        }
        let came_of_it = match fault {
            Fault::Origin(_) | Fault::Server => {
                // It may have met a server that was not there yet, or not any more, before it had anything to wait for.
                let refused = running.child.0.try_wait().unwrap().is_some();
                if refused {
                    assert_eq!(running.ended(DEADLINE).code(), Some(NETWORK), "{what}: {}", running.said());
                    "refused in words: the network (exit code 5)"
                } else {
                    guest.check(&mut running);
                    running.type_line("poweroff");
                    assert_eq!(running.ended(DEADLINE).code(), Some(0), "{what}: {}", running.said());
                    "the guest went on, its memory and disk are right"
                }
            }
            Fault::Qemu => {
                let code = running.ended(DEADLINE).code();
                assert!(code == Some(1) && running.said().contains("QEMU"), "{what}: {code:?} {}", running.said());
                "ended in words (exit code 1)"
            }
            Fault::Told => {
                assert_eq!(running.ended(DEADLINE).code(), Some(0), "{what}: {}", running.said());
                "ended"
            }
            Fault::Killed => {
                running.ended(DEADLINE);
                "nothing of it was left"
            }
        };
        *outcomes.entry((fault.name(), came_of_it)).or_insert(0) += 1;
        wait_until(&what, DEADLINE, || qemu().is_none());
        let mut drain = guest.bench.vmnetx(&["nbd", "drain", "--cache-dir"]);
        let _ = drain.arg(&cache).stderr(Stdio::null()).status();
    }
    drop(web);
    for ((fault, came_of_it), count) in outcomes {
        println!("| {fault} | {came_of_it} | {count} |");
    }
}

fn is_qemu(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"))
}

#[test]
fn a_user_without_userfaultfd_resumes_otherwise() {
    const NOBODY: u32 = 65534;
    assert_eq!(fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim(), "0");
    let guest = SavedGuest::new("nobody", &["--no-rehearse"]);
    let web = WebServer::start(&guest.bench, 0);
    let own = guest.bench.path("own");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(guest.bench.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where this user may run it from.
    let program = own.join("vmnetx");
    fs::copy(env!("CARGO_BIN_EXE_vmnetx"), &program).unwrap();
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let run = |mode: &str| {
        let ids = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(ids).arg(&program).args(["run", &web.link(), "--accel", "tcg", "--network", "isolated"]);
        command.args(["--resume", mode, "--disk-cache", "0"]).current_dir("/").stdin(Stdio::piped());
        command.env("TMPDIR", &own).env("HOME", &own).env("VMNETX_STATE_DIR", own.join("state"));
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").env_remove("VMNETX_LOG");
        command
    };
    let (code, said) = failure(run("lazy"));
    assert!(code == HOST && said.contains("Postcopy") && said.contains("vm.unprivileged_userfaultfd"), "{code} {said}");
    assert!(said.contains("vmnetx doctor"), "{said}");
    for (mode, told) in [("auto", "(stream"), ("mapped", "(mapped")] {
        let (serial, log) = (guest.bench.path("nobody.serial"), guest.bench.path("nobody.log"));
        let mut command = run(mode);
        command.stdout(File::create(&serial).unwrap()).stderr(File::create(&log).unwrap());
        let mut running = Running { child: Ended(command.spawn().unwrap()), serial, log };
        guest.check(&mut running);
        running.wait_for(told, DEADLINE);
        running.type_line("poweroff");
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
    }
}

#[test]
fn clones_share_the_memory_that_they_have_not_changed() {
    let guest = SavedGuest::new("clones", &["--no-rehearse"]);
    let link = guest.bench.link();
    // They are called by their numbers: all run at the same time.
    let start = |name: &str| guest.resume(name, &link, &["--resume", "mapped", "--name", name]);
    let mut clones = ["one", "two", "three", "four"].map(start);
    for clone in &mut clones {
        guest.check(clone);
        clone.wait_for("(mapped", DEADLINE);
    }
    let [shared, resident] = ["Pss:", "Rss:"].map(|field| guest.qemu_memory_kib(field));
    assert!(shared * 100 < resident * 60, "{shared} KiB proportional of {resident} KiB resident");
    let stats = guest.bench.stats().unwrap();
    assert!(stats["mapped_bytes"].as_u64().unwrap() > 24 << 20, "{stats}");
    for mut clone in clones {
        clone.type_line("poweroff");
        assert_eq!(clone.ended(DEADLINE).code(), Some(0), "{}", clone.said());
    }
    wait_until("the server lets go of it", DEADLINE, || guest.bench.stats().unwrap()["mapped_bytes"] == 0);
    // All of it is here now, so nobody need ask for this.
    let mut another = guest.resume("another", &link, &[]);
    guest.check(&mut another);
    another.wait_for("(mapped", DEADLINE);
    guest.end(another);
}

#[test]
fn saved_memory_is_of_the_published_disk_alone() {
    let guest = SavedGuest::new("overlays", &["--no-rehearse"]);
    let (link, overlay) = (guest.bench.link(), guest.bench.path("overlay.qcow2"));
    let persist = ["--persist", overlay.to_str().unwrap()];
    let mut first = guest.resume("first", &link, &persist);
    guest.check(&mut first);
    guest.end(first);
    // Now the disk is another one.
    let (code, said) = failure(guest.bench.run(&link, &[&persist[..], &["--resume", "lazy"]].concat()));
    assert!(code == USAGE && said.contains("has been run before"), "{code} {said}");
    let mut again = guest.resume("again", &link, &persist);
    again.wait_for("VMNETX-BOOTS", BOOT_DEADLINE);
    assert!(again.said().contains("has been run before"), "{}", again.said());
    again.signal(Signal::TERM);
    assert_eq!(again.ended(DEADLINE).code(), Some(0));

    let mut booted = guest.resume("booted", &link, &["--resume", "off"]);
    booted.wait_for("VMNETX-GUEST-READY", BOOT_DEADLINE);
    booted.signal(Signal::TERM);
    assert_eq!(booted.ended(DEADLINE).code(), Some(0));
}

#[test]
fn a_lazy_guest_outlives_its_servers() {
    let guest = SavedGuest::new("outages", &["--no-rehearse"]);
    let web = WebServer::start(&guest.bench, 0);
    let port = web.port;
    let mut running = guest.resume("outages", &web.link(), &["--resume", "lazy", "--memory-cache", "64M"]);
    running.wait_for("(lazy", BOOT_DEADLINE);
    // The origin goes away in the midst of it, and so does the server that reads it.
    drop(web);
    let server = guest.bench.server().expect("a server of the cache directory");
    kill_process(Pid::from_raw(server.cast_signed()).unwrap(), Signal::KILL).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(running.child.0.try_wait().unwrap().is_none(), "{}", running.said());
    let _web = WebServer::start(&guest.bench, port);
    guest.check(&mut running);
    running.wait_for("all of the guest's memory is here", DEADLINE);
    guest.check(&mut running);
    guest.end(running);
}

#[test]
fn a_guest_that_cannot_be_resumed_boots_or_says_why() {
    let guest = SavedGuest::new("refused", &["--no-rehearse"]);
    let link = guest.bench.link();
    // A QEMU that does not know the saved machine's devices takes none of its state.
    let other = guest.bench.path("other-qemu");
    let qemu = ["--qemu", other.to_str().unwrap()];
    for program in [machines::newer_qemu().as_str(), "qemu-system-x86_64"] {
        let script = format!(
            "#!/bin/sh\nfor a in \"$@\"; do shift; case $a in *'\"VGA\"'*) a='{{\"driver\":\"cirrus-vga\"}}';; esac; \
             set -- \"$@\" \"$a\"; done\nexec {program} \"$@\"\n"
        );
        fs::write(&other, script).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        for mode in ["lazy", "stream"] {
            let (code, said) = failure(guest.bench.run(&link, &[&qemu[..], &["--resume", mode]].concat()));
            assert!(code == 1 && said.contains("QEMU cannot load the saved state"), "{program} {mode}: {code} {said}");
            guest.bench.assert_clean();
        }
    }
    let mut running = guest.resume("fallback", &link, &qemu);
    running.wait_for("VMNETX-GUEST-READY", BOOT_DEADLINE);
    assert!(running.said().contains("the VM boots, for it cannot be resumed"), "{}", running.said());
    running.signal(Signal::TERM);
    assert_eq!(running.ended(DEADLINE).code(), Some(0));
    guest.bench.assert_clean();
}

#[test]
fn programs_are_told_how_far_it_is() {
    let guest = SavedGuest::new("programs", &["--no-rehearse"]);
    let (link, out, serial) = (guest.bench.link(), guest.bench.path("events"), guest.bench.path("programs.serial"));
    let mut command = guest.bench.run(&link, &["--resume", "lazy", "--json", "--serial", serial.to_str().unwrap()]);
    let mut child = Ended(command.stdout(File::create(&out).unwrap()).stderr(Stdio::null()).spawn().unwrap());
    let events = || fs::read_to_string(&out).unwrap_or_default();
    wait_until("all memory is there", BOOT_DEADLINE, || events().contains("memory_complete"));
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert_eq!(wait_for_end(&mut child.0, DEADLINE).code(), Some(0));
    let events = events();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let running = events.iter().find(|event| event["event"] == "running").expect("the guest runs");
    assert_eq!(running["mode"], "lazy");
    assert!(running["done_bytes"].as_u64() < running["total_bytes"].as_u64(), "{running}");

    let (code, said) = failure(guest.bench.run(&link, &["--json", "--serial", "-"]));
    assert!(code == USAGE && said.contains("standard output"), "{code} {said}");
}
