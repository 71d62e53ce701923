//! Saved VMs of every kind of machine, busy in memory, on their disks and on all of their CPUs when they are captured, go on in every mode.
//!
//! `VMNETX_SAVING_QEMU` and `VMNETX_RESUMING_QEMU` name other QEMUs than the one in PATH to capture with, and to resume with.
//! The lazy resumes need userfaultfd: root, or `vm.unprivileged_userfaultfd=1`.

use serde_json::Value;

use super::*;

/// A machine, and what is done with it.
struct Hardware {
    name: &'static str,
    /// Its description in `qemu-configs/`.
    profile: &'static str,
    /// What is different here: words of the description, and others in their place.
    changes: &'static [(&'static str, &'static str)],
    guest: Guest,
    /// Whether it has a second disk.
    two_disks: bool,
    /// What the guest is asked besides: it must say `ANSWER-IT`.
    question: Option<&'static str>,
}

/// What it boots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// Linux with the kernel of this flavour (`tests/guests/minimal`).
    Linux(&'static str),
    /// What needs no more than a BIOS (`tests/guests/bios`), and checks itself.
    Bios,
}

const MODES: [&str; 3] = ["lazy", "stream", "mapped"];

/// The system's.
const QEMU: &str = "qemu-system-x86_64";

const CLOUD: Guest = Guest::Linux("cloud-amd64");

/// Loads the drivers of the virtio card and of random numbers.
const LOAD: &str =
    "for m in failover net_failover virtio_net virtio-rng; do insmod /lib/$m.ko; done; ifconfig eth0 10.0.2.15";
/// The host of the user network answers, and the host has random numbers.
const ASK: &str = r#"ping -c 1 -W 20 10.0.2.2 | grep -q ' 0% ' && [ $(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c) = 16 ] && echo "ANSWER""-IT""#;

const MODERN: Hardware = Hardware {
    name: "modern",
    profile: "modern.toml",
    changes: &[("count = 2", "count = 4"), ("memory_mib = 2048", "memory_mib = 512")],
    guest: CLOUD,
    two_disks: true,
    question: Some(ASK),
};

const SERVER: Hardware = Hardware {
    name: "server",
    profile: "server.toml",
    changes: &[],
    guest: CLOUD,
    two_disks: false,
    question: Some(ASK),
};

const WINDOWS: Hardware =
    Hardware { name: "windows", profile: "windows.toml", changes: &[], guest: CLOUD, two_disks: false, question: None };

const RETRO: Hardware = Hardware {
    name: "retro",
    profile: "retro.toml",
    changes: &[],
    guest: Guest::Bios,
    two_disks: false,
    question: None,
};

const SCSI: Hardware = Hardware {
    name: "scsi",
    profile: "default.toml",
    changes: &[("serial = true", "serial = true\ndisk_bus = 'scsi'"), ("memory_mib = 1024", "memory_mib = 256")],
    guest: CLOUD,
    two_disks: true,
    question: None,
};

const SATA: Hardware = Hardware {
    name: "sata",
    profile: "default.toml",
    changes: &[("pc-i440fx-7.2", "pc-q35-7.2"), ("memory_mib = 1024", "memory_mib = 256")],
    guest: Guest::Linux("amd64"),
    two_disks: true,
    question: None,
};

const NEWER: Hardware = Hardware {
    name: "newer",
    changes: &[("pc-q35-7.2", "pc-q35-10.0"), ("memory_mib = 2048", "memory_mib = 512")],
    ..MODERN
};

#[test]
fn a_guest_of_today_with_four_cpus_goes_on() {
    MODERN.goes_on();
}

#[test]
fn a_machine_for_windows_goes_on() {
    WINDOWS.goes_on();
}

#[test]
fn a_machine_of_the_nineties_goes_on() {
    RETRO.goes_on();
}

#[test]
fn a_guest_with_scsi_disks_goes_on() {
    SCSI.goes_on();
}

