//! The cache directory and the server that VMs read through, as a run would find them.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{Access, access};
use vmnetx_nbd::cli::control_socket;
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::Versions;
use vmnetx_store::failure::describe;

use super::filesystem::{Filesystem, Kind};
use super::{Check, Finding};
use crate::server::{self, Found, Wanted};
use crate::vm::qmp::shown;

/// What a cache directory is like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    dir: PathBuf,
    /// Else it would be made.
    exists: bool,
    filesystem: Filesystem,
    /// Bytes that are in it already.
    kept_bytes: u64,
}

/// The directory that chunks are kept in, up to `disk_bytes`.
pub(super) fn cache_directory(wanted: &Wanted, disk_bytes: u64) -> Finding {
    match wanted {
        Wanted::Given(socket) => {
            Finding::good(Check::CacheDirectory, format!("the one of the server at {}", socket.display()))
        }
        Wanted::Private => Finding::limited(
            Check::CacheDirectory,
            "none: every run fetches what it needs anew",
            "name one with --cache-dir, or set XDG_CACHE_HOME or HOME; and leave out --disk-cache 0",
        ),
        Wanted::Shared { dir, is_named } => match look(dir) {
            Ok(seen) => judge(&seen, disk_bytes),
            Err(error) => {
                let found = format!("{} cannot be used: {error}", dir.display());
                let advice = "name one of yours on a disk of this host with --cache-dir";
                match is_named {
                    true => Finding::missing(Check::CacheDirectory, found, advice),
                    // Then a run has a server of its own.
                    false => {
                        Finding::limited(Check::CacheDirectory, format!("{found}; every run fetches anew"), advice)
                    }
                }
            }
        },
    }
}

/// Looks at a directory that is there or can be made. Nothing is left in it.
fn look(dir: &Path) -> io::Result<Seen> {
    let (dir, exists) = match server::whole(dir) {
        Ok(dir) => (dir, true),
        Err(error) if error.kind() == ErrorKind::NotFound => (std::path::absolute(dir)?, false),
        Err(error) => return Err(error),
    };
    if !server::has_room_for_sockets(&Control::new(control_socket(&dir))) {
        return Err(io::Error::other("its path is too long for sockets in it"));
    }
    let there = if exists { dir.as_path() } else { ancestor(&dir)? };
    let kept_bytes = if exists { try_out(&dir).and_then(|()| bytes_of_files(&dir))? } else { 0 };
    let filesystem = Filesystem::of(there)?;
    Ok(Seen { dir, exists, filesystem, kept_bytes })
}

/// The nearest directory that is there, in which others can be made.
fn ancestor(dir: &Path) -> io::Result<&Path> {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", there.display()));
    if !there.is_dir() {
        return Err(named(ErrorKind::NotADirectory.into()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| named(errno.into()))?;
    Ok(there)
}

/// Writes and locks a file, as the disk tier does.
fn try_out(dir: &Path) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".vmnetx-").tempfile_in(dir)?;
    file.write_all(b"vmnetx")?;
    file.as_file().try_lock().map_err(io::Error::from)
}

fn bytes_of_files(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0_u64;
    for entry in fs::read_dir(dir)? {
        // One that goes away meanwhile takes no room.
        let metadata = entry?.metadata().ok().filter(fs::Metadata::is_file);
        bytes = bytes.saturating_add(metadata.map_or(0, |metadata| metadata.len()));
    }
    Ok(bytes)
}

fn judge(seen: &Seen, disk_bytes: u64) -> Finding {
    let Seen { dir, exists, filesystem: Filesystem { kind, free_bytes }, kept_bytes } = seen;
    let (dir, made) = (dir.display(), if *exists { "" } else { " (to be made)" });
    let [free, kept, limit] = [*free_bytes, *kept_bytes, disk_bytes].map(HumanBytes);
    let limited = |found, advice| Finding::limited(Check::CacheDirectory, found, advice);
    match kind {
        Kind::Network(name) => limited(
            format!("{dir}{made} is on {name}: what is kept there crosses the network again, and locks may not hold"),
            "name a directory on a disk of this host with --cache-dir",
        ),
        Kind::Memory => limited(
            format!("{dir}{made} is in memory: it takes {limit} of it at most, and is gone with the next start"),
            "name a directory on a disk with --cache-dir, or keep less with --disk-cache",
        ),
        Kind::Local if kept_bytes.saturating_add(*free_bytes) < disk_bytes => limited(
            format!(
                "{dir}{made}: {free} are free, and {kept} kept of {limit} at most; when the disk is full, no more is kept"
            ),
            "make room, name another directory with --cache-dir, or keep less with --disk-cache",
        ),
        Kind::Local => Finding::good(
            Check::CacheDirectory,
            format!("{dir}{made}: {kept} kept of {limit} at most, {free} are free"),
        ),
    }
}

