//! A small client of QEMU's monitor protocol (QMP): commands one at a time, events in between.
//!
//! The crate `qapi` would do more, and less: it ends at the first event that its schema does not know, which a newer QEMU
//! sends, and reads lines of any length. What a guest has taken over may speak here, so nothing is believed.
//! Protocol: QEMU's `docs/interop/qmp-spec.txt`; events: `qapi/run-state.json` and `qapi/block-core.json`.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::RawFd;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::limits::{QMP_EVENTS_MAX, QMP_LINE_BYTES_MAX, QMP_REPLY_DEADLINE, QMP_WORDS_CHARS_MAX};

/// A monitor that does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU closed its side: it has ended, or is about to.
    #[error("QEMU's monitor is closed")]
    Closed,
    /// The socket failed.
    #[error("talk to QEMU's monitor")]
    Socket(#[source] io::Error),
    /// QEMU sent what no monitor sends.
    #[error("QEMU's monitor sent {0}")]
    Protocol(&'static str),
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        why: String,
    },
    /// No answer came.
    #[error("QEMU did not answer `{command}` within {} s", QMP_REPLY_DEADLINE.as_secs())]
    Late {
        /// The command.
        command: &'static str,
    },
}

impl QmpError {
    /// QEMU may have ended while it was written to.
    fn of_socket(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Socket(error),
        }
    }
}

/// The version of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct QemuVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What a VM reports by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine ends.
    Shutdown(ShutdownReason),
    /// The guest's CPUs stand still.
    Stop,
    /// They run again.
    Resume,
    /// A disk failed a request.
    BlockIoError(BlockIoError),
    /// An incoming migration got further.
    Migration(MigrationStatus),
    /// Any other.
    Other,
}

/// Why a machine ends, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShutdownReason {
    /// The guest powered itself off.
    Guest,
    /// The user closed the machine's window.
    Window,
    /// Someone told QEMU to quit: by its monitor or by a signal.
    Host,
}

/// How far an incoming migration is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationStatus {
    /// All of the state is there.
    Completed,
    /// The state cannot be loaded.
    Failed,
    /// The guest has begun to run, and what is missing of its memory does not come any more.
    Paused,
    /// It goes on.
    Other,
}

/// A request of the guest that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockIoError {
    /// The block node, if QEMU says which.
    pub(super) node: Option<String>,
    /// Whether the guest wrote.
    pub(super) write: bool,
    /// Whether the file that takes the guest's writes has no more space.
    pub(super) no_space: bool,
    /// QEMU's words.
    pub(super) reason: String,
}

/// What a VM is doing, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The guest runs.
    Running,
    /// It stands still because a disk failed.
    IoError,
    /// It stands still for another reason.
    Other,
}

