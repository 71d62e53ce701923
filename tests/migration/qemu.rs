//! A QEMU with its monitor and the guest's serial port.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(crate) use serde_json::{Value, json};

/// For a boot under TCG on a busy host.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// For anything that takes no boot.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A QEMU that is killed on drop.
pub(crate) struct Qemu {
    child: Child,
    pub(crate) qmp: Qmp,
    pub(crate) serial: Serial,
}

impl Qemu {
    pub(crate) fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let (qmp, serial) = (folder.join(format!("{name}.qmp")), folder.join(format!("{name}.serial")));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]).args(arguments);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        // It waits for us, so that nothing that the guest says is lost.
        command.arg("-serial").arg(format!("unix:{},server=on,wait=on", serial.display()));
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let mut running = || assert!(child.try_wait().unwrap().is_none(), "QEMU has ended");
        let (serial, qmp) = (connect(&serial, &mut running), connect(&qmp, &mut running));
        Self { child, serial: Serial::new(serial), qmp: Qmp::new(qmp) }
    }

    /// Waits for its end.
    pub(crate) fn exited(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a socket as soon as somebody listens there, whom `running` looks after.
pub(crate) fn connect(path: &Path, mut running: impl FnMut()) -> UnixStream {
    let started = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < DEADLINE, "nobody listens at {}: {error}", path.display()),
        }
        running();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The monitor.
pub(crate) struct Qmp {
    lines: BufReader<UnixStream>,
    /// Events that came while an answer was waited for.
    events: VecDeque<Value>,
}

impl Qmp {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut qmp = Self { lines: BufReader::new(stream), events: VecDeque::new() };
        assert!(qmp.line().get("QMP").is_some(), "a greeting");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command, which must succeed.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        // In one piece: QEMU may end as soon as it has read the brace that closes `quit`, and takes no end of a line then.
        let request = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.lines.get_mut().write_all(request.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
            assert!(line.get("error").is_none(), "{command}: {line}");
            self.events.push_back(line);
        }
    }

    /// Turns capabilities of the migration on.
    pub(crate) fn enable(&mut self, capabilities: &[&str]) {
        let on: Vec<Value> = capabilities.iter().map(|name| json!({ "capability": name, "state": true })).collect();
        self.execute("migrate-set-capabilities", &json!({ "capabilities": on }));
    }

    /// Begins to save the guest; the stream comes from the socket. When it is read to its end, the save is complete.
    pub(crate) fn migrate(&mut self, socket: &Path) -> UnixStream {
        let listener = UnixListener::bind(socket).unwrap();
        self.execute("migrate", &json!({ "uri": format!("unix:{}", socket.display()) }));
        listener.accept().unwrap().0
    }

    /// Waits until a migration, in or out, has succeeded. Needs the capability `events`.
    pub(crate) fn wait_for_migration(&mut self) {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.line());
            match event["data"]["status"].as_str() {
                Some("completed") if event["event"] == "MIGRATION" => return,
                Some("failed" | "cancelled") => panic!("the migration failed: {event}"),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU's monitor says {line:?}: {error}"))
    }
}

/// The guest's serial port: what it said so far.
#[derive(Clone)]
pub(crate) struct Serial {
    said: Arc<(Mutex<Vec<u8>>, Condvar)>,
    keyboard: Arc<UnixStream>,
}

impl Serial {
    fn new(stream: UnixStream) -> Self {
        let said = Arc::<(Mutex<Vec<u8>>, Condvar)>::default();
        let (mut reader, heard) = (stream.try_clone().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with QEMU.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                heard.0.lock().unwrap().extend_from_slice(&buffer[..length]);
                heard.1.notify_all();
            }
        });
        Self { said, keyboard: Arc::new(stream) }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.0.lock().unwrap()).into_owned()
    }

    /// Waits until something is found in what the guest said.
    pub(crate) fn wait_for<T>(&self, what: &str, deadline: Duration, find: impl Fn(&str) -> Option<T>) -> T {
        let started = Instant::now();
        let mut said = self.said.0.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&said).into_owned();
            if let Some(found) = find(&text) {
                return found;
            }
            let left = deadline.checked_sub(started.elapsed());
            let left =
                left.unwrap_or_else(|| panic!("{what} did not come within {deadline:?}; the guest said:\n{text}"));
            said = self.said.1.wait_timeout(said, left).unwrap().0;
        }
    }

    pub(crate) fn type_line(&self, line: &str) {
        (&*self.keyboard).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
