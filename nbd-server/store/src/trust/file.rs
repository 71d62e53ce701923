//! The file where known links are kept: one for all processes of a user, replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};

use super::known::{Full, KnownLinks, Met, Offer};
use super::{Notice, Trust, TrustError};
use crate::failure::describe;
use crate::limits::{KNOWN_LINKS_BYTES_MAX, STATE_LOCK_PAUSE, STATE_LOCK_TIMEOUT};

/// The file itself.
const FILE: &str = "known-links.json";
/// What it is replaced with. Only who holds the lock writes it, so what a process that died has left is written over.
const NEW_FILE: &str = "known-links.json.new";
/// The file whose lock lets one process at a time change the others.
const LOCK_FILE: &str = "known-links.lock";
/// Which links somebody reads is nobody else's business.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The exclusive right to change the file in `dir`, until it is dropped.
struct Lock<'a> {
    dir: &'a Path,
    /// Its lock ends when it is closed.
    _file: File,
}

/// Compares a link with what is known in `dir`, and remembers what is learned from it.
///
/// # Errors
/// [`TrustError`] when the link is not to be believed, when the file cannot be read, or when it cannot be written and the
/// link is signed. What is learned of one that is not signed can be lost without harm.
pub(super) fn meet(
    dir: &Path,
    trust: &Trust,
    offer: &Offer,
    pointer: Option<&Offer>,
) -> Result<Vec<Notice>, TrustError> {
    // Where nothing has to be written, a directory that cannot be written will do.
    let lock = Lock::take(dir);
    let mut known = read(&dir.join(FILE))?;
    let Met { mut notices, learned } = known.meet(trust, offer, pointer)?;
    if learned && let Err(error) = lock.and_then(|lock| lock.write(&known)) {
        if offer.signer.is_some() {
            return Err(error);
        }
        notices.push(Notice::NotRemembered { object: offer.url.clone(), reason: describe(&error) });
    }
    Ok(notices)
}

fn read(path: &Path) -> Result<KnownLinks, TrustError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KnownLinks::default()),
        opened => opened.map_err(|error| TrustError::state("open", path, error))?,
    };
    let mut bytes = Vec::new();
    let read = file.take(KNOWN_LINKS_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| TrustError::state("read", path, error))?;
    let damaged = |reason| TrustError::StateDamaged { path: path.to_owned(), reason };
    if bytes.len() as u64 > KNOWN_LINKS_BYTES_MAX {
        return Err(damaged(format!("it has more than {KNOWN_LINKS_BYTES_MAX} bytes")));
    }
    KnownLinks::decode(&bytes).map_err(|error| damaged(error.to_string()))
}

impl<'a> Lock<'a> {
    fn take(dir: &'a Path) -> Result<Self, TrustError> {
        let created = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        created.map_err(|error| TrustError::state("create", dir, error))?;
        let path = dir.join(LOCK_FILE);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        let file = opened.map_err(|error| TrustError::state("open", &path, error))?;
        let deadline = Instant::now() + STATE_LOCK_TIMEOUT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { dir, _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(STATE_LOCK_PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(TrustError::StateBusy { path }),
                Err(errno) => return Err(TrustError::state("lock", &path, errno.into())),
            }
        }
    }

    fn write(&self, known: &KnownLinks) -> Result<(), TrustError> {
        let path = self.dir.join(FILE);
        let bytes = known.encode();
        let full = |_: Full| TrustError::StateFull { path: path.clone() };
        known.check_room().map_err(full)?;
        if bytes.len() as u64 > KNOWN_LINKS_BYTES_MAX {
            return Err(full(Full));
        }
        let new = self.dir.join(NEW_FILE);
        write_new(&new, &bytes).map_err(|error| TrustError::state("write", &new, error))?;
        fs::rename(&new, &path).map_err(|error| TrustError::state("replace", &path, error))?;
        let synced = File::open(self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| TrustError::state("flush", self.dir, error))
    }
}

fn write_new(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)?;
    // One that was left behind, or copied by a backup, may have another mode.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}
