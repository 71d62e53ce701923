//! How a VM becomes what it was before a capture, from wherever the capture was when it ended.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Error;
use super::limits::{UNDO_DEADLINE, UNDO_PAUSE};
use super::monitor::Monitor;
use crate::vm::QmpError;

/// What there is to be undone. Doing it twice does no harm.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Undo {
    /// Whether the guest is to run.
    pub(super) runs: bool,
    /// Jobs of ours, each with a block node of the same name.
    pub(super) jobs: Vec<String>,
    /// Migration capabilities that were on.
    pub(super) capabilities: Vec<String>,
    /// The rate at which memory was saved at most.
    pub(super) rate: Option<u64>,
}

impl Undo {
    /// Undoes all of it: the guest first.
    ///
    /// # Errors
    /// [`Error`] when the guest does not run on although it should, or QEMU is gone.
    pub(super) async fn apply(&self, monitor: &mut Monitor) -> Result<(), Error> {
        let deadline = Instant::now() + UNDO_DEADLINE;
        let mut ran = self.let_run(monitor).await;
        while ran.as_ref().is_err_and(is_refusal) && Instant::now() < deadline {
            sleep(UNDO_PAUSE).await;
            ran = self.let_run(monitor).await;
        }
        ran?;
        for job in &self.jobs {
            while !is_gone(monitor, job).await? && Instant::now() < deadline {
                sleep(UNDO_PAUSE).await;
            }
            patient(monitor.tell("blockdev-del", &json!({ "node-name": job })).await)?;
        }
        // Nobody may change these while a migration ends.
        while monitor.migration().await?.under_way().is_some() && Instant::now() < deadline {
            sleep(UNDO_PAUSE).await;
        }
        patient(monitor.set_capabilities(&self.capabilities, true).await)?;
        match self.rate {
            Some(rate) => patient(monitor.set_rate(rate).await),
            None => Ok(()),
        }
    }

    async fn let_run(&self, monitor: &mut Monitor) -> Result<(), Error> {
        if monitor.migration().await?.under_way().is_some() {
            patient(monitor.tell("migrate_cancel", &json!({})).await)?;
        }
        if !self.runs || monitor.status().await? == "running" {
            return Ok(());
        }
        monitor.cont().await
    }
}

/// Whether a job is no more; if not, it is pushed towards its end.
async fn is_gone(monitor: &mut Monitor, id: &str) -> Result<bool, Error> {
    let Some(job) = monitor.jobs().await?.into_iter().find(|job| job.id == id) else { return Ok(true) };
    let pushed = if job.status == "concluded" {
        monitor.tell("job-dismiss", &json!({ "id": id })).await
    } else {
        monitor.tell("block-job-cancel", &json!({ "device": id, "force": true })).await
    };
    patient(pushed)?;
    Ok(false)
}

fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Qmp(QmpError::Refused { .. }))
}

/// Takes a refusal for an answer: there was nothing to be undone.
fn patient(answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(error) if is_refusal(&error) => {
            tracing::debug!("{error}");
            Ok(())
        }
        answer => answer,
    }
}
