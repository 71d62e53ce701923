//! Runs whose user, web server, repository or libvirtd goes in the middle of a restore: each ends in a guest or in words, and nothing
//! is left of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::daemon::{Libvirt, said, wait_for};
use super::{Bench, free_port, save, serve, ticks, with_other_manifest};

/// Bytes a second of each connection: a restore takes some seconds.
const SLOW: &str = "150k";

/// Between two bytes that are damaged: no piece of memory that is worth a chunk's name is spared.
const DAMAGE_STEP_BYTES: usize = 64 << 10;

#[test]
fn whatever_goes_during_a_restore_leaves_nothing_behind() {
    let bench = Bench::new();
    fs::create_dir(bench.path("libvirt")).unwrap();
    let mut libvirt = Libvirt::start(&bench.path("libvirt"));
    let file = bench.path("saved");
    save(&bench, &libvirt, &file);
    bench.publish(&file);
    cancelled(&bench, &libvirt);
    the_web_server_goes(&bench, &libvirt);
    damaged(&bench, &libvirt);
    not_the_saved_hardware(&bench, &libvirt);
    libvirtd_goes(&bench, &mut libvirt);
}

fn cancelled(bench: &Bench, libvirt: &Libvirt) {
    let port = free_port();
    let _nginx = serve(bench, port, SLOW);
    let link = link(port);
    for (signal, restoring_ms) in
        [(Signal::INT, None), (Signal::TERM, Some(0)), (Signal::INT, Some(300)), (Signal::TERM, Some(1000))]
    {
        let mut run = bench.run(&libvirt.uri, &link, &["--resume", "stream"]);
        match restoring_ms {
            // Before anything is attached, or soon after.
            None => sleep(Duration::from_millis(100)),
            Some(more_ms) => {
                restoring(bench, libvirt);
                sleep(Duration::from_millis(more_ms));
            }
        }
        assert!(!bench.words().contains("goes on"), "it was to be slow: {}", bench.words());
        rustix::process::kill_process(Pid::from_child(&run), signal).unwrap();
        let status = end(bench, &mut run);
        assert!(status.success(), "{restoring_ms:?}: {status}: {}", bench.words());
        nothing_is_left(bench, libvirt);
    }
}

fn the_web_server_goes(bench: &Bench, libvirt: &Libvirt) {
    let port = free_port();
    let nginx = serve(bench, port, SLOW);
    let mut run = bench.run(&libvirt.uri, &link(port), &["--resume", "stream"]);
    restoring(bench, libvirt);
    drop(nginx);
    sleep(Duration::from_secs(2));
    let _nginx = serve(bench, port, "0");
    goes_on(bench);
    interrupt(bench, libvirt, &mut run);

    // What it has not any more is not waited for as long as a line.
    let mut run = bench.run(&libvirt.uri, &link(port), &["--resume", "stream"]);
    let packs = bench.path("repository/packs");
    wait_for("the attachment", || bench.words().contains(" version ").then_some(()), || bench.words());
    fs::rename(&packs, bench.path("away")).unwrap();
    let status = end(bench, &mut run);
    fs::rename(bench.path("away"), &packs).unwrap();
    assert_eq!(status.code(), Some(5), "{}", bench.words());
    assert!(bench.words().contains("404"), "{}", bench.words());
    nothing_is_left(bench, libvirt);
}

fn damaged(bench: &Bench, libvirt: &Libvirt) {
    let repository = bench.path("damaged");
    said(Command::new("cp").arg("-r").arg(bench.path("repository")).arg(&repository));
    let packs = fs::read_dir(repository.join("packs")).unwrap();
    for pack in packs.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap()) {
        let pack = pack.unwrap().path();
        let mut bytes = fs::read(&pack).unwrap();
        bytes.iter_mut().step_by(DAMAGE_STEP_BYTES).for_each(|byte| *byte ^= 0xff);
        fs::write(&pack, bytes).unwrap();
    }
    let mut run = bench.run(&libvirt.uri, text(&repository.join("vm.vmnetx")), &["--resume", "stream"]);
    let status = end(bench, &mut run);
    assert_eq!(status.code(), Some(4), "{}", bench.words());
    assert!(bench.words().contains("the repository is damaged"), "{}", bench.words());
    nothing_is_left(bench, libvirt);
}

