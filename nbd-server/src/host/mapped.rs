//! Saved RAM that VMs map: one sealed memfd for all attachments of the same content, made from verified chunks.
//!
//! A memfd is held by the attachments that asked for it, and counts against the host's limit until the last of them is gone.
//! Whoever was handed it keeps it for as long as it likes, whatever becomes of the server.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmnetx_format::Digest;
use vmnetx_store::{Image, Piece};

use super::{Attachment, Holder, Host, Peer};
use crate::control::api::{AttachmentId, MapProgress, MapRequest, Problem};
use crate::limits::{
    ACCEPT_PAUSE, EXTENTS_MAX, HAND_OVER_TIMEOUT, MAPPED_READ_BYTES, MAPPED_READS_MAX, MAPPED_SHARE_OF_HOST,
    MAPPED_SHARE_PER_UID,
};
use crate::{Error, Listener};

/// The memfd's name, as /proc shows it.
const MEMFD_NAME: &str = "vmnetx-ram";
/// What the name of an attachment's socket has behind its id where RAM is handed over; no id has a dot.
const SOCKET_ENDING: &str = ".ram";
/// What nobody can do any more with RAM that is handed over, not even take a seal away.
pub(crate) const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// The RAM that a host holds.
#[derive(Debug)]
pub(super) struct MappedRams {
    budget: Arc<Budget>,
    known: Mutex<HashMap<Key, Weak<MappedRam>>>,
}

/// Content and size: the same bytes, whatever package they are of.
type Key = (Digest, u64);

/// Bytes that may be held, and are, because these users had them read.
#[derive(Debug)]
struct Budget {
    limit_bytes: u64,
    held_bytes: Mutex<HashMap<u32, u64>>,
}

/// Bytes of a budget; they are given back when this is dropped.
#[derive(Debug)]
struct Reserved {
    budget: Arc<Budget>,
    uid: u32,
    bytes: u64,
}

/// RAM that is held, or about to be.
#[derive(Debug)]
pub(super) struct MappedRam {
    size_bytes: u64,
    done_bytes: AtomicU64,
    sealed: OnceCell<Sealed>,
}

/// RAM that nobody can change any more.
#[derive(Debug)]
struct Sealed {
    memfd: OwnedFd,
    reserved: Reserved,
}

/// The socket at which an attachment's RAM is handed over.
#[derive(Debug)]
pub(super) struct HandOver {
    ram: Arc<MappedRam>,
    socket: String,
}

/// RAM that an attachment has asked for. It holds its attachment.
#[derive(Debug)]
pub(crate) struct Mapping {
    host: Host,
    attachment: Arc<Attachment>,
    holder: Holder,
    ram: Arc<MappedRam>,
}

impl Host {
    /// Begins to hold the RAM of an attachment.
    pub(crate) async fn map(&self, peer: Peer, id: &AttachmentId, request: MapRequest) -> Result<Mapping, Error> {
        let attachment = self.find(peer, id)?;
        let holder = Holder::new(&attachment);
        let (image, content) = attachment.ram()?;
        let ram = self.0.mapped.ram((content, image.size_bytes()));
        if !request.bring && !ram.sealed.initialized() && !is_here(image).await? {
            return Err(Error::NotHere);
        }
        Ok(Mapping { host: self.clone(), holder, ram, attachment })
    }
}

impl Mapping {
    /// How far it is now.
    pub(crate) fn progress(&self) -> MapProgress {
        self.ram.progress()
    }

    /// Reads the RAM unless that was done for another attachment, and begins to hand it over. When this ends before, what was
    /// read is given back, and whoever waits for the same RAM reads it anew.
    pub(crate) async fn run(&self) -> MapProgress {
        let mapped = tokio::select! {
            mapped = self.map() => mapped,
            () = self.holder.ended() => Err(Error::Detached),
        };
        let (socket, problem) = match mapped {
            Ok(socket) => (Some(socket), None),
            Err(error) => (None, Some(Problem::of(&error))),
        };
        MapProgress { socket, problem, ..self.progress() }
    }

    /// Whom it counts as.
    fn owner(&self) -> Peer {
        Peer::new(self.attachment.owner())
    }

    async fn map(&self) -> Result<String, Error> {
        let (image, _) = self.attachment.ram()?;
        self.ram.sealed.get_or_try_init(|| self.ram.inflate(image, &self.host.0.mapped.budget, self.owner())).await?;
        let folder = self.host.0.sockets.as_ref();
        let folder = folder.ok_or(Error::Forbidden("this server has no folder for private sockets"))?;
        let name = format!("{}{SOCKET_ENDING}", self.attachment.id());
        let listen = || folder.listen(&name, self.attachment.owner());
        Ok(self.attachment.hand_over(Arc::clone(&self.ram), listen).await?.socket.clone())
    }
}

