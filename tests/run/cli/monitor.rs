//! What the tests ask a QEMU themselves.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use vmnetx::registry::Registry;

use super::{Bench, DEADLINE};

/// A client of a VM's monitor.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// That of a VM of `vmnetx run`, beside the launcher's own.
    pub(super) fn of(bench: &Bench, vm: &str) -> Self {
        let running = Registry::at(&bench.path("state/vms")).unwrap().find(&vm.parse().unwrap()).unwrap().vm.unwrap();
        Self::at(&running.control)
    }

    pub(super) fn at(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.ask("qmp_capabilities", &json!({}));
        monitor
    }

    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        writeln!(self.0.get_mut(), "{}", json!({ "execute": command, "arguments": arguments })).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "{command} was answered");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
            assert!(answer.get("error").is_none(), "{answer}");
        }
    }
}
