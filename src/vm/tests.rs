//! Tests with a real QEMU that need no guest: every profile comes up, and every end is clean.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// qemu-nbd on an image of zeros, ended on drop.
struct NbdServer {
    child: Child,
    socket: PathBuf,
}

impl NbdServer {
    fn start(folder: &Path, size_bytes: u64) -> Self {
        let (image, socket) = (folder.join("image"), folder.join("nbd"));
        fs::File::create(&image).unwrap().set_len(size_bytes).unwrap();
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-e", "32", "-x", "disk0", "-f", "raw", "-k"]).arg(&socket).arg(&image);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < Duration::from_secs(10), "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, socket }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Bench {
    folder: tempfile::TempDir,
    nbd: NbdServer,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Not a multiple of 512, as disks may be.
        let nbd = NbdServer::start(folder.path(), (1 << 20) + 100);
        fs::create_dir(folder.path().join("scratch, odd")).unwrap();
        Self { folder, nbd }
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch, odd")
    }

    fn spec(&self, machine: Machine) -> Spec {
        Spec {
            name: "test".parse().unwrap(),
            machine,
            version: Digest::of(b"test"),
            disks: vec![DiskSpec {
                name: "disk0".parse().unwrap(),
                nbd_socket: self.nbd.socket.clone(),
                export: "disk0".to_owned(),
                size_bytes: (1 << 20) + 100,
                persist: None,
            }],
            accel: Accel::Tcg,
            display: Display::None,
            network: Network::User,
            serial: None,
            incoming: None,
            claim: None,
            programs: Programs::find(Path::new("qemu-system-x86_64")).unwrap(),
            run_dir: RunDir::create(&self.scratch()).unwrap(),
        }
    }

    fn left_behind(&self) -> usize {
        fs::read_dir(self.scratch()).unwrap().count()
    }
}

fn profiles() -> Vec<(PathBuf, Machine)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-configs");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let profiles = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    profiles.map(|path| (path.clone(), Machine::from_toml(&fs::read_to_string(path).unwrap()).unwrap())).collect()
}

const PLAIN: &str = "machine = 'pc-i440fx-7.2'\nmemory_mib = 64\nvga = 'none'\ncpu.model = 'qemu64'\n";

/// What a machine may have beyond that, but screens, disks and network cards.
const FEATURES: &str = "tablet = true\nrng = true\nvmgenid = true\nguest_agent = true\n";

fn plain() -> Machine {
    Machine::from_toml(PLAIN).unwrap()
}

async fn started(spec: Spec) -> Result<Started, Error> {
    Ok(start(spec, &CancellationToken::new()).await?.expect("nobody cancels"))
}