#[test]
fn a_guest_with_sata_disks_goes_on() {
    SATA.goes_on();
}

/// A guest that Debian 12's QEMU captures goes on in a newer one, is captured there, and goes on in the older one again.
#[test]
fn a_server_goes_on_in_a_newer_qemu_and_comes_back() {
    let newer = newer_qemu();
    let bench = SERVER.published();
    let mut running = SERVER.boot(&bench, QEMU);
    let before = SERVER.work(&mut running).captured(&bench, running, QEMU);
    SERVER.resume(&bench, &before, &["stream", "mapped"], &newer);
    let running = SERVER.resumed(&bench, &before, "lazy", &newer);
    let before = before.captured(&bench, running, &newer);
    SERVER.resume(&bench, &before, &MODES, QEMU);
}

#[test]
fn a_machine_of_a_newer_qemu_goes_on() {
    let newer = newer_qemu();
    NEWER.goes_on_in(&newer, &newer);
}

/// Fills memory with what no zeros and no file of the guest's are, and tells its sum.
const FILL: &str =
    r#"dd if=/dev/urandom of=/memory bs=1M count=8 2>/dev/null; s=$(sha256sum </memory); echo "FILLED""-${s%% *}""#;
/// Reads all of that again and again, on every CPU.
const KEEP_BUSY: &str = r#"for c in $(grep processor /proc/cpuinfo); do (while [ "$(sha256sum </memory)" = "$s" ]; do :; done; echo "LOST""-MEMORY") & done"#;
/// Writes to a disk what it has just written to memory, reads it again past the page cache, and so on. Usage: number, disk.
const WORK: &str = r#"work() { (n=0; while dd if=/dev/urandom of=/w$1 bs=4k count=64 2>/dev/null
dd if=/w$1 of=$2 bs=4k seek=300 conv=notrunc,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
dd if=$2 bs=4k skip=300 count=64 2>/dev/null | cmp -s - /w$1; do n=$((n+1)); echo "ROUND""-$1-$n."; done; echo "LOST""-DISK$1") & }"#;
/// Only the disk that the guest has booted from has partitions.
const WORK_ON_DISKS: &str =
    r#"for d in /dev/[sv]d[ab]; do if [ -b ${d}3 ]; then work 0 ${d}3; else work 1 $d; fi; done"#;

impl Hardware {
    /// Captures its guest at work, and resumes it in every mode.
    fn goes_on(&self) {
        let qemu = |variable| std::env::var(variable).unwrap_or_else(|_| QEMU.to_owned());
        self.goes_on_in(&qemu("VMNETX_SAVING_QEMU"), &qemu("VMNETX_RESUMING_QEMU"));
    }

    fn goes_on_in(&self, saving: &str, resuming: &str) {
        let bench = self.published();
        let mut running = self.boot(&bench, saving);
        let before = self.work(&mut running).captured(&bench, running, saving);
        self.resume(&bench, &before, &MODES, resuming);
    }

    /// Resumes a guest in each of these modes.
    fn resume(&self, bench: &Bench, before: &Before, modes: &[&str], qemu: &str) {
        for mode in modes {
            self.resumed(bench, before, mode, qemu).end();
            bench.assert_clean();
        }
    }

