//! `rehearse`: boots or resumes a package in a scratch VM, records what that reads, and publishes the order.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::{Digest, Manifest, Name, Record};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{AttachRequest, AttachmentId, OrderUse};
use vmnetx_pack::cli::{SigningArgs, WaitArgs};
use vmnetx_pack::{ORDER_LEVEL_DEFAULT, OrderChoice, OrderOptions, OrderReport, Silent, VersionName, publish_order};
use vmnetx_store::{LinkArgs, interrupt};

use super::Error;
use super::run::{AccelArg, NetworkArg, accel, disks, manifest, network, request};
use crate::resume::{self, Failed, Fill, Mode, Plan, Saved};
use crate::server::{Lease, Sizes, Wanted};
use crate::vm::{self, Display, Outcome, Programs, RunDir, Spec};

/// Bytes of chunks that a rehearsal keeps in memory.
const MEMORY_BYTES: u64 = 512 << 20;

/// A boot is over when it has read nothing new for so long, and after so long at the latest.
const BOOT_OVER: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));

/// The same of resuming: a guest that runs goes on touching memory for ever.
const RESUME_OVER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// How often a rehearsal is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Between two reports of how far it is.
const REPORT: Duration = Duration::from_secs(10);

/// Boot or resume the package that LINK names in a scratch VM, and publish in REPO the order in which it is read.
///
/// LINK is a package of REPO, wherever it is read from. Nobody sees the VM, and what it writes is thrown away. Readers then fetch
/// what is needed ahead of their guests, in a few long requests.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    link: LinkArgs,
    /// The directory of the repository that gets the order.
    repo: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    /// Do it so many times: what only one of several reads comes last.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    runs: u32,
    /// The zstd level of what the order stores.
    #[arg(long, value_name = "LEVEL", default_value_t = ORDER_LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    order_level: i32,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How a package is rehearsed.
#[derive(Debug, clap::Args)]
pub(super) struct HowArgs {
    /// What the VM does: auto resumes a package that has memory, and boots others.
    #[arg(long, value_enum, default_value_t)]
    pub(super) of: OfArg,
    /// It is over when the VM has read nothing new for so many seconds, or the guest powers off [default: 20 for a boot, 2 for
    /// resuming].
    #[arg(long, value_name = "SECONDS")]
    pub(super) quiet_for: Option<u64>,
    /// End each after so many seconds at the latest [default: 600 for a boot, 10 for resuming].
    #[arg(long, value_name = "SECONDS")]
    pub(super) at_most: Option<u64>,
    /// What runs the guest's instructions; auto is KVM where it works.
    #[arg(long, value_enum, default_value_t)]
    pub(super) accel: AccelArg,
    /// What the guest's network cards reach: all that you do, this host's own services included, or nothing.
    #[arg(long, value_enum, default_value_t)]
    pub(super) network: NetworkArg,
    /// The QEMU to run; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub(super) qemu: PathBuf,
}

/// What a rehearsed VM does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OfArg {
    #[default]
    Auto,
    Boot,
    Resume,
}

/// A rehearsal that was recorded.
pub(super) struct Rehearsed {
    pub(super) name: Name,
    pub(super) version: Digest,
    pub(super) record: Record,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    // A key that cannot be read is found before anything is booted.
    let signing = args.signing.signing()?;
    let mut records = Vec::new();
    let mut of = None;
    for number in 1..=args.runs {
        tracing::info!("rehearsal {number} of {}", args.runs);
        let rehearsed = rehearse(&args.how, request(&args.link)?, &shutdown).await?;
        let Some(Rehearsed { name, version, record }) = rehearsed else { return Ok(()) };
        records.push(record);
        // Publishing goes on meanwhile, perhaps; the order is for what was run last.
        of = Some((name, version));
    }
    let Some((name, version)) = of else { return Ok(()) };
    let report = publish(OrderOptions {
        repository: args.repo,
        name,
        version: VersionName::Starts(version.to_string()),
        choice: OrderChoice::Records(records),
        level: args.order_level,
        signing,
        wait: args.wait.wait(),
    });
    put(&report.await?, args.json);
    Ok(())
}

/// Publishes an order.
pub(super) async fn publish(options: OrderOptions) -> Result<OrderReport, Error> {
    let publishing = tokio::task::spawn_blocking(move || publish_order(&options, &Silent));
    Ok(publishing.await.map_err(|error| Error::Runtime(std::io::Error::other(error)))??)
}