/// A connection to a VM's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    buffer: BytesMut,
    /// Where to look on for the end of the line that `buffer` begins with.
    scanned: usize,
    events: VecDeque<Event>,
    last_id: u64,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Waits for QEMU's greeting on a fresh connection, without a deadline of its own, and enters command mode.
    pub(crate) async fn open(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Self { stream, buffer: BytesMut::new(), scanned: 0, events: VecDeque::new(), last_id: 0 };
        if qmp.message().await?.greeting.is_none() {
            return Err(QmpError::Protocol("something else before its greeting"));
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// What the VM is doing.
    pub(super) async fn status(&mut self) -> Result<Status, QmpError> {
        let status = self.execute("query-status").await?;
        Ok(match status.get("status").and_then(Value::as_str) {
            Some("running") => Status::Running,
            Some("io-error") => Status::IoError,
            Some(_) => Status::Other,
            None => return Err(QmpError::Protocol("a status without its name")),
        })
    }

    /// Lets the guest run; requests that failed are tried again.
    pub(crate) async fn cont(&mut self) -> Result<(), QmpError> {
        self.execute("cont").await.map(drop)
    }

    /// QEMU's version.
    pub(crate) async fn version(&mut self) -> Result<QemuVersion, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            qemu: QemuVersion,
        }
        let answer = self.execute("query-version").await?;
        let answer = serde_json::from_value::<Answer>(answer);
        answer.map(|answer| answer.qemu).map_err(|_| QmpError::Protocol("a version that is none"))
    }

    /// Ends the machine as it is, like pulling the plug; overlays are completed.
    pub(crate) async fn quit(&mut self) -> Result<(), QmpError> {
        self.execute("quit").await.map(drop)
    }

    /// The next event. May be dropped while it waits.
    pub(super) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.message().await?;
            self.keep_event(message)?;
        }
    }

    /// Turns capabilities of migrations, in and out, on or off.
    pub(crate) async fn set_capabilities(&mut self, names: &[impl AsRef<str>], state: bool) -> Result<(), QmpError> {
        if names.is_empty() {
            return Ok(());
        }
        let capability = |name: &_| json!({ "capability": AsRef::<str>::as_ref(name), "state": state });
        let all: Vec<_> = names.iter().map(capability).collect();
        self.execute_with("migrate-set-capabilities", &json!({ "capabilities": all })).await.map(drop)
    }

    /// Begins to read the machine's state from a file that QEMU has inherited under this number.
    pub(super) async fn migrate_incoming(&mut self, fd: RawFd) -> Result<(), QmpError> {
        self.execute_with("migrate-incoming", &json!({ "uri": format!("fd:{fd}") })).await.map(drop)
    }

    /// Runs a command without arguments.
    pub(crate) async fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        self.execute_with(command, &json!({})).await
    }

    /// Runs a command and gives its result.
    pub(crate) async fn execute_with(&mut self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        let answer = tokio::time::timeout(QMP_REPLY_DEADLINE, self.ask(command, arguments)).await;
        answer.map_err(|_| QmpError::Late { command })?
    }

    /// Drops the events that came so far: for whoever asks for what it wants to know.
    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    async fn ask(&mut self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        self.last_id += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": self.last_id });
        let request = request.to_string() + "\n";
        self.stream.write_all(request.as_bytes()).await.map_err(QmpError::of_socket)?;
        loop {
            let message = self.message().await?;
            if message.id == Some(self.last_id) {
                return match (message.result, message.error) {
                    (Some(result), None) => Ok(result),
                    (_, Some(refusal)) => Err(QmpError::Refused { command, why: shown(&refusal.desc) }),
                    (None, None) => Err(QmpError::Protocol("an answer without a result")),
                };
            }
            // The late answer to a command that was given up has an earlier id; it is dropped here.
            self.keep_event(message)?;
        }
    }

    fn keep_event(&mut self, message: Message) -> Result<(), QmpError> {
        let Some(name) = message.event else { return Ok(()) };
        if self.events.len() >= QMP_EVENTS_MAX {
            return Err(QmpError::Protocol("more events than anyone can read"));
        }
        self.events.push_back(Event::of(&name, &message.data));
        Ok(())
    }

    /// The next message. What has arrived of it stays in `buffer` when the future is dropped.
    async fn message(&mut self) -> Result<Message, QmpError> {
        loop {
            if let Some(offset) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + offset + 1);
                self.scanned = 0;
                return serde_json::from_slice(&line).map_err(|_| QmpError::Protocol("a line that is no message"));
            }
            self.scanned = self.buffer.len();
            if self.scanned > QMP_LINE_BYTES_MAX {
                return Err(QmpError::Protocol("a line without an end"));
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(QmpError::Closed),
                Ok(_) => {}
                Err(error) => return Err(QmpError::of_socket(error)),
            }
        }
    }
}

/// QEMU's words, cut to a line's length and without what could steer a terminal.
pub(crate) fn shown(words: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    words.chars().take(QMP_WORDS_CHARS_MAX).map(shown).collect()
}

