//! Guests launched through the program `vmnetx`, from packages that it has published.

mod capture;
mod damage;
mod doctor;
mod machines;
mod monitor;
mod resume;
mod server;
mod twins;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    BOOT_DEADLINE, DEADLINE, Ended, assert_disk_sum, bios_image, guest_image, kernel_image, wait_until,
};

const USAGE: i32 = 2;
const NETWORK: i32 = 5;
const HOST: i32 = 6;

/// A folder with a guest's disk, the repository that it is published in, and all that a run may write.
struct Bench {
    folder: tempfile::TempDir,
    image: PathBuf,
}

impl Bench {
    fn new(marker: &str, kernel_options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = guest_image(folder.path(), marker, kernel_options);
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let bench = Self { folder, image };
        bench.publish();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The cache directory of runs that name none.
    fn cache_dir(&self) -> PathBuf {
        self.path("cache/vmnetx")
    }

    fn link(&self) -> String {
        self.path("repository/guest.vmnetx").display().to_string()
    }

    fn publish(&self) {
        self.publish_with(&[]);
    }

    /// Publishes the guest's disk, with more options.
    fn publish_with(&self, options: &[&OsStr]) {
        let repository = self.path("repository");
        let mut command = self.vmnetx(&["pack", "build"]);
        command.arg(&repository).args(["guest", "--quiet", "--disk"]).arg(&self.image).args(options);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The digest of the version that is current.
    fn version(&self) -> String {
        let link: serde_json::Value = serde_json::from_slice(&fs::read(self.link()).unwrap()).unwrap();
        let version = find(&link, "current").and_then(|current| find(current, "manifest"));
        version.and_then(serde_json::Value::as_str).expect("the link names its current version").to_owned()
    }

    fn vmnetx(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx"));
        command.args(arguments).stdin(Stdio::null());
        command.env("TMPDIR", self.path("tmp")).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("VMNETX_STATE_DIR", self.path("state"));
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").env_remove("VMNETX_LOG");
        command
    }

    fn run(&self, link: &str, arguments: &[&str]) -> Command {
        let mut command = self.vmnetx(&["run", link, "--accel", "tcg", "--network", "isolated"]);
        command.args(arguments);
        command
    }

    /// Runs a guest that powers itself off, and returns what it said on its serial port.
    fn run_to_the_end(&self, link: &str, arguments: &[&str]) -> String {
        let output = finish(self.run(link, arguments));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        self.assert_clean();
        said
    }

    /// Starts a guest with its serial port and its log in files of this name.
    fn start(&self, name: &str, link: &str) -> Running {
        self.start_with(name, link, &[])
    }

    fn start_with(&self, name: &str, link: &str, arguments: &[&str]) -> Running {
        let (serial, log) = (self.path(&format!("{name}.serial")), self.path(&format!("{name}.log")));
        let mut command = self.run(link, arguments);
        command.stdin(Stdio::piped()).stdout(File::create(&serial).unwrap()).stderr(File::create(&log).unwrap());
        Running { child: Ended(command.spawn().unwrap()), serial, log }
    }

    /// The processes whose command line names our folder for temporary files: QEMU and its keepers.
    fn qemus(&self) -> Vec<u32> {
        let folder = self.path("tmp").display().to_string();
        let names_it = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&folder)
        };
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(names_it).collect()
    }

    fn left_behind(&self) -> usize {
        fs::read_dir(self.path("tmp")).unwrap().count()
    }

    fn assert_clean(&self) {
        assert_eq!(self.qemus(), [0; 0], "no process is left");
        assert_eq!(self.left_behind(), 0, "no file is left");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The server that the runs have shared would wait for others.
        let mut drain = self.vmnetx(&["nbd", "drain", "--cache-dir"]);
        let _ = drain.arg(self.cache_dir()).stderr(Stdio::null()).status();
    }
}

/// A field of this name, wherever it is in the structure.
fn find<'a>(value: &'a serde_json::Value, field: &str) -> Option<&'a serde_json::Value> {
    let object = value.as_object()?;
    object.get(field).or_else(|| object.values().find_map(|inner| find(inner, field)))
}

/// A `vmnetx run` under way.
struct Running {
    child: Ended,
    serial: PathBuf,
    log: PathBuf,
}

impl Running {
    fn said(&self) -> String {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        format!("{}\n-- log --\n{}", read(&self.serial), read(&self.log))
    }

