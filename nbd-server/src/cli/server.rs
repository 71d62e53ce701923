//! Which server a command speaks to.

use std::path::{Path, PathBuf};

use tokio::time::{Instant, sleep};
use vmnetx_store::{Error as StoreError, default_cache_dir};

use super::control_socket;
use crate::Error;
use crate::control::Control;
use crate::control::api::API_VERSION;
use crate::limits::{RELEASE_LOOK, RELEASE_TIMEOUT, UNHEARD_TIMEOUT};

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

/// Which cache directory, or the server that has it.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = false)]
pub(super) struct CacheArgs {
    /// The cache directory [default: vmnetx in the user's cache directory]. If a server has it, that one does the work.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Let the server that listens on this control socket do it with its cache directory.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// A cache directory as a command has it.
pub(super) enum Directory<T> {
    /// Nobody else uses it.
    Ours(T),
    /// This server does.
    Served(Control),
}

impl CacheArgs {
    /// Opens the directory that was named, or the user's, unless it has a server.
    pub(super) async fn open<T>(&self, open: impl Fn(&Path) -> Result<T, StoreError>) -> Result<Directory<T>, Error> {
        if let Some(socket) = &self.control {
            return Ok(Directory::Served(Control::new(socket)));
        }
        let dir = self.cache_dir.clone().or_else(default_cache_dir).ok_or(Error::NoCacheDir)?;
        open_unless_served(&dir, || open(&dir)).await
    }
}

/// Opens a cache directory, unless it has a server that goes on.
async fn open_unless_served<T>(dir: &Path, open: impl Fn() -> Result<T, StoreError>) -> Result<Directory<T>, Error> {
    let control = Control::new(control_socket(dir));
    let start = Instant::now();
    loop {
        let error = match open() {
            Err(error @ StoreError::CacheInUse { .. }) => error,
            opened => return Ok(Directory::Ours(opened?)),
        };
        let patience = match control.versions().await {
            Ok(versions) if !versions.api.contains(&API_VERSION) => return Err(error.into()),
            Ok(versions) if !versions.draining => return Ok(Directory::Served(control)),
            Ok(_) => RELEASE_TIMEOUT,
            // It is about to begin or to end, or it is a command.
            Err(_) => UNHEARD_TIMEOUT,
        };
        if start.elapsed() >= patience {
            return Err(error.into());
        }
        sleep(RELEASE_LOOK).await;
    }
}

/// Opens a cache directory. A server that is still there from an earlier run and that nobody needs is let go first.
pub(super) async fn open_when_free<T>(dir: &Path, open: impl Fn() -> Result<T, StoreError>) -> Result<T, Error> {
    let mut directory = open_unless_served(dir, &open).await?;
    if let Directory::Served(control) = &directory
        && let_go(control).await
    {
        directory = open_unless_served(dir, &open).await?;
    }
    match directory {
        Directory::Ours(opened) => Ok(opened),
        // Says whose it is.
        Directory::Served(_) => Ok(open()?),
    }
}

/// Lets a server end that has nothing to serve; whether there is one.
async fn let_go(control: &Control) -> bool {
    match control.stats().await {
        Ok(stats) if stats.attachments.is_empty() => control.drain().await.is_ok(),
        _ => false,
    }
}