/// Starts a machine and ends it.
async fn come_up(bench: &Bench, machine: Machine, what: &str) {
    let mut started = started(bench.spec(machine)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(started.qmp.status().await.unwrap(), qmp::Status::Running, "{what}");
    started.end().await.unwrap();
}

#[tokio::test]
async fn qemu_takes_every_profile() {
    let bench = Bench::new();
    for (path, machine) in profiles() {
        come_up(&bench, machine, &path.display().to_string()).await;
    }
    assert_eq!(bench.left_behind(), 0);
}

#[tokio::test]
async fn qemu_takes_every_bus_card_and_screen() {
    let bench = Bench::new();
    let q35 = PLAIN.replace("i440fx", "q35");
    for (base, buses) in [(PLAIN, ["virtio", "ide", "sata", "scsi"].as_slice()), (&q35, &["virtio", "sata", "scsi"])] {
        for bus in buses {
            let text = format!("disk_bus = '{bus}'\n{FEATURES}{base}");
            come_up(&bench, Machine::from_toml(&text).unwrap(), bus).await;
        }
    }
    let nics = ["virtio-net-pci", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k_pci"];
    let nics = nics.map(|model| format!("{{ model = '{model}' }}")).join(", ");
    come_up(&bench, Machine::from_toml(&format!("nics = [{nics}]\n{PLAIN}")).unwrap(), "network cards").await;
    for vga in ["none", "std", "cirrus", "virtio", "qxl", "vmware"] {
        let text = PLAIN.replace("vga = 'none'", &format!("vga = '{vga}'"));
        come_up(&bench, Machine::from_toml(&text).unwrap(), vga).await;
    }
    assert_eq!(bench.left_behind(), 0);
}

#[tokio::test]
async fn qemu_takes_as_many_devices_as_a_machine_may_have() {
    use vmnetx_format::machine::{MACHINE_DISKS_MAX, NICS_MAX};
    let bench = Bench::new();
    for base in [PLAIN.to_owned(), PLAIN.replace("i440fx", "q35")] {
        let nics = ["{ model = 'e1000' }"; NICS_MAX].join(", ");
        let base = base.replace("vga = 'none'", "vga = 'std'");
        let disk = |index: usize| {
            // One on each bus that needs a controller, the rest in slots of their own.
            let bus = match index {
                0 => "sata",
                1 => "scsi",
                _ => "virtio",
            };
            format!("{{ name = 'disk{index}', bus = '{bus}' }}")
        };
        let disks = (0..MACHINE_DISKS_MAX).map(disk).collect::<Vec<_>>().join(", ");
        let text = format!("{FEATURES}nics = [{nics}]\ndisks = [{disks}]\n{base}");
        let mut spec = bench.spec(Machine::from_toml(&text).unwrap());
        spec.disks = (0..MACHINE_DISKS_MAX)
            .map(|index| DiskSpec {
                name: format!("disk{index}").parse().unwrap(),
                nbd_socket: bench.nbd.socket.clone(),
                export: "disk0".to_owned(),
                size_bytes: (1 << 20) + 100,
                persist: None,
            })
            .collect();
        started(spec).await.unwrap().end().await.unwrap();
    }
}

#[tokio::test]
async fn a_vnc_screen_listens_on_a_private_socket_only() {
    let bench = Bench::new();
    let mut spec = bench.spec(plain());
    spec.display = Display::Vnc;
    let vnc = spec.run_dir.socket("vnc").unwrap();
    let mut started = started(spec).await.unwrap();
    let mut viewer = UnixStream::connect(vnc).await.unwrap();
    let mut greeting = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut viewer, &mut greeting).await.unwrap();
    assert_eq!(&greeting, b"RFB ");
    started.end().await.unwrap();
}

#[tokio::test]
async fn cancelling_ends_qemu_and_leaves_nothing() {
    let bench = Bench::new();
    for delay_ms in [0, 20, 100, 500, 1500] {
        let shutdown = CancellationToken::new();
        let launched = tokio::spawn(launch(bench.spec(plain()), shutdown.clone()));
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        shutdown.cancel();
        assert_eq!(launched.await.unwrap().unwrap(), Outcome::Cancelled, "after {delay_ms} ms");
        assert_eq!(bench.left_behind(), 0, "after {delay_ms} ms");
    }
}

#[tokio::test]
async fn a_qemu_that_fails_is_quoted() {
    let bench = Bench::new();
    let mut spec = bench.spec(plain());
    spec.disks[0].export = "no-such-export".to_owned();
    let error = launch(spec, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("no-such-export"), "{error}");

    let machine = Machine::from_toml(&PLAIN.replace("qemu64", "NoSuchCpu")).unwrap();
    let error = launch(bench.spec(machine), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("NoSuchCpu"), "{error}");
    assert_eq!(bench.left_behind(), 0);
}

#[tokio::test]
async fn a_qemu_that_dies_is_an_error() {
    let bench = Bench::new();
    let started = started(bench.spec(plain())).await.unwrap();
    let shutdown = CancellationToken::new();
    started.process.signal(Signal::ABORT);
    let error = started.run(&shutdown).await.unwrap_err();
    assert!(matches!(error, Error::QemuDied { .. }), "{error}");
}

#[tokio::test]
async fn a_qemu_that_is_told_to_end_by_others_has_been_closed() {
    let bench = Bench::new();
    let started = started(bench.spec(plain())).await.unwrap();
    started.process.signal(Signal::TERM);
    assert_eq!(started.run(&CancellationToken::new()).await.unwrap(), Outcome::Closed);
}

#[tokio::test]
async fn what_is_not_handled_is_refused_before_anything_starts() {
    let bench = Bench::new();
    let refused = async |spec| {
        let error = launch(spec, CancellationToken::new()).await.unwrap_err();
        assert_eq!(bench.left_behind(), 0);
        error
    };
    let uefi = Machine::from_toml(&format!("firmware = 'uefi'\n{PLAIN}")).unwrap();
    assert!(matches!(refused(bench.spec(uefi)).await, Error::NotHandled(_)));

    let mut spec = bench.spec(Machine::from_toml(&format!("serial = false\n{PLAIN}")).unwrap());
    spec.serial = Some(SerialPort { output: Box::new(tokio::io::sink()), input: None });
    assert!(matches!(refused(spec).await, Error::NoSerial));

    let mut spec = bench.spec(plain());
    spec.disks[0].name = "disk1".parse().unwrap();
    spec.machine = Machine::from_toml(&format!("disks = [{{ name = 'disk0', bus = 'ide' }}]\n{PLAIN}")).unwrap();
    assert!(matches!(refused(spec).await, Error::Machine(_)));
}
