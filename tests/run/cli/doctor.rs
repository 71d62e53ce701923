//! What `doctor` tells of this host and of packages: as root and as a plain user, with everything there and with things missing.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::resume::SavedGuest;
use super::*;

/// The checks of a host, in their order.
const CHECKS: [&str; 14] = [
    "user",
    "run-directory",
    "qemu",
    "tools",
    "sandbox",
    "machines",
    "acceleration",
    "stream",
    "lazy",
    "mapped",
    "cache-directory",
    "server",
    "open-files",
    "vm-names",
];

/// Those of a package.
const PACKAGE_CHECKS: [&str; 4] = ["machine", "cpu", "memory", "resume"];

const NOBODY: u32 = 65534;

/// A libvirt that is not there: another one would be started for a plain user.
const NO_LIBVIRT: &[&str] =
    if cfg!(feature = "libvirt") { &["--connect", "qemu+unix:///system?socket=/nonexistent"] } else { &[] };

/// What `doctor --json` says, and its exit code.
struct Told {
    code: i32,
    report: Value,
    words: String,
}

impl Told {
    fn by(mut command: Command) -> Self {
        command.args(NO_LIBVIRT).arg("--json");
        let output = finish(command);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"));
        Self { code: output.status.code().unwrap(), report, words }
    }

    fn finding(&self, check: &str) -> &Value {
        let findings = self.report["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["check"] == check)
            .unwrap_or_else(|| panic!("no {check}: {}", self.report))
    }

    fn of_package(&self, check: &str) -> &Value {
        let findings = self.report["package"]["findings"].as_array().unwrap_or_else(|| panic!("{}", self.words));
        findings.iter().find(|finding| finding["check"] == check).unwrap()
    }

    fn assert_state(&self, check: &str, state: &str) {
        assert_eq!(self.finding(check)["state"], state, "{:#}\n{}", self.finding(check), self.words);
    }

    fn assert_advice(&self, check: &str, words: &str) {
        let finding = self.finding(check);
        assert!(finding["advice"].as_str().is_some_and(|advice| advice.contains(words)), "{finding:#}");
    }
}

impl Bench {
    /// A folder in which nothing is published.
    fn unpublished() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { image: folder.path().join("none"), folder }
    }

    fn doctor(&self, arguments: &[&str]) -> Command {
        self.vmnetx(&[&["doctor"], arguments].concat())
    }

    /// `doctor` as a user without rights, who has a folder of its own.
    fn doctor_as_nobody(&self, arguments: &[&str]) -> Command {
        let own = self.path("own");
        let program = own.join("vmnetx");
        if !own.exists() {
            fs::create_dir(&own).unwrap();
            fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::copy(env!("CARGO_BIN_EXE_vmnetx"), &program).unwrap();
            std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).arg("doctor");
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        command.env("TMPDIR", &own).env("HOME", &own).env("VMNETX_STATE_DIR", own.join("state"));
        command.env_remove("XDG_CACHE_HOME").env_remove("XDG_RUNTIME_DIR").env_remove("VMNETX_LOG");
        command
    }
}

#[test]
fn each_check_is_told_once_to_programs_and_to_people() {
    let bench = Bench::unpublished();
    let told = Told::by(bench.doctor(&[]));
    assert_eq!((told.code, &told.report["can_run"]), (0, &Value::Bool(true)), "{:#}", told.report);
    let findings = told.report["findings"].as_array().unwrap();
    let names: Vec<_> = findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert_eq!(&names[..CHECKS.len()], CHECKS);
    assert_eq!(&names[CHECKS.len()..], if cfg!(feature = "libvirt") { &["libvirt"][..] } else { &[] });
    for finding in findings {
        let needs_advice = finding["state"] != "good";
        assert_eq!(finding["advice"].is_string(), needs_advice, "{finding:#}");
        assert!(finding["found"].as_str().is_some_and(|found| !found.is_empty()), "{finding:#}");
    }
    for good in ["qemu", "tools", "sandbox", "machines", "stream", "mapped", "server"] {
        told.assert_state(good, "good");
    }
    assert!(told.finding("qemu")["found"].as_str().unwrap().contains("/qemu-system-x86_64"));

    let output = finish(bench.doctor(NO_LIBVIRT));
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("->")).collect();
    assert_eq!(lines.len(), findings.len(), "{text}");
    for (line, finding) in lines.iter().zip(findings) {
        let words: Vec<_> = line.split_whitespace().take(2).collect();
        assert_eq!(words, [finding["state"].as_str().unwrap(), finding["check"].as_str().unwrap()]);
    }
    bench.assert_clean();
    assert!(!bench.path("cache").exists(), "it is said where it would be, and not made");
}