/// The kept hardware is not that of the saved state: QEMU refuses it, and what libvirt says of that is shown.
fn not_the_saved_hardware(bench: &Bench, libvirt: &Libvirt) {
    let repository = bench.path("other");
    let file = with_other_manifest(bench, &repository, "<model type='virtio'/>", "<model type='e1000'/>");
    let mut run = bench.run(&libvirt.uri, text(&file), &["--resume", "stream"]);
    let status = end(bench, &mut run);
    assert_eq!(status.code(), Some(1), "{}", bench.words());
    let words = bench.words();
    assert!(
        words.contains("libvirt cannot restore the saved domain: ") && words.contains("load of migration"),
        "{words}"
    );
    nothing_is_left(bench, libvirt);

    let mut run = bench.run(&libvirt.uri, text(&file), &["--accel", "tcg"]);
    let boots = || bench.words().contains("runs as libvirt's domain").then_some(());
    wait_for("the boot", boots, || bench.words());
    assert!(bench.words().contains("the VM boots, for it cannot be resumed: libvirt cannot"), "{}", bench.words());
    interrupt(bench, libvirt, &mut run);
}

fn libvirtd_goes(bench: &Bench, libvirt: &mut Libvirt) {
    let port = free_port();
    let nginx = serve(bench, port, SLOW);
    let mut run = bench.run(&libvirt.uri, &link(port), &["--resume", "stream"]);
    restoring(bench, libvirt);
    libvirt.die();
    wait_for("the loss", || bench.words().contains("libvirt has gone").then_some(()), || bench.words());
    libvirt.come_back();
    let status = end(bench, &mut run);
    assert_eq!(status.code(), Some(1), "{}", bench.words());
    assert!(bench.words().contains("libvirt has gone and cannot restore the saved domain"), "{}", bench.words());
    nothing_is_left(bench, libvirt);
    drop(nginx);

    // Its machines run on without it.
    let _nginx = serve(bench, port, "0");
    let mut run = bench.run(&libvirt.uri, &link(port), &["--resume", "stream"]);
    goes_on(bench);
    let domain = libvirt.running().pop().unwrap();
    let serial = libvirt.serial(&domain);
    let (_, before) = serial.wait_for("a tick", ticks);
    libvirt.die();
    wait_for("the loss", || bench.words().contains("it is waited for").then_some(()), || bench.words());
    libvirt.come_back();
    wait_for("the return", || bench.words().contains("libvirt is back").then_some(()), || bench.words());
    serial.wait_for("a later tick", |text| ticks(text).filter(|(last, _)| *last > before + 10));
    assert_eq!(libvirt.running(), [domain]);
    interrupt(bench, libvirt, &mut run);
}

fn link(port: u16) -> String {
    format!("http://127.0.0.1:{port}/vm.vmnetx")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until libvirt has a domain that waits for its state.
fn restoring(bench: &Bench, libvirt: &Libvirt) {
    wait_for("the domain", || libvirt.running().pop(), || bench.words());
    assert!(!bench.words().contains("goes on"), "it was to be slow: {}", bench.words());
}

fn goes_on(bench: &Bench) {
    wait_for("the guest", || bench.words().contains("goes on").then_some(()), || bench.words());
}

fn end(bench: &Bench, run: &mut Child) -> ExitStatus {
    wait_for("the end", || run.try_wait().unwrap(), || bench.words())
}

fn interrupt(bench: &Bench, libvirt: &Libvirt, run: &mut Child) {
    rustix::process::kill_process(Pid::from_child(run), Signal::INT).unwrap();
    let status = end(bench, run);
    assert!(status.success(), "{status}: {}", bench.words());
    nothing_is_left(bench, libvirt);
}

/// No domain, no file of a run and no process that knows of one: neither QEMU nor the server that a run has started.
fn nothing_is_left(bench: &Bench, libvirt: &Libvirt) {
    assert_eq!(libvirt.running(), Vec::<String>::new(), "{}", bench.words());
    let temporary = bench.path("temporary");
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().collect();
    assert!(left.is_empty(), "{left:?}: {}", bench.words());
    // A server ends when its last client has gone, which takes it a moment.
    let gone = || processes(text(&temporary)).is_empty().then_some(());
    wait_for("the end of all processes", gone, || format!("{:?}", processes(text(&temporary))));
}

/// The command lines of processes that name this path there or in their environment.
fn processes(path: &str) -> Vec<String> {
    let read = |file: &Path| String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).replace('\0', " ");
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let named =
        all.filter(|process| ["cmdline", "environ"].iter().any(|file| read(&process.join(file)).contains(path)));
    named.map(|process| read(&process.join("cmdline"))).filter(|command| !command.is_empty()).collect()
}