    fn wait_for(&mut self, text: &str, deadline: Duration) {
        let started = Instant::now();
        while !self.said().contains(text) {
            assert!(self.child.0.try_wait().unwrap().is_none(), "it ended without {text:?}:\n{}", self.said());
            assert!(started.elapsed() < deadline, "{text:?} did not come:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.child.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.0), signal).unwrap();
    }

    fn ended(&mut self, deadline: Duration) -> ExitStatus {
        wait_for_end(&mut self.child.0, deadline)
    }
}

fn wait_for_end(child: &mut Child, deadline: Duration) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < deadline, "not ended within {} s", deadline.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn finish(mut command: Command) -> Output {
    let mut child = Ended(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    // What these guests say fits into the pipes, so it can be read when they have ended.
    let status = wait_for_end(&mut child.0, BOOT_DEADLINE);
    let read = |pipe: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let stdout = read(child.0.stdout.as_mut().unwrap());
    Output { status, stdout, stderr: read(child.0.stderr.as_mut().unwrap()) }
}

/// What a run that fails says, and its exit code.
fn failure(command: Command) -> (i32, String) {
    let output = finish(command);
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// nginx on the repository.
struct WebServer {
    _child: Ended,
    port: u16,
}

impl WebServer {
    fn start(bench: &Bench, port: u16) -> Self {
        Self::start_with(bench, port, "")
    }

    /// With these directives, too.
    fn start_with(bench: &Bench, port: u16, directives: &str) -> Self {
        let out = bench.path("web.out");
        let mut command = Command::new("nginx");
        let port = if port == 0 { free_port() } else { port };
        let root = bench.path("repository");
        let config = bench.path("nginx.conf");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};", bench.path(&format!("nginx-{kind}")).display()))
            .join(" ");
        let text = format!(
            "daemon off; master_process off; pid {}; error_log {} warn; events {{}}\n\
             http {{ access_log off; {temporary} {directives} server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
            bench.path("nginx.pid").display(),
            out.display(),
            root.display(),
        );
        fs::write(&config, text).unwrap();
        command.arg("-p").arg(bench.folder.path()).arg("-e").arg(&out).arg("-c").arg(&config);
        let child = Ended(command.stdin(Stdio::null()).spawn().unwrap());
        wait_until("nginx listens", DEADLINE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _child: child, port }
    }

    fn link(&self) -> String {
        format!("http://127.0.0.1:{}/guest.vmnetx", self.port)
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn a_published_guest_runs_from_a_web_server_and_powers_off() {
    let bench = Bench::new("published", &["vmnetx.poweroff"]);
    let web = WebServer::start(&bench, 0);
    let said = bench.run_to_the_end(&web.link(), &[]);
    assert!(said.contains("VMNETX-GUEST-READY published") && said.contains("VMNETX-WRITE-OK"), "{said}");
    assert_disk_sum(&said, &bench.image);

    // The second time from what was kept, with the serial port in a file.
    let file = bench.path("serial.txt");
    let silent = bench.run_to_the_end(&web.link(), &["--serial", file.to_str().unwrap()]);
    assert_eq!(silent, "", "nothing but data goes to standard output");
    assert_disk_sum(&fs::read_to_string(&file).unwrap(), &bench.image);
}

#[test]
fn a_rehearsed_guest_finds_what_it_reads_already_fetched() {
    let bench = Bench::new("rehearsed", &["vmnetx.poweroff"]);
    let web = WebServer::start(&bench, 0);
    let repository = bench.path("repository");
    // It shows itself to hosts as a run does, with what it is given for that.
    let none = format!("127.0.0.1={}", bench.path("no-token").display());
    let mut rehearse = bench.vmnetx(&["rehearse", &web.link(), repository.to_str().unwrap()]);
    rehearse.args(["--accel", "tcg", "--token-file", &none]);
    let (code, complaint) = failure(rehearse);
    assert!(code > 0 && complaint.contains("no-token"), "{complaint}");
    let mut rehearse = bench.vmnetx(&["rehearse", &web.link(), repository.to_str().unwrap()]);
    rehearse.args(["--accel", "tcg", "--network", "isolated", "--json"]);
    let output = finish(rehearse);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    bench.assert_clean();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["version"].as_str(), Some(bench.version().as_str()), "the version stays what it was");
    assert!(report["orders"][0]["touches"].as_u64().unwrap() > 10, "{report}");

    let output = finish(bench.run(&web.link(), &[]));
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_disk_sum(&said, &bench.image);
    let ahead = log.lines().find(|line| line.contains("MB ahead, as recorded")).unwrap_or_else(|| panic!("{log}"));
    let megabytes: Vec<f64> = ahead.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[fetched, used] = &megabytes[megabytes.len() - 2..] else { panic!("{ahead}") };
    assert!(fetched > 1.0 && used > 0.9 * fetched, "the same boot reads the same: {ahead}");
    // Without the order the same guest has to wait, and sees the same.
    let output = finish(bench.run(&web.link(), &["--order", "off"]));
    assert_disk_sum(&String::from_utf8_lossy(&output.stdout), &bench.image);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("MB ahead"));
}

#[test]
fn a_libvirt_domain_is_published_and_runs() {
    let bench = Bench::new("domain", &["vmnetx.poweroff"]);
    let domain = bench.path("domain.xml");
    // What virt-install writes for a guest of today, as far as a guest this small can tell.
    let text = format!(
        "<domain type='kvm'><name>guest</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><features><acpi/><apic/></features>\
         <cpu mode='host-passthrough' check='none'/><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk><controller type='pci' index='0' model='pcie-root'/>\
         <interface type='network'><mac address='52:54:00:6b:3c:58'/><source network='default'/>\
         <model type='virtio'/></interface><serial type='pty'/><input type='tablet' bus='usb'/>\
         <graphics type='spice'/><video><model type='qxl'/></video><memballoon model='virtio'/>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>",
        bench.image.display()
    );
    fs::write(&domain, text).unwrap();
    let mut command = bench.vmnetx(&["pack", "build"]);
    command.arg(bench.path("repository")).args(["domain", "--quiet", "--domain"]).arg(&domain);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("dropped  /domain/devices/graphics"), "{told}");
    let link = bench.path("repository/domain.vmnetx").display().to_string();
    let said = bench.run_to_the_end(&link, &[]);
    assert!(said.contains("VMNETX-GUEST-READY domain") && said.contains("VMNETX-WRITE-OK"), "{said}");
    assert_disk_sum(&said, &bench.image);
}

#[test]
fn a_persistent_overlay_belongs_to_the_version_that_it_was_made_for() {
    let bench = Bench::new("kept", &["vmnetx.poweroff"]);
    let file = bench.path("kept.qcow2").display().to_string();
    let first = bench.version();
    for boots in ["VMNETX-BOOTS 1", "VMNETX-BOOTS 2"] {
        let said = bench.run_to_the_end(&bench.link(), &["--persist", &file]);
        assert!(said.contains(boots), "{said}");
    }
    // Another version: a byte at the end of the disk, where the guest never looks.
    let mut image = fs::read(&bench.image).unwrap();
    *image.last_mut().unwrap() ^= 1;
    fs::write(&bench.image, image).unwrap();
    bench.publish();
    assert_ne!(bench.version(), first);
    let (code, complaint) = failure(bench.run(&bench.link(), &["--persist", &file]));
    assert_eq!(code, USAGE, "{complaint}");
    assert!(complaint.contains(&format!("#b3={first}")), "{complaint}");
    let pinned = format!("{}#b3={first}", bench.link());
    let said = bench.run_to_the_end(&pinned, &["--persist", &format!("disk0={file}")]);
    assert!(said.contains("VMNETX-BOOTS 3"), "{said}");
}

#[test]
fn signals_end_a_guest_in_order_and_leave_nothing() {
    let bench = Bench::new("signals", &[]);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut running = bench.start("vm", &bench.link());
        running.wait_for("VMNETX-GUEST-READY signals", BOOT_DEADLINE);
        assert_ne!(bench.qemus(), [0; 0], "there is a QEMU to be ended");
        running.signal(signal);
        assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
        bench.assert_clean();
    }
}

#[test]
fn when_vmnetx_is_killed_qemu_dies_and_the_next_run_cleans_up() {
    let bench = Bench::new("killed", &[]);
    let mut running = bench.start("killed", &bench.link());
    running.wait_for("VMNETX-GUEST-READY killed", BOOT_DEADLINE);
    assert_ne!(bench.qemus(), [0; 0], "there is a QEMU to die");
    running.signal(Signal::KILL);
    assert_eq!(running.ended(DEADLINE).signal(), Some(Signal::KILL.as_raw()));
    wait_until("QEMU is gone", Duration::from_secs(5), || bench.qemus().is_empty());
    assert_ne!(bench.left_behind(), 0, "nobody was there to clean up");
    let mut next = bench.start("next", &bench.link());
    next.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE);
    assert_eq!(bench.left_behind(), 1, "only its own");
    next.type_line("poweroff");
    assert_eq!(next.ended(DEADLINE).code(), Some(0), "{}", next.said());
    bench.assert_clean();
}

