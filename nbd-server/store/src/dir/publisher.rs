//! The publisher: the one process that may add to a repository, and the objects that it writes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use vmnetx_format::{Digest, Envelope, Hasher, link_path};

use super::{
    DirError, LOCK_FILE, OBJECT_FOLDERS, ORDERS_FOLDER, RepositoryDir, TEMPORARY_FOLDER, TOMBSTONES_FILE, Tombstones,
    checked, entries, io_error, sync_directory,
};

/// Bytes of what a publisher writes about itself.
const HOLDER_BYTES_MAX: u64 = 256;

/// Whether to wait for another publisher to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Fail at once.
    No,
    /// Wait for as long as it takes: the user asked for it and can interrupt it.
    Yes,
}

/// The exclusive right to add to a repository, until it is dropped.
#[derive(Debug)]
pub struct Publisher {
    repository: RepositoryDir,
    lock: File,
    serial: AtomicU64,
    /// Folders into which names were entered that may not be on the disk yet.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// Objects that were written, or were there already: perhaps with a tombstone.
    entered: Mutex<BTreeSet<String>>,
}

/// An object that is being written. Dropped without [`TemporaryObject::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct TemporaryObject<'a> {
    publisher: &'a Publisher,
    file: File,
    path: PathBuf,
}

impl Publisher {
    pub(super) fn lock(repository: RepositoryDir, wait: Wait) -> Result<Self, DirError> {
        let path = repository.root.join(LOCK_FILE);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = opened.map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if wait == Wait::No => {
                return Err(DirError::Locked { path: repository.root, holder: holder(&mut lock) });
            }
            Err(rustix::io::Errno::WOULDBLOCK) => flock(&lock, FlockOperation::LockExclusive),
            result => result,
        }
        .map_err(|errno| io_error("lock", &path)(errno.into()))?;
        let publisher =
            Self { repository, lock, serial: AtomicU64::new(0), unsynced: Mutex::default(), entered: Mutex::default() };
        publisher.recover()?;
        publisher.sign_in().map_err(io_error("write", &path))?;
        Ok(publisher)
    }

    /// The repository.
    #[must_use]
    pub const fn repository(&self) -> &RepositoryDir {
        &self.repository
    }

    /// Starts a new object.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn temporary(&self) -> Result<TemporaryObject<'_>, DirError> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.repository.root.join(TEMPORARY_FOLDER).join(format!("{}-{serial}", std::process::id()));
        // Not the tempfile crate: a web server under another account must be able to read what it is renamed to.
        let created = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = created.map_err(io_error("create", &path))?;
        Ok(TemporaryObject { publisher: self, file, path })
    }

    /// A file for what is put together before it is packed; nobody else sees it, and it is gone when it is closed.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn scratch(&self) -> Result<File, DirError> {
        let object = self.temporary()?;
        // Its name goes now, with the object; the file stays for whoever has it open.
        object.file.try_clone().map_err(io_error("open", &object.path))
    }

    /// Writes the whole immutable object at `path`, relative to the repository, whose bytes have the digest `digest`.
    ///
    /// # Errors
    /// [`DirError::Path`]; [`DirError::Io`].
    pub fn put(&self, path: &str, digest: &Digest, bytes: &[u8]) -> Result<(), DirError> {
        let mut object = self.temporary()?;
        object.write_all(bytes).map_err(io_error("write", &object.path))?;
        object.commit(path, digest)
    }

    /// Replaces the link of a package, which makes what it names visible. All objects that were committed before are on
    /// the disk before it is.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn replace_link(&self, envelope: &Envelope) -> Result<(), DirError> {
        self.sync_folders()?;
        self.take_tombstones_away()?;
        self.replace(&link_path(&envelope.link.name), &envelope.encode())
    }

    /// Replaces the tombstones.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn replace_tombstones(&self, tombstones: &Tombstones) -> Result<(), DirError> {
        self.replace(TOMBSTONES_FILE, &tombstones.encode())
    }

    /// Removes the object at `path`, relative to the repository; one that is gone already is no error.
    ///
    /// # Errors
    /// [`DirError::Path`]; [`DirError::Io`].
    pub fn remove(&self, path: &str) -> Result<(), DirError> {
        let path = self.repository.root.join(checked(path)?);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Replaces a file that is not named by its digest.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), DirError> {
        let root = &self.repository.root;
        let mut object = self.temporary()?;
        object.write_all(bytes).map_err(io_error("write", &object.path))?;
        object.file.sync_all().map_err(io_error("flush", &object.path))?;
        let target = root.join(name);
        fs::rename(&object.path, &target).map_err(io_error("replace", &target))?;
        sync_directory(root)
    }

    /// Removes what publishers that died left behind, and makes sure that what they had finished is on the disk: a
    /// version may soon be built on it.
    fn recover(&self) -> Result<(), DirError> {
        let folder = self.repository.root.join(TEMPORARY_FOLDER);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        for (name, kind) in entries(&folder)? {
            if kind.is_file() {
                let path = folder.join(name);
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        let signed_out = self.lock.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if !signed_out {
            let packs = self.repository.root.join("packs");
            let folders = entries(&packs)?.into_iter().filter(|(_, kind)| kind.is_dir());
            let mut unsynced = self.unsynced();
            unsynced.extend(folders.map(|(name, _)| packs.join(name)));
            let folders = OBJECT_FOLDERS.iter().chain([&ORDERS_FOLDER]).map(|folder| self.repository.root.join(folder));
            unsynced.extend(folders.filter(|folder| folder.is_dir()));
        }
        Ok(())
    }

    /// Writes into the lock file who holds it; an empty file says that the last holder ended in good order.
    fn sign_in(&self) -> io::Result<()> {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().into_owned();
        let mut lock = &self.lock;
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "process {} on {host}", std::process::id())
    }

    fn enter(&self, from: &Path, path: &str, digest: &Digest) -> Result<(), DirError> {
        let target = self.repository.root.join(checked(path)?);
        let folder = target.parent().unwrap_or(&self.repository.root);
        let mut unsynced = self.unsynced();
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(io_error("create", folder))?;
            unsynced.extend(folder.parent().map(Path::to_owned));
        }
        drop(unsynced);
        let entered = if is_good(&target, digest) {
            fs::remove_file(from).map_err(io_error("remove", from))
        } else {
            fs::rename(from, &target).map_err(io_error("write", &target))
        };
        self.entered.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        // Only now: a link that is written at the same time must not flush the folder before the name is in it.
        self.unsynced().insert(folder.to_owned());
        entered
    }

    /// What was written is led to in a moment, so the next build may count on it, whatever it was before.
    fn take_tombstones_away(&self) -> Result<(), DirError> {
        let entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.is_empty() {
            return Ok(());
        }
        let before = self.repository.tombstones()?;
        let mut left = before.clone();
        left.retain(|path| !entered.contains(path));
        if left == before { Ok(()) } else { self.replace_tombstones(&left) }
    }

    fn sync_folders(&self) -> Result<(), DirError> {
        let mut unsynced = self.unsynced();
        while let Some(folder) = unsynced.first() {
            sync_directory(folder)?;
            unsynced.pop_first();
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn unsynced_folders(&self) -> BTreeSet<PathBuf> {
        self.unsynced().clone()
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Whoever locks next is then spared the work of `recover`.
        if self.sync_folders().is_ok() {
            let _ = self.lock.set_len(0);
        }
        // Closing the file is not enough: a child that this process has just forked holds it too until it executes.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl TemporaryObject<'_> {
    /// Flushes what was written to the disk and enters it at `path`, relative to the repository. `digest` is that of all
    /// its bytes: an object that is there already and has it is left alone, a damaged one is replaced. The name is
    /// on the disk too once [`Publisher::replace_link`] returns.
    ///
    /// # Errors
    /// [`DirError::Path`]; [`DirError::Io`].
    pub fn commit(self, path: &str, digest: &Digest) -> Result<(), DirError> {
        self.file.sync_all().map_err(io_error("flush", &self.path))?;
        self.publisher.enter(&self.path, path, digest)
    }
}

impl Write for TemporaryObject<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TemporaryObject<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing; a file that cannot be removed is swept by the next publisher.
        let _ = fs::remove_file(&self.path);
    }
}

fn holder(lock: &mut File) -> String {
    let mut text = Vec::new();
    let _ = lock.take(HOLDER_BYTES_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { "a process that has not said which it is".to_owned() } else { text }
}

/// Whether the file at `path` is there with just the bytes that `digest` names.
pub(super) fn is_good(path: &Path, digest: &Digest) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut hasher = Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return hasher.digest() == *digest,
            Ok(count) => hasher.update(&piece[..count]),
            Err(_) => return false,
        }
    }
}
