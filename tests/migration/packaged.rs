//! A saved guest as a package: published from its stream, served over NBD, read by a foreign client, and with an order of its
//! own for whoever resumes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vmnetx_format::Purpose;
use vmnetx_format::machine::Machine;
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{AttachRequest, Attached, AttachmentId};

use crate::qemu::DEADLINE;
use crate::saved::Saved;
use crate::{RAM_MIB, blake3_of, run};

/// A repository with the guest, and the server of its packages.
struct Site<'a> {
    folder: &'a Path,
    saved: &'a Saved,
    runtime: Runtime,
}

/// A server of attachments without a cache directory; it is killed with this value.
struct Server(Child, Control);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Publishes a saved guest with a disk, and reads all of its memory from a server.
pub(crate) fn check(folder: &Path, disk: &Path, saved: &Saved) {
    let site = Site { folder, saved, runtime: Runtime::new().unwrap() };
    site.publish(disk);
    let record = site.read_memory();
    run(vmnetx().args(["pack", "order"]).arg(site.path("repository")).arg("vm").arg(record));
    // Whoever resumes the guest has its order, and whoever boots it does not.
    assert!(site.planned_frames(true) > 0);
    assert_eq!(site.planned_frames(false), 0);
}

impl Site<'_> {
    fn publish(&self, disk: &Path) {
        let (stream, machine) = (self.path("stream"), self.path("machine.toml"));
        fs::write(&stream, self.saved.write(&self.saved.configuration, |_| true)).unwrap();
        let plain = include_str!("../../qemu-configs/default.toml");
        let described = Machine {
            machine: self.saved.configuration.machine.parse().unwrap(),
            memory_mib: RAM_MIB.try_into().unwrap(),
            ..Machine::from_toml(plain).unwrap()
        };
        fs::write(&machine, described.to_toml()).unwrap();
        let mut command = vmnetx();
        command.args(["pack", "build"]).arg(self.path("repository")).args(["vm", "--saved-accel", "tcg", "--disk"]);
        run(command.arg(disk).arg("--machine").arg(machine).arg("--memory").arg(stream));
    }

    /// Compares all of memory with what was saved; gives the file with the record of having read it.
    fn read_memory(&self) -> PathBuf {
        let server = self.serve();
        let attached = self.attach(&server, AttachRequest { record: true, ..self.request(true) });
        for (number, block) in self.saved.blocks.iter().enumerate() {
            let (expected, copy) = (self.path("expected"), self.path("copy"));
            self.saved.write_ram(number, &expected);
            copy_export(&attached, &format!("ram:{}", block.name), &copy);
            assert!(blake3_of(&copy) == blake3_of(&expected), "{}", block.name);
        }
        let state = self.path("state");
        copy_export(&attached, "vm:device-state", &state);
        assert!(fs::read(state).unwrap().starts_with(self.saved.device_state.as_bytes()));
        let record = self.runtime.block_on(server.1.record(&attached.id)).unwrap();
        assert_eq!(record.purpose, Purpose::Resume);
        assert!(record.touches.iter().any(|touch| touch.image == "ram:pc.ram"));
        let file = self.path("record");
        fs::write(&file, record.encode().unwrap()).unwrap();
        file
    }

    /// Frames of the order that is replayed for who resumes the guest, or boots it.
    fn planned_frames(&self, memory: bool) -> u64 {
        let server = self.serve();
        let attached = self.attach(&server, self.request(memory));
        let has_ram = attached.exports.iter().any(|export| export.name == "ram:pc.ram");
        assert_eq!(has_ram, memory, "{:?}", attached.exports);
        let start = Instant::now();
        loop {
            let stats = self.runtime.block_on(server.1.attachment(&attached.id)).unwrap();
            match stats.order {
                Some(order) if order.done => return order.planned_frames,
                // The order of another purpose never becomes a plan.
                None if !memory && start.elapsed() > Duration::from_secs(1) => return 0,
                _ => {}
            }
            assert!(start.elapsed() < DEADLINE, "{stats:?}");
            sleep(Duration::from_millis(20));
        }
    }

    fn serve(&self) -> Server {
        let control = self.path("control");
        let mut command = vmnetx();
        command.args(["nbd", "serve", "--control"]).arg(&control).stderr(Stdio::null());
        let server = Server(command.spawn().unwrap(), Control::new(control));
        let start = Instant::now();
        while self.runtime.block_on(server.1.versions()).is_err() {
            assert!(start.elapsed() < DEADLINE, "the server does not answer");
            sleep(Duration::from_millis(20));
        }
        server
    }

    fn request(&self, memory: bool) -> AttachRequest {
        let link = self.path("repository").join("vm.vmnetx");
        AttachRequest { memory, ..AttachRequest::new(link.to_str().unwrap()) }
    }

    fn attach(&self, server: &Server, request: AttachRequest) -> Attached {
        self.runtime.block_on(server.1.attach(&AttachmentId::random().unwrap(), &request)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("packaged-{name}"))
    }
}

/// Copies an export as another program reads it.
fn copy_export(attached: &Attached, export: &str, to: &Path) {
    let name = export.replace('/', "%2F").replace('@', "%40");
    run(Command::new("nbdcopy").arg(format!("nbd+unix:///{name}?socket={}", attached.socket)).arg(to));
}

fn vmnetx() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmnetx"))
}