    /// Resumes a guest, which has lost nothing.
    fn resumed(&self, bench: &Bench, before: &Before, mode: &str, qemu: &str) -> Running {
        let mut running = bench.start_with(mode, &bench.link(), &["--resume", mode, "--qemu", qemu]);
        let tick = running.ticks_after(0);
        assert!(tick >= before.tick, "{tick} is a tick of a guest that has booted again");
        self.works_on(&mut running);
        running.wait_for(&format!("({mode}"), DEADLINE);
        if mode == "lazy" {
            running.wait_for("all of the guest's memory is here", BOOT_DEADLINE);
        }
        if let Some(sum) = &before.sum {
            running.type_line(r#"s=$(sha256sum </memory); echo "SUM""-${s%% *}""#);
            assert_eq!(running.word_after("SUM-"), *sum);
        }
        self.ask(&mut running);
        let said = running.said();
        assert!(!said.contains("LOST-") && !said.contains("VMNETX-GUEST-READY"), "{said}");
        running
    }

    /// A package of this machine.
    fn published(&self) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let image = match self.guest {
            Guest::Linux(kernel) => kernel_image(folder.path(), kernel, self.name, &["vmnetx.tick=0.05"]),
            Guest::Bios => bios_image(folder.path()),
        };
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let bench = Bench { folder, image };
        let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-configs").join(self.profile);
        let mut text = fs::read_to_string(profile).unwrap();
        for (from, to) in self.changes {
            assert!(text.contains(from), "{from}: {text}");
            text = text.replace(from, to);
        }
        let (machine, other) = (bench.path("machine.toml"), bench.path("other.img"));
        fs::write(&machine, text).unwrap();
        fs::write(&other, b"another disk".repeat(1 << 19)).unwrap();
        let mut options = vec![OsStr::new("--machine"), machine.as_os_str()];
        if self.two_disks {
            options.extend([OsStr::new("--disk"), other.as_os_str()]);
        }
        bench.publish_with(&options);
        bench
    }

    fn boot(&self, bench: &Bench, qemu: &str) -> Running {
        let mut running = bench.start_with("vm", &bench.link(), &["--qemu", qemu]);
        running.wait_for("VMNETX-TICK 2", BOOT_DEADLINE);
        running
    }

    /// Sets a guest that has booted to work.
    fn work(&self, running: &mut Running) -> Before {
        if self.question.is_some() {
            running.type_line(LOAD);
        }
        self.ask(running);
        let sum = (self.guest != Guest::Bios).then(|| {
            running.type_line(FILL);
            let sum = running.word_after("FILLED-");
            for line in [WORK, WORK_ON_DISKS, KEEP_BUSY] {
                running.type_line(line);
            }
            sum
        });
        self.works_on(running);
        Before { tick: 0, sum }
    }

    /// Waits until the guest has read twice from each disk what it wrote, in one round or more that it had begun before, and all of
    /// its memory if it tells.
    fn works_on(&self, running: &mut Running) {
        running.says_again("ROUND-0-", 3);
        if self.two_disks {
            running.says_again("ROUND-1-", 3);
        }
        if self.guest == Guest::Bios {
            running.says_again("CHECKED-", 2);
        }
    }

    fn ask(&self, running: &mut Running) {
        if let Some(question) = self.question {
            let before = running.times_said("ANSWER-IT");
            running.type_line(question);
            running.wait_for_times("ANSWER-IT", before + 1);
        }
    }
}

/// A newer QEMU than the system's.
pub(super) fn newer_qemu() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other-qemu");
    let output = Command::new(&script).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Running {
    /// Waits until the guest has said this so many times more.
    fn says_again(&self, text: &str, times: usize) {
        self.wait_for_times(text, self.times_said(text) + times);
    }

    fn times_said(&self, text: &str) -> usize {
        self.said().matches(text).count()
    }

    fn wait_for_times(&self, text: &str, times: usize) {
        let started = Instant::now();
        while self.times_said(text) < times {
            assert!(started.elapsed() < BOOT_DEADLINE, "{text} does not come again:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What a guest was when it was captured.
struct Before {
    tick: u64,
    /// Of what its memory was filled with, if it tells.
    sum: Option<String>,
}

impl Before {
    /// Captures a guest, which ends.
    fn captured(self, bench: &Bench, mut running: Running, qemu: &str) -> Self {
        let tick = running.ticks_after(0);
        let output = finish(bench.capture("guest", &["--yes", "--json", "--stop", "--qemu", qemu]));
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let touches = report["order"]["orders"][0]["touches"].as_u64();
        assert!(touches.is_some_and(|touches| touches > 10), "its resume was rehearsed: {report}\n{log}");
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
        Self { tick, ..self }
    }
}
