//! Running VMs that are captured: they go on whatever becomes of that, and what is published is what they were.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use vmnetx::registry::Registry;
use vmnetx_format::Accelerator;
use vmnetx_store::dir::{Publisher, RepositoryDir, Wait};

use super::monitor::Monitor;
use super::*;

const MIB: usize = 1 << 20;
/// Where the guest's scratch partition is (`tests/guests/minimal`), in which it says what it writes.
const SCRATCH: std::ops::Range<usize> = 28 * MIB..32 * MIB;
/// A part of the disk that is full of data when it is published.
const FILLER: std::ops::Range<usize> = 40 * MIB..41 * MIB;

/// Writes words to the scratch partition and zeros over a part of the filler.
const WRITE: &str = r#"d=$(ls /dev/[sv]da3); echo captured-words | dd of=$d bs=512 seek=4000 conv=notrunc,fsync 2>/dev/null
dd if=/dev/zero of=${d%3} bs=1M seek=40 count=1 conv=notrunc,fsync 2>/dev/null; echo "WROTE""-IT""#;

/// Writes to the disk, reads it again past the page cache, and so on: memory and disk must agree, or this ends.
const WORK: &str = r#"(n=0; while dd if=/dev/urandom of=/w bs=4k count=64 2>/dev/null
dd if=/w of=$d bs=4k seek=300 conv=notrunc,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
dd if=$d bs=4k skip=300 count=64 2>/dev/null | cmp -s - /w; do n=$((n+1)); echo "ROUND""-$n."; done; echo "LOST""-IT") &"#;

impl Bench {
    pub(super) fn capture(&self, vm: &str, arguments: &[&str]) -> Command {
        let mut command = self.vmnetx(&["capture", vm]);
        command.arg(self.path("repository")).arg("guest").args(arguments);
        command
    }

