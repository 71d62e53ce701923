//! The private directory of one run: sockets and temporary overlays, gone when the run is over.
//!
//! The directory itself is locked (flock) for as long as its run lives. What a killed run leaves behind is therefore
//! known by its free lock, and the next run removes it. systemd-tmpfiles, too, keeps away from locked directories.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use super::error::Error;
use super::limits::{RUN_DIR_ATTEMPTS, SOCKET_PATH_BYTES_MAX};

const PREFIX: &str = "vmnetx-run-";

/// A directory that only this user may enter, removed with all that is in it on drop.
#[derive(Debug)]
pub struct RunDir {
    // Removed first, unlocked last.
    directory: TempDir,
    _lock: File,
}

impl RunDir {
    /// Creates a directory in `base`, which should be on a disk (temporary overlays grow in it), and removes what killed
    /// runs of this user left there. Blocks.
    ///
    /// # Errors
    /// [`Error::RunDir`].
    pub fn create(base: &Path) -> Result<Self, Error> {
        let failed = |source| Error::RunDir { base: base.to_owned(), source };
        // QEMU's options need whole paths.
        let base = fs::canonicalize(base).map_err(failed)?;
        sweep(&base).map_err(failed)?;
        for _ in 0..RUN_DIR_ATTEMPTS {
            let mut builder = tempfile::Builder::new();
            let directory =
                builder.prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir_in(&base).map_err(failed)?;
            if let Some(lock) = lock(directory.path()).map_err(failed)? {
                return Ok(Self { directory, _lock: lock });
            }
        }
        Err(failed(io::Error::other("other processes remove it as soon as it is there")))
    }

    /// Creates a directory where this user's temporary files belong that may grow large: /tmp is often in memory.
    ///
    /// # Errors
    /// [`Error::RunDir`].
    pub async fn temporary() -> Result<Self, Error> {
        let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
        let base = named.map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let created = tokio::task::spawn_blocking(move || Self::create(&base)).await;
        created.map_err(|error| Error::io("create a directory for this run", io::Error::other(error)))?
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of a file in the directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The path of a Unix socket in the directory. The launcher's own are `monitor`, `control`, `agent`,
    /// `serial` and `vnc`.
    ///
    /// # Errors
    /// [`Error::SocketPath`] when it is too long for one.
    pub fn socket(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.file(name);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX { Err(Error::SocketPath(path)) } else { Ok(path) }
    }
}

/// Removes the directories in `base` that belonged to runs of this user which are no more.
fn sweep(base: &Path) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(base)? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // Another user's directory of that name is none of our business, and one that vanishes needs no sweeping.
        let ours = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user);
        if !ours {
            continue;
        }
        if let Ok(Some(_lock)) = lock(&path) {
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::debug!(path = %path.display(), "removed what a killed run left behind"),
                Err(error) => tracing::debug!(path = %path.display(), %error, "cannot remove what a killed run left"),
            }
        }
    }
    Ok(())
}

/// Locks the directory at `path`. `None` when another process has it locked or has removed it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match directory.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // A sweeper may have removed it between our opening and our locking.
    let held = directory.metadata()?;
    let there = fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
    Ok(there.then_some(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_and_gone_in_the_end() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(base.path()).unwrap();
        let file = run_dir.file("overlay");
        fs::write(&file, "data").unwrap();
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        drop(run_dir);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweeps_what_is_dead_and_leaves_what_lives() {
        let base = tempfile::tempdir().unwrap();
        let living = RunDir::create(base.path()).unwrap();
        let dead = base.path().join("vmnetx-run-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("overlay"), "data").unwrap();
        let victim = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(victim.path(), base.path().join("vmnetx-run-link")).unwrap();
        fs::create_dir(base.path().join("other")).unwrap();
        let second = RunDir::create(base.path()).unwrap();
        assert!(!dead.exists());
        assert!(living.directory.path().exists() && second.directory.path().exists());
        assert!(victim.path().exists() && base.path().join("other").exists());
    }

    #[test]
    fn says_where_no_directory_can_be() {
        let error = RunDir::create(Path::new("/nonexistent/base")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/base"), "{error}");
    }

    #[test]
    fn a_socket_path_fits_its_address() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(base.path()).unwrap();
        assert!(run_dir.socket("qmp").is_ok());
        assert!(matches!(run_dir.socket(&"x".repeat(100)), Err(Error::SocketPath(_))));
    }
}
