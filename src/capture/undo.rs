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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Answers to each command: the first of them once, and so on; the last one for ever.
    type Script = HashMap<&'static str, Vec<Value>>;

    fn refused() -> Value {
        json!({ "error": { "class": "GenericError", "desc": "not now" } })
    }

    fn returns(value: &Value) -> Value {
        json!({ "return": value })
    }

    /// Serves one connection by a script; gives what it was told, but for questions.
    async fn serve(listener: UnixListener, mut script: Script) -> Vec<String> {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
        let (mut told, mut line) = (Vec::new(), String::new());
        while stream.read_line(&mut line).await.unwrap() > 0 {
            let request: Value = serde_json::from_str(&line).unwrap();
            let command = request["execute"].as_str().unwrap().to_owned();
            let mut answer = match script.get_mut(command.as_str()) {
                Some(answers) if answers.len() > 1 => answers.remove(0),
                Some(answers) => answers[0].clone(),
                None => returns(&json!({})),
            };
            answer["id"] = request["id"].clone();
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
            if !command.starts_with("query-") {
                told.push(command);
            }
            line.clear();
        }
        told
    }

    #[tokio::test]
    async fn a_vm_runs_first_and_then_all_else_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let job = |status: &str| json!([{ "id": "j", "status": status, "current-progress": 0, "total-progress": 1 }]);
        let migration = |status: &str| returns(&json!({ "status": status }));
        let script = Script::from([
            ("query-migrate", vec![migration("active"), migration("cancelling"), migration("cancelled")]),
            ("query-status", vec![returns(&json!({ "status": "finish-migrate" }))]),
            // Not while the migration is about to end.
            ("cont", vec![refused(), returns(&json!({}))]),
            (
                "query-jobs",
                ["running", "concluded"]
                    .map(|status| returns(&job(status)))
                    .into_iter()
                    .chain([returns(&json!([]))])
                    .collect(),
            ),
            // The node is gone already.
            ("blockdev-del", vec![refused()]),
        ]);
        let serving = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), script));
        let mut monitor = Monitor::open(&socket).await.unwrap();
        let (jobs, capabilities) = (vec!["j".to_owned()], vec!["events".to_owned()]);
        Undo { runs: true, jobs, capabilities, rate: Some(1) }.apply(&mut monitor).await.unwrap();
        drop(monitor);
        let told = serving.await.unwrap();
        let expected = [
            "qmp_capabilities",
            "migrate_cancel",
            "cont",
            "migrate_cancel",
            "cont",
            "block-job-cancel",
            "job-dismiss",
            "blockdev-del",
            "migrate-set-capabilities",
            "migrate-set-parameters",
        ];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn a_vm_that_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            stream.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            stream.read_line(&mut String::new()).await.unwrap();
            stream.write_all(b"{\"return\": {}, \"id\": 1}\r\n").await.unwrap();
        });
        let mut monitor = Monitor::open(&socket).await.unwrap();
        serving.await.unwrap();
        let error = Undo { runs: true, ..Undo::default() }.apply(&mut monitor).await.unwrap_err();
        assert!(matches!(error, Error::Qmp(QmpError::Closed | QmpError::Socket(_))), "{error}");
    }
}
