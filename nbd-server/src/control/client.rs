//! The client's side of the control socket.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::Record;
use vmnetx_store::{DiskVerified, Pulled};

use super::api::{
    AttachRequest, Attached, AttachmentId, AttachmentStats, Beat, CacheReport, MapProgress, MapRequest, Problem,
    PruneRequest, PullProgress, Stats, UnpinRequest, Unpinned, VerifyProgress, Versions,
};
use super::lines::Listened;
use super::mapped;
use crate::Error;
use crate::limits::{ATTACH_RETRY_MAX, CONTROL_ANSWER_TIMEOUT, CONTROL_BYTES_MAX, PRUNE_TIMEOUT};

/// A server, known by its control socket.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
}

/// A lease: while this is there, the attachment is kept.
#[derive(Debug)]
pub struct Lease(Listened);

/// A pull: it ends with this value.
#[derive(Debug)]
pub struct Pulling(Listened);

impl Control {
    /// The server whose control socket this is.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The control socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the server is. Servers of all versions answer.
    ///
    /// # Errors
    /// [`Error::NoServer`] when nobody listens, [`Error::Control`] when what answers is no server.
    pub async fn versions(&self) -> Result<Versions, Error> {
        self.json(Method::GET, "/version", Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// Lets the server take no more attachments and end when the last one is gone. Servers of all versions do.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn drain(&self) -> Result<Versions, Error> {
        self.json(Method::POST, "/drain", Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// Attaches a package.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`] with the reason for which the package cannot be had.
    pub async fn attach(&self, id: &AttachmentId, request: &AttachRequest) -> Result<Attached, Error> {
        let body = serde_json::to_vec(request).map_err(|error| self.wrong(error))?;
        // Each of link, manifest and layout may be tried again for so long.
        let retry_for = request.retry_for_s.map_or(ATTACH_RETRY_MAX, Duration::from_secs);
        let patience = retry_for * 3 + CONTROL_ANSWER_TIMEOUT;
        self.json(Method::PUT, &format!("/v1/attachments/{id}"), body.into(), patience).await
    }

    /// Ends an attachment, and gives what was done for it.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn detach(&self, id: &AttachmentId) -> Result<AttachmentStats, Error> {
        self.json(Method::DELETE, &format!("/v1/attachments/{id}"), Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// What was done for an attachment.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn attachment(&self, id: &AttachmentId) -> Result<AttachmentStats, Error> {
        self.json(Method::GET, &format!("/v1/attachments/{id}"), Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// What was recorded of an attachment.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn record(&self, id: &AttachmentId) -> Result<Record, Error> {
        let path = format!("/v1/attachments/{id}/record");
        let bytes = self.bytes(Method::GET, &path, Bytes::new(), CONTROL_ANSWER_TIMEOUT).await?;
        Record::decode(&bytes).map_err(|error| self.wrong(error))
    }

    /// What the recorded order of an attachment says is touched, in its sequence; waits until the server has the order.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub async fn order(&self, id: &AttachmentId) -> Result<Record, Error> {
        let path = format!("/v1/attachments/{id}/order");
        let bytes = self.bytes(Method::GET, &path, Bytes::new(), CONTROL_ANSWER_TIMEOUT).await?;
        Record::decode(&bytes).map_err(|error| self.wrong(error))
    }

    /// What the server did.
    ///
    /// # Errors
    /// As [`Self::versions`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.json(Method::GET, "/v1/stats", Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// Holds an attachment.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn hold(&self, id: &AttachmentId) -> Result<Lease, Error> {
        self.listen(Method::GET, &format!("/v1/attachments/{id}/hold"), Bytes::new()).await.map(Lease)
    }

    /// Makes the version of an attachment complete in the server's cache directory.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn pull(&self, id: &AttachmentId) -> Result<Pulling, Error> {
        self.listen(Method::POST, &format!("/v1/attachments/{id}/pull"), Bytes::new()).await.map(Pulling)
    }

    /// The saved RAM of an attachment, to be mapped: a memfd of `size_bytes` that nobody can change, which is seen to. `show`
    /// sees how far the server is with it, twice a second. The server's own hold on it ends with the attachment.
    ///
    /// # Errors
    /// As [`Self::versions`]; [`Error::Refused`] with the reason for which it cannot be had; [`Error::HandOver`] when what
    /// comes is something else.
    pub async fn map(
        &self,
        id: &AttachmentId,
        request: MapRequest,
        size_bytes: u64,
        mut show: impl FnMut(&MapProgress),
    ) -> Result<OwnedFd, Error> {
        let body = serde_json::to_vec(&request).map_err(|error| self.wrong(error))?;
        let mut lines = self.listen(Method::POST, &format!("/v1/attachments/{id}/map"), body.into()).await?;
        while let Some(progress) = lines.next::<MapProgress>().await? {
            show(&progress);
            match progress {
                MapProgress { problem: Some(problem), .. } => return Err(Error::Refused(problem)),
                MapProgress { socket: Some(socket), .. } => return mapped::take(&socket, size_bytes).await,
                _ => {}
            }
        }
        Err(lines.cut())
    }

    /// How full the server's cache directory is.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn cache(&self) -> Result<CacheReport, Error> {
        self.json(Method::GET, "/v1/cache", Bytes::new(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// Has the server read every chunk of its cache directory.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn verify(&self) -> Result<DiskVerified, Error> {
        let mut lines = self.listen(Method::POST, "/v1/cache/verify", Bytes::new()).await?;
        while let Some(VerifyProgress { verified, .. }) = lines.next().await? {
            if let Some(verified) = verified {
                return Ok(verified);
            }
        }
        Err(lines.cut())
    }

    /// Has the server empty its cache directory.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn prune(&self, request: PruneRequest) -> Result<CacheReport, Error> {
        let body = serde_json::to_vec(&request).map_err(|error| self.wrong(error))?;
        self.json(Method::POST, "/v1/cache/prune", body.into(), PRUNE_TIMEOUT).await
    }

    /// Has the server let go of what is kept for good in its cache directory.
    ///
    /// # Errors
    /// As [`Self::versions`], and [`Error::Refused`].
    pub async fn unpin(&self, request: &UnpinRequest) -> Result<Unpinned, Error> {
        let body = serde_json::to_vec(request).map_err(|error| self.wrong(error))?;
        self.json(Method::POST, "/v1/cache/unpin", body.into(), CONTROL_ANSWER_TIMEOUT).await
    }

    /// The lines of an answer that goes on.
    async fn listen(&self, method: Method, path: &str, body: Bytes) -> Result<Listened, Error> {
        let asking = self.ask(method, path, body);
        let (response, connection) = timeout(CONTROL_ANSWER_TIMEOUT, asking).await.map_err(|_| self.late())??;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        Ok(Listened::new(self.socket.clone(), response.into_body(), connection))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<T, Error> {
        let bytes = self.bytes(method, path, body, patience).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.wrong(error))
    }

    /// The body of a good answer.
    async fn bytes(&self, method: Method, path: &str, body: Bytes, patience: Duration) -> Result<Bytes, Error> {
        let answer = async {
            let (response, _connection) = self.ask(method, path, body).await?;
            if response.status().is_success() { self.body(response).await } else { Err(self.refused(response).await) }
        };
        timeout(patience, answer).await.map_err(|_| self.late())?
    }

    /// Sends a request on a connection of its own, which ends with the handle.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Error> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| Error::NoServer { socket: self.socket.clone(), source })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut requests, connection) = handshake.await.map_err(|error| self.wrong(error))?;
        // Its end is told to whoever waits for an answer.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| self.wrong(error))?;
        let response = requests.send_request(request).await.map_err(|error| self.wrong(error))?;
        Ok((response, connection))
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let body = Limited::new(response.into_body(), CONTROL_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| self.wrong(error))?.to_bytes())
    }

    /// Why the server does not do what was asked; if it does not say so, that it is another kind of server.
    async fn refused(&self, response: Response<Incoming>) -> Error {
        let status: StatusCode = response.status();
        match self.body(response).await.map(|body| serde_json::from_slice::<Problem>(&body)) {
            Ok(Ok(problem)) => Error::Refused(problem),
            Ok(Err(_)) => self.wrong(format!("it answers {status}")),
            Err(error) => error,
        }
    }

    fn wrong(&self, reason: impl ToString) -> Error {
        Error::Control { socket: self.socket.display().to_string(), reason: reason.to_string() }
    }

    fn late(&self) -> Error {
        self.wrong("it does not answer in time")
    }
}

impl Lease {
    /// Returns when the lease has ended: the attachment or the server is gone, or the server has not been heard for
    /// [`SILENCE_MAX`].
    ///
    /// [`SILENCE_MAX`]: crate::limits::SILENCE_MAX
    pub async fn ended(mut self) {
        while let Ok(Some(Beat { .. })) = self.0.next().await {}
    }
}

impl Pulling {
    /// Waits for the pull to be complete; `show` sees how far it is, twice a second.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason for which it will not be, [`Error::Control`] when the server is gone.
    pub async fn complete(mut self, mut show: impl FnMut(&PullProgress)) -> Result<Pulled, Error> {
        while let Some(progress) = self.0.next::<PullProgress>().await? {
            show(&progress);
            match progress {
                PullProgress { problem: Some(problem), .. } => return Err(Error::Refused(problem)),
                progress if progress.complete => return Ok(progress.pulled()),
                _ => {}
            }
        }
        Err(self.0.cut())
    }
}
