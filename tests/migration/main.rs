//! Guests that QEMU saves while they write to memory and disk, resumed by QEMU from what the codec writes of them: as a
//! stream, lazily with us as the source of a postcopy migration, and with their RAM mapped from a file; and as packages.
//!
//! Needs what `tests/setup test` installs, and userfaultfd for the lazy resume: root, or `vm.unprivileged_userfaultfd=1`.

mod guest;
mod packaged;
mod qemu;
mod refused;
mod saved;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::Guest;
use qemu::{DEADLINE, Qemu, json};
use saved::Saved;
use vmnetx_format::migration::Configuration;

/// A machine to be saved, and what must be in its saved state.
struct Hardware {
    machine: &'static str,
    arguments: &'static [&'static str],
    /// How the disk is attached.
    interface: &'static str,
    cpus: usize,
    devices: &'static [&'static str],
}

const RAM_MIB: u64 = 128;

const I440FX: Hardware = Hardware {
    machine: "pc-i440fx-7.2",
    arguments: &["-smp", "1", "-vga", "std", "-usb", "-device", "usb-tablet"],
    interface: "ide",
    cpus: 1,
    devices: &["0000:00:02.0/vga", "0000:00:01.1/ide", "0000:00:01.2/uhci", "0000:00:01.2/1/usb-ptr"],
};

const Q35: Hardware = Hardware {
    machine: "pc-q35-7.2",
    arguments: &[
        "-smp",
        "4",
        "-vga",
        "virtio",
        "-device",
        "qemu-xhci",
        "-device",
        "usb-tablet",
        "-device",
        "virtio-rng-pci",
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ],
    interface: "virtio",
    cpus: 4,
    devices: &[
        "0000:00:01.0/virtio-vga",
        "0000:00:02.0/xhci",
        "0000:00:03.0/virtio-rng",
        "0000:00:04.0/virtio-net",
        "0000:00:05.0/virtio-blk",
        "slirp",
    ],
};

#[test]
fn a_guest_on_i440fx_goes_on_in_every_way() {
    Bench::new(&I440FX).saves_and_resumes();
}

#[test]
fn a_guest_with_four_cpus_on_q35_goes_on_in_every_way() {
    Bench::new(&Q35).saves_and_resumes();
}

/// A machine and the folder that it lives in.
struct Bench {
    folder: tempfile::TempDir,
    hardware: &'static Hardware,
}

impl Bench {
    fn new(hardware: &'static Hardware) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), hardware }
    }

    fn saves_and_resumes(&self) {
        let (saved, before) = self.save();
        packaged::check(self.folder.path(), &self.path("guest.img"), &saved);
        for resume in [Self::stream, Self::lazy, Self::preempting, Self::mapped] {
            let mut guest = resume(self, &saved);
            guest
                .serial
                .wait_for("a tick", DEADLINE, |text| guest::last_tick(text).filter(|tick| *tick > before.ticks));
            guest.check(&before);
        }
    }

    /// Boots the guest, and saves it in the midst of its work.
    fn save(&self) -> (Saved, guest::State) {
        self.make_disk();
        let mut guest = Guest::new(self.start("saved", &[]));
        let before = guest.work();
        let saved = Saved::read(guest.qemu.qmp.migrate(&self.path("target"))).unwrap();
        guest.qemu.qmp.execute("quit", &json!({}));
        guest.qemu.exited();
        assert_eq!(saved.pages.len(), saved.page_count(), "QEMU sends every page");
        assert_eq!(saved.configuration, Configuration::new(self.hardware.machine));
        let devices = saved.device_state.devices();
        for name in self.hardware.devices {
            assert!(devices.iter().any(|device| device.name == *name), "{name}: {devices:?}");
        }
        assert_eq!(devices.iter().filter(|device| device.name == "cpu").count(), self.hardware.cpus);
        (saved, guest::State { ticks: guest::last_tick(&guest.serial.text()).unwrap(), ..before })
    }

