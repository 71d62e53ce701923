//! The attachments of a server: which packages it serves to whom, and for how long.
//!
//! ```text
//! reserved ──▶ attached ◀──▶ abandoned ──▶ gone
//!     │            │   neither lease nor connection; gone after the grace period
//!     └─ failed    └─ detached, server ends ──▶ gone
//! ```
//!
//! An attachment lives as long as its client holds a lease or somebody is connected to its private socket, and for a grace
//! period afterwards. A client that crashes therefore leaves nothing behind, and one whose connection broke comes back to
//! what it had.

mod attachment;
mod counters;
mod mapped;
mod pull;
mod upkeep;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmnetx_store::origin::{Access, AccessArgs};
use vmnetx_store::trust::Trust;
use vmnetx_store::{Error as StoreError, Location, Package, Place, Reader, Store};

pub(crate) use attachment::{Attachment, Holder};
pub(crate) use counters::Sums;
pub(crate) use mapped::{Mapping, SEALS};
pub use mapped::{mapped_bytes_default, sealed_zeros};
pub(crate) use pull::Pull;
pub(crate) use upkeep::Verification;

use mapped::MappedRams;

use crate::control::api::{
    API_VERSION, AttachRequest, Attached, AttachmentId, AttachmentStats, OrderUse, Stats, Versions,
};
use crate::limits::{ATTACH_GRACE, ATTACH_RETRY_MAX, ATTACHMENTS_MAX, ATTACHMENTS_PER_UID_MAX, DRAIN_TIMEOUT};
use crate::listener::SocketFolder;
use crate::{Error, Listener};

/// A server's attachments. Clones share them.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

/// How attachments are made.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The folder for private sockets, made if absent; without one nothing can be attached.
    pub sockets: Option<PathBuf>,
    /// For how long an attachment is kept that nobody holds.
    pub grace: Duration,
    /// Where it is kept what is known of links, and the keys that every link must be signed with one of, if there are any.
    pub trust: Trust,
    /// Which credentials go to which host. They are read for each attachment: a login may have been added meanwhile.
    pub access: AccessArgs,
    /// Bytes of saved RAM that are held at most for VMs to map; absent for half of the host's memory.
    pub mapped_bytes_max: Option<u64>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    /// Whether it is the server's own user or root, who may do what the server may.
    pub(crate) is_master: bool,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    sockets: Option<SocketFolder>,
    grace: Duration,
    trust: Trust,
    access: AccessArgs,
    mapped: MappedRams,
    started: Instant,
    state: Mutex<State>,
    /// How many attachments that end some time, and works on the cache directory, there are.
    count: watch::Sender<usize>,
    /// Taken by the one verification of the cache directory that may run.
    verifying: Arc<Semaphore>,
    draining: CancellationToken,
    end: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<AttachmentId, Slot>,
    /// What is being done with the cache directory beside serving.
    works: usize,
    /// What attachments that are gone have counted.
    departed: Sums,
}

/// A place for an attachment that is there or about to be.
#[derive(Debug)]
struct Slot {
    owner: u32,
    cell: Arc<OnceCell<Arc<Attachment>>>,
    /// Requests that wait for the cell.
    waiting: usize,
    /// Whether it stays until the server ends.
    is_fixed: bool,
}

/// A request's claim to a slot: without an attachment, the slot goes with its last claim.
struct Claim<'a> {
    host: &'a Host,
    id: AttachmentId,
    cell: Arc<OnceCell<Arc<Attachment>>>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            sockets: None,
            grace: ATTACH_GRACE,
            trust: Trust::default(),
            access: AccessArgs::default(),
            mapped_bytes_max: None,
        }
    }
}

impl Peer {
    pub(crate) fn new(uid: u32) -> Self {
        Self { uid, is_master: uid == 0 || uid == rustix::process::geteuid().as_raw() }
    }

    fn may_use(self, owner: u32) -> bool {
        self.is_master || self.uid == owner
    }
}