/// What it says of acceleration is what a run does.
#[test]
fn acceleration_is_what_a_run_chooses() {
    let bench = Bench::new("acceleration", &["vmnetx.poweroff"]);
    let told = Told::by(bench.doctor(&[]));
    let mut command = bench.vmnetx(&["run", &bench.link(), "--accel", "kvm"]);
    command.args(["--network", "isolated"]);
    let output = finish(command);
    let refused = output.status.code() == Some(HOST);
    told.assert_state("acceleration", if refused { "limited" } else { "good" });
    if refused {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let why = complaint.lines().find_map(|line| line.split_once("cannot run a guest here: ")).unwrap().1;
        assert!(told.finding("acceleration")["found"].as_str().unwrap().contains(why), "{complaint}");
    }
}

#[test]
fn root_and_a_plain_user_are_told_what_each_of_them_may() {
    assert_eq!(fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim(), "0");
    let bench = Bench::unpublished();
    let root = Told::by(bench.doctor(&[]));
    root.assert_state("user", "limited");
    root.assert_state("lazy", "good");
    let nobody = Told::by(bench.doctor_as_nobody(&[]));
    assert_eq!(nobody.code, 0, "{}", nobody.words);
    nobody.assert_state("user", "good");
    nobody.assert_state("lazy", "limited");
    nobody.assert_state("mapped", "good");
    // In QEMU's own words.
    assert!(nobody.finding("lazy")["found"].as_str().unwrap().contains("Postcopy"));
    nobody.assert_advice("lazy", "vm.unprivileged_userfaultfd=1");
}

#[test]
fn a_cache_directory_that_cannot_be_written_is_told_of() {
    let bench = Bench::unpublished();
    bench.doctor_as_nobody(&[]);
    let cache = bench.path("own/.cache/vmnetx");
    fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::chown(&cache, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o555)).unwrap();
    let told = Told::by(bench.doctor_as_nobody(&[]));
    told.assert_state("cache-directory", "limited");
    assert_eq!(told.code, 0, "a run has a private server then: {}", told.words);
    let told = Told::by(bench.doctor_as_nobody(&["--cache-dir", cache.to_str().unwrap()]));
    told.assert_state("cache-directory", "missing");
    told.assert_advice("cache-directory", "--cache-dir");
    assert!(told.code == HOST && told.words.contains("for want of: cache-directory"), "{} {}", told.code, told.words);
    // Another user's.
    let told = Told::by(bench.doctor_as_nobody(&["--cache-dir", "/"]));
    told.assert_state("cache-directory", "missing");
    assert!(told.finding("cache-directory")["found"].as_str().unwrap().contains("another user"));
}

#[test]
fn without_qemu_no_vm_runs_and_the_package_to_install_is_named() {
    let bench = Bench::unpublished();
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    let mut command = bench.doctor(&[]);
    command.env("PATH", &bin);
    let told = Told::by(command);
    assert_eq!((told.code, &told.report["can_run"]), (HOST, &Value::Bool(false)));
    assert!(told.words.contains("no VM can be run here, for want of: qemu, tools\n"), "{}", told.words);
    told.assert_state("qemu", "missing");
    told.assert_advice("qemu", "apt install qemu-system-x86");
    told.assert_advice("tools", "apt install qemu-utils");
    for untried in ["sandbox", "machines", "acceleration", "stream", "lazy"] {
        told.assert_state(untried, "untried");
    }
    // One that cannot do without what it is not given.
    let qemu = bin.join("qemu");
    fs::write(&qemu, "#!/bin/sh\necho -sandbox support is not enabled in this QEMU binary >&2\nexit 1\n").unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    let told = Told::by(bench.doctor(&["--qemu", qemu.to_str().unwrap()]));
    assert_eq!(told.code, HOST);
    told.assert_state("sandbox", "missing");
    told.assert_advice("sandbox", "seccomp");
    told.assert_state("lazy", "untried");
    bench.assert_clean();
}

