//! Guests launched through the library, on disks that qemu-nbd serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmnetx::vm::{self, Accel, DiskSpec, Display, Error, Network, Outcome, Programs, RunDir, SerialPort, Spec};
use vmnetx_format::machine::Machine;

use crate::support::{BOOT_DEADLINE, DEADLINE, NbdServer, Transcript, assert_disk_sum, guest_image, version};

struct Bench {
    folder: tempfile::TempDir,
    image: PathBuf,
    serial: Transcript,
    keyboard: Option<DuplexStream>,
}

impl Bench {
    fn new(marker: &str, kernel_options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = guest_image(folder.path(), marker, kernel_options);
        fs::create_dir(folder.path().join("scratch")).unwrap();
        Self { folder, image, serial: Transcript::default(), keyboard: None }
    }

    fn spec(&mut self, nbd: &NbdServer, profile: &str) -> Spec {
        let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-configs").join(profile);
        let (keyboard, input) = tokio::io::duplex(4096);
        self.keyboard = Some(keyboard);
        self.serial = Transcript::default();
        Spec {
            name: "guest".parse().unwrap(),
            machine: Machine::from_toml(&fs::read_to_string(profile).unwrap()).unwrap(),
            version: version("one"),
            disks: vec![DiskSpec {
                name: "disk0".parse().unwrap(),
                nbd_socket: nbd.socket.clone(),
                export: "disk0".to_owned(),
                size_bytes: fs::metadata(&self.image).unwrap().len(),
                persist: None,
            }],
            accel: Accel::Tcg,
            display: Display::None,
            network: Network::Isolated,
            serial: Some(SerialPort { output: Box::new(self.serial.clone()), input: Some(Box::new(input)) }),
            incoming: None,
            claim: None,
            programs: Programs::find(Path::new("qemu-system-x86_64")).unwrap(),
            run_dir: RunDir::create(&self.folder.path().join("scratch")).unwrap(),
        }
    }

    /// Launches a guest that powers itself off.
    async fn run(&mut self, nbd: &NbdServer, change: impl FnOnce(&mut Spec)) {
        let mut spec = self.spec(nbd, "default.toml");
        change(&mut spec);
        let outcome = within(BOOT_DEADLINE, vm::launch(spec, CancellationToken::new())).await.unwrap();
        assert_eq!(outcome, Outcome::PoweredOff, "{}", self.serial.text());
        self.assert_clean();
    }

    async fn type_line(&mut self, line: &str) {
        self.keyboard.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.folder.path().join("scratch")).unwrap().count(), 0, "nothing is left behind");
    }
}

async fn within<T>(deadline: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline, future).await.expect("ends in time")
}

fn launched(spec: Spec) -> (JoinHandle<Result<Outcome, Error>>, CancellationToken) {
    let shutdown = CancellationToken::new();
    (tokio::spawn(vm::launch(spec, shutdown.clone())), shutdown)
}

#[tokio::test]
async fn a_guest_boots_on_ide_and_virtio_and_powers_off() {
    for profile in ["default.toml", "modern.toml"] {
        let mut bench = Bench::new("boots", &["vmnetx.poweroff"]);
        let nbd = NbdServer::start(&bench.image);
        let spec = bench.spec(&nbd, profile);
        let outcome = within(BOOT_DEADLINE, vm::launch(spec, CancellationToken::new())).await.unwrap();
        assert_eq!(outcome, Outcome::PoweredOff);
        let said = bench.serial.text();
        assert!(said.contains("VMNETX-GUEST-READY boots"), "{profile}: {said}");
        assert!(said.contains("VMNETX-WRITE-OK"), "{profile}: {said}");
        assert_disk_sum(&said, &bench.image);
        bench.assert_clean();
    }
}

#[tokio::test]
async fn what_a_guest_writes_is_kept_only_when_asked() {
    let mut bench = Bench::new("persist", &["vmnetx.poweroff"]);
    let pristine = fs::read(&bench.image).unwrap();
    let nbd = NbdServer::start(&bench.image);
    let file = bench.folder.path().join("kept.qcow2");
    for boots in ["VMNETX-BOOTS 1", "VMNETX-BOOTS 2"] {
        bench.run(&nbd, |spec| spec.disks[0].persist = Some(file.clone())).await;
        assert!(bench.serial.text().contains(boots), "{}", bench.serial.text());
    }
    bench.run(&nbd, |_| ()).await;
    assert!(bench.serial.text().contains("VMNETX-BOOTS 1"), "{}", bench.serial.text());

    let mut spec = bench.spec(&nbd, "default.toml");
    spec.version = version("two");
    spec.disks[0].persist = Some(file);
    let error = vm::launch(spec, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::OtherVersion { .. }), "{error}");
    bench.assert_clean();
    drop(nbd);
    assert!(fs::read(&bench.image).unwrap() == pristine, "pristine data is never written");
}

