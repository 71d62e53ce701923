//! One attachment: a package, its exports on a socket, and who holds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Digest, MAIN_RAM_BLOCK, Record, ram_image_name};
use vmnetx_store::{Image, Location, Package, Progress, Recorder, Store};

use super::Peer;
use super::mapped::{HandOver, MappedRam};
use crate::control::api::{
    AttachRequest, Attached, AttachmentId, AttachmentStats, ExportSize, NoticeText, PullProgress,
};
use crate::limits::{ATTACHMENT_CONNECTIONS_MAX, CONNECTIONS_MAX};
use crate::server::serve_admitted;
use crate::{Error, Export, Exports, Listener};

/// A package that is served on a socket of its own.
#[derive(Debug)]
pub(crate) struct Attachment {
    id: AttachmentId,
    owner: u32,
    store: Store,
    package: Package,
    /// Set while the version is being made complete.
    pull: Mutex<Option<Arc<Progress>>>,
    /// Its saved RAM, from when it is asked for; it is given back with the attachment.
    mapped: OnceCell<HandOver>,
    /// What it was asked for with.
    request: AttachRequest,
    recorder: Option<Arc<Recorder>>,
    exports: Exports,
    socket: String,
    /// How many leases and connections there are.
    holders: watch::Sender<u64>,
    /// Cancelled to end it.
    end: CancellationToken,
    /// Cancelled when it has ended and is no more among those of its host.
    gone: CancellationToken,
}

/// Keeps an attachment alive until it is dropped.
#[derive(Debug)]
pub(crate) struct Holder(Arc<Attachment>);

impl Holder {
    pub(crate) fn new(attachment: &Arc<Attachment>) -> Self {
        attachment.holders.send_modify(|holders| *holders += 1);
        Self(Arc::clone(attachment))
    }

    pub(crate) fn id(&self) -> &AttachmentId {
        &self.0.id
    }

    /// Returns when the attachment ends in spite of being held.
    pub(crate) async fn ended(&self) {
        self.0.end.cancelled().await;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.holders.send_modify(|holders| *holders -= 1);
    }
}

impl Attachment {
    /// An attachment that nobody reaches yet.
    pub(super) fn new(
        id: AttachmentId,
        owner: u32,
        (store, package): (Store, Package),
        request: AttachRequest,
        socket: String,
        end: CancellationToken,
    ) -> Result<Self, Error> {
        let exports = exports(&package, &request)?;
        let recorder = request.record.then(|| package.record());
        let (pull, mapped) = (Mutex::default(), OnceCell::new());
        let (holders, gone) = (watch::Sender::new(0), CancellationToken::new());
        Ok(Self { id, owner, store, package, pull, mapped, request, recorder, exports, socket, holders, end, gone })
    }

    pub(crate) const fn id(&self) -> &AttachmentId {
        &self.id
    }

    pub(crate) const fn owner(&self) -> u32 {
        self.owner
    }

    pub(crate) const fn package(&self) -> &Package {
        &self.package
    }

    /// What was recorded of it, if anything is.
    pub(crate) fn record(&self) -> Result<Record, Error> {
        let recorder = self.recorder.as_ref().ok_or(Error::NotRecorded)?;
        recorder.record().map_err(Error::Unrecordable)
    }

    /// What its recorded order says is touched; waits until the order is here.
    pub(crate) async fn ordered(&self) -> Result<Record, Error> {
        self.package.ordered().await.map_err(Error::Unrecordable)
    }

    /// Whether a request asks for what this is.
    pub(super) fn check(&self, request: &AttachRequest, location: &Location) -> Result<(), Error> {
        let had = &self.request;
        let same = had.link == request.link
            && location.version.is_none_or(|version| version == self.package.version().manifest)
            && (had.offline, had.order, had.memory) == (request.offline, request.order, request.memory)
            && had.record == request.record
            && had.exports == request.exports;
        if same { Ok(()) } else { Err(Error::OtherAttachment) }
    }

    /// What its client is told.
    pub(super) fn told(&self) -> Result<Attached, Error> {
        let mut attached = Attached::of(&self.id, &self.package, &self.socket, sizes(&self.exports))?;
        if self.request.offline && self.package.is_remote() && !self.is_complete() {
            let name = &self.package.link().name;
            let text = format!("not all of {name} is here, and what is missing cannot be read offline");
            attached.notices.push(NoticeText { warning: true, text });
        }
        Ok(attached)
    }

    fn is_complete(&self) -> bool {
        self.store.is_complete(&self.package.version().manifest)
    }

    /// How far it is being made complete, if it is.
    pub(super) fn pull(&self) -> Option<PullProgress> {
        self.pull_state().as_deref().map(PullProgress::of)
    }

    /// Begins to make it complete; nothing if somebody does already.
    pub(super) fn begin_pull(&self) -> Option<Arc<Progress>> {
        let mut state = self.pull_state();
        state.is_none().then(|| Arc::clone(state.insert(Arc::default())))
    }

    /// Makes it complete in the cache directory, and keeps it there.
    pub(super) async fn pull_whole(&self, progress: &Arc<Progress>) -> Result<(), Error> {
        let location: Location = self.request.link.parse()?;
        self.store.pull(&self.package, &location, progress).await?;
        Ok(())
    }

