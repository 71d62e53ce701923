//! The user, and what the system gives its processes.

use indicatif::HumanBytes;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit};
use vmnetx_nbd::control::Control;

use super::filesystem::{Filesystem, Kind};
use super::limits::{OPEN_FILES_MIN, RUN_DIR_FREE_BYTES_MIN};
use super::{Check, Finding, State};
use crate::registry::Registry;
use crate::server;
use crate::vm::{self, RunDir};

/// Whom QEMU runs as.
pub(super) fn user() -> Finding {
    match geteuid().as_raw() {
        0 => Finding::limited(
            Check::User,
            "root: QEMU runs as the user who starts it, so a guest that breaks out of it would have the host",
            "run vmnetx as another user where you can",
        ),
        uid => Finding::good(Check::User, format!("QEMU runs as user {uid}, who starts it")),
    }
}

/// The directory of a run: whether there can be one, with sockets in it and room for what guests write.
pub(super) fn run_directory(made: &Result<RunDir, vm::Error>) -> Finding {
    let run_dir = match made {
        Ok(run_dir) => run_dir,
        Err(error) => {
            let found = Finding::of_error(Check::RunDirectory, State::Missing, error);
            return Finding {
                advice: Some("set TMPDIR to a directory on a disk that you may write to".into()),
                ..found
            };
        }
    };
    // A private server has sockets with longer paths than the run's own.
    match run_dir.socket(server::PRIVATE_CONTROL).map(Control::new) {
        Ok(control) if server::has_room_for_sockets(&control) => {}
        Ok(_) => {
            return Finding::limited(
                Check::RunDirectory,
                format!("the path of {} is too long for the sockets of a private server", run_dir.path().display()),
                "set TMPDIR to a directory with a shorter path",
            );
        }
        Err(error) => return Finding::of_error(Check::RunDirectory, State::Missing, &error),
    }
    let base = run_dir.path().parent().unwrap_or(run_dir.path());
    match Filesystem::of(base) {
        Ok(filesystem) => room_for_overlays(&base.display().to_string(), filesystem),
        Err(error) => Finding::limited(
            Check::RunDirectory,
            format!("what is free in {} cannot be told: {error}", base.display()),
            "set TMPDIR to another directory",
        ),
    }
}

fn room_for_overlays(base: &str, Filesystem { kind, free_bytes }: Filesystem) -> Finding {
    let free = HumanBytes(free_bytes);
    match kind {
        Kind::Memory => Finding::limited(
            Check::RunDirectory,
            format!("{base} is in memory, and so would be what guests write ({free} are free)"),
            "set TMPDIR to a directory on a disk",
        ),
        _ if free_bytes < RUN_DIR_FREE_BYTES_MIN => Finding::limited(
            Check::RunDirectory,
            format!("only {free} are free in {base}; a guest that has written so much stands still"),
            "make room, or set TMPDIR to a directory with more",
        ),
        _ => Finding::good(Check::RunDirectory, format!("{base}: {free} are free for what guests write")),
    }
}

/// How many files a server may have open; it raises its own limit as far as it may.
pub(super) fn open_files() -> Finding {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    enough_files(maximum)
}

fn enough_files(maximum: Option<u64>) -> Finding {
    match maximum {
        Some(files) if files < OPEN_FILES_MIN => Finding::limited(
            Check::OpenFiles,
            format!("{files} at most: a server that many VMs share runs out of them, and they wait for each other"),
            format!("raise the hard limit of open files to {OPEN_FILES_MIN} (LimitNOFILE=, limits.conf, ulimit -Hn)"),
        ),
        Some(files) => Finding::good(Check::OpenFiles, format!("{files} at most")),
        None => Finding::good(Check::OpenFiles, "as many as there are"),
    }
}

/// Whether VMs can be found by their names.
pub(super) fn vm_names() -> Finding {
    let listed = Registry::of_user().and_then(|registry| registry.list());
    match listed {
        Ok(entries) if entries.is_empty() => Finding::good(Check::VmNames, "no VM of yours runs"),
        Ok(entries) => {
            let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
            Finding::good(Check::VmNames, format!("these run: {}", names.join(", ")))
        }
        Err(error) => {
            let found = Finding::of_error(Check::VmNames, State::Limited, &error);
            Finding { found: format!("`capture` finds no VM by its name: {}", found.found), ..found }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_are_limiting() {
        assert_eq!(enough_files(Some(1024)).state, State::Limited);
        assert_eq!(enough_files(Some(OPEN_FILES_MIN)).state, State::Good);
        assert_eq!(enough_files(None).state, State::Good);
    }

    #[test]
    fn overlays_want_a_disk_with_room() {
        let state = |kind, free_bytes| room_for_overlays("/x", Filesystem { kind, free_bytes }).state;
        assert_eq!(state(Kind::Local, RUN_DIR_FREE_BYTES_MIN), State::Good);
        assert_eq!(state(Kind::Local, RUN_DIR_FREE_BYTES_MIN - 1), State::Limited);
        assert_eq!(state(Kind::Memory, u64::MAX), State::Limited);
    }

    #[test]
    fn a_run_directory_must_be_there_and_have_a_short_path() {
        let folder = tempfile::tempdir().unwrap();
        // A run directory adds 18 bytes to it.
        let at = |path_bytes: usize| {
            let base = folder.path().join("x".repeat(path_bytes - folder.path().as_os_str().len() - 1));
            std::fs::create_dir(&base).unwrap();
            run_directory(&RunDir::create(&base))
        };
        for (path_bytes, state) in [(50, State::Good), (70, State::Limited), (90, State::Missing)] {
            let finding = at(path_bytes);
            assert_eq!(finding.state, state, "{}", finding.found);
            assert_eq!(finding.advice.is_some(), state != State::Good);
        }
        let finding = run_directory(&RunDir::create(std::path::Path::new("/nonexistent")));
        assert!(finding.state == State::Missing && finding.found.contains("/nonexistent"), "{}", finding.found);
    }
}