#[tokio::test]
async fn a_persistent_overlay_has_one_user_at_a_time() {
    let mut bench = Bench::new("busy", &[]);
    let nbd = NbdServer::start(&bench.image);
    let file = bench.folder.path().join("kept.qcow2");
    let mut spec = bench.spec(&nbd, "default.toml");
    spec.disks[0].persist = Some(file.clone());
    let (first, shutdown) = launched(spec);
    bench.serial.wait_for("VMNETX-GUEST-READY busy", BOOT_DEADLINE).await;
    let mut spec = bench.spec(&nbd, "default.toml");
    spec.disks[0].persist = Some(file);
    let error = vm::launch(spec, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::OverlayBusy(_)), "{error}");
    shutdown.cancel();
    assert_eq!(within(DEADLINE, first).await.unwrap().unwrap(), Outcome::Cancelled);
    bench.assert_clean();
}

#[tokio::test]
async fn the_serial_port_takes_what_is_typed() {
    let mut bench = Bench::new("typed", &[]);
    let nbd = NbdServer::start(&bench.image);
    let spec = bench.spec(&nbd, "default.toml");
    let (launch, _shutdown) = launched(spec);
    bench.serial.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE).await;
    bench.type_line("echo $((6 * 7))-typed").await;
    bench.serial.wait_for("42-typed", DEADLINE).await;
    bench.type_line("poweroff").await;
    assert_eq!(within(DEADLINE, launch).await.unwrap().unwrap(), Outcome::PoweredOff);
    bench.assert_clean();
}

#[tokio::test]
async fn a_guest_outlives_its_nbd_server() {
    let mut bench = Bench::new("outlives", &[]);
    let nbd = NbdServer::start(&bench.image);
    let spec = bench.spec(&nbd, "default.toml");
    let (launch, _shutdown) = launched(spec);
    bench.serial.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE).await;
    drop(nbd);
    // The last partition, which the guest has not read yet.
    bench.type_line("dd if=/dev/sda4 bs=1M count=1 2>/dev/null | sha256sum; echo read-$((1 + 1))").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!bench.serial.text().contains("read-2"), "nobody could have answered");
    let _nbd = NbdServer::start(&bench.image);
    bench.serial.wait_for("read-2", DEADLINE).await;
    let data = fs::read(&bench.image).unwrap();
    let part = bench.folder.path().join("part");
    fs::write(&part, &data[32 << 20..][..1 << 20]).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&part).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    assert!(bench.serial.text().contains(sum.split_whitespace().next().unwrap()), "{}", bench.serial.text());
    bench.type_line("poweroff").await;
    assert_eq!(within(DEADLINE, launch).await.unwrap().unwrap(), Outcome::PoweredOff);
}

#[tokio::test]
async fn a_guest_stands_still_while_its_disk_fails_and_then_runs_on() {
    let log = Transcript::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut bench = Bench::new("stands", &[]);
    let broken = bench.folder.path().join("broken");
    let nbd = NbdServer::failing(&bench.image, &broken);
    let spec = bench.spec(&nbd, "default.toml");
    let (launch, _shutdown) = launched(spec);
    bench.serial.wait_for("VMNETX-WRITE-OK", BOOT_DEADLINE).await;
    fs::write(&broken, "").unwrap();
    bench.type_line("dd if=/dev/sda4 of=/dev/null bs=1M count=1 && echo read-$((1 + 1))").await;
    log.wait_for("stands still", DEADLINE).await;
    // Long enough for attempts to continue it that fail again.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!bench.serial.text().contains("read-2"));
    fs::remove_file(&broken).unwrap();
    bench.serial.wait_for("read-2", DEADLINE).await;
    log.wait_for("the guest runs again", DEADLINE).await;
    bench.type_line("dmesg | grep -c 'I/O error'; poweroff").await;
    assert_eq!(within(DEADLINE, launch).await.unwrap().unwrap(), Outcome::PoweredOff);
    let said = bench.serial.text();
    assert!(said.contains("\n0\r"), "the guest saw no error: {said}");
    let complaint = "disk0 cannot be read (Input/output error); the guest stands still until it works again";
    assert_eq!(log.text().matches(complaint).count(), 1, "told once: {}", log.text());
    bench.assert_clean();
}
