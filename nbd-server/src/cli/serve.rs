//! `serve`: offers a package's disks until it is stopped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::size::{parse_rate_bytes_per_s, parse_size_bytes};
use vmnetx_store::trust::TrustArgs;
use vmnetx_store::{Location, Options, Package, Recorder, Store, interrupt};

use super::say;
use crate::{Error, Export, Exports, Listener, Stats, serve, serve_control};

/// Serve the disks of the package that LINK names, until interrupted.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    link: Location,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    at: At,
    /// Serve this disk alone. Without it every disk is served, and the first one is also the default export.
    #[arg(long, value_name = "NAME")]
    export: Option<String>,
    /// Keep fetched chunks in this directory, for the next time.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of chunks to keep in the cache directory.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size_bytes)]
    disk_cache: u64,
    /// Send no request to any host: serve what `vmnetx-nbd pull` has made complete in the cache directory.
    #[arg(long, requires = "cache_dir")]
    offline: bool,
    /// Bytes of chunks to keep in memory.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size_bytes)]
    memory_cache: u64,
    /// Bytes a second that clients' prefetching (CACHE) may fetch; without it, what the line gives while no reader waits.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate_bytes_per_s)]
    background_rate: Option<u64>,
    /// Seconds for which a read is tried again when the origin fails.
    #[arg(long, value_name = "SECONDS", default_value_t = vmnetx_store::limits::RETRY_FOR.as_secs())]
    retry_for: u64,
    /// Whether to bring ahead what a boot will read: in the order that was recorded with the package, and as it was read
    /// here the last time.
    #[arg(long, value_enum, default_value_t)]
    order: OrderArg,
    /// Write to FILE, when the server ends, which blocks were read first and when: what `vmnetx-pack build --order` and
    /// `vmnetx-pack order` take.
    #[arg(long, value_name = "FILE")]
    record_order: Option<PathBuf>,
    /// Answer `vmnetx-nbd stats` on this Unix socket.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum OrderArg {
    /// As far as either is known.
    #[default]
    Auto,
    Off,
}

/// Where clients connect.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct At {
    /// Listen on this Unix socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address. Whoever reaches it can read the disks.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    allow_connections();
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let listener = match (&args.at.socket, &args.at.listen) {
        (Some(path), _) => Listener::unix(path)?,
        (None, address) => Listener::tcp(address.as_deref().unwrap_or_default()).await?,
    };
    let control = args.control.as_deref().map(Listener::unix).transpose()?;
    if listener.tcp_address().is_some_and(|address| !address.ip().is_loopback()) {
        tracing::warn!("whoever reaches this address can read the disks: there is no encryption and no password");
    }
    let store = Store::open(Options {
        memory_bytes: args.memory_cache,
        disk: args.cache_dir.map(|dir| (dir, args.disk_cache)),
        retry_for: Duration::from_secs(args.retry_for),
        background_bytes_per_s: args.background_rate,
        trust: args.trust.trust(),
        access: args.access.access().map_err(vmnetx_store::Error::from)?,
        offline: args.offline,
    })?;
    let opening = async {
        match args.order {
            OrderArg::Auto => store.package_in_order(&args.link).await,
            OrderArg::Off => store.package(&args.link).await,
        }
    };
    let Some(package) = shutdown.run_until_cancelled(opening).await else { return Ok(()) };
    let package = Arc::new(package?);
    let recorder = args.record_order.is_some().then(|| package.record());
    for notice in package.notices() {
        if notice.is_warning() { tracing::warn!("{notice}") } else { tracing::info!("{notice}") }
    }
    let exports = exports(&package, args.export.as_deref())?;
    for export in exports.all() {
        let stats = export.stats();
        say(&format!("serving {} ({} bytes) at {}", stats.name, stats.size_bytes, listener.uri(&stats.name)));
    }
    let control = control.map(|control| {
        let serving = serve_control(control, store.clone(), Arc::clone(&package), exports.clone(), shutdown.clone());
        tokio::spawn(serving)
    });
    serve(listener, exports.clone(), shutdown).await;
    if let Some(control) = control {
        // Ends with the same token; its socket's file goes with it.
        let _ = control.await;
    }
    log_stats(&Stats::now(&store, &package, &exports));
    match (recorder, args.record_order) {
        (Some(recorder), Some(file)) => write_record(&recorder, &file),
        _ => Ok(()),
    }
}

/// Writes what was recorded, all of it or nothing.
fn write_record(recorder: &Recorder, file: &Path) -> Result<(), Error> {
    let cannot = |source: std::io::Error| Error::Record { file: file.to_owned(), source };
    let record = recorder.record().map_err(|error| cannot(std::io::Error::other(error)))?;
    let bytes = record.encode().map_err(|error| cannot(std::io::Error::other(error)))?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut written = tempfile::NamedTempFile::new_in(dir).map_err(cannot)?;
    written.write_all(&bytes).map_err(cannot)?;
    written.as_file().sync_all().map_err(cannot)?;
    written.persist(file).map_err(|error| cannot(error.error))?;
    say(&format!("recorded {} first touches in {}", record.touches.len(), file.display()));
    Ok(())
}

/// Each connection takes a file descriptor, and systems give a process fewer of them than [`CONNECTIONS_MAX`] unless it
/// asks. Where it may not have more, connections wait for others to end.
///
/// [`CONNECTIONS_MAX`]: crate::limits::CONNECTIONS_MAX
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn exports(package: &Package, only: Option<&str>) -> Result<Exports, Error> {
    let exports = Exports::new();
    let title = package.link().title.as_ref().map_or_else(|| package.link().name.to_string(), ToString::to_string);
    let disks = package.disks().iter().filter(|disk| only.is_none_or(|name| name == disk.name()));
    for disk in disks {
        disk.warm_index();
        exports.add(Export::new(disk.name(), title.clone(), Arc::clone(disk)));
    }
    if let (Some(name), true) = (only, exports.all().is_empty()) {
        let known = package.disks().iter().map(|disk| disk.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::NoDisk { name: name.to_owned(), known });
    }
    Ok(exports)
}

fn log_stats(stats: &Stats) {
    for export in &stats.exports {
        let counts = &export.counts;
        tracing::info!(
            export = export.name,
            connections = export.connections,
            requests = export.requests,
            failed = export.failed,
            read_bytes = counts.read_bytes,
            memory_chunks = counts.memory_chunks,
            disk_chunks = counts.disk_chunks,
            origin_chunks = counts.origin_chunks,
            joined_chunks = counts.joined_chunks,
            read_ahead_chunks = counts.read_ahead_chunks,
            origin_bytes = counts.origin_bytes,
            "served"
        );
    }
    if let Some(order) = &stats.order {
        tracing::info!(
            planned_bytes = order.planned_bytes,
            prefetched_bytes = order.prefetched_bytes,
            used_bytes = order.used_bytes,
            wasted_bytes = order.wasted_bytes,
            failed_frames = order.failed_frames,
            "order"
        );
    }
    tracing::info!(requests = stats.origin_requests, bytes = stats.origin_bytes, "origin");
}