/// Boots or resumes once; nothing if the user has ended it.
pub(super) async fn rehearse(
    how: &HowArgs,
    request: AttachRequest,
    shutdown: &CancellationToken,
) -> Result<Option<Rehearsed>, Error> {
    let memory = how.of != OfArg::Boot;
    let request = AttachRequest { order: OrderUse::Off, record: true, memory, ..request };
    // A server of its own: nothing is kept of a rehearsal.
    let attaching = Lease::take(&Wanted::Private, Sizes { memory_bytes: MEMORY_BYTES, disk_bytes: 0 }, request);
    let Some(lease) = shutdown.run_until_cancelled(attaching).await else { return Ok(None) };
    let lease = lease?;
    let launched = launch(how, &lease, shutdown).await;
    let record = match launched {
        Ok(_) => lease.control().record(&lease.attached().id).await.map_err(Error::from),
        Err(error) => Err(error),
    };
    let (name, version) = (lease.attached().name.clone(), lease.attached().version);
    lease.end().await;
    let record = record?;
    if shutdown.is_cancelled() {
        return Ok(None);
    }
    if record.touches.is_empty() {
        return Err(Error::NothingRead);
    }
    Ok(Some(Rehearsed { name, version, record }))
}

/// Boots or resumes what is attached until that is over.
async fn launch(how: &HowArgs, lease: &Lease, shutdown: &CancellationToken) -> Result<(), Error> {
    let attached = lease.attached();
    let manifest = manifest(attached)?;
    let resumes = manifest.memory.is_some() && how.of != OfArg::Boot;
    if how.of == OfArg::Resume && !resumes {
        return Err(resume::Error::NoMemory.into());
    }
    let spec = Spec {
        name: attached.name.clone(),
        version: attached.version,
        disks: disks(&manifest, attached),
        machine: manifest.machine.clone(),
        accel: accel(how.accel),
        display: Display::None,
        network: network(how.network),
        serial: None,
        incoming: None,
        claim: None,
        programs: Programs::find(&how.qemu)?,
        run_dir: RunDir::temporary().await?,
    };
    let over = shutdown.child_token();
    let (quiet_for, at_most) = if resumes { RESUME_OVER } else { BOOT_OVER };
    let watching = AbortOnDropHandle::new(tokio::spawn(watch(
        lease.control().clone(),
        attached.id.clone(),
        how.quiet_for.map_or(quiet_for, Duration::from_secs),
        how.at_most.map_or(at_most, Duration::from_secs),
        over.clone(),
    )));
    let outcome = if resumes { resume(lease, &manifest, spec, &over).await? } else { vm::launch(spec, over).await? };
    drop(watching);
    if outcome == Outcome::Closed {
        tracing::warn!("the VM was closed; what it has read until then is taken");
    }
    Ok(())
}

/// Resumes what is attached lazily, with nothing but what the guest asks for, so that nothing else is recorded.
async fn resume(lease: &Lease, manifest: &Manifest, spec: Spec, over: &CancellationToken) -> Result<Outcome, Error> {
    let plan = Plan { modes: vec![Mode::Lazy], ram: None, fill: Fill::OnDemand, progress: Arc::default() };
    let saved = Saved::open(lease.control(), lease.attached(), manifest);
    match resume::start(spec, saved, plan, over).await {
        Ok(Some(resumed)) => Ok(resumed.run(over).await?),
        Ok(None) => Ok(Outcome::Cancelled),
        Err(Failed { error, .. }) => Err(error.into()),
    }
}

/// Ends the rehearsal when it is over.
async fn watch(control: Control, id: AttachmentId, quiet_for: Duration, at_most: Duration, over: CancellationToken) {
    let start = Instant::now();
    let (mut touches, mut last, mut reported) = (0, start, start);
    while start.elapsed() < at_most {
        tokio::time::sleep(LOOK).await;
        let now = match control.attachment(&id).await {
            Ok(stats) => stats.recorded_touches.unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "the server does not tell what was read");
                continue;
            }
        };
        if now != touches {
            (touches, last) = (now, Instant::now());
        }
        if touches > 0 && last.elapsed() >= quiet_for {
            break;
        }
        if reported.elapsed() >= REPORT {
            tracing::info!("{touches} first touches after {} s", start.elapsed().as_secs());
            reported = Instant::now();
        }
    }
    over.cancel();
}

fn put(report: &OrderReport, json: bool) {
    let text = if json {
        // Numbers and text always serialise.
        serde_json::to_string(report).unwrap_or_default()
    } else {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let bytes = report.orders.iter().map(|order| order.info.stored_bytes).sum();
        format!("{} fetches {:.1} MB ahead (serial {})", report.named.name, megabytes(bytes), report.named.serial)
    };
    let _ = writeln!(std::io::stdout(), "{text}");
}
