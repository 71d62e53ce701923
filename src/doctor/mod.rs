//! What this host can do for a VM and what it cannot: findings, each with its reason and with what to do about it.
//!
//! What can be tried is tried, and what that takes is gone afterwards: QEMU starts in its sandbox and is asked what it can, also whether the
//! host lets it have memory lazily; KVM runs a trial guest; memory is sealed; a file is written and locked where chunks are kept. Each
//! check looks, and then judges in a function of its own that does no I/O.

mod cache;
mod filesystem;
mod finding;
mod host;
mod limits;
mod package;
mod qemu;
mod resume;

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::Manifest;

pub use finding::{Check, Finding, State};
pub use package::PackageReport;

use self::limits::PROC_BYTES_MAX;
use self::package::Host;
use self::qemu::Tried;
#[cfg(feature = "libvirt")]
use crate::libvirt::{self, Uri};
use crate::server::{Lease, Wanted};
use crate::vm::{Abilities, RunDir, Searched};

/// What a run would be told.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The QEMU to run: a path, or a name to look for in PATH.
    pub(crate) qemu: PathBuf,
    /// The server to read through.
    pub(crate) through: Wanted,
    /// Bytes of chunks that are to be kept.
    pub(crate) disk_bytes: u64,
    /// Which libvirt would run VMs.
    #[cfg(feature = "libvirt")]
    pub(crate) libvirt: Uri,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether VMs can be run here.
    pub can_run: bool,
    /// What was looked at, in a fixed order; each check once.
    pub findings: Vec<Finding>,
    /// What was found of the package that was asked about, if there was one and it could be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageReport>,
}

/// A host that was examined.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) report: Report,
    tried: Option<Tried>,
}

/// Examines this host. Takes some seconds at most.
pub(crate) async fn examine(asked: &Asked) -> Examined {
    let run_dir = RunDir::temporary().await;
    let searched = Searched::new(&asked.qemu);
    let mut findings = vec![host::user(), host::run_directory(&run_dir)];
    let tried = qemu::look(&searched, run_dir.as_ref().ok()).await;
    let abilities = tried.as_ref().and_then(|tried| tried.abilities.as_ref().ok());
    findings.extend([qemu::qemu(&searched.qemu, abilities), qemu::tools(&searched.qemu_img, &searched.setpriv)]);
    findings.push(tried.as_ref().map_or(Finding::untried(Check::Sandbox), |tried| qemu::sandbox(&tried.abilities)));
    let by_abilities = |check, judge: fn(&Abilities) -> Finding| abilities.map_or(Finding::untried(check), judge);
    findings.push(by_abilities(Check::Machines, qemu::machines));
    findings.push(match &tried {
        Some(tried) => qemu::acceleration(&tried.obstacle),
        None => Finding::untried(Check::Acceleration),
    });
    findings.push(by_abilities(Check::Stream, |_| resume::stream()));
    findings.push(by_abilities(Check::Lazy, resume::lazy));
    findings.push(resume::mapped());
    findings.push(cache::cache_directory(&asked.through, asked.disk_bytes));
    findings.push(cache::server(&asked.through).await);
    findings.extend([host::open_files(), host::vm_names()]);
    #[cfg(feature = "libvirt")]
    findings.push(of_libvirt(&asked.libvirt).await);
    let report = Report { can_run: can_run(&findings), findings, package: None };
    Examined { report, tried }
}

impl Examined {
    /// Looks at the package that is attached, with its memory, if this host runs VMs at all.
    pub(crate) async fn examine_package(&mut self, lease: &Lease, manifest: &Manifest) {
        let Some(tried) = &self.tried else { return };
        let Ok(abilities) = &tried.abilities else { return };
        let accelerator = tried.accelerator().recorded();
        let host = Host { abilities, accelerator, available_bytes: available_bytes() };
        self.report.package = Some(package::examine(lease, manifest, &host).await);
    }
}

/// Whether a VM runs where this was found.
fn can_run(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != State::Missing)
}

#[cfg(feature = "libvirt")]
async fn of_libvirt(uri: &Uri) -> Finding {
    match libvirt::reach(uri).await {
        Ok(()) => Finding::good(Check::Libvirt, format!("{uri} answers, for --backend libvirt")),
        Err(error) => {
            let finding = Finding::of_error(Check::Libvirt, State::Limited, &error);
            Finding { found: format!("--backend libvirt cannot be used: {}", finding.found), ..finding }
        }
    }
}

/// Bytes of memory that programs may still have before the host swaps, if the kernel tells.
fn available_bytes() -> Option<u64> {
    let mut text = String::new();
    File::open("/proc/meminfo").ok()?.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    available_in(&text)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_what_the_kernel_says() {
        let text = "MemTotal:       24684000 kB\nMemFree:  1 kB\nMemAvailable:   23777280 kB\n";
        assert_eq!(available_in(text), Some(23_777_280 * 1024));
        assert_eq!(available_in("MemTotal: 5 kB\n"), None);
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn one_thing_that_is_missing_is_enough() {
        let (good, limited) = (Finding::good(Check::User, ""), Finding::limited(Check::Lazy, "", ""));
        assert!(can_run(&[good.clone(), limited.clone()]));
        assert!(!can_run(&[good, limited, Finding::missing(Check::Qemu, "", ""), Finding::untried(Check::Sandbox)]));
    }
}