/// The server that answers now.
pub(super) async fn server(wanted: &Wanted) -> Finding {
    match wanted {
        Wanted::Private => Finding::good(Check::Server, "each run starts one of its own"),
        Wanted::Given(socket) => named(look_at(&Control::new(socket)).await, socket),
        Wanted::Shared { dir, .. } => {
            let dir = server::whole(dir).unwrap_or_else(|_| dir.clone());
            of_directory(look_at(&Control::new(control_socket(&dir))).await)
        }
    }
}

async fn look_at(control: &Control) -> Result<Found, String> {
    server::look(control).await.map_err(|error| describe(&error))
}

/// A server that was named must be there.
fn named(found: Result<Found, String>, socket: &Path) -> Finding {
    let missing = |found| Finding::missing(Check::Server, found, "name another one, or none, and one is started");
    match found {
        Ok(Found::Fit(versions)) => fit(&versions),
        Ok(Found::Unfit(versions)) => missing(unfit(&versions)),
        Ok(Found::Nobody) => missing(format!("none listens at {}", socket.display())),
        Err(words) => missing(words),
    }
}

/// Another server takes the place of a cache directory's.
fn of_directory(found: Result<Found, String>) -> Finding {
    match found {
        Ok(Found::Fit(versions)) => fit(&versions),
        Ok(Found::Nobody) => Finding::good(Check::Server, "none runs; the first run starts it"),
        Ok(Found::Unfit(versions)) => Finding::limited(
            Check::Server,
            format!("{}; a run has one of its own meanwhile", unfit(&versions)),
            "end the VMs that use it; `vmnetx nbd drain` lets it end with the last of them",
        ),
        Err(words) => Finding::limited(
            Check::Server,
            format!("it does not answer as it should: {words}"),
            "see whether it is about to start or to end; its words are in server.log in the cache directory",
        ),
    }
}

fn fit(versions: &Versions) -> Finding {
    Finding::good(Check::Server, format!("version {}, process {}", shown(&versions.program), versions.pid))
}

fn unfit(versions: &Versions) -> String {
    let why = server::unfit(versions).unwrap_or("cannot be used");
    format!("the server (version {}, process {}) {why}", shown(&versions.program), versions.pid)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn seen(kind: Kind, free_bytes: u64, kept_bytes: u64) -> Seen {
        Seen { dir: "/c".into(), exists: true, filesystem: Filesystem { kind, free_bytes }, kept_bytes }
    }

    #[test]
    fn a_directory_is_good_on_a_disk_with_room_for_all_that_may_be_kept() {
        let finding = |kind, free_bytes, kept_bytes| judge(&seen(kind, free_bytes, kept_bytes), 1 << 30);
        assert_eq!(finding(Kind::Local, 1 << 30, 0).state, State::Good);
        assert_eq!(finding(Kind::Local, 1 << 20, 1 << 30).state, State::Good, "it is full and need not grow");
        assert_eq!(finding(Kind::Local, 1 << 29, 1 << 20).state, State::Limited);
        assert_eq!(finding(Kind::Memory, 1 << 40, 0).state, State::Limited);
        let finding = finding(Kind::Network("NFS"), 1 << 40, 0);
        assert!(finding.state == State::Limited && finding.found.contains("NFS"));
    }

    #[test]
    fn what_is_looked_at_stays_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let absent = look(&base.path().join("a/b")).unwrap();
        assert!(!absent.exists && absent.filesystem.free_bytes > 0);
        let dir = base.path().canonicalize().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing was made");
        fs::write(dir.join("000000000000.segment"), "0123456789").unwrap();
        fs::create_dir(dir.join("objects")).unwrap();
        let there = look(&dir).unwrap();
        assert_eq!((there.dir, there.exists, there.kept_bytes), (dir.clone(), true, 10));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_missed_by_who_named_it() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("file"), "").unwrap();
        for dir in [base.path().join("file"), base.path().join("file/below"), base.path().join("x".repeat(90))] {
            let finding = |is_named| cache_directory(&Wanted::Shared { dir: dir.clone(), is_named }, 1);
            assert_eq!(finding(true).state, State::Missing, "{}", finding(true).found);
            assert_eq!(finding(false).state, State::Limited);
            assert!(finding(false).found.contains(&dir.display().to_string()));
        }
        assert_eq!(cache_directory(&Wanted::Private, 1).state, State::Limited);
    }

    #[test]
    fn a_server_that_is_named_must_be_there_and_fit() {
        let versions = Versions { api: vec![99], program: "99.0".into(), pid: 7, draining: false };
        let all = || {
            [Ok(Found::Fit(versions.clone())), Ok(Found::Unfit(versions.clone())), Ok(Found::Nobody), Err("?".into())]
        };
        let states = all().map(|found| named(found, Path::new("/s")).state);
        assert_eq!(states, [State::Good, State::Missing, State::Missing, State::Missing]);
        let states = all().map(|found| of_directory(found).state);
        assert_eq!(states, [State::Good, State::Limited, State::Good, State::Limited]);
        let finding = of_directory(Ok(Found::Unfit(versions)));
        assert!(finding.found.contains("99.0") && finding.found.contains("another version"), "{}", finding.found);
    }
}
