//! Which server a command speaks to.

use std::path::{Path, PathBuf};

use tokio::time::{Instant, sleep};
use vmnetx_store::Error as StoreError;

use super::control_socket;
use crate::Error;
use crate::control::Control;
use crate::limits::{RELEASE_LOOK, RELEASE_TIMEOUT};

/// The server, by one of the paths that it is known by.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct ServerArgs {
    /// The control socket of the server.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The cache directory of the server.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl ServerArgs {
    pub(super) fn control(&self) -> Control {
        let path = self.control.clone().or_else(|| self.cache_dir.as_deref().map(control_socket));
        // One of them is required.
        Control::new(path.unwrap_or_default())
    }
}

/// Opens a cache directory. A server that is still there from an earlier run and that nobody needs is let go first.
pub(super) async fn open_when_free<T>(dir: &Path, open: impl Fn() -> Result<T, StoreError>) -> Result<T, Error> {
    let control = Control::new(control_socket(dir));
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let mut is_leaving = false;
    loop {
        match open() {
            Err(error @ StoreError::CacheInUse { .. }) if Instant::now() < deadline => {
                is_leaving = is_leaving || let_go(&control).await;
                if !is_leaving {
                    return Err(error.into());
                }
                sleep(RELEASE_LOOK).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Lets a server end that has nothing to serve; whether there is one.
async fn let_go(control: &Control) -> bool {
    match control.stats().await {
        Ok(stats) if stats.attachments.is_empty() => control.drain().await.is_ok(),
        _ => false,
    }
}
