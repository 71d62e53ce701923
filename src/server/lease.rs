//! An attachment of a run, kept for as long as the run lasts: when the server dies, another one is found or started and serves
//! the same version on the same socket, before QEMU gives up waiting.

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmnetx_nbd::control::api::{AttachRequest, Attached, AttachmentId, AttachmentStats};
use vmnetx_nbd::control::{self, Control};
use vmnetx_store::failure::describe;

use super::limits::{ATTACH_AGAIN_PAUSE, ATTACH_TRIES_MAX};
use super::{Error, Found, Server, Sizes, Wanted, look};

/// What is attached, until it is given up.
#[derive(Debug)]
pub(crate) struct Lease {
    attached: Attached,
    control: Control,
    keeper: JoinHandle<Option<AttachmentStats>>,
    /// Dropping the lease gives up the attachment, too.
    end: DropGuard,
}

/// The task that holds the attachment.
struct Keeper {
    server: Server,
    id: AttachmentId,
    /// Asks for the version that is attached, whatever is published meanwhile.
    request: AttachRequest,
    socket: String,
}

impl Lease {
    /// Attaches a package to the server that is wanted.
    ///
    /// # Errors
    /// [`Error`] when there is no server or it cannot have the package.
    pub(crate) async fn take(wanted: &Wanted, sizes: Sizes, request: AttachRequest) -> Result<Self, Error> {
        let id = AttachmentId::random().map_err(Error::Start)?;
        let (server, attached) = attach(wanted, sizes, &id, &request).await?;
        let (control, end) = (server.control().clone(), CancellationToken::new());
        let request = AttachRequest { version: Some(attached.version), ..request };
        let keeper = Keeper { server, id, request, socket: attached.socket.clone() };
        let keeper = tokio::spawn(keeper.run(end.clone()));
        Ok(Self { attached, control, keeper, end: end.drop_guard() })
    }

    /// What is attached.
    pub(crate) const fn attached(&self) -> &Attached {
        &self.attached
    }

    /// The server's control socket.
    pub(crate) const fn control(&self) -> &Control {
        &self.control
    }

    /// Gives the attachment up; to be called when nobody reads any more. Gives what was done for it, if the server still
    /// knows.
    pub(crate) async fn end(self) -> Option<AttachmentStats> {
        drop(self.end);
        match self.keeper.await {
            Ok(stats) => stats,
            Err(error) => {
                tracing::warn!("the keeper of the attachment failed: {error}");
                None
            }
        }
    }
}

/// Attaches, to another server if one just ends.
async fn attach(
    wanted: &Wanted,
    sizes: Sizes,
    id: &AttachmentId,
    request: &AttachRequest,
) -> Result<(Server, Attached), Error> {
    let mut tries = 0;
    loop {
        let server = Server::find_or_start(wanted, sizes).await?;
        let error = match server.control().attach(id, request).await {
            Ok(attached) => return Ok((server, attached)),
            Err(error) => error,
        };
        tries += 1;
        let is_there = matches!(look(server.control()).await, Ok(Found::Fit(_)));
        if is_there || tries >= ATTACH_TRIES_MAX {
            return Err(error.into());
        }
    }
}

impl Keeper {
    async fn run(mut self, end: CancellationToken) -> Option<AttachmentStats> {
        let mut is_lost = false;
        while let Some(held) = end.run_until_cancelled(self.hold(is_lost)).await {
            if held && !end.is_cancelled() {
                tracing::warn!("the server has ended; the disks are attached to another one");
            }
            is_lost = true;
        }
        match self.server.control().detach(&self.id).await {
            Ok(stats) => Some(stats),
            Err(error) => {
                tracing::debug!(%error, "the attachment is not given up but will lapse");
                None
            }
        }
    }

    /// Holds the attachment until it is lost, after attaching again if it was before. Gives whether it was held.
    async fn hold(&mut self, is_lost: bool) -> bool {
        match self.lease(is_lost).await {
            Ok(lease) => {
                if is_lost {
                    tracing::info!("the disks are attached again");
                }
                lease.ended().await;
                true
            }
            Err(error) => {
                tracing::debug!("cannot attach again: {}", describe(&error));
                sleep(ATTACH_AGAIN_PAUSE).await;
                false
            }
        }
    }

    async fn lease(&mut self, is_lost: bool) -> Result<control::Lease, Error> {
        if is_lost {
            self.server.again().await?;
            let attached = self.server.control().attach(&self.id, &self.request).await?;
            if attached.socket != self.socket {
                tracing::warn!("the disks are at {} now, where QEMU does not look for them", attached.socket);
            }
        }
        Ok(self.server.control().hold(&self.id).await?)
    }
}