impl Host {
    /// Starts with no attachments.
    ///
    /// # Errors
    /// [`Error::Sockets`] when the folder for private sockets cannot be used.
    pub fn new(store: Store, options: HostOptions) -> Result<Self, Error> {
        let HostOptions { sockets, grace, trust, access, mapped_bytes_max } = options;
        let inner = Inner {
            store,
            sockets: sockets.as_deref().map(SocketFolder::open).transpose()?,
            grace,
            trust,
            access,
            mapped: MappedRams::new(mapped_bytes_max),
            started: Instant::now(),
            state: Mutex::default(),
            count: watch::Sender::new(0),
            verifying: Arc::new(Semaphore::new(1)),
            draining: CancellationToken::new(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// What the server says of itself.
    #[must_use]
    pub fn versions(&self) -> Versions {
        Versions {
            api: vec![API_VERSION],
            program: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            draining: self.is_draining(),
        }
    }

    /// Takes no new attachments any more; [`Self::until_unused`] returns when the last one is gone.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Returns when nothing has been attached for the time `idle`, or nothing is attached and the host drains. From then on
    /// nothing can be attached.
    pub async fn until_unused(&self, idle: Option<Duration>) {
        let mut count = self.0.count.subscribe();
        loop {
            // The sender lives as long as this value.
            let _ = count.wait_for(|count| *count == 0).await;
            let idle = async {
                match idle {
                    Some(idle) => tokio::time::sleep(idle).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = count.changed() => continue,
                () = self.0.draining.cancelled() => {}
                () = idle => {}
            }
            let _state = self.lock();
            if *self.0.count.borrow() == 0 {
                self.0.draining.cancel();
                return;
            }
        }
    }

    /// Ends all attachments: requests under way are answered, for a while.
    pub async fn end(&self) {
        self.0.draining.cancel();
        self.0.end.cancel();
        self.0.tasks.close();
        // Each of them has given up by then.
        let _ = timeout(DRAIN_TIMEOUT * 2, self.0.tasks.wait()).await;
    }

    /// Serves a package on a listener of its own, to whoever may connect there, until the host ends.
    pub(crate) fn serve_fixed(
        &self,
        id: AttachmentId,
        package: Package,
        request: AttachRequest,
        listener: Listener,
    ) -> Result<Arc<Attachment>, Error> {
        let owner = rustix::process::geteuid().as_raw();
        let opened = (self.0.store.clone(), package);
        let attachment = self.attachment(id.clone(), owner, opened, request, &listener)?;
        let cell = Arc::new(OnceCell::new_with(Some(Arc::clone(&attachment))));
        self.lock().slots.insert(id, Slot { owner, cell, waiting: 0, is_fixed: true });
        self.serve(&attachment, listener, None);
        Ok(attachment)
    }

    /// Attaches a package; the same request under the same id gives the same attachment.
    pub(crate) async fn attach(
        &self,
        peer: Peer,
        id: &AttachmentId,
        request: &AttachRequest,
    ) -> Result<Attached, Error> {
        let location = judge(peer, request)?;
        let claim = self.claim(peer, id)?;
        let attachment = claim.cell.get_or_try_init(|| self.open(peer.uid, id, request, &location)).await?;
        attachment.check(request, &location)?;
        // Whoever was about to be forgotten is not any more.
        drop(Holder::new(attachment));
        attachment.told()
    }

    /// A claim to the slot of this name, which is made if it is not there.
    fn claim(&self, peer: Peer, id: &AttachmentId) -> Result<Claim<'_>, Error> {
        let mut state = self.lock();
        let of_peer = state.slots.values().filter(|slot| slot.owner == peer.uid && !slot.is_fixed).count();
        let full = state.slots.len() >= ATTACHMENTS_MAX || (!peer.is_master && of_peer >= ATTACHMENTS_PER_UID_MAX);
        let cell = match state.slots.entry(id.clone()) {
            Entry::Occupied(mut slot) => {
                let slot = slot.get_mut();
                if !peer.may_use(slot.owner) {
                    return Err(Error::Forbidden("it is another user's attachment"));
                }
                slot.waiting += 1;
                Arc::clone(&slot.cell)
            }
            Entry::Vacant(_) if self.is_draining() => return Err(Error::Draining),
            Entry::Vacant(_) if full => return Err(Error::TooManyAttachments),
            Entry::Vacant(vacant) => {
                let cell = Arc::default();
                vacant.insert(Slot { owner: peer.uid, cell: Arc::clone(&cell), waiting: 1, is_fixed: false });
                cell
            }
        };
        self.recount(&state);
        Ok(Claim { host: self, id: id.clone(), cell })
    }

    /// Which links are believed for a request: where the server demands keys, no client takes others.
    fn trust(&self, request: &AttachRequest) -> Result<Trust, Error> {
        let demanded = &self.0.trust.keys;
        let mut keys = request.trust_keys.clone();
        if !demanded.is_empty() {
            let asked = std::mem::replace(&mut keys, demanded.clone());
            keys.retain(|key| asked.is_empty() || asked.contains(key));
            if keys.is_empty() {
                return Err(Error::Forbidden("the server takes links with other keys only"));
            }
        }
        Ok(Trust { keys, accept_unsigned: request.accept_unsigned, ..self.0.trust.clone() })
    }

    fn access(&self, request: &AttachRequest) -> Result<Access, Error> {
        let access = || {
            let mut access = self.0.access.access()?;
            request.token_files.iter().try_for_each(|token| access.add_token(&token.host, Path::new(&token.file)))?;
            request.ca_file.iter().try_for_each(|file| access.add_authorities(Path::new(file)))?;
            Ok(access)
        };
        access().map_err(|error| Error::Store(StoreError::Access(error)))
    }

    fn reader(&self, request: &AttachRequest) -> Result<Reader, Error> {
        let retry_for = request.retry_for_s.map_or_else(|| self.0.store.retry_for(), Duration::from_secs);
        Ok(Reader {
            retry_for: retry_for.min(ATTACH_RETRY_MAX),
            background_bytes_per_s: request.background_bytes_per_s,
            access: self.access(request)?,
            trust: self.trust(request)?,
            offline: request.offline,
        })
    }

    /// Opens the package and begins to serve it.
    async fn open(
        &self,
        owner: u32,
        id: &AttachmentId,
        request: &AttachRequest,
        location: &Location,
    ) -> Result<Arc<Attachment>, Error> {
        let folder =
            self.0.sockets.as_ref().ok_or(Error::Forbidden("this server has no folder for private sockets"))?;
        let store = self.0.store.for_reader(self.reader(request)?);
        let package = match request.order {
            OrderUse::Auto => store.package_in_order(location, request.purpose()).await,
            OrderUse::Off => store.package_for(location, request.purpose()).await,
        }?;
        let listener = folder.listen(id.as_str(), owner)?;
        let attachment = self.attachment(id.clone(), owner, (store, package), request.clone(), &listener)?;
        tracing::info!(id = id.as_str(), owner, package = %attachment.package().link().name, "attached");
        self.serve(&attachment, listener, Some(self.0.grace));
        Ok(attachment)
    }

    fn attachment(
        &self,
        id: AttachmentId,
        owner: u32,
        opened: (Store, Package),
        request: AttachRequest,
        listener: &Listener,
    ) -> Result<Arc<Attachment>, Error> {
        let (socket, end) = (listener.to_string(), self.0.end.child_token());
        Attachment::new(id, owner, opened, request, socket, end).map(Arc::new)
    }

    /// Serves an attachment until it ends, and forgets it then.
    fn serve(&self, attachment: &Arc<Attachment>, listener: Listener, grace: Option<Duration>) {
        let (host, attachment) = (self.clone(), Arc::clone(attachment));
        self.0.tasks.spawn(async move {
            attachment.serve(listener, grace).await;
            host.depart(&attachment);
        });
    }

    /// An attachment that the peer may use.
    pub(crate) fn find(&self, peer: Peer, id: &AttachmentId) -> Result<Arc<Attachment>, Error> {
        let state = self.lock();
        let slot = state.slots.get(id).ok_or(Error::NoAttachment)?;
        if !peer.may_use(slot.owner) {
            return Err(Error::Forbidden("it is another user's attachment"));
        }
        slot.cell.get().cloned().ok_or(Error::NoAttachment)
    }

    /// Ends an attachment, and tells what it did.
    pub(crate) async fn detach(&self, peer: Peer, id: &AttachmentId) -> Result<AttachmentStats, Error> {
        let attachment = self.find(peer, id)?;
        if self.lock().slots.get(id).is_some_and(|slot| slot.is_fixed) {
            return Err(Error::Forbidden("it is what the server was started for"));
        }
        attachment.end().await;
        Ok(attachment.stats())
    }

    /// The attachments that the peer may see, by their ids.
    pub(crate) fn list(&self, peer: Peer) -> Vec<AttachmentStats> {
        let mut all: Vec<_> = self.attached().into_iter().filter(|one| peer.may_use(one.owner())).collect();
        all.sort_by(|one, other| one.id().cmp(other.id()));
        all.iter().map(|attachment| attachment.stats()).collect()
    }

    /// What the server did, and the attachments that the peer may see.
    pub(crate) fn stats(&self, peer: Peer) -> Stats {
        Stats {
            uptime_s: self.0.started.elapsed().as_secs(),
            memory_bytes: self.memory_bytes(),
            disk_bytes: self.disk_bytes(),
            mapped_bytes: self.mapped_bytes(),
            attachments: self.list(peer),
        }
    }

    /// What all attachments did, whether they are still there or not.
    pub(crate) fn sums(&self) -> Sums {
        let state = self.lock();
        let mut sums = state.departed.clone();
        state.slots.values().filter_map(|slot| slot.cell.get()).for_each(|attachment| sums.add(&attachment.stats()));
        sums
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.0.store.memory().bytes()
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.0.store.disk().map_or(0, |disk| disk.bytes())
    }

    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.0.mapped.held_bytes()
    }

    pub(crate) fn attached(&self) -> Vec<Arc<Attachment>> {
        self.lock().slots.values().filter_map(|slot| slot.cell.get().cloned()).collect()
    }

    fn depart(&self, attachment: &Arc<Attachment>) {
        let mut state = self.lock();
        let is_it = |slot: &Slot| slot.cell.get().is_some_and(|other| Arc::ptr_eq(other, attachment));
        if state.slots.get(attachment.id()).is_some_and(is_it) {
            state.slots.remove(attachment.id());
        }
        state.departed.add(&attachment.stats());
        self.recount(&state);
        drop(state);
        tracing::info!(id = attachment.id().as_str(), "detached");
        attachment.is_gone();
    }

    fn recount(&self, state: &State) {
        let attachments = state.slots.values().filter(|slot| !slot.is_fixed).count();
        self.0.count.send_replace(attachments + state.works);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that changes the state can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.host.lock();
        let Some(slot) = state.slots.get_mut(&self.id).filter(|slot| Arc::ptr_eq(&slot.cell, &self.cell)) else {
            return;
        };
        slot.waiting -= 1;
        if slot.waiting == 0 && !slot.cell.initialized() {
            state.slots.remove(&self.id);
            self.host.recount(&state);
        }
    }
}

/// Where a request leads, if its sender may go there.
fn judge(peer: Peer, request: &AttachRequest) -> Result<Location, Error> {
    if !request.is_bounded() {
        return Err(Error::BadRequest("it names too many keys or exports".to_owned()));
    }
    if request.background_bytes_per_s == Some(0) {
        return Err(Error::BadRequest("at no bytes a second nothing is ever fetched".to_owned()));
    }
    let mut location: Location = request.link.parse()?;
    match (location.version, request.version) {
        (Some(one), Some(other)) if one != other => {
            return Err(Error::BadRequest("link and request ask for different versions".to_owned()));
        }
        (one, other) => location.version = one.or(other),
    }
    if (!request.token_files.is_empty() || request.ca_file.is_some()) && !peer.is_master {
        return Err(Error::Forbidden("tokens and authorities in files are for the server's own user alone"));
    }
    match &location.place {
        // The server would read with its own rights what the client may not be allowed to.
        Place::Path(_) if !peer.is_master => {
            Err(Error::Forbidden("links in files are for the server's own user alone"))
        }
        Place::Path(path) if !Path::is_absolute(path) => {
            Err(Error::BadRequest("the path of a link must be absolute".to_owned()))
        }
        Place::Path(_) | Place::Url(_) => Ok(location),
    }
}
