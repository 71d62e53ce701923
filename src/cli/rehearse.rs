//! `rehearse`: boots a package in a scratch VM, records what the boot reads, and publishes the order.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Digest, Name, Record};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{AttachRequest, AttachmentId, OrderUse};
use vmnetx_pack::cli::{SigningArgs, WaitArgs};
use vmnetx_pack::{ORDER_LEVEL_DEFAULT, OrderChoice, OrderOptions, OrderReport, Silent, VersionName, publish_order};
use vmnetx_store::{LinkArgs, interrupt};

use super::Error;
use super::run::{AccelArg, NetworkArg, accel, disks, manifest, network, request};
use crate::server::{Lease, Sizes, Wanted};
use crate::vm::{self, Display, Outcome, Programs, RunDir, Spec};

/// Bytes of chunks that a rehearsal keeps in memory.
const MEMORY_BYTES: u64 = 512 << 20;

/// How often a rehearsal is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Between two reports of how far it is.
const REPORT: Duration = Duration::from_secs(10);

/// Boot the package that LINK names in a scratch VM, and publish in REPO the order in which the boot reads it.
///
/// LINK is a package of REPO, wherever it is read from. Nobody sees the VM, and what it writes is thrown away. Readers then fetch
/// what a boot needs ahead of their guests, in a few long requests.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    of: LinkArgs,
    /// The directory of the repository that gets the order.
    repo: PathBuf,
    /// Boot so many times: what only one boot of several reads comes last.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    runs: u32,
    /// The boot is over when it has read nothing new for so many seconds, or the guest powers off.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    quiet_for: u64,
    /// End each boot after so many seconds at the latest.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    at_most: u64,
    /// What runs the guest's instructions; auto is KVM where it works.
    #[arg(long, value_enum, default_value_t)]
    accel: AccelArg,
    /// What the guest's network cards reach: all that you do, this host's own services included, or nothing.
    #[arg(long, value_enum, default_value_t)]
    network: NetworkArg,
    /// The zstd level of what the order stores.
    #[arg(long, value_name = "LEVEL", default_value_t = ORDER_LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    order_level: i32,
    /// The QEMU to run; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// One boot that was recorded.
struct Rehearsed {
    name: Name,
    version: Digest,
    record: Record,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    // A key that cannot be read is found before anything is booted.
    let signing = args.signing.signing()?;
    let mut records = Vec::new();
    let mut of = None;
    for number in 1..=args.runs {
        tracing::info!("rehearsal {number} of {}", args.runs);
        let Some(Rehearsed { name, version, record }) = rehearse(&args, &shutdown).await? else { return Ok(()) };
        records.push(record);
        // Publishing goes on meanwhile, perhaps; the order is for what was booted last.
        of = Some((name, version));
    }
    let Some((name, version)) = of else { return Ok(()) };
    let options = OrderOptions {
        repository: args.repo,
        name,
        version: VersionName::Starts(version.to_string()),
        choice: OrderChoice::Records(records),
        level: args.order_level,
        signing,
        wait: args.wait.wait(),
    };
    let publishing = tokio::task::spawn_blocking(move || publish_order(&options, &Silent));
    let report = publishing.await.map_err(|error| Error::Runtime(std::io::Error::other(error)))??;
    put(&report, args.json);
    Ok(())
}

/// Boots once; nothing if the user has ended it.
async fn rehearse(args: &Args, shutdown: &CancellationToken) -> Result<Option<Rehearsed>, Error> {
    let request = request(&args.of)?;
    let request = AttachRequest { order: OrderUse::Off, record: true, ..request };
    // A server of its own: nothing is kept of a rehearsal.
    let attaching = Lease::take(&Wanted::Private, Sizes { memory_bytes: MEMORY_BYTES, disk_bytes: 0 }, request);
    let Some(lease) = shutdown.run_until_cancelled(attaching).await else { return Ok(None) };
    let lease = lease?;
    let launched = boot(args, &lease, shutdown).await;
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

/// Boots what is attached until the boot is over.
async fn boot(args: &Args, lease: &Lease, shutdown: &CancellationToken) -> Result<(), Error> {
    let attached = lease.attached();
    let manifest = manifest(attached)?;
    let spec = Spec {
        name: attached.name.clone(),
        version: attached.version,
        disks: disks(&manifest, attached),
        machine: manifest.machine,
        accel: accel(args.accel),
        display: Display::None,
        network: network(args.network),
        serial: None,
        incoming: None,
        programs: Programs::find(&args.qemu)?,
        run_dir: RunDir::temporary().await?,
    };
    let over = shutdown.child_token();
    let watching = tokio::spawn(watch(
        lease.control().clone(),
        attached.id.clone(),
        Duration::from_secs(args.quiet_for),
        Duration::from_secs(args.at_most),
        over.clone(),
    ));
    let launched = vm::launch(spec, over).await;
    watching.abort();
    if launched? == Outcome::Closed {
        tracing::warn!("the VM was closed; what it has read until then is taken");
    }
    Ok(())
}

/// Ends the boot when it is over.
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
        format!(
            "{} fetches {:.1} MB ahead when it boots (serial {})",
            report.named.name,
            megabytes(bytes),
            report.named.serial
        )
    };
    let _ = writeln!(std::io::stdout(), "{text}");
}