    /// The stream again, with each page once.
    fn stream(&self, saved: &Saved) -> Guest {
        let again = self.path("again");
        let every_page = |_| true;
        fs::write(&again, saved.write(&saved.configuration, every_page)).unwrap();
        Guest::new(self.start("stream", &["-incoming", &format!("exec:cat {}", again.display())]))
    }

    /// We are the source: the guest runs, and asks for its pages.
    fn lazy(&self, saved: &Saved) -> Guest {
        self.postcopy(saved, "lazy", false)
    }

    /// The same with a second connection for the pages that it asks for.
    fn preempting(&self, saved: &Saved) -> Guest {
        self.postcopy(saved, "preempting", true)
    }

    fn postcopy(&self, saved: &Saved, name: &str, preempt: bool) -> Guest {
        let socket = self.path(&format!("{name}.source"));
        let mut guest = Guest::new(self.start(name, &["-incoming", "defer"]));
        guest.qemu.qmp.enable(&["postcopy-ram", "events"]);
        if preempt {
            guest.qemu.qmp.enable(&["postcopy-preempt"]);
        }
        guest.qemu.qmp.execute("migrate-incoming", &json!({ "uri": format!("unix:{}", socket.display()) }));
        let requests = source::serve(&socket, saved, &guest.serial, preempt);
        assert!(requests > 50, "a guest that has {requests} pages asked for does not run lazily");
        guest.qemu.qmp.wait_for_migration();
        guest
    }

    /// RAM is a private mapping of a file, the rest comes as a stream.
    fn mapped(&self, saved: &Saved) -> Guest {
        let (ram, rest) = (self.path("ram"), self.path("rest"));
        let block = saved.main_block();
        saved.write_ram(block, &ram);
        let mut configuration = saved.configuration.clone();
        configuration.ignore_shared = true;
        fs::write(&rest, saved.write(&configuration, |of| of != block)).unwrap();
        let before = blake3_of(&ram);
        let backend = format!("memory-backend-file,id=pc.ram,size={RAM_MIB}M,mem-path={},share=off", ram.display());
        let mut guest = Guest::new(self.start("mapped", &["-incoming", "defer", "-object", &backend]));
        guest.qemu.qmp.enable(&["x-ignore-shared", "events"]);
        guest.qemu.qmp.execute("migrate-incoming", &json!({ "uri": format!("exec:cat {}", rest.display()) }));
        guest.qemu.qmp.wait_for_migration();
        assert_eq!(blake3_of(&ram), before, "the guest writes to its own copy");
        guest
    }

    fn start(&self, name: &str, more: &[&str]) -> Qemu {
        let Hardware { machine, arguments, interface, .. } = self.hardware;
        let backend = more.iter().any(|argument| argument.starts_with("memory-backend-file"));
        let machine = if backend { format!("{machine},memory-backend=pc.ram") } else { (*machine).to_owned() };
        let memory = format!("{RAM_MIB}M");
        // Each guest has the disk as it was when the first one was saved.
        let disk = self.path(&format!("{name}.qcow2"));
        if name != "saved" {
            fs::copy(self.path("saved.qcow2"), &disk).unwrap();
        }
        let drive = format!("file={},format=qcow2,if={interface}", disk.display());
        let common = ["-machine", &machine, "-m", &memory, "-drive", &drive];
        let arguments: Vec<&str> = common.iter().chain(*arguments).chain(more).copied().collect();
        Qemu::start(self.folder.path(), name, &arguments)
    }

    fn make_disk(&self) {
        let image = self.path("guest.img");
        run(Command::new(root().join("tests/guests/minimal")).arg(&image).args(["migrates", "vmnetx.tick=0.1"]));
        let overlay = self.path("saved.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&image)
            .arg(&overlay));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn blake3_of(file: &Path) -> vmnetx_format::Digest {
    vmnetx_format::Digest::of(&fs::read(file).unwrap())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