impl Event {
    fn of(name: &str, data: &Value) -> Self {
        let text = |field: &str| data.get(field).and_then(Value::as_str);
        let flag = |field: &str| data.get(field).and_then(Value::as_bool).unwrap_or(false);
        match name {
            "SHUTDOWN" => Self::Shutdown(match text("reason") {
                Some("host-ui") => ShutdownReason::Window,
                _ if flag("guest") => ShutdownReason::Guest,
                _ => ShutdownReason::Host,
            }),
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "BLOCK_IO_ERROR" => Self::BlockIoError(BlockIoError {
                node: text("node-name").map(str::to_owned),
                write: text("operation") == Some("write"),
                no_space: flag("nospace"),
                reason: shown(text("reason").unwrap_or("no reason given")),
            }),
            "MIGRATION" => Self::Migration(match text("status") {
                Some("completed") => MigrationStatus::Completed,
                Some("failed") => MigrationStatus::Failed,
                Some("postcopy-paused") => MigrationStatus::Paused,
                _ => MigrationStatus::Other,
            }),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\", \"later-invention\"]}}\r\n";

    /// A client on a greeted connection, and QEMU's end of it.
    async fn opened() -> (Qmp, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\r\n").await.unwrap();
        (Qmp::open(ours).await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn events_between_command_and_answer_are_kept_in_order() {
        let (mut qmp, mut qemu) = opened().await;
        let script = concat!(
            "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"event\": \"OF_THE_FUTURE\", \"data\": [1]}\r\n",
            "{\"return\": {\"status\": \"stale\"}, \"id\": 1}\r\n{\"return\": {\"status\": \"io-error\"}, \"id\": 2}\r\n",
            "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n",
        );
        qemu.write_all(script.as_bytes()).await.unwrap();
        assert_eq!(qmp.status().await.unwrap(), Status::IoError);
        assert_eq!(qmp.event().await.unwrap(), Event::Stop);
        assert_eq!(qmp.event().await.unwrap(), Event::Other);
        assert_eq!(qmp.event().await.unwrap(), Event::Shutdown(ShutdownReason::Guest));
        drop(qemu);
        assert!(matches!(qmp.event().await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_wait_for_an_event_can_be_dropped_in_the_middle_of_a_line() {
        let (mut qmp, mut qemu) = opened().await;
        qemu.write_all(b"{\"event\": \"RES").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), qmp.event()).await.is_err());
        qemu.write_all(b"UME\"}\r\n").await.unwrap();
        assert_eq!(qmp.event().await.unwrap(), Event::Resume);
    }

    #[tokio::test]
    async fn a_refusal_is_quoted() {
        let (mut qmp, mut qemu) = opened().await;
        qemu.write_all(b"{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"not \\u001b[1mnow\"}}\r\n")
            .await
            .unwrap();
        // Whoever has taken QEMU over does not take over the terminal as well.
        assert_eq!(qmp.cont().await.unwrap_err().to_string(), "QEMU refused `cont`: not \u{fffd}[1mnow");
    }

    #[tokio::test]
    async fn what_is_no_monitor_is_refused() {
        for (bytes, complaint) in [
            ("SSH-2.0-OpenSSH\r\n".to_owned(), "no message"),
            ("{\"event\": \"STOP\"}\r\n".to_owned(), "before its greeting"),
            ("x".repeat(QMP_LINE_BYTES_MAX + 8192), "without an end"),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let writer = tokio::spawn(async move {
                let _ = theirs.write_all(bytes.as_bytes()).await;
                theirs
            });
            let error = Qmp::open(ours).await.unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
            drop(writer.await.unwrap());
        }
    }

    #[test]
    fn disk_errors_say_what_happened() {
        let data = json!({"device": "", "node-name": "overlay1", "operation": "write", "action": "stop", "nospace": true,
            "reason": "No space left on device"});
        let expected = BlockIoError {
            node: Some("overlay1".to_owned()),
            write: true,
            no_space: true,
            reason: "No space left on device".to_owned(),
        };
        assert_eq!(Event::of("BLOCK_IO_ERROR", &data), Event::BlockIoError(expected));
    }
}