#[test]
fn a_guest_stands_still_while_its_web_server_is_away() {
    let bench = Bench::new("outage", &[]);
    let web = WebServer::start(&bench, 0);
    let (link, port) = (web.link(), web.port);
    let mut running = bench.start("outage", &link);
    running.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE);
    drop(web);
    // The last partition, which the guest has not read yet; the second half, so that read-ahead has not either.
    running.type_line("dd if=/dev/sda4 bs=1M skip=20 count=4 2>/dev/null | sha256sum; echo read-$((1 + 1))");
    running.wait_for("stands still", Duration::from_secs(60));
    let _web = WebServer::start(&bench, port);
    running.wait_for("read-2", Duration::from_secs(60));
    let data = fs::read(&bench.image).unwrap();
    let part = bench.path("part");
    fs::write(&part, &data[52 << 20..56 << 20]).unwrap();
    let sum = Command::new("sha256sum").arg(&part).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    assert!(running.said().contains(sum.split_whitespace().next().unwrap()), "{}", running.said());
    running.type_line("dmesg | grep -c 'I/O error'; echo counted-$((1 + 1))");
    running.wait_for("counted-2", DEADLINE);
    assert!(running.said().contains("\n0\r"), "the guest saw no error: {}", running.said());
    running.type_line("poweroff");
    assert_eq!(running.ended(DEADLINE).code(), Some(0), "{}", running.said());
    bench.assert_clean();
}

