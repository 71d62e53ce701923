//! VMs that libvirt saves, packaged, served by nginx and resumed through libvirt; and packages that would have libvirt open what is
//! the host's.
//!
//! Needs what `tests/setup test` installs, and root: the test's libvirtd has mounts of its own.
#![cfg(feature = "libvirt")]

mod daemon;
mod faults;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daemon::{Ended, Libvirt, Serial, said, wait_for};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use vmnetx_format::{Digest, Envelope};

/// Fills memory, and tells its sum. The words are put together by the shell, so that they are not found in its echo.
const FILL: &str = "dd if=/dev/urandom of=/memory bs=1M count=12 2>/dev/null";
const SUM: &str = r#"s=$(sha256sum </memory); echo "SUM""-${s%% *}""#;

/// What the guest is told that it is before it is saved.
const GENERATION: &str = "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e";

/// A guest's disk, and a repository beside it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::Builder::new().prefix("vmnetx-libvirt-").tempdir_in("/tmp").unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/minimal");
        said(Command::new(script).arg(bench.path("disk.img")).args(["libvirt", "vmnetx.tick=0.1", "vmnetx.agent"]));
        fs::create_dir(bench.path("temporary")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The domain as its owner writes it, with a device of each kind that guests usually have.
    fn domain(&self) -> PathBuf {
        let disk = self.path("disk.img").display().to_string();
        let text = format!(
            "<domain type='qemu'><name>ticking</name><genid>{GENERATION}</genid><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type><boot dev='hd'/></os>\
             <features><acpi/><apic/></features><cpu mode='custom' match='exact'><model>qemu64</model></cpu><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>\
             <target dev='vda' bus='virtio'/></disk>\
             <disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>\
             <interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <serial type='pty'/><video><model type='vga'/></video><input type='tablet' bus='usb'/>\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>"
        );
        let file = self.path("domain.xml");
        fs::write(&file, text).unwrap();
        file
    }

    /// Publishes the disk with the memory in a file of `virsh save`.
    fn publish(&self, saved: &Path) {
        let mut command = self.vmnetx(&["pack", "build"]);
        command.arg(self.path("repository")).args(["vm", "--saved-accel", "tcg", "--domain"]).arg(self.domain());
        said(command.arg("--memory").arg(saved));
    }

    fn vmnetx(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmnetx"));
        command.args(words).stdin(Stdio::null()).env("VMNETX_STATE_DIR", self.path("state"));
        command.env("TMPDIR", self.path("temporary"));
        command
    }

    /// A run through libvirt, whose words go into a file.
    fn run(&self, uri: &str, link: &str, more: &[&str]) -> Child {
        let mut command = self.vmnetx(&["run", link, "--backend", "libvirt", "--connect", uri, "--disk-cache", "0"]);
        command.args(more).stderr(File::create(self.path("words")).unwrap()).spawn().unwrap()
    }

    fn words(&self) -> String {
        fs::read_to_string(self.path("words")).unwrap()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// nginx on the repository, which sends so much a second to each connection (`0`: as fast as it goes).
fn serve(bench: &Bench, port: u16, rate: &str) -> Ended {
    let root = bench.0.path().display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {root}/web-{kind};"));
    let config = bench.path("nginx.conf");
    let text = format!(
        "daemon off; master_process off; user root; pid {root}/nginx.pid; events {{}}\n\
         http {{ access_log off; {} server {{ listen 127.0.0.1:{port}; limit_rate {rate}; root {root}/repository; }} }}\n",
        temporary.join(" ")
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(bench.0.path()).arg("-e").arg(bench.path("nginx.log")).arg("-c").arg(&config);
    let nginx = Ended(command.stdin(Stdio::null()).spawn().unwrap());
    let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(());
    wait_for("nginx", listens, || fs::read_to_string(bench.path("nginx.log")).unwrap_or_default());
    nginx
}

/// The number that the guest counts to, the last time and the first.
fn ticks(text: &str) -> Option<(u64, u64)> {
    let told = text.get(..text.rfind('\n')?)?;
    // The first line may have been cut off by when we began to listen.
    let mut numbers = told.lines().skip(1).filter_map(|line| line.trim().strip_prefix("VMNETX-TICK ")?.parse().ok());
    let first = numbers.next()?;
    Some((numbers.last().unwrap_or(first), first))
}

fn sum(serial: &Serial) -> String {
    serial.type_line(SUM);
    serial.wait_for("a sum", |text| {
        let (_, sum) = text.rsplit_once("SUM-")?;
        let sum: String = sum.chars().take_while(char::is_ascii_alphanumeric).collect();
        (sum.len() == 64).then_some(sum)
    })
}

/// Has the guest tick and fill its memory, and saves it. Gives its last tick, at the least, and the sum of its memory.
fn save(bench: &Bench, libvirt: &Libvirt, file: &Path) -> (u64, String) {
    said(libvirt.virsh(&["define"]).arg(bench.domain()));
    said(&mut libvirt.virsh(&["start", "ticking"]));
    let serial = libvirt.serial("ticking");
    serial.wait_for("a tick", ticks);
    serial.type_line(FILL);
    let sum = sum(&serial);
    let (last, _) = serial.wait_for("a tick", ticks);
    said(libvirt.virsh(&["save", "ticking"]).arg(file));
    said(&mut libvirt.virsh(&["undefine", "ticking"]));
    (last, sum)
}

#[test]
fn a_vm_that_libvirt_saved_goes_on_in_libvirt_from_a_web_server() {
    let bench = Bench::new();
    fs::create_dir(bench.path("libvirt")).unwrap();
    let libvirt = Libvirt::start(&bench.path("libvirt"));
    let file = bench.path("saved");
    let (last_tick, sum_before) = save(&bench, &libvirt, &file);
    bench.publish(&file);
    let port = free_port();
    let _nginx = serve(&bench, port, "0");
    // The package is all that there is of the VM now.
    for gone in ["disk.img", "saved"] {
        fs::remove_file(bench.path(gone)).unwrap();
    }

    let link = format!("http://127.0.0.1:{port}/vm.vmnetx");
    let mut run = bench.run(&libvirt.uri, &link, &["--resume", "stream"]);
    let domain = wait_for("the domain", || libvirt.running().into_iter().next(), || bench.words());
    assert!(domain.starts_with("vm-"), "{domain}");
    wait_for("the guest", || bench.words().contains("goes on").then_some(()), || bench.words());
    let serial = libvirt.serial(&domain);
    let (_, first) = serial.wait_for("a tick", ticks);
    assert!(first > last_tick, "the guest counts on from {last_tick}, not from {first}");
    assert_eq!(sum(&serial), sum_before);
    let ask = r#"{"execute": "query-vm-generation-id"}"#;
    let told = said(&mut libvirt.virsh(&["qemu-monitor-command", &domain, ask]));
    wait_for("the clock", || bench.words().contains("clock is set").then_some(()), || bench.words());
    assert!(told.contains("guid") && !told.contains(GENERATION), "the guest is told that it is another: {told}");

    rustix::process::kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let status = wait_for("the end", || run.try_wait().unwrap(), || bench.words());
    assert!(status.success(), "{}", bench.words());
    assert_eq!(libvirt.running(), Vec::<String>::new());
    let left: Vec<_> = fs::read_dir(bench.path("temporary")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    boots_when_asked(&bench, &libvirt, &link);
    what_is_the_hosts_is_refused_by_name(&bench, &libvirt);
}

/// The same package without its memory; the guest powers off, which ends the run.
fn boots_when_asked(bench: &Bench, libvirt: &Libvirt, link: &str) {
    let more = ["--resume", "off", "--accel", "tcg", "--name", "fresh"];
    let mut run = bench.run(&libvirt.uri, link, &more);
    let domain = wait_for("the domain", || libvirt.running().into_iter().next(), || bench.words());
    assert!(domain.starts_with("fresh-"), "{domain}");
    wait_for("the guest", || bench.words().contains("runs as libvirt's domain").then_some(()), || bench.words());
    let serial = libvirt.serial(&domain);
    serial.wait_for("the boot", |text| text.contains("VMNETX-WRITE-OK").then_some(()));
    serial.wait_for("a tick", ticks);
    serial.type_line("poweroff");
    let status = wait_for("the end", || run.try_wait().unwrap(), || bench.words());
    assert!(status.success() && bench.words().contains("powered off"), "{}", bench.words());
}

/// Copies the repository with another manifest in it; gives the copy's link.
fn with_other_manifest(bench: &Bench, repository: &Path, from: &str, to: &str) -> PathBuf {
    said(Command::new("cp").arg("-r").arg(bench.path("repository")).arg(repository));
    let manifest = fs::read_dir(repository.join("manifests")).unwrap().next().unwrap().unwrap().path();
    let good = fs::read_to_string(&manifest).unwrap();
    assert!(good.contains(from), "{from} is not in {good}");
    let other = good.replacen(from, to, 1);
    let digest = Digest::of(other.as_bytes());
    fs::write(manifest.with_file_name(format!("{digest}.json")), &other).unwrap();
    let file = repository.join("vm.vmnetx");
    let mut link = Envelope::decode(&fs::read(&file).unwrap()).unwrap().link;
    (link.current.manifest, link.current.manifest_bytes) = (digest, other.len() as u64);
    fs::write(&file, Envelope::unsigned(link).unwrap().encode()).unwrap();
    file
}

/// A package may say to libvirt what it likes: nothing but hardware is believed.
fn what_is_the_hosts_is_refused_by_name(bench: &Bench, libvirt: &Libvirt) {
    let cases = [
        ("<target dev='vda'", "<source file='/etc/shadow'/><target dev='vda'", "/domain/devices/disk[1]/source"),
        ("<devices>", "<devices><emulator>/bin/sh</emulator>", "/domain/devices/emulator"),
        ("<devices>", "<devices><hostdev mode='subsystem' type='usb'/>", "/domain/devices/hostdev"),
        ("<serial type='pty'>", "<serial type='file'>", "in the form"),
        (
            "<memory ",
            "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/><memory ",
            "/domain/qemu:commandline",
        ),
        ("<os>", "<os><loader>/etc/shadow</loader>", "/domain/os/loader"),
        ("machine='pc-i440fx-7.2'", "machine='/etc/shadow'", "/domain/os/type/@machine"),
    ];
    for (number, (from, to, says)) in cases.into_iter().enumerate() {
        let repository = bench.path(&format!("hostile{number}"));
        let file = with_other_manifest(bench, &repository, from, to);
        let mut command = bench.vmnetx(&["run", file.to_str().unwrap(), "--backend", "libvirt", "--disk-cache", "0"]);
        command.args(["--connect", &libvirt.uri]).env("VMNETX_STATE_DIR", repository.join("state"));
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{to}: {words}");
        assert!(words.contains(says), "{to}: {words}");
        assert_eq!(libvirt.running(), Vec::<String>::new());
    }
}