impl MappedRams {
    /// None yet, and so many bytes at most.
    pub(super) fn new(bytes_max: Option<u64>) -> Self {
        let limit_bytes = bytes_max.unwrap_or_else(mapped_bytes_default);
        let budget = Budget { limit_bytes, held_bytes: Mutex::default() };
        Self { budget: Arc::new(budget), known: Mutex::default() }
    }

    /// What is held for all attachments, or being read.
    pub(super) fn held_bytes(&self) -> u64 {
        self.budget.lock().values().sum()
    }

    /// The RAM with this content, to be read if it is new.
    fn ram(&self, key: Key) -> Arc<MappedRam> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, ram| ram.strong_count() > 0);
        let fresh = || {
            let ram = MappedRam { size_bytes: key.1, done_bytes: AtomicU64::new(0), sealed: OnceCell::new() };
            Arc::new(ram)
        };
        match known.entry(key) {
            Entry::Occupied(mut known) => known.get().upgrade().unwrap_or_else(|| {
                let ram = fresh();
                known.insert(Arc::downgrade(&ram));
                ram
            }),
            Entry::Vacant(vacant) => {
                let ram = fresh();
                vacant.insert(Arc::downgrade(&ram));
                ram
            }
        }
    }
}

impl Budget {
    /// Takes bytes for a user, who leaves others their share of the room unless it is a master of the server.
    fn reserve(self: &Arc<Self>, peer: Peer, bytes: u64) -> Result<Reserved, Error> {
        let mut held = self.lock();
        let held_bytes: u64 = held.values().sum();
        let free_bytes = self.limit_bytes.saturating_sub(held_bytes);
        if bytes > free_bytes {
            let limit_bytes = self.limit_bytes;
            return Err(Error::MappedFull { wanted_bytes: bytes, held_bytes, limit_bytes });
        }
        let own_bytes = held.get(&peer.uid).copied().unwrap_or(0);
        let limit_bytes = (free_bytes + own_bytes) / MAPPED_SHARE_PER_UID;
        if !peer.is_master && own_bytes + bytes > limit_bytes {
            return Err(Error::MappedShare { wanted_bytes: bytes, own_bytes, limit_bytes });
        }
        held.insert(peer.uid, own_bytes + bytes);
        Ok(Reserved { budget: Arc::clone(self), uid: peer.uid, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        // Nothing that changes it can panic half-way.
        self.held_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        if let Entry::Occupied(mut own) = held.entry(self.uid) {
            *own.get_mut() -= self.bytes;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

impl MappedRam {
    fn progress(&self) -> MapProgress {
        MapProgress {
            size_bytes: self.size_bytes,
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            ..MapProgress::default()
        }
    }

    /// Reads all of an image into a memfd, a few reads at once, and seals it. What reads as zeros is not written and takes no
    /// memory.
    async fn inflate(&self, image: &Arc<Image>, budget: &Arc<Budget>, owner: Peer) -> Result<Sealed, Error> {
        self.done_bytes.store(0, Ordering::Relaxed);
        let reserved = budget.reserve(owner, data_bytes(image).await?)?;
        let file = Arc::new(memfd(self.size_bytes).map_err(mapped)?);
        let mut reads = JoinSet::new();
        for start_bytes in (0..self.size_bytes).step_by(MAPPED_READ_BYTES as usize) {
            if reads.len() >= MAPPED_READS_MAX {
                self.advance(&mut reads).await?;
            }
            let length_bytes = MAPPED_READ_BYTES.min(self.size_bytes - start_bytes);
            reads.spawn(copy(Arc::clone(image), Arc::clone(&file), start_bytes, length_bytes));
        }
        while !reads.is_empty() {
            self.advance(&mut reads).await?;
        }
        fcntl_add_seals(&file, SEALS).map_err(mapped)?;
        let memfd = Arc::try_unwrap(file).map_err(|_| Error::Mapped(io::Error::other("a read has not ended")))?;
        Ok(Sealed { memfd: memfd.into(), reserved })
    }

    async fn advance(&self, reads: &mut JoinSet<Result<u64, Error>>) -> Result<(), Error> {
        if let Some(read) = reads.join_next().await {
            let length_bytes = read.map_err(|error| Error::Runtime(io::Error::other(error)))??;
            self.done_bytes.fetch_add(length_bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl HandOver {
    /// Hands `ram` over to who connects and is its owner, root, or the server's user, until `end`.
    pub(super) fn start(ram: Arc<MappedRam>, listener: Listener, owner: u32, end: CancellationToken) -> Self {
        let socket = listener.to_string();
        let given = Arc::clone(&ram);
        tokio::spawn(async move {
            if let Listener::Unix(socket, _file) = listener {
                end.run_until_cancelled(serve(&socket, &given, owner)).await;
            }
        });
        Self { ram, socket }
    }

    /// Bytes of it that are not zero pages.
    pub(super) fn held_bytes(&self) -> u64 {
        self.ram.sealed.get().map_or(0, |sealed| sealed.reserved.bytes)
    }
}

/// Gives a memfd to each who connects, one after the other: sending it does not wait for them.
async fn serve(socket: &UnixListener, ram: &MappedRam, owner: u32) {
    loop {
        let accepted = async {
            let (stream, _) = socket.accept().await?;
            let uid = stream.peer_cred()?.uid();
            Ok::<_, io::Error>((stream, uid))
        };
        match accepted.await {
            Ok((_, uid)) if !Peer::new(uid).may_use(owner) => {
                tracing::warn!(uid, "another user is not given saved memory");
            }
            Ok((stream, _)) => {
                let sent = timeout(HAND_OVER_TIMEOUT, give(&stream, ram)).await;
                if let Err(error) = sent.map_err(io::Error::from).flatten() {
                    tracing::debug!(%error, "saved memory is not handed over");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept who wants saved memory");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Sends one byte, and the memfd with it.
async fn give(stream: &UnixStream, ram: &MappedRam) -> io::Result<()> {
    let sealed = ram.sealed.get().ok_or(io::ErrorKind::NotFound)?;
    let fds = [sealed.memfd.as_fd()];
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        Ok(sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?)
    };
    stream.async_io(Interest::WRITABLE, send).await?;
    Ok(())
}

/// Copies a part of an image into a file, without its zeros.
async fn copy(image: Arc<Image>, file: Arc<File>, start_bytes: u64, length_bytes: u64) -> Result<u64, Error> {
    let mut at_bytes = start_bytes;
    for piece in image.read_unrecorded(start_bytes, length_bytes).await? {
        if let Piece::Data(data) = &piece {
            file.write_all_at(data, at_bytes).map_err(Error::Mapped)?;
        }
        at_bytes += piece.len();
    }
    Ok(length_bytes)
}

/// Bytes of an image that are not holes.
async fn data_bytes(image: &Image) -> Result<u64, Error> {
    let (mut at_bytes, mut data_bytes) = (0, 0);
    while at_bytes < image.size_bytes() {
        for extent in image.extents(at_bytes, image.size_bytes() - at_bytes, EXTENTS_MAX).await? {
            data_bytes += if extent.hole { 0 } else { extent.length };
            at_bytes += extent.length;
        }
    }
    Ok(data_bytes)
}

/// Whether all of an image is on this host.
async fn is_here(image: &Image) -> Result<bool, Error> {
    let mut at_bytes = 0;
    while at_bytes < image.size_bytes() {
        for run in image.residency(at_bytes, image.size_bytes() - at_bytes, EXTENTS_MAX).await? {
            if run.remote {
                return Ok(false);
            }
            at_bytes += run.length;
        }
    }
    Ok(true)
}

/// A memfd of zeros that can be sealed.
fn memfd(size_bytes: u64) -> rustix::io::Result<File> {
    let memfd = memfd_create(MEMFD_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memfd, size_bytes)?;
    Ok(File::from(memfd))
}

/// Makes a memfd of `size_bytes` zeros that is sealed like saved RAM which VMs map: to see whether this host can.
///
/// # Errors
/// When the kernel has no such files, or does not let this process have one.
pub fn sealed_zeros(size_bytes: u64) -> io::Result<File> {
    let file = memfd(size_bytes)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

/// Bytes of saved RAM that a server of this host holds at most for VMs to map, unless it is told otherwise.
#[must_use]
pub fn mapped_bytes_default() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into()) / MAPPED_SHARE_OF_HOST
}

fn mapped(error: rustix::io::Errno) -> Error {
    Error::Mapped(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_always_leaves_room_for_the_next() {
        let budget = Arc::new(Budget { limit_bytes: 100, held_bytes: Mutex::default() });
        let user = |uid| Peer { uid, is_master: false };
        let refused = |uid, bytes| match budget.reserve(user(uid), bytes).unwrap_err() {
            Error::MappedShare { own_bytes, limit_bytes, .. } => (own_bytes, limit_bytes),
            other => panic!("{other}"),
        };
        assert_eq!(refused(1, 51), (0, 50));
        let first = [30, 20].map(|bytes| budget.reserve(user(1), bytes).unwrap());
        assert_eq!(refused(1, 1), (50, 50));
        assert_eq!(refused(2, 26), (0, 25));
        let second = budget.reserve(user(2), 25).unwrap();
        // Others have left it less than it has.
        assert_eq!(refused(1, 1), (50, 37));
        let master = budget.reserve(Peer { uid: 0, is_master: true }, 25).unwrap();
        assert!(matches!(budget.reserve(user(3), 1), Err(Error::MappedFull { held_bytes: 100, .. })));
        drop((first, second, master));
        assert!(budget.lock().is_empty());
        drop(budget.reserve(user(2), 50).unwrap());
    }
}