#[test]
fn what_the_host_or_the_command_line_lacks_is_said_before_anything_starts() {
    let bench = Bench::new("lacks", &[]);
    let fails = |arguments: &[&str], expected: i32, words: &str| {
        let mut command = bench.vmnetx(&["run", &bench.link()]);
        command.args(arguments);
        let (code, complaint) = failure(command);
        assert_eq!(code, expected, "{complaint}");
        assert!(complaint.contains(words), "{complaint}");
        bench.assert_clean();
    };
    fails(&["--qemu", "/nonexistent/qemu"], HOST, "/nonexistent/qemu");
    fails(&["--persist", "disk7=x.qcow2"], USAGE, "it has disk0");
    fails(&["--persist", bench.image.to_str().unwrap()], USAGE, "not an overlay made by vmnetx");
    fails(&["--serial", "/nonexistent/serial"], USAGE, "/nonexistent/serial");
    fails(&["--memory-cache", "lots"], USAGE, "lots");
    let machine = bench.path("machine.toml");
    for (board, cpu, words) in [
        ("pc-i440fx-99.0", "Nehalem", "has no machine type pc-i440fx-99.0"),
        ("pc-i440fx-7.2", "Nobody", "has no CPU model Nobody"),
    ] {
        let text = format!("machine = '{board}'\nmemory_mib = 64\ncpu.model = '{cpu}'\n");
        fs::write(&machine, text).unwrap();
        bench.publish_with(&[OsStr::new("--machine"), machine.as_os_str()]);
        fails(&[], HOST, words);
    }
    // Empty PATH: QEMU is given, what else is needed is not there.
    let mut command = bench.vmnetx(&["run", &bench.link(), "--qemu", "/usr/bin/qemu-system-x86_64"]);
    command.env("PATH", "");
    let (code, complaint) = failure(command);
    assert_eq!(code, HOST, "{complaint}");
    assert!(complaint.contains("setpriv"), "{complaint}");
}

#[test]
fn a_demand_for_kvm_is_met_or_refused_with_the_reason() {
    let bench = Bench::new("kvm", &["vmnetx.poweroff"]);
    let output = finish({
        let mut command = bench.vmnetx(&["run", &bench.link(), "--accel", "kvm"]);
        command.arg("--network").arg("isolated");
        command
    });
    let complaint = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => assert!(String::from_utf8_lossy(&output.stdout).contains("VMNETX-GUEST-READY kvm")),
        code => {
            assert_eq!(code, Some(HOST), "{complaint}");
            assert!(
                complaint.contains("KVM cannot run a guest here") && complaint.contains("--accel tcg"),
                "{complaint}"
            );
        }
    }
    bench.assert_clean();
}

#[test]
fn the_other_programs_are_subcommands() {
    for program in ["pack", "nbd"] {
        let output = Command::new(env!("CARGO_BIN_EXE_vmnetx")).args([program, "--help"]).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: vmnetx"), "{program}");
    }
}
