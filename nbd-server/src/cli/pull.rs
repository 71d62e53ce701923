//! `pull`: makes a package complete on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::HumanBytes;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Digest, Name};
use vmnetx_store::size::{parse_rate_bytes_per_s, parse_size_bytes};
use vmnetx_store::{LinkArgs, Options, Package, Progress, Pulled, Store, interrupt};

use super::progress::Shown;
use super::put;
use super::server::{CacheArgs, Directory};
use crate::Error;
use crate::control::Control;
use crate::control::api::{AttachRequest, Attached, AttachmentId, NoticeText, OrderUse};
use crate::limits::ATTACH_RETRY_MAX;

/// Time between two looks at how far a pull is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of the memory tier: a pull reads the index and nothing else.
const MEMORY_BYTES: u64 = 64 << 20;

/// Make the package that LINK names complete in the cache directory and keep it there, or copy it into a repository.
///
/// What is there already is verified, so a pull that was cut goes on where it was. Afterwards the package can be served with
/// --offline; `vmnetx-nbd cache pin --remove` lets go of it. If a server has the directory, that one fetches, and VMs that read
/// the package through it go on.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    of: LinkArgs,
    /// Write a repository into DIR, which any web server can serve as it lies: the link with all versions that it names.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cache_dir", "control", "disk_cache", "offline", "rate"])]
    to: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Bytes of chunks to keep in the cache directory, unless a server has it; three quarters of them may be kept for good.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size_bytes)]
    disk_cache: u64,
    /// Bytes a second that may be fetched; without it, what the line gives.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate_bytes_per_s)]
    rate: Option<u64>,
    /// Seconds for which a read is tried again when the origin fails.
    #[arg(long, value_name = "SECONDS", default_value_t = vmnetx_store::limits::RETRY_FOR.as_secs())]
    retry_for: u64,
    /// Send no request to any host: only look whether the package is complete.
    #[arg(long)]
    offline: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was pulled.
struct Whole {
    name: Name,
    version: Digest,
    pulled: Pulled,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let whole = match &args.to {
        // What was fetched until now is kept, here and below.
        Some(dir) => shutdown.run_until_cancelled(copy(&args, dir)).await.unwrap_or(Err(Error::Interrupted)),
        None => pull(&args, &shutdown).await,
    }?;
    tell(&args, &whole);
    Ok(())
}

/// Copies into a repository.
async fn copy(args: &Args, dir: &Path) -> Result<Whole, Error> {
    let store = Store::open(options(args)?)?;
    let package = open(args, &store).await?;
    let progress = Arc::default();
    let pulled = showing(&progress, async { Ok(store.copy(&args.of.link, dir, &progress).await?) }).await?;
    Ok(Whole::new(&package, pulled))
}

/// Pulls into the cache directory, or has its server do so.
async fn pull(args: &Args, shutdown: &CancellationToken) -> Result<Whole, Error> {
    let options = options(args)?;
    let disk = |dir: &Path| Some((dir.to_owned(), args.disk_cache));
    let opening = args.cache.open(|dir| Store::open(Options { disk: disk(dir), ..options.clone() }));
    let store = match shutdown.run_until_cancelled(opening).await.unwrap_or(Err(Error::Interrupted))? {
        Directory::Served(control) => return pull_by(&control, args, shutdown).await,
        Directory::Ours(store) => store,
    };
    let pulling = async {
        let package = open(args, &store).await?;
        let progress = Arc::default();
        let pulled = showing(&progress, async { Ok(store.pull(&package, &args.of.link, &progress).await?) }).await?;
        Ok(Whole::new(&package, pulled))
    };
    shutdown.run_until_cancelled(pulling).await.unwrap_or(Err(Error::Interrupted))
}

/// Has a server pull what is attached to it for that.
async fn pull_by(control: &Control, args: &Args, shutdown: &CancellationToken) -> Result<Whole, Error> {
    let id = AttachmentId::random().map_err(Error::Runtime)?;
    let request = AttachRequest {
        retry_for_s: Some(args.retry_for.min(ATTACH_RETRY_MAX.as_secs())),
        background_bytes_per_s: args.rate,
        offline: args.offline,
        order: OrderUse::Off,
        ..AttachRequest::of(&args.of)?
    };
    let pulling = async {
        let Attached { name, version, notices, .. } = control.attach(&id, &request).await?;
        notices.iter().for_each(NoticeText::log);
        let mut shown = Shown::new();
        let pulling = control.pull(&id).await?;
        let pulled = pulling.complete(|progress| shown.show(progress.done_bytes, progress.total_bytes)).await?;
        Ok(Whole { name, version, pulled })
    };
    let whole = shutdown.run_until_cancelled(pulling).await.unwrap_or(Err(Error::Interrupted));
    if let Err(error) = control.detach(&id).await {
        tracing::debug!(%error, "the attachment is not given up but will lapse");
    }
    whole
}

/// How a store is set up; which directory it has comes later.
fn options(args: &Args) -> Result<Options, Error> {
    Ok(Options {
        memory_bytes: MEMORY_BYTES,
        disk: None,
        retry_for: Duration::from_secs(args.retry_for),
        background_bytes_per_s: args.rate,
        trust: args.of.trust.trust(),
        access: args.of.access.access().map_err(vmnetx_store::Error::from)?,
        offline: args.offline,
    })
}

async fn open(args: &Args, store: &Store) -> Result<Package, Error> {
    let package = store.package(&args.of.link).await?;
    package.notices().iter().map(NoticeText::from).for_each(|notice| notice.log());
    Ok(package)
}

/// Shows how far some work is until it is done.
async fn showing(progress: &Progress, work: impl Future<Output = Result<Pulled, Error>>) -> Result<Pulled, Error> {
    let (mut work, mut shown) = (std::pin::pin!(work), Shown::new());
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            pulled = &mut work => return pulled,
            _ = looks.tick() => shown.show(progress.done_bytes(), progress.total_bytes()),
        }
    }
}

impl Whole {
    fn new(package: &Package, pulled: Pulled) -> Self {
        Self { name: package.link().name.clone(), version: package.version().manifest, pulled }
    }
}

fn tell(args: &Args, Whole { name, version, pulled }: &Whole) {
    if args.json {
        let report = json!({
            "package": name.to_string(), "version": version.to_string(), "complete": true, "bytes": pulled.bytes,
            "fetched_bytes": pulled.fetched_bytes, "to": args.to,
        });
        put(&report.to_string());
        return;
    }
    let [bytes, fetched] = [pulled.bytes, pulled.fetched_bytes].map(HumanBytes);
    put(&format!("{name} version {version}: {bytes}, {fetched} of them fetched now"));
    match &args.to {
        Some(dir) => put(&format!("complete: {} can be served as it is", dir.display())),
        None => put("complete: safe to disconnect"),
    }
}
