//! A libvirtd of the test's own, its domains, and what their guests say.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// For a boot under TCG on a busy host, and for anything that takes none.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A child that is ended and waited for on drop.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A libvirtd that has nothing of this host's; its domains end with it.
pub(crate) struct Libvirt {
    /// None while it is gone.
    daemon: Option<Ended>,
    folder: PathBuf,
    pub(crate) uri: String,
}

impl Libvirt {
    pub(crate) fn start(folder: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: libvirtd gets mounts of its own");
        let uri = format!("qemu+unix:///system?socket={}", folder.join("socket/libvirt-sock").display());
        let mut libvirt = Self { daemon: None, folder: folder.to_owned(), uri };
        libvirt.come_back();
        libvirt
    }

    /// Kills it; its domains run on.
    pub(crate) fn die(&mut self) {
        self.daemon = None;
    }

    /// Starts it on what it knew before.
    pub(crate) fn come_back(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libvirt/daemon");
        let log = File::create(self.folder.join("libvirtd.log")).unwrap();
        let mut command = Command::new(script);
        self.daemon = Some(Ended(command.arg(&self.folder).stdin(Stdio::null()).stderr(log).spawn().unwrap()));
        let answers = || self.virsh(&["version"]).output().unwrap().status.success();
        let said = || fs::read_to_string(self.folder.join("libvirtd.log")).unwrap();
        wait_for("libvirtd", || answers().then_some(()), said);
    }

    pub(crate) fn virsh(&self, words: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri]).args(words).stdin(Stdio::null());
        command
    }

    /// The names of the domains that run.
    pub(crate) fn running(&self) -> Vec<String> {
        said(&mut self.virsh(&["list", "--name"])).split_whitespace().map(str::to_owned).collect()
    }

    /// The serial port of a domain.
    pub(crate) fn serial(&self, domain: &str) -> Serial {
        let terminal = PathBuf::from(said(&mut self.virsh(&["ttyconsole", domain])).trim());
        let port = File::options().read(true).write(true).open(terminal).unwrap();
        Serial::new(port)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // What a test that fails has left.
        let Ok(listed) = self.virsh(&["list", "--name"]).output() else { return };
        for domain in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            let _ = self.virsh(&["destroy", domain]).output();
        }
    }
}

/// What a guest says on its serial port.
pub(crate) struct Serial {
    port: File,
    text: Arc<Mutex<String>>,
}

impl Serial {
    fn new(port: File) -> Self {
        let text = Arc::<Mutex<String>>::default();
        let (mut from, to) = (port.try_clone().unwrap(), Arc::clone(&text));
        spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { port, text }
    }

    pub(crate) fn type_line(&self, line: &str) {
        (&self.port).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        wait_for(what, || find(&self.text.lock().unwrap()), || self.text.lock().unwrap().clone())
    }
}

/// Waits for something, or fails and shows what there is instead.
pub(crate) fn wait_for<T>(what: &str, mut find: impl FnMut() -> Option<T>, instead: impl Fn() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{what} does not come; there is:\n{}", instead());
        sleep(Duration::from_millis(20));
    }
}

/// Runs a program to its end; what it says on standard output.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ends with {}:\n{talk}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
