//! `serve`: offers a package's disks, or whatever clients attach, until it is stopped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Purpose, Record};
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::size::{parse_rate_bytes_per_s, parse_size_bytes};
use vmnetx_store::trust::TrustArgs;
use vmnetx_store::{Location, Options, Store, interrupt};

use super::server::open_when_free;
use super::tls::TlsArgs;
use super::{control_socket, say};
use crate::control::api::{AttachRequest, AttachmentStats, NoticeText, OrderUse};
use crate::control::{serve_control, serve_metrics};
use crate::host::Attachment;
use crate::limits::{ATTACH_GRACE, SOCKET_PATH_BYTES_MAX};
use crate::{Error, Host, HostOptions, Listener};

/// The id of what a server with a link serves.
const LINK_ID: &str = "link";

/// Serve the disks of the package that LINK names, until interrupted; without LINK, what clients attach.
///
/// A server with a cache directory is the only one of that directory. Clients attach packages to it over its control socket,
/// and each attachment gets a socket of its own: `vmnetx run` and `vmnetx-nbd attach` do so. All of them share what is fetched.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    #[arg(requires = "At")]
    link: Option<Location>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    tls: TlsArgs,
    /// Serve this disk alone. Without it every disk is served, and the first one is also the default export.
    #[arg(long, value_name = "NAME", requires = "link")]
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
    /// Bytes of saved RAM that are held at most for VMs to share, which map it; without it, half of the host's memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    mapped_memory: Option<u64>,
    /// Bytes a second that pulls and clients' prefetching (CACHE) may fetch of each package; without it, what the line gives while no reader waits.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate_bytes_per_s)]
    background_rate: Option<u64>,
    /// Seconds for which a read is tried again when the origin fails, unless an attachment asks for others.
    #[arg(long, value_name = "SECONDS", default_value_t = vmnetx_store::limits::RETRY_FOR.as_secs())]
    retry_for: u64,
    /// Whether to bring ahead what a boot will read: in the order that was recorded with the package, and as it was read
    /// here the last time.
    #[arg(long, value_enum, default_value_t, requires = "link")]
    order: OrderUse,
    /// Write to FILE, when the server ends, which blocks were read first and when: what `vmnetx-pack build --order` and
    /// `vmnetx-pack order` take.
    #[arg(long, value_name = "FILE", requires = "link")]
    record_order: Option<PathBuf>,
    /// Take orders on this Unix socket too, beside control.sock in the cache directory and a socket from systemd. The sockets of
    /// attachments are in the folder beside the first of these that is called the same with the ending `.d`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Tell counts to Prometheus on this TCP address, to whoever reaches it. The control socket tells them too.
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// End when nothing has been attached for so long.
    #[arg(long, value_name = "SECONDS", conflicts_with = "link")]
    idle: Option<u64>,
    /// Keep an attachment for so long when its client is gone.
    #[arg(long, value_name = "SECONDS", default_value_t = ATTACH_GRACE.as_secs())]
    grace: u64,
    /// Leave the session of the program that starts this one, so that it does not end with its terminal.
    #[arg(long, hide = true)]
    detached: bool,
}

/// Where clients connect.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = false)]
struct At {
    /// Listen on this Unix socket.
    #[arg(long, value_name = "PATH", requires = "link")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address. Whoever reaches it can read the disks, unless --tls-ca says who may.
    #[arg(long, value_name = "HOST:PORT", requires = "link")]
    listen: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    allow_connections();
    if args.detached {
        rustix::process::setsid().map_err(|error| Error::Runtime(error.into()))?;
    }
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let listener = match (&args.at.socket, &args.at.listen) {
        (Some(path), _) => Some(Listener::unix(path)?),
        (None, Some(address)) => Some(args.tls.listen(address).await?),
        (None, None) => None,
    };
    // Its lock says who is the server of the directory, so it comes before the directory's control socket.
    let store = open_store(&args).await?;
    let controls = control_listeners(&args)?;
    let told = controls.first().map(ToString::to_string);
    if told.is_none() && args.link.is_none() {
        return Err(Error::NoControl);
    }
    let host = Host::new(store.clone(), host_options(&args, controls.first()))?;
    let mut serving = JoinSet::new();
    for control in controls {
        serving.spawn(serve_control(control, host.clone(), shutdown.clone()));
    }
    if let Some(address) = &args.metrics {
        let listen = |source| Error::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        serving.spawn(serve_metrics(listener, host.clone(), shutdown.clone()));
    }
    let fixed = match (&args.link, listener) {
        (Some(link), Some(listener)) => match open_link(&args, link, listener, &store, &host, &shutdown).await? {
            Some(attachment) => Some(attachment),
            None => return Ok(()),
        },
        _ => None,
    };
    if let (None, Some(told)) = (&fixed, &told) {
        say(&format!("serving what is attached at {told}"));
    }
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "the service manager is not told");
    }
    if fixed.is_some() {
        shutdown.cancelled().await;
    } else {
        shutdown.run_until_cancelled(host.until_unused(args.idle.map(Duration::from_secs))).await;
    }
    // No new attachments, then no old ones: whoever is told that it is over finds the sockets free.
    host.end().await;
    shutdown.cancel();
    serving.join_all().await;
    let Some(attachment) = fixed else { return Ok(()) };
    log_stats(&attachment.stats());
    match &args.record_order {
        Some(file) => write_record(&attachment.record()?, file),
        None => Ok(()),
    }
}

