//! `doctor`: tells what this host can and cannot do for VMs.

use std::io::Write;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use vmnetx_nbd::control::api::{AttachRequest, NoticeText, OrderUse};
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::trust::TrustArgs;
use vmnetx_store::{LinkArgs, Location, interrupt};

use super::Error;
use super::run::{manifest, request};
use super::through::ThroughArgs;
use crate::doctor::{self, Asked, Check, Examined, Finding, PackageReport, Report, State};
#[cfg(feature = "libvirt")]
use crate::libvirt::Uri;
use crate::server::Lease;

/// Tell what this host can and cannot do for VMs, why, and what to do about it.
///
/// With LINK also whether that package can be run here, and how its saved VM would go on. The exit code is 0 if VMs can be run, be it
/// with limits, and 6 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A package to be judged: an http(s) or vmnetx+http(s) URL, or a path to a link file. It is opened as `run` opens it.
    link: Option<Location>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    through: ThroughArgs,
    /// The QEMU to look at; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The libvirt of this host to look for [default: qemu:///system for root, else qemu:///session].
    #[cfg(feature = "libvirt")]
    #[arg(long, value_name = "URI")]
    connect: Option<Uri>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let asked = Asked {
        qemu: args.qemu.clone(),
        through: args.through.wanted(),
        disk_bytes: args.through.sizes().disk_bytes,
        #[cfg(feature = "libvirt")]
        libvirt: args.connect.clone().unwrap_or_default(),
    };
    let Some(mut examined) = shutdown.run_until_cancelled(doctor::examine(&asked)).await else { return Ok(()) };
    // What is known of the host is told, whatever becomes of the package.
    let judged = match (&args.link, examined.report.can_run) {
        (Some(link), true) => judge(&args, link, &mut examined, &shutdown).await,
        _ => Ok(()),
    };
    show(&examined.report, args.json);
    judged?;
    verdict(&examined.report)
}

/// Judges a package; says nothing of it when cancelled before.
async fn judge(
    args: &Args,
    link: &Location,
    examined: &mut Examined,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let of = LinkArgs { link: link.clone(), trust: args.trust.clone(), access: args.access.clone() };
    // Nobody is going to read it, so nothing is fetched ahead.
    let request = AttachRequest { memory: true, order: OrderUse::Off, ..request(&of)? };
    let (wanted, sizes) = (args.through.wanted(), args.through.sizes());
    let attaching = Lease::take(&wanted, sizes, request);
    let Some(lease) = shutdown.run_until_cancelled(attaching).await.transpose()? else { return Ok(()) };
    lease.attached().notices.iter().for_each(NoticeText::log);
    let manifest = manifest(lease.attached());
    if let Ok(manifest) = &manifest {
        shutdown.run_until_cancelled(examined.examine_package(&lease, manifest)).await;
    }
    lease.end().await;
    manifest.map(drop)
}

fn verdict(report: &Report) -> Result<(), Error> {
    if !report.can_run {
        return Err(Error::NoVmHere(missing(&report.findings)));
    }
    match &report.package {
        Some(PackageReport { name, can_run: false, findings, .. }) => {
            Err(Error::NotHere { name: name.clone(), missing: missing(findings) })
        }
        _ => Ok(()),
    }
}

fn missing(findings: &[Finding]) -> Vec<Check> {
    let missing = findings.iter().filter(|finding| finding.state == State::Missing);
    missing.map(|finding| finding.check).collect()
}

fn show(report: &Report, json: bool) {
    if json {
        // Text and truth values always serialise.
        put(&serde_json::to_string(report).unwrap_or_default());
        return;
    }
    report.findings.iter().for_each(show_finding);
    if let Some(package) = &report.package {
        put("");
        put(&format!("{} version {}:", package.name, package.version));
        package.findings.iter().for_each(show_finding);
    }
}

fn show_finding(Finding { check, state, found, advice }: &Finding) {
    put(&format!("{state:<8} {check:<15}  {}", found.replace('\n', " ")));
    if let Some(advice) = advice {
        put(&format!("{:26}-> {advice}", ""));
    }
}

fn put(line: &str) {
    // Whoever has gone need not be told.
    let _ = writeln!(std::io::stdout(), "{line}");
}
