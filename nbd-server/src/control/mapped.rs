//! Saved RAM that VMs map, over the control socket: the path by which it is asked for, and the client's side of handing it over.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use rustix::fs::{fcntl_get_seals, fstat};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::api::{AttachmentId, MapProgress, MapRequest, Problem};
use super::keep::beats;
use super::lines::{Lines, Teller};
use super::routes::{attachment_id, body};
use crate::host::{Mapping, Peer, SEALS};
use crate::limits::HAND_OVER_TIMEOUT;
use crate::{Error, Host};

/// This path.
pub(super) fn routes() -> OpenApiRouter<Host> {
    OpenApiRouter::new().routes(routes!(map))
}

/// Holds the saved RAM of an attachment in the server's memory, once for all attachments with the same, so that VMs can map it;
/// tells twice a second how far it is, and at last where it is handed over. It is held until the attachment is gone.
#[utoipa::path(post, path = "/v1/attachments/{id}/map", params(("id" = AttachmentId, Path)), request_body = MapRequest, responses(
    (status = 200, body = MapProgress, content_type = "application/x-ndjson"),
    (status = 400, body = Problem, description = "The request is wrong"),
    (status = 403, body = Problem),
    (status = 404, body = Problem, description = "There is no such attachment, or no memory is served for it"),
    (status = 409, body = Problem, description = "Not all of it is on this host, and it is not to be fetched"),
))]
async fn map(
    State(host): State<Host>,
    peer: Peer,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let (id, request): (_, MapRequest) = (attachment_id(&id)?, body(request).await?);
    let mapping = host.map(peer, &id, request).await?;
    let (teller, lines) = Lines::new();
    tokio::spawn(tell(mapping, teller));
    Ok(lines.into_response())
}

async fn tell(mapping: Mapping, teller: Teller) {
    let mut beats = beats();
    let mut running = std::pin::pin!(mapping.run());
    let end = loop {
        tokio::select! {
            // Nobody wants it any more.
            () = teller.is_alone() => return,
            end = &mut running => break end,
            _ = beats.tick() => teller.say(&mapping.progress()),
        }
    };
    teller.say_last(&end).await;
}

/// Takes what is handed over at a socket: RAM of this size that nobody can change.
pub(super) async fn take(socket: &str, size_bytes: u64) -> Result<OwnedFd, Error> {
    let wrong = |reason: String| Error::HandOver { socket: socket.to_owned(), reason };
    let taking = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut fd, mut byte) = (None, [0]);
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    fd = fds.next();
                }
            }
            Ok(got.bytes)
        };
        stream.async_io(Interest::READABLE, receive).await?;
        fd.ok_or_else(|| io::Error::other("nothing comes"))
    };
    let taken = timeout(HAND_OVER_TIMEOUT, taking).await.map_err(io::Error::from).flatten();
    let fd: OwnedFd = taken.map_err(|error| wrong(error.to_string()))?;
    check(&fd, size_bytes).map_err(wrong)?;
    Ok(fd)
}

/// Whether this is RAM of this size that nobody can change, or what is wrong with it.
fn check(fd: impl AsFd, size_bytes: u64) -> Result<(), String> {
    let seals = fcntl_get_seals(&fd).map_err(|_| "it is no memfd".to_owned())?;
    if !seals.contains(SEALS) {
        return Err("it is not sealed".to_owned());
    }
    let stat = fstat(&fd).map_err(|error| error.to_string())?;
    if u64::try_from(stat.st_size).ok() != Some(size_bytes) {
        return Err(format!("it has {} bytes instead of {size_bytes}", stat.st_size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    /// A client maps nothing that somebody could change under its guest.
    #[test]
    fn only_what_is_sealed_and_of_the_right_size_is_taken() {
        let memfd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memfd, 8192).unwrap();
        assert_eq!(check(&memfd, 8192).unwrap_err(), "it is not sealed");
        fcntl_add_seals(&memfd, SEALS).unwrap();
        assert_eq!(check(&memfd, 8192), Ok(()));
        assert_eq!(check(&memfd, 4096).unwrap_err(), "it has 8192 bytes instead of 4096");
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(check(&socket, 8192).unwrap_err(), "it is no memfd");
    }
}
