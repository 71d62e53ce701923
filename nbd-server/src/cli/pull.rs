//! `pull`: makes a package complete on this host.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::size::{parse_rate_bytes_per_s, parse_size_bytes};
use vmnetx_store::trust::TrustArgs;
use vmnetx_store::{Location, Options, Package, Progress, Pulled, Store, interrupt};

use super::cache::CacheArgs;
use super::server::open_when_free;
use super::{put, say};
use crate::Error;

/// Time between two looks at how far a pull is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of the memory tier: a pull reads the index and nothing else.
const MEMORY_BYTES: u64 = 64 << 20;

/// Make the package that LINK names complete in the cache directory and keep it there, or copy it into a repository.
///
/// What is there already is verified, so a pull that was cut goes on where it was. Afterwards the package can be served with
/// --offline; `vmnetx-nbd cache pin --remove` lets go of it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    link: Location,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// Write a repository into DIR, which any web server can serve as it lies: the link with all versions that it names.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cache_dir", "disk_cache", "offline", "rate"])]
    to: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Bytes of chunks to keep in the cache directory; three quarters of them may be kept for good.
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

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let work = pull(args);
    // What was fetched until now is kept.
    shutdown.run_until_cancelled(work).await.unwrap_or(Err(Error::Interrupted))
}

async fn pull(args: Args) -> Result<(), Error> {
    let disk = match &args.to {
        Some(_) => None,
        None => Some((args.cache.dir()?, args.disk_cache)),
    };
    let options = Options {
        memory_bytes: MEMORY_BYTES,
        disk,
        retry_for: Duration::from_secs(args.retry_for),
        background_bytes_per_s: args.rate,
        trust: args.trust.trust(),
        access: args.access.access().map_err(vmnetx_store::Error::from)?,
        offline: args.offline,
    };
    let store = match &options.disk {
        Some((dir, _)) => open_when_free(dir, || Store::open(options.clone())).await?,
        None => Store::open(options)?,
    };
    let package = store.package(&args.link).await?;
    for notice in package.notices() {
        if notice.is_warning() { tracing::warn!("{notice}") } else { tracing::info!("{notice}") }
    }
    let progress = Arc::<Progress>::default();
    let pulling = async {
        match &args.to {
            Some(dir) => Ok(store.copy(&args.link, dir, &progress).await?),
            None => Ok::<_, Error>(store.pull(&package, &args.link, &progress).await?),
        }
    };
    let pulled = tokio::select! {
        pulled = pulling => pulled?,
        never = show(&progress) => match never {},
    };
    tell(&args, &package, pulled);
    Ok(())
}

fn tell(args: &Args, package: &Package, pulled: Pulled) {
    let (name, version) = (&package.link().name, package.version().manifest);
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

/// Shows how far it is, as a bar on a terminal and otherwise as a line now and then, until it is dropped.
async fn show(progress: &Progress) -> std::convert::Infallible {
    let is_terminal = std::io::stderr().is_terminal();
    let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = Bar(ProgressBar::with_draw_target(None, target));
    let template = "{decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_bar}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.0.set_style(style);
    }
    let mut looks = interval(if is_terminal { LOOK_INTERVAL } else { LINE_INTERVAL });
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await;
    loop {
        looks.tick().await;
        let (done_bytes, total_bytes) = (progress.done_bytes(), progress.total_bytes());
        if is_terminal {
            bar.0.set_length(total_bytes);
            bar.0.set_position(done_bytes);
        } else if total_bytes == 0 {
            say("looking what the package consists of");
        } else {
            say(&format!("{} of {} are here", HumanBytes(done_bytes), HumanBytes(total_bytes)));
        }
    }
}

/// A bar that leaves the terminal when it is dropped.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
