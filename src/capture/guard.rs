//! A process that lets the guest go on should the one that captures it be killed: a guest never stands still because nobody
//! is left to continue it, and what was in its RAM does not stay in a file that nobody wants.
//!
//! It is told what to undo before anything is done, and waits for the end of its standard input. A monitor serves one program
//! at a time; with us our connection ends, and the guard's turn comes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::Error;
use super::limits::GUARD_ORDER_BYTES_MAX;
use super::monitor::Monitor;
use super::undo::Undo;

/// The command that a guard is: not one for users.
pub const GUARD_COMMAND: &str = "capture-guard";

/// Says that there is nothing to be undone any more.
const DONE: &str = "done";

/// What a guard is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    socket: PathBuf,
    undo: Undo,
    /// The directory of what is captured.
    scratch: PathBuf,
}

/// A guard that waits.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Starts one.
    ///
    /// # Errors
    /// [`Error::Guard`].
    pub(super) async fn start(socket: &Path, undo: &Undo, scratch: &Path) -> Result<Self, Error> {
        let socket = std::path::absolute(socket).map_err(Error::Guard)?;
        let order = Order { socket, undo: undo.clone(), scratch: scratch.to_owned() };
        let order = serde_json::to_string(&order).map_err(|error| Error::Guard(error.into()))? + "\n";
        let mut command = Command::new(std::env::current_exe().map_err(Error::Guard)?);
        // In a group of its own: what interrupts us does not interrupt it.
        command.arg(GUARD_COMMAND).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(Error::Guard)?;
        let stdin = child.stdin.as_mut().ok_or_else(|| Error::Guard(std::io::ErrorKind::BrokenPipe.into()))?;
        stdin.write_all(order.as_bytes()).await.map_err(Error::Guard)?;
        Ok(Self { child })
    }

    /// Ends it: the VM is as it should be.
    pub(super) async fn dismiss(mut self) {
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(DONE.as_bytes()).await;
        }
        let _ = self.child.wait().await;
    }
}

/// The life of a guard.
///
/// # Errors
/// [`Error`] when the VM cannot be set going again.
pub async fn guard() -> Result<(), Error> {
    let mut told = String::new();
    // There is nothing else to be done meanwhile.
    std::io::stdin().lock().take(GUARD_ORDER_BYTES_MAX).read_to_string(&mut told).map_err(Error::Guard)?;
    let mut lines = told.lines();
    let order = lines.next().unwrap_or_default();
    if lines.next() == Some(DONE) {
        return Ok(());
    }
    let order: Order = serde_json::from_str(order).map_err(|error| Error::Guard(error.into()))?;
    let undone = undo(&order).await;
    // Most often gone by now; if not, it has the guest's memory in it.
    if let Err(error) = std::fs::remove_dir_all(&order.scratch) {
        tracing::debug!(%error, "nothing to be removed in {}", order.scratch.display());
    }
    undone?;
    tracing::warn!("the capture was killed; the VM is as it was before");
    Ok(())
}

async fn undo(order: &Order) -> Result<(), Error> {
    let mut monitor = Monitor::open(&order.socket).await?;
    order.undo.apply(&mut monitor).await
}
