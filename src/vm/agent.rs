//! A small client of the QEMU guest agent, which sets the clock of a guest that was resumed.
//!
//! What answers is the guest, and it may answer anything: all that is made of it is whether it did what it was asked.
//! Protocol: QEMU's `qga/qapi-schema.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::limits::{AGENT_LINE_BYTES_MAX, AGENT_REPLY_DEADLINE, AGENT_SYNC_DEADLINE, AGENT_SYNC_PERIOD};
use super::qmp::shown;

/// The name of its socket in the run's directory.
pub(super) const SOCKET: &str = "agent";

/// No byte of UTF-8: before a request it ends what another client left unfinished, and the agent puts it before the answer to
/// `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// A guest's agent, of which only the port is known.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

/// An agent that does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// QEMU's end of the port.
    #[error("talk to the port of the guest's agent")]
    Socket(#[source] io::Error),
    /// QEMU closed its side.
    #[error("the port of the guest's agent is closed")]
    Closed,
    /// No answer: there may be no agent in the guest.
    #[error("the guest's agent did not answer `{command}` within {} s", deadline.as_secs())]
    Late {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The guest sent what no agent sends.
    #[error("the guest's agent sent {0}")]
    Protocol(&'static str),
    /// It does not want to, or cannot.
    #[error("the guest's agent refused `{command}`: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its words.
        why: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
    #[serde(rename = "class")]
    _class: Option<IgnoredAny>,
}

impl Agent {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { socket: run_dir.join(SOCKET) }
    }

    /// Sets the guest's clock to this host's time.
    ///
    /// # Errors
    /// [`AgentError`]; an agent that is not there does not answer.
    pub async fn set_clock(&self) -> Result<(), AgentError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(AgentError::Socket)?;
        let mut port = Port { stream, buffer: BytesMut::new() };
        port.synchronize().await?;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let command = "guest-set-time";
        let request = json!({ "execute": command, "arguments": { "time": since_1970.as_nanos() as i64 } });
        let answer = within(AGENT_REPLY_DEADLINE, command, port.ask(&request)).await?;
        match answer {
            Answer { error: Some(refusal), .. } => Err(AgentError::Refused { command, why: shown(&refusal.desc) }),
            Answer { result: Some(_), .. } => Ok(()),
            Answer { .. } => Err(AgentError::Protocol("an answer without a result")),
        }
    }
}

/// A connection to the port.
struct Port {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Port {
    /// Waits until the agent answers, and leaves behind what it answered to others.
    async fn synchronize(&mut self) -> Result<(), AgentError> {
        let command = "guest-sync-delimited";
        let id = std::process::id();
        let request = json!({ "execute": command, "arguments": { "id": id } });
        let request = [&[SENTINEL], request.to_string().as_bytes(), b"\n"].concat();
        within(AGENT_SYNC_DEADLINE, command, async {
            loop {
                self.send(&request).await?;
                // What is sent before an agent has opened its end is lost.
                if let Ok(answered) = timeout(AGENT_SYNC_PERIOD, self.answered(id)).await {
                    return answered;
                }
            }
        })
        .await
    }

    /// Waits for the answer to a request of ours.
    async fn answered(&mut self, id: u32) -> Result<(), AgentError> {
        loop {
            self.skip_to_sentinel().await?;
            // Another client, before the guest was saved, had another id.
            if let Ok(Answer { result: Some(said), .. }) = self.answer().await
                && said == id
            {
                return Ok(());
            }
        }
    }

    async fn ask(&mut self, request: &Value) -> Result<Answer, AgentError> {
        self.send(format!("{request}\n").as_bytes()).await?;
        self.answer().await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.stream.write_all(bytes).await.map_err(AgentError::Socket)
    }

    async fn skip_to_sentinel(&mut self) -> Result<(), AgentError> {
        loop {
            if let Some(offset) = self.buffer.iter().position(|byte| *byte == SENTINEL) {
                self.buffer.advance(offset + 1);
                return Ok(());
            }
            self.buffer.clear();
            self.receive().await?;
        }
    }

