//! The monitor of a VM that is to be captured: what it is asked and told, in the words of QMP.
//!
//! Commands: QEMU's `qapi/migration.json`, `block-core.json`, `job.json` and `machine.json`, of 7.2 to 10.0.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::Error;
use super::limits::GREETING_DEADLINE;
use crate::vm::QmpError;
use crate::vm::qmp::{QemuVersion, Qmp, shown};

/// A connection to a monitor. Events are of no interest: what a capture wants to know, it asks.
#[derive(Debug)]
pub(super) struct Monitor {
    qmp: Qmp,
}

/// A job of QEMU's, such as the copying of a disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) current_progress: u64,
    pub(super) total_progress: u64,
    pub(super) error: Option<String>,
}

/// How far a migration is, in or out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Migration {
    status: Option<String>,
    error_desc: Option<String>,
    #[serde(default)]
    pub(super) blocked_reasons: Vec<String>,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

impl Monitor {
    /// Connects to a QMP socket.
    ///
    /// # Errors
    /// [`Error::NotThere`], [`Error::Silent`], [`Error::Qmp`].
    pub(super) async fn open(socket: &Path) -> Result<Self, Error> {
        let there = |source| Error::NotThere { socket: PathBuf::from(socket), source };
        let stream = UnixStream::connect(socket).await.map_err(there)?;
        let greeted = tokio::time::timeout(GREETING_DEADLINE, Qmp::open(stream)).await;
        let qmp = greeted.map_err(|_| Error::Silent(socket.to_owned()))??;
        Ok(Self { qmp })
    }

    pub(super) async fn tell(&mut self, command: &'static str, arguments: &Value) -> Result<(), Error> {
        self.qmp.forget_events();
        Ok(self.qmp.execute_with(command, arguments).await.map(drop)?)
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: &Value,
    ) -> Result<T, Error> {
        self.qmp.forget_events();
        let answer = self.qmp.execute_with(command, arguments).await?;
        let answer = serde_json::from_value(answer);
        answer.map_err(|_| QmpError::Protocol("an answer without what was asked for").into())
    }

    pub(super) async fn version(&mut self) -> Result<QemuVersion, Error> {
        self.qmp.forget_events();
        Ok(self.qmp.version().await?)
    }

    /// QEMU's word for what the VM is doing.
    pub(super) async fn status(&mut self) -> Result<String, Error> {
        Ok(shown(&self.ask::<Status>("query-status", &json!({})).await?.status))
    }

    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        self.tell("stop", &json!({})).await
    }

    pub(super) async fn cont(&mut self) -> Result<(), Error> {
        Ok(self.qmp.cont().await?)
    }

    pub(super) async fn quit(&mut self) -> Result<(), Error> {
        Ok(self.qmp.quit().await?)
    }

    pub(super) async fn jobs(&mut self) -> Result<Vec<Job>, Error> {
        self.ask("query-jobs", &json!({})).await
    }

    pub(super) async fn migration(&mut self) -> Result<Migration, Error> {
        self.ask("query-migrate", &json!({})).await
    }

    pub(super) async fn set_capabilities(&mut self, names: &[String], state: bool) -> Result<(), Error> {
        self.qmp.forget_events();
        Ok(self.qmp.set_capabilities(names, state).await?)
    }

    pub(super) async fn set_rate(&mut self, bytes_per_s: u64) -> Result<(), Error> {
        self.tell("migrate-set-parameters", &json!({ "max-bandwidth": bytes_per_s })).await
    }
}

impl Migration {
    /// Its state while it goes on.
    pub(super) fn under_way(&self) -> Option<&str> {
        let status = self.status.as_deref()?;
        let is_over = matches!(status, "none" | "completed" | "failed" | "cancelled");
        (!is_over).then_some(status)
    }

    /// How it ended, if it has: nothing, or QEMU's words.
    pub(super) fn end(&self) -> Option<Result<(), String>> {
        match self.status.as_deref()? {
            "completed" => Some(Ok(())),
            "failed" | "cancelled" => Some(Err(shown(self.error_desc.as_deref().unwrap_or("no reason given")))),
            _ => None,
        }
    }
}
