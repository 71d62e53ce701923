//! A saved VM that QEMU loads instead of booting: the monitor's part of an incoming migration.
//!
//! ```text
//!  set capabilities ─▶ getfd ─▶ migrate-incoming fd: ─▶ MIGRATION active ─┬─▶ completed ──▶ cont, if it stands still ─▶ runs
//!                                                             │           └─▶ postcopy-active ────────────────────────▶ runs
//!                                                             └─▶ failed: the state does not fit, or its source broke off
//! ```
//!
//! What flows through the channel is the other module's (`resume`); here is only what QEMU is told and says. Sources: QEMU's
//! `qapi/migration.json`, `migration/migration.c`.

use std::os::fd::OwnedFd;

use serde_json::json;

use super::Error;
use super::limits::INCOMING_LOOK;
use super::process::Process;
use super::qmp::{Event, Migration, Qmp, QmpError, Status};

/// The name by which QEMU knows the channel's descriptor.
const CHANNEL: &str = "incoming";

/// Tells of each step of the migration.
const EVENTS: &str = "events";

/// A saved VM to be loaded.
#[derive(Debug)]
pub struct Incoming {
    /// QEMU's end of the channel that the state comes through: a pipe, or a socket where QEMU answers.
    pub channel: OwnedFd,
    /// Capabilities of the migration that both ends must have.
    pub capabilities: &'static [&'static str],
}

impl Incoming {
    /// Lets QEMU load the state; returns when the guest runs. With postcopy, pages come for long after that.
    pub(super) async fn load(self, process: &mut Process, qmp: &mut Qmp) -> Result<(), Error> {
        match self.try_load(qmp).await {
            Ok(()) => Ok(()),
            // QEMU ends when it cannot load what it is given, and then says why.
            Err(Error::Qmp(QmpError::Closed)) => match process.died().await {
                Error::QemuDied { words, .. } => Err(Error::Incoming { why: words }),
                error => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn try_load(self, qmp: &mut Qmp) -> Result<(), Error> {
        let capabilities = self.capabilities.iter().chain([&EVENTS]);
        let capabilities: Vec<_> = capabilities.map(|name| json!({ "capability": name, "state": true })).collect();
        let set = qmp.execute_with("migrate-set-capabilities", json!({ "capabilities": capabilities })).await;
        set.map_err(refused)?;
        qmp.send_fd(CHANNEL, self.channel).await?;
        qmp.execute_with("migrate-incoming", json!({ "uri": format!("fd:{CHANNEL}") })).await.map_err(refused)?;
        let mut has_state = false;
        loop {
            let look = tokio::time::sleep(INCOMING_LOOK);
            let event = tokio::select! {
                event = qmp.event() => Some(event?),
                // A guest that was saved standing still may have to be told to go on.
                () = look, if has_state => None,
            };
            match event {
                Some(Event::Resume) => return Ok(()),
                Some(Event::Migration(Migration::Failed)) => {
                    return Err(Error::Incoming { why: "the migration failed".to_owned() });
                }
                Some(Event::Migration(Migration::Completed | Migration::Postcopy)) => has_state = true,
                Some(_) => {}
                None => match qmp.status().await? {
                    Status::Running => return Ok(()),
                    Status::Paused => qmp.cont().await?,
                    Status::IoError | Status::Other => {}
                },
            }
        }
    }
}

/// A capability or a channel that this QEMU does not take is the host's lack, not a failure of the monitor.
fn refused(error: QmpError) -> Error {
    match error {
        QmpError::Refused { why, .. } => Error::Incoming { why },
        error => error.into(),
    }
}