    async fn answer(&mut self) -> Result<Answer, AgentError> {
        loop {
            if let Some(offset) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(offset + 1);
                return serde_json::from_slice(&line).map_err(|_| AgentError::Protocol("a line that is no answer"));
            }
            if self.buffer.len() > AGENT_LINE_BYTES_MAX {
                return Err(AgentError::Protocol("a line without an end"));
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Result<(), AgentError> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(AgentError::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(AgentError::Socket(error)),
        }
    }
}

async fn within<T>(
    deadline: Duration,
    command: &'static str,
    doing: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    timeout(deadline, doing).await.map_err(|_| AgentError::Late { command, deadline })?
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Plays an agent that answers the first request so, each `ID` being the request's, and the next one so; gives what came of
    /// setting the clock, and the second request.
    async fn set_clock(first: &'static [u8], second: &'static str) -> (Result<(), AgentError>, String) {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::new(folder.path());
        let listener = UnixListener::bind(&agent.socket).unwrap();
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = line(&mut stream).await;
            assert_eq!(request[0], SENTINEL);
            let request: Value = serde_json::from_slice(&request[1..]).unwrap();
            assert_eq!(request["execute"], "guest-sync-delimited");
            let id = request["arguments"]["id"].to_string();
            let parts: Vec<_> = first.split(|byte| *byte == b'#').collect();
            stream.write_all(&parts.join(id.as_bytes())).await.unwrap();
            let request = line(&mut stream).await;
            stream.write_all(second.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let outcome = agent.set_clock().await;
        (outcome, guest.await.unwrap())
    }

    /// What comes up to the end of a line, or of all.
    async fn line(stream: &mut UnixStream) -> Vec<u8> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n')
            && let Ok(byte) = stream.read_u8().await
        {
            line.push(byte);
        }
        line
    }

    #[tokio::test]
    async fn the_clock_is_set_to_this_hosts_time_behind_whatever_was_said_before() {
        let before = SystemTime::now();
        let said = b"{\"return\": 5}\n\xff{\"return\": 77}\n{\"half\xff{\"return\": #}\n";
        let (outcome, request) = set_clock(said, "{\"return\": {}}\n").await;
        outcome.unwrap();
        let request: Value = serde_json::from_str(&request).unwrap();
        assert_eq!(request["execute"], "guest-set-time");
        let nanos = request["arguments"]["time"].as_u64().unwrap();
        let set = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
        assert!(before <= set && set <= SystemTime::now());
    }

    #[tokio::test]
    async fn a_refusal_is_quoted_and_nonsense_is_said_to_be() {
        let synced = b"\xff{\"return\": #}\n";
        let refusal = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not \\u001b[1mme\"}}\n";
        let (outcome, _) = set_clock(synced, refusal).await;
        assert_eq!(outcome.unwrap_err().to_string(), "the guest's agent refused `guest-set-time`: not \u{fffd}[1mme");
        for (second, complaint) in [("{}\n", "without a result"), ("[]\n", "no answer"), ("", "closed")] {
            let (outcome, _) = set_clock(synced, second).await;
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_only_talks_is_not_listened_to_without_end() {
        static LONG: [u8; AGENT_LINE_BYTES_MAX + 8192] = [b'x'; AGENT_LINE_BYTES_MAX + 8192];
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::new(folder.path());
        let listener = UnixListener::bind(&agent.socket).unwrap();
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = line(&mut stream).await;
            let request: Value = serde_json::from_slice(&request[1..]).unwrap();
            let synced = format!("{{\"return\": {}}}\n", request["arguments"]["id"]);
            stream.write_all(&[&[SENTINEL], synced.as_bytes()].concat()).await.unwrap();
            // It ends when the other side has had enough.
            while stream.write_all(&LONG).await.is_ok() {}
        });
        let error = agent.set_clock().await.unwrap_err().to_string();
        assert!(error.contains("without an end"), "{error}");
        guest.await.unwrap();
    }
}