async fn open_store(args: &Args) -> Result<Store, Error> {
    let options = Options {
        memory_bytes: args.memory_cache,
        disk: args.cache_dir.clone().map(|dir| (dir, args.disk_cache)),
        retry_for: Duration::from_secs(args.retry_for),
        background_bytes_per_s: args.background_rate,
        trust: args.trust.trust(),
        access: args.access.access().map_err(vmnetx_store::Error::from)?,
        offline: args.offline,
    };
    match &args.cache_dir {
        // Of servers without a link one is as good as another, so the first one stays.
        Some(dir) if args.link.is_some() => open_when_free(dir, || Store::open(options.clone())).await,
        _ => Ok(Store::open(options)?),
    }
}

/// The control sockets: the one from the service manager or that is named, and the cache directory's, where `vmnetx run` looks.
fn control_listeners(args: &Args) -> Result<Vec<Listener>, Error> {
    let inherited = ListenFd::from_env().take_unix_listener(0);
    let inherited = inherited.map_err(|source| Error::Listen { address: "the socket from systemd".into(), source })?;
    let mut listeners: Vec<_> = inherited.map(Listener::inherited).transpose()?.into_iter().collect();
    let of_cache = args.cache_dir.as_deref().map(control_socket);
    // A cache directory may have a longer path than sockets can; then it has none.
    let of_cache = of_cache.filter(|path| path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
    for path in args.control.clone().into_iter().chain(of_cache) {
        listeners.push(Listener::unix(&path)?);
    }
    Ok(listeners)
}

fn host_options(args: &Args, control: Option<&Listener>) -> HostOptions {
    let sockets = control.and_then(Listener::path).map(|path| path.with_extension("d"));
    HostOptions {
        sockets,
        grace: Duration::from_secs(args.grace),
        trust: args.trust.trust(),
        access: args.access.clone(),
        mapped_bytes_max: args.mapped_memory,
    }
}

/// Serves what the link names; nothing if the user has ended it before.
async fn open_link(
    args: &Args,
    link: &Location,
    listener: Listener,
    store: &Store,
    host: &Host,
    shutdown: &CancellationToken,
) -> Result<Option<Arc<Attachment>>, Error> {
    let opening = async {
        match args.order {
            OrderUse::Auto => store.package_in_order(link, Purpose::Boot).await,
            OrderUse::Off => store.package(link).await,
        }
    };
    let Some(package) = shutdown.run_until_cancelled(opening).await else { return Ok(None) };
    let package = package?;
    package.notices().iter().map(NoticeText::from).for_each(|notice| notice.log());
    let request = AttachRequest {
        order: args.order,
        record: args.record_order.is_some(),
        exports: args.export.iter().cloned().collect(),
        ..AttachRequest::new(link.to_string())
    };
    let uris: Vec<_> = package.disks().iter().map(|disk| (disk.name().to_owned(), listener.uri(disk.name()))).collect();
    let id = LINK_ID.parse().map_err(|error| Error::BadRequest(format!("{error}")))?;
    let attachment = host.serve_fixed(id, package, request, listener)?;
    for export in attachment.stats().exports {
        let uri = uris.iter().find(|(name, _)| *name == export.name).map_or("", |(_, uri)| uri);
        say(&format!("serving {} ({} bytes) at {uri}", export.name, export.size_bytes));
    }
    Ok(Some(attachment))
}

/// Writes what was recorded, all of it or nothing.
fn write_record(record: &Record, file: &Path) -> Result<(), Error> {
    let cannot = |source: std::io::Error| Error::Record { file: file.to_owned(), source };
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

fn log_stats(stats: &AttachmentStats) {
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
    tracing::info!(requests = stats.origin.requests, bytes = stats.origin_bytes, "origin");
}