    /// Captures a VM, which must succeed; gives the report.
    fn captured(&self, vm: &str, arguments: &[&str]) -> Value {
        let output = finish(self.capture(vm, &[arguments, &["--yes", "--json", "--no-rehearse"]].concat()));
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(super) fn start_ticking(&self) -> Running {
        let mut running = self.start("vm", &self.link());
        running.wait_for("VMNETX-TICK 2", BOOT_DEADLINE);
        running
    }

    /// A disk of the current version, as a reader has it.
    fn published_disk(&self, disk: &str) -> Vec<u8> {
        let file = self.path("exported");
        let _ = fs::remove_file(&file);
        let mut export = self.vmnetx(&["pack", "export", &self.link(), disk]);
        assert!(export.arg(&file).stderr(Stdio::null()).status().unwrap().success());
        fs::read(file).unwrap()
    }

    /// Holds up whoever publishes.
    fn lock(&self) -> Publisher {
        RepositoryDir::open(self.path("repository")).unwrap().lock(Wait::No).unwrap()
    }

    /// Resumes what is published: a guest that goes on from this tick at the earliest.
    fn resumed(&self, at_least: u64) -> Running {
        let mut running = self.start_with("resumed", &self.link(), &["--resume", "stream"]);
        let first = running.ticks_after(0);
        assert!(first >= at_least, "{first} is a tick of a guest that has booted again");
        running.ticks_after(first);
        assert!(!running.said().contains("VMNETX-GUEST-READY"), "{}", running.said());
        running
    }
}

impl Running {
    /// Waits for a tick after this one.
    pub(super) fn ticks_after(&mut self, tick: u64) -> u64 {
        let started = Instant::now();
        loop {
            let last = last_tick(&fs::read(&self.serial).unwrap()).unwrap_or(0);
            if last > tick {
                return last;
            }
            assert!(self.child.0.try_wait().unwrap().is_none(), "it has ended:\n{}", self.said());
            assert!(started.elapsed() < DEADLINE, "the guest stands still after tick {tick}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for ticks that are not there yet.
    pub(super) fn ticks_on(&mut self) {
        let told = self.ticks_after(0);
        let next = self.ticks_after(told);
        self.ticks_after(next);
    }

    /// Waits until the guest has read twice what it wrote, in one round or more that it had begun before.
    fn works_on(&mut self) {
        let rounds = |said: &str| said.matches("ROUND-").count();
        let (started, before) = (Instant::now(), rounds(&self.said()));
        while rounds(&self.said()) < before + 3 {
            assert!(started.elapsed() < DEADLINE && !self.said().contains("LOST-IT"), "{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn end(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended(DEADLINE).code(), Some(0), "{}", self.said());
    }

    /// Whether the guest is seen to stand still: no tick in the time of several.
    fn stands_still(&self) -> bool {
        let before = last_tick(&fs::read(&self.serial).unwrap());
        std::thread::sleep(Duration::from_secs(1));
        before == last_tick(&fs::read(&self.serial).unwrap())
    }
}

/// The number of the last tick that was told whole.
fn last_tick(said: &[u8]) -> Option<u64> {
    let said = String::from_utf8_lossy(said).into_owned();
    let ticks = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    ticks.filter_map(|line| line.trim().strip_prefix("VMNETX-TICK ")?.parse().ok()).next_back()
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field}: {report}"))
}

#[test]
fn a_running_vm_is_captured_and_goes_on() {
    let bench = Bench::new("captured", &["vmnetx.tick=0.05"]);
    let booted = bench.version();
    let mut running = bench.start_ticking();
    running.type_line(WRITE);
    running.wait_for("WROTE-IT", DEADLINE);
    running.type_line(WORK);
    running.works_on();
    let first = bench.captured("guest", &[]);
    assert_eq!(first["disks"][0]["base"].as_str(), Some(booted.as_str()), "only changes were read");
    assert_eq!(first["version"].as_str(), Some(bench.version().as_str()));
    running.ticks_on();

    let (published, pristine) = (bench.published_disk("disk0"), fs::read(&bench.image).unwrap());
    assert_eq!(published.len(), pristine.len());
    assert!(published[SCRATCH.start + 4000 * 512..].starts_with(b"captured-words\n"));
    assert!(published[FILLER].iter().all(|&byte| byte == 0) && pristine[FILLER].iter().any(|&byte| byte != 0));
    for range in [0..SCRATCH.start, SCRATCH.end..FILLER.start, FILLER.end..pristine.len()] {
        assert!(published[range.clone()] == pristine[range], "what the guest did not write is as it was");
    }
    let repository = RepositoryDir::open(bench.path("repository")).unwrap();
    let link = repository.link(&"guest".parse().unwrap()).unwrap().unwrap().link;
    let memory = repository.manifest(&link.current).unwrap().memory.unwrap();
    let main: Vec<_> = memory.blocks.iter().filter(|block| block.name == "pc.ram").collect();
    assert!(main.len() == 1 && main[0].size_bytes == 1 << 30, "{memory:?}");
    assert_eq!(memory.accelerator, Some(Accelerator::Tcg));
    assert!(memory.qemu.is_some_and(|version| version.split('.').count() == 3));

    let second = bench.captured("guest", &[]);
    let [memory, new] = [&first, &second].map(|report| number(report, "written_bytes"));
    assert!(new * 5 < memory, "most of it is published already: {new} of {memory}");
    assert!(bench.vmnetx(&["pack", "verify"]).arg(bench.path("repository")).output().unwrap().status.success());

    let tick = running.ticks_after(0);
    let last = bench.captured("guest", &["--stop"]);
    assert_eq!((&last["stopped"], &last["stood_still_ms"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
    bench.assert_clean();
    let mut resumed = bench.resumed(tick);
    resumed.works_on();
    // A VM that was resumed is captured like any other.
    bench.captured("guest", &[]);
    resumed.works_on();
    // What somebody else fails to do with its memory does not end it.
    bench.migrate_to_nobody();
    resumed.works_on();
    resumed.end();
}

#[test]
fn a_guest_goes_on_whatever_becomes_of_its_capture() {
    let bench = Bench::new("survives", &["vmnetx.tick=0.05"]);
    let version = bench.version();
    let mut running = bench.start_ticking();
    for signal in [Signal::INT, Signal::KILL] {
        // It holds the guest until it has published, which it cannot.
        let lock = bench.lock();
        let mut capture = bench.capture("guest", &["--yes", "--stop", "--wait"]);
        let mut capture = Ended(capture.stderr(Stdio::null()).spawn().unwrap());
        wait_until("the guest is held", DEADLINE, || bench.streams() == 1 && running.stands_still());
        kill_process(Pid::from_child(&capture.0), signal).unwrap();
        running.ticks_on();
        let status = wait_for_end(&mut capture.0, DEADLINE);
        assert_eq!(status.code(), (signal == Signal::INT).then_some(1), "{status}");
        drop(lock);
        wait_until("its files are gone", DEADLINE, || bench.left_behind() == 1);
    }
    // While its memory is saved, or just before or after that.
    let mut capture = Ended(bench.capture("guest", &["--yes", "--wait"]).stderr(Stdio::null()).spawn().unwrap());
    wait_until("its memory is being saved", DEADLINE, || bench.streams() == 1);
    kill_process(Pid::from_child(&capture.0), Signal::KILL).unwrap();
    wait_for_end(&mut capture.0, DEADLINE);
    running.ticks_on();
    wait_until("its files are gone", DEADLINE, || bench.left_behind() == 1);
    assert_eq!(bench.version(), version, "nothing was published");

    for (vm, arguments, complaint) in [
        ("guest", &["--json"][..], "--yes"),
        ("nobody", &["--yes"], "there are guest"),
        ("guest", &["--yes", "--machine", "x.toml"], "launched from a package"),
    ] {
        let (code, said) = failure(bench.capture(vm, arguments));
        assert!(code == USAGE && said.contains(complaint), "{code} {said}");
    }
    let mut elsewhere = bench.vmnetx(&["capture", "guest", "--yes"]);
    elsewhere.arg(bench.path("elsewhere")).arg("guest");
    let (code, said) = failure(elsewhere);
    assert!(code == USAGE && said.contains("--whole") && !bench.path("elsewhere").exists(), "{code} {said}");
    bench.captured("guest", &[]);
    running.ticks_on();
    running.end();
}

#[test]
fn any_qemu_is_captured_by_its_monitor() {
    let bench = Bench::new("foreign", &["vmnetx.tick=0.05"]);
    let [qmp, serial] = ["qmp", "foreign.serial"].map(|name| bench.path(name));
    let qemu = |devices: &[&str]| {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc-i440fx-7.2,accel=tcg"]);
        command.args(["-cpu", "Nehalem", "-m", "256"]).args(devices).stdin(Stdio::null());
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        command.arg("-serial").arg(format!("file:{}", serial.display()));
        let child = Ended(command.spawn().unwrap());
        wait_until("QEMU listens", DEADLINE, || UnixStream::connect(&qmp).is_ok());
        child
    };
    let describe = |memory_mib: u32| {
        let file = bench.path(&format!("{memory_mib}.toml"));
        let text =
            format!("machine = 'pc-i440fx-7.2'\nmemory_mib = {memory_mib}\nvga = 'none'\ncpu.model = 'Nehalem'\n");
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let socket = format!("unix:{}", qmp.display());
    let (right, wrong) = (describe(256), describe(512));

    let with_drive = qemu(&["-device", "ide-cd,id=cd"]);
    let (code, said) = failure(bench.capture(&socket, &["--yes", "--machine", &right]));
    assert!(code == USAGE && said.contains("media that can be taken out"), "{code} {said}");
    drop(with_drive);

    let data = bench.path("data.img");
    fs::write(&data, b"another disk".repeat(100_000)).unwrap();
    let node = |name: &str, file: &Path| {
        format!("driver=raw,node-name={name},file.driver=file,file.filename={}", file.display())
    };
    let (system, other) = (node("system", &bench.image), node("data", &data));
    let disks =
        ["ide-hd,id=disk0,drive=system,bus=ide.0,unit=0,bootindex=0", "ide-hd,id=disk1,drive=data,bus=ide.0,unit=1"];
    let mut child = qemu(&["-blockdev", &system, "-blockdev", &other, "-device", disks[0], "-device", disks[1]]);
    let tick = || fs::read(&serial).ok().and_then(|said| last_tick(&said)).unwrap_or(0);
    wait_until("the guest ticks", BOOT_DEADLINE, || tick() > 2);
    let domain = bench.path("domain.xml").display().to_string();
    let disk = |target: &str| format!("<disk type='file' device='disk'><target dev='{target}' bus='sata'/></disk>");
    let text = format!(
        "<domain type='kvm'><memory unit='MiB'>256</memory><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>\
         <features><acpi/></features><devices>{}{}</devices></domain>",
        disk("sda"),
        disk("sdb")
    );
    fs::write(&domain, text).unwrap();
    for (arguments, complaint) in [
        (&["--yes"][..], "--machine"),
        (&["--yes", "--machine", &wrong], "256 MiB of RAM"),
        (&["--yes", "--domain", &domain], "the machine type pc-i440fx-7.2"),
    ] {
        let (code, said) = failure(bench.capture(&socket, arguments));
        assert!(code == USAGE && said.contains(complaint), "{code} {said}");
    }
    let before = tick();
    let report = bench.captured(&socket, &["--machine", &right]);
    assert!(report["disks"][0]["base"].is_null(), "{report}");
    wait_until("the guest goes on", DEADLINE, || tick() > before + 2);
    bench.captured(&socket, &["--machine", &right, "--stop"]);
    assert!(wait_for_end(&mut child.0, DEADLINE).success());
    // All that it wrote, QEMU wrote into the image.
    assert!(bench.published_disk("disk0") == fs::read(&bench.image).unwrap());
    assert!(bench.published_disk("disk1").starts_with(&fs::read(&data).unwrap()));
    bench.resumed(before).end();

    // And back: what is exported, a QEMU of the same machine goes on from.
    let stream = bench.path("stream");
    let mut export = bench.vmnetx(&["pack", "export", &bench.link(), "vm:stream", stream.to_str().unwrap(), "--quiet"]);
    assert!(export.stdout(Stdio::null()).status().unwrap().success());
    fs::remove_file(&serial).unwrap();
    let incoming = format!("exec:cat {}", stream.display());
    let places = ["-blockdev", &system, "-blockdev", &other, "-device", disks[0], "-device", disks[1]];
    let _child = qemu(&[&places[..], &["-incoming", &incoming]].concat());
    // It stood still when it was saved.
    let mut monitor = Monitor::at(&qmp);
    wait_until("its state is loaded", DEADLINE, || monitor.ask("query-status", &json!({}))["status"] == "paused");
    monitor.ask("cont", &json!({}));
    wait_until("the guest goes on in another QEMU", DEADLINE, || tick() > before + 2);
}

impl Bench {
    /// Has a migration of the VM `guest` fail, and waits until QEMU has said so.
    fn migrate_to_nobody(&self) {
        let vm = Registry::at(&self.path("state/vms")).unwrap().find(&"guest".parse().unwrap()).unwrap().vm.unwrap();
        let monitor = UnixStream::connect(vm.control).unwrap();
        monitor.set_read_timeout(Some(DEADLINE)).unwrap();
        let migrate = r#"{"execute": "migrate", "arguments": {"uri": "unix:/nonexistent/socket"}}"#;
        for command in [r#"{"execute": "qmp_capabilities"}"#, migrate] {
            writeln!(&monitor, "{command}").unwrap();
        }
        let said = BufReader::new(monitor).lines().map(Result::unwrap);
        let events = said.filter(|line| line.contains("\"MIGRATION\"")).find(|line| line.contains("\"failed\""));
        assert!(events.is_some(), "the launcher hears of it, too");
    }

    /// Files with a guest's memory in directories of captures.
    fn streams(&self) -> usize {
        let folders = fs::read_dir(self.path("tmp")).unwrap().flatten();
        folders.filter(|folder| folder.path().join("memory.stream").exists()).count()
    }
}