    /// Ends what [`Self::begin_pull`] began.
    pub(super) fn end_pull(&self) {
        *self.pull_state() = None;
    }

    fn pull_state(&self) -> MutexGuard<'_, Option<Arc<Progress>>> {
        // One value, which is set or not.
        self.pull.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its saved RAM as an image and as the manifest has it.
    pub(super) fn ram(&self) -> Result<(&Arc<Image>, Digest), Error> {
        let memory = self.package.manifest().memory.as_ref().filter(|_| self.request.memory).ok_or(Error::NoMemory)?;
        let block = memory.blocks.iter().find(|block| block.name == MAIN_RAM_BLOCK).ok_or(Error::NoMemory)?;
        let image = self.package.image(&ram_image_name(&block.name)).ok_or(Error::NoMemory)?;
        Ok((image, block.content))
    }

    /// From now on `ram` is handed over to who connects to `listener`, until it ends; gives where that is. What it has already
    /// stays.
    pub(super) async fn hand_over(
        &self,
        ram: Arc<MappedRam>,
        listen: impl FnOnce() -> Result<Listener, Error>,
    ) -> Result<&HandOver, Error> {
        let start = async || Ok(HandOver::start(ram, listen()?, self.owner, self.end.clone()));
        self.mapped.get_or_try_init(start).await
    }

    /// What was done for it so far.
    pub(crate) fn stats(&self) -> AttachmentStats {
        AttachmentStats {
            id: self.id.clone(),
            uid: self.owner,
            package: self.package.link().name.to_string(),
            version: self.package.version().manifest.to_string(),
            socket: self.socket.clone(),
            holders: *self.holders.borrow(),
            complete: self.is_complete(),
            pull: self.pull(),
            mapped_bytes: self.mapped.get().map(HandOver::held_bytes),
            origin_bytes: self.package.origin_bytes(),
            origin: self.package.origin_counts(),
            mirrors: self.package.mirrors(),
            order: self.package.order_counts(),
            recorded_touches: self.recorder.as_ref().map(|recorder| recorder.touches() as u64),
            exports: self.exports.all().iter().map(|export| export.stats()).collect(),
        }
    }

    /// Serves it until it ends: with a grace period, to its owner and until nobody has held it for so long; without one, to
    /// whoever may connect.
    pub(super) async fn serve(self: &Arc<Self>, listener: Listener, grace: Option<Duration>) {
        let admit = |uid: Option<u32>| {
            let welcome = grace.is_none() || uid.is_some_and(|uid| Peer::new(uid).may_use(self.owner));
            if !welcome {
                tracing::warn!(id = self.id.as_str(), uid, "a connection of another user is refused");
            }
            welcome.then(|| Holder::new(self))
        };
        let connections_max = if grace.is_some() { ATTACHMENT_CONNECTIONS_MAX } else { CONNECTIONS_MAX };
        let serving = serve_admitted(listener, self.exports.clone(), connections_max, admit, self.end.clone());
        let lapsing = async {
            if let Some(grace) = grace {
                self.until_abandoned(grace).await;
                tracing::info!(id = self.id.as_str(), "nobody holds it any more");
                self.end.cancel();
            }
        };
        tokio::join!(serving, async {
            self.end.run_until_cancelled(lapsing).await;
        });
    }

    /// Returns when nobody has held it for `grace`.
    async fn until_abandoned(&self, grace: Duration) {
        let mut holders = self.holders.subscribe();
        loop {
            // The sender is in this value.
            let _ = holders.wait_for(|holders| *holders == 0).await;
            if timeout(grace, holders.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Ends it; returns when nobody can reach it any more.
    pub(super) async fn end(&self) {
        self.end.cancel();
        self.gone.cancelled().await;
    }

    pub(super) fn is_gone(&self) {
        self.gone.cancel();
    }
}

/// Exports of the images that are asked for; of all disks if none are, and with memory of all images.
fn exports(package: &Package, request: &AttachRequest) -> Result<Exports, Error> {
    let (images, only) = (if request.memory { package.images() } else { package.disks() }, &request.exports);
    let known = || images.iter().map(|image| image.name()).collect::<Vec<_>>().join(", ");
    if let Some(name) = only.iter().find(|name| !images.iter().any(|image| image.name() == *name)) {
        return Err(Error::NoImage { name: name.clone(), known: known() });
    }
    let title = package.link().title.as_ref().map_or_else(|| package.link().name.to_string(), ToString::to_string);
    let exports = Exports::new();
    for image in images {
        if only.is_empty() || only.iter().any(|name| name == image.name()) {
            image.warm_index();
            exports.add(Export::new(image.name(), title.clone(), Arc::clone(image)));
        }
    }
    Ok(exports)
}

/// The names and sizes of exports.
fn sizes(exports: &Exports) -> Vec<ExportSize> {
    let size =
        |export: &Arc<Export>| ExportSize { name: export.name().to_owned(), size_bytes: export.image().size_bytes() };
    exports.all().iter().map(size).collect()
}