#[test]
fn the_server_of_the_directory_is_looked_at_and_left_alone() {
    let bench = Bench::unpublished();
    let mut serve = bench.vmnetx(&["nbd", "serve", "--cache-dir"]);
    let server = Ended(serve.arg(bench.cache_dir()).stderr(Stdio::null()).spawn().unwrap());
    let socket = bench.cache_dir().join("control.sock");
    wait_until("the server listens", DEADLINE, || socket.exists());
    let told = Told::by(bench.doctor(&[]));
    told.assert_state("server", "good");
    let found = told.finding("server")["found"].as_str().unwrap();
    assert!(found.contains(&format!("process {}", server.0.id())), "{found}");
    assert!(bench.stats().is_some(), "it runs on");
    drop(server);
    fs::remove_file(&socket).unwrap();
    let asked = server::other_version(&socket);
    let told = Told::by(bench.doctor(&[]));
    told.assert_state("server", "limited");
    assert!(told.finding("server")["found"].as_str().unwrap().contains("99.0"));
    assert_eq!(told.code, 0);
    assert!(asked.try_iter().all(|line| line.starts_with("GET /version ")), "it is not told to end");
    let told = Told::by(bench.doctor(&["--server", bench.path("none.sock").to_str().unwrap()]));
    told.assert_state("server", "missing");
    assert_eq!(told.code, HOST);
}

#[test]
fn a_package_is_judged_as_a_run_would_find_it() {
    let guest = SavedGuest::new("judged", &["--no-rehearse"]);
    let bench = &guest.bench;
    let web = WebServer::start(bench, 0);
    let link = web.link();
    let told = Told::by(bench.doctor(&[&link]));
    assert_eq!(told.code, 0, "{}", told.words);
    let findings = told.report["package"]["findings"].as_array().unwrap();
    let names: Vec<_> = findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert_eq!(names, PACKAGE_CHECKS);
    assert_eq!(told.report["package"]["version"], bench.version());
    assert_eq!(told.report["package"]["resume"], "lazy");
    assert_eq!(told.of_package("machine")["state"], "good");
    let text = finish(bench.doctor(&[&[link.as_str()], NO_LIBVIRT].concat()));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("\nguest version ") && text.contains("pc-i440fx-7.2, which QEMU"), "{text}");

    // As a user who may not have memory lazily.
    let told = Told::by(bench.doctor_as_nobody(&[&link, "--disk-cache", "0"]));
    assert_eq!(told.report["package"]["resume"], "stream", "{}", told.words);
    assert_eq!(told.of_package("resume")["state"], "limited");

    // While a VM maps it, the next one need not wait for it.
    let mut first = guest.resume("first", &link, &["--resume", "mapped"]);
    first.wait_for("(mapped", DEADLINE);
    let told = Told::by(bench.doctor(&[&link]));
    assert_eq!(told.report["package"]["resume"], "mapped", "{:#}", told.report);
    assert_eq!(bench.stats().unwrap()["attachments"].as_array().unwrap().len(), 1, "only the VM's");
    guest.end(first);
}

#[test]
fn a_package_that_cannot_be_run_here_or_opened_is_told_with_the_reason() {
    let bench = Bench::new("foreign", &[]);
    let web = WebServer::start(&bench, 0);
    let told = Told::by(bench.doctor(&[&web.link()]));
    assert!(told.code == 0 && told.report["package"].get("resume").is_none(), "{:#}", told.report);
    assert!(told.of_package("resume")["found"].as_str().unwrap().contains("boots"));

    let machine = bench.path("machine.toml");
    fs::write(&machine, "machine = 'pc-q35-99.0'\nmemory_mib = 64\ncpu.model = 'Tomorrow'\n").unwrap();
    let mut build = bench.vmnetx(&["pack", "build"]);
    build.arg(bench.path("repository")).args(["guest", "--quiet", "--disk"]).arg(&bench.image);
    assert!(build.arg("--machine").arg(&machine).output().unwrap().status.success());
    let told = Told::by(bench.doctor(&[&web.link()]));
    assert_eq!((told.code, &told.report["package"]["can_run"]), (HOST, &Value::Bool(false)));
    assert_eq!(told.of_package("machine")["state"], "missing");
    assert!(
        told.words.contains("the package guest cannot be run here, for want of its machine, cpu"),
        "{}",
        told.words
    );

    drop(web);
    let gone = format!("http://127.0.0.1:{}/guest.vmnetx", free_port());
    let told = Told::by(bench.doctor(&[&gone]));
    // What is known of the host is told all the same.
    assert_eq!((told.code, &told.report["can_run"]), (NETWORK, &Value::Bool(true)), "{}", told.words);
    assert!(told.report.get("package").is_none());
}
