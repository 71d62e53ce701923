//! How saved VMs can be resumed here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use indicatif::HumanBytes;
use vmnetx_nbd::{mapped_bytes_default, sealed_zeros};

use super::limits::{PROC_BYTES_MAX, QEMU_MAJOR_OF_DEVICE, TRIAL_BYTES};
use super::{Check, Finding};
use crate::vm::Abilities;

/// Whom the kernel lets have userfaultfd.
const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";
/// Another way to it, for whoever may open this.
const DEVICE: &str = "/dev/userfaultfd";

/// What this host says of userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Userfaultfd {
    is_root: bool,
    /// Whether every user may have it; nothing if the kernel has no such thing.
    is_for_all: Option<bool>,
    has_device: bool,
}

impl Userfaultfd {
    fn of_host() -> Self {
        let sysctl = File::open(SYSCTL).and_then(|file| {
            let mut text = String::new();
            file.take(PROC_BYTES_MAX).read_to_string(&mut text).map(|_| text)
        });
        Self {
            is_root: rustix::process::geteuid().is_root(),
            is_for_all: sysctl.ok().map(|text| text.trim() == "1"),
            has_device: Path::new(DEVICE).exists(),
        }
    }
}

/// All of the memory first: needs nothing but a QEMU.
pub(super) fn stream() -> Finding {
    Finding::good(Check::Stream, "the guest runs when all of its memory has come; needs nothing")
}

/// The guest first: QEMU was asked whether the host lets it.
pub(super) fn lazy(abilities: &Abilities) -> Finding {
    match &abilities.lazy {
        Ok(()) => Finding::good(Check::Lazy, "the guest runs at once and its memory follows: QEMU may use userfaultfd"),
        Err(words) => Finding::limited(
            Check::Lazy,
            format!("saved VMs are resumed in other ways, for QEMU may not use userfaultfd: {words}"),
            advice(Userfaultfd::of_host(), abilities.version.major),
        ),
    }
}

fn advice(host: Userfaultfd, qemu_major: u32) -> String {
    let for_all = "allow it to all users: sysctl vm.unprivileged_userfaultfd=1";
    match host {
        Userfaultfd { is_for_all: None, .. } => "this kernel has none (CONFIG_USERFAULTFD); use another".to_owned(),
        Userfaultfd { is_root: true, .. } | Userfaultfd { is_for_all: Some(true), .. } => {
            "the kernel would let it: a container's filter of system calls forbids it, or QEMU was built without it"
                .to_owned()
        }
        Userfaultfd { has_device: true, .. } if qemu_major >= QEMU_MAJOR_OF_DEVICE => {
            format!("{for_all}; or let a group open {DEVICE} that you are in; or run as root")
        }
        _ => format!("{for_all}; or run as root"),
    }
}

/// From memory that VMs share: it is made here as a server makes it, and opened as QEMU opens it.
pub(super) fn mapped() -> Finding {
    match share() {
        Ok(()) => Finding::good(
            Check::Mapped,
            format!(
                "VMs share saved memory that is all here; a server holds {} at most, unless --mapped-memory says otherwise",
                HumanBytes(mapped_bytes_default())
            ),
        ),
        Err(error) => Finding::limited(
            Check::Mapped,
            format!("saved memory cannot be shared: {error}"),
            "memfd_create(2) with sealing must be allowed, and /proc mounted",
        ),
    }
}

fn share() -> io::Result<()> {
    let sealed = sealed_zeros(TRIAL_BYTES)?;
    let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
    // As QEMU 7.2 does, although it maps it privately.
    fs::OpenOptions::new().read(true).write(true).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn advice_is_what_would_help_here() {
        let plain = Userfaultfd { is_root: false, is_for_all: Some(false), has_device: true };
        assert!(advice(plain, 7).contains("sysctl") && !advice(plain, 7).contains(DEVICE));
        assert!(advice(plain, 10).contains("sysctl") && advice(plain, 10).contains(DEVICE));
        assert!(!advice(Userfaultfd { has_device: false, ..plain }, 10).contains(DEVICE));
        assert!(advice(Userfaultfd { is_for_all: None, ..plain }, 10).contains("CONFIG_USERFAULTFD"));
        for forbidden in [Userfaultfd { is_root: true, ..plain }, Userfaultfd { is_for_all: Some(true), ..plain }] {
            assert!(advice(forbidden, 7).contains("container"));
        }
    }

    #[test]
    fn memory_can_be_shared_here() {
        share().unwrap();
        assert_eq!(mapped().state, State::Good);
    }
}
