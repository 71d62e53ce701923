//! `run`: launches the VM that a link names.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Disk, Name};
use vmnetx_nbd::{Export, Exports, Listener};
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::size::parse_size_bytes;
use vmnetx_store::trust::TrustArgs;
use vmnetx_store::{Location, Options, Package, Store, default_cache_dir, interrupt};

use super::{Error, stdio};
use crate::vm::{self, Accel, DiskSpec, Display, DisplayChoice, Network, Outcome, Programs, RunDir, SerialPort, Spec};

/// How long a guest's read is tried again when the origin fails. Then the guest stands still and is continued every few
/// seconds, which tries again.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(15);

/// The NBD server's socket in the run's directory.
const NBD_SOCKET: &str = "nbd";

/// Launch the VM that LINK names, until it powers off or is interrupted.
///
/// Only what the guest reads is fetched. What it writes is thrown away in the end, unless --persist keeps it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    link: Location,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// Call the VM this instead of the package's name.
    #[arg(long, value_name = "VM")]
    name: Option<Name>,
    /// What runs the guest's instructions; auto is KVM where it works.
    #[arg(long, value_enum, default_value_t)]
    accel: AccelArg,
    /// Where the guest's screen is shown; auto is a window where there is a desktop, vnc a Unix socket.
    #[arg(long, value_enum, default_value_t)]
    display: DisplayArg,
    /// Copy the guest's serial output to FILE; `-` connects the port to standard input and output, which is the default
    /// when no screen is shown.
    #[arg(long, value_name = "FILE|-")]
    serial: Option<SerialArg>,
    /// What the guest's network cards reach: all that you do, this host's own services included, or nothing.
    #[arg(long, value_enum, default_value_t)]
    network: NetworkArg,
    /// Keep what the guest writes to a disk (the first one unless named) in FILE, which is created if absent and
    /// belongs to this version of the package.
    #[arg(long, value_name = "[DISK=]FILE.qcow2")]
    persist: Vec<PersistArg>,
    /// Keep fetched chunks in this directory, for the next time [default: vmnetx in the user's cache directory].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of chunks to keep in the cache directory; 0 for none.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size_bytes)]
    disk_cache: u64,
    /// Bytes of chunks to keep in memory.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size_bytes)]
    memory_cache: u64,
    /// Whether to bring ahead what the boot will read: in the order that was recorded with the package, and as it was read
    /// here the last time.
    #[arg(long, value_enum, default_value_t)]
    order: OrderArg,
    /// The QEMU to run; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OrderArg {
    /// As far as either is known.
    #[default]
    Auto,
    Off,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum AccelArg {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DisplayArg {
    #[default]
    Auto,
    None,
    Gtk,
    Sdl,
    Vnc,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum NetworkArg {
    #[default]
    User,
    Isolated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SerialArg {
    Stdio,
    File(PathBuf),
}

/// `DISK=FILE` or `FILE`. What stands before the `=` of a path with a slash, such as `./a=b.qcow2`, is no disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PersistArg {
    disk: Option<Name>,
    file: PathBuf,
}

impl FromStr for SerialArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdio } else { Self::File(text.into()) })
    }
}

impl FromStr for PersistArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.split_once('=').and_then(|(disk, file)| Some((disk.parse().ok()?, file)));
        Ok(match named {
            Some((disk, file)) => Self { disk: Some(disk), file: file.into() },
            None => Self { disk: None, file: text.into() },
        })
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    // What this host lacks is found before anything is fetched.
    let programs = Programs::find(&args.qemu)?;
    let display = display_choice(args.display).resolve(&programs).await?;
    let store = open_store(&args)?;
    let opening = async {
        match args.order {
            OrderArg::Auto => store.package_in_order(&args.link).await,
            OrderArg::Off => store.package(&args.link).await,
        }
    };
    let Some(package) = shutdown.run_until_cancelled(opening).await else { return Ok(()) };
    let package = package?;
    for notice in package.notices() {
        if notice.is_warning() { tracing::warn!("{notice}") } else { tracing::info!("{notice}") }
    }
    tracing::info!("{} version {}", package.link().name, package.version().manifest);
    if package.manifest().memory.is_some() {
        tracing::warn!("the package holds saved memory, which is not resumed yet: the guest boots");
    }
    let run_dir = create_run_dir().await?;
    let server = Server::start(&package, &run_dir)?;
    let spec = spec(&args, &package, programs, display, run_dir)?;
    let launched = vm::launch(spec, shutdown).await;
    server.stop().await;
    log_fetched(&package);
    match launched? {
        Outcome::PoweredOff => tracing::info!("the guest has powered off"),
        Outcome::Closed => tracing::info!("the VM was closed"),
        Outcome::Cancelled => tracing::info!("the VM was ended"),
    }
    Ok(())
}

/// What the run has cost, which is what this program is for.
fn log_fetched(package: &Package) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let size: u64 = package.disks().iter().map(|disk| disk.size_bytes()).sum();
    let read: u64 = package.disks().iter().map(|disk| disk.counters().counts().read_bytes).sum();
    tracing::info!(
        "fetched {:.1} MB in {} requests; the guest read {:.1} MB of its disks of {:.1} MB",
        megabytes(package.origin_bytes()),
        package.origin_requests(),
        megabytes(read),
        megabytes(size),
    );
    if let Some(order) = package.order_counts() {
        tracing::info!(
            "fetched {:.1} MB ahead, as recorded; the guest has read {:.1} MB of them",
            megabytes(order.prefetched_bytes),
            megabytes(order.used_bytes),
        );
    }
}

fn open_store(args: &Args) -> Result<Store, Error> {
    let (memory_bytes, trust) = (args.memory_cache, args.trust.trust());
    let access = args.access.access().map_err(vmnetx_store::Error::from)?;
    let options = |disk| Options {
        memory_bytes,
        disk,
        retry_for: RETRY_FOR,
        access: access.clone(),
        trust: trust.clone(),
        ..Options::default()
    };
    if args.disk_cache == 0 {
        return Ok(Store::open(options(None))?);
    }
    if let Some(dir) = &args.cache_dir {
        return Ok(Store::open(options(Some((dir.clone(), args.disk_cache))))?);
    }
    let Some(dir) = default_cache_dir() else { return Ok(Store::open(options(None))?) };
    match Store::open(options(Some((dir, args.disk_cache)))) {
        // Nobody asked for this directory, so what is wrong with it (another VM uses it) is no reason not to run.
        Err(error @ vmnetx_store::Error::Cache { .. }) => {
            tracing::warn!("nothing is kept for the next time: {error}");
            Ok(Store::open(options(None))?)
        }
        opened => Ok(opened?),
    }
}

/// Temporary overlays may grow to the size of the disks, so they belong on a disk: /tmp is often in memory.
pub(super) async fn create_run_dir() -> Result<RunDir, Error> {
    let base =
        std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let created = tokio::task::spawn_blocking(move || RunDir::create(&base)).await;
    created.map_err(|error| Error::Runtime(std::io::Error::other(error)))?.map_err(Error::Vm)
}

/// The NBD server for the package's disks, inside this process.
pub(super) struct Server {
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Server {
    pub(super) fn start(package: &Package, run_dir: &RunDir) -> Result<Self, Error> {
        let exports = Exports::new();
        for disk in package.disks() {
            disk.warm_index();
            exports.add(Export::new(disk.name(), package.link().name.to_string(), Arc::clone(disk)));
        }
        let listener = Listener::unix(&run_dir.socket(NBD_SOCKET)?)?;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(vmnetx_nbd::serve(listener, exports, shutdown.clone()));
        Ok(Self { task, shutdown })
    }

    /// Ends it; to be called when nobody reads any more.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!("the NBD server failed: {error}");
        }
    }
}

fn spec(args: &Args, package: &Package, programs: Programs, display: Display, run_dir: RunDir) -> Result<Spec, Error> {
    let manifest = package.manifest();
    let mut disks = disks(package, &run_dir)?;
    keep(&mut disks, &args.persist)?;
    Ok(Spec {
        name: args.name.clone().unwrap_or_else(|| package.link().name.clone()),
        machine: manifest.machine.clone(),
        version: package.version().manifest,
        disks,
        accel: accel(args.accel),
        display,
        network: network(args.network),
        serial: serial(args.serial.as_ref(), display, manifest.machine.serial)?,
        programs,
        run_dir,
    })
}

/// The package's disks, on the server that was started for this run, each with a temporary overlay.
pub(super) fn disks(package: &Package, run_dir: &RunDir) -> Result<Vec<DiskSpec>, Error> {
    let nbd_socket = run_dir.socket(NBD_SOCKET)?;
    let disk = |disk: &Disk| DiskSpec {
        name: disk.name.clone(),
        nbd_socket: nbd_socket.clone(),
        export: disk.name.to_string(),
        size_bytes: disk.size_bytes,
        persist: None,
    };
    Ok(package.manifest().disks.iter().map(disk).collect())
}

/// Gives the disks that `--persist` names their overlays.
fn keep(disks: &mut [DiskSpec], wishes: &[PersistArg]) -> Result<(), Error> {
    for wish in wishes {
        let known = || disks.iter().map(|disk| disk.name.to_string()).collect::<Vec<_>>().join(", ");
        let index = match &wish.disk {
            None => 0,
            Some(name) => disks
                .iter()
                .position(|disk| disk.name == *name)
                .ok_or_else(|| Error::NoDisk { name: name.clone(), known: known() })?,
        };
        // A package has at least one disk.
        let Some(disk) = disks.get_mut(index) else { continue };
        if disk.persist.replace(wish.file.clone()).is_some() {
            return Err(Error::RepeatedDisk(disk.name.clone()));
        }
    }
    Ok(())
}

fn serial(asked: Option<&SerialArg>, display: Display, has_port: bool) -> Result<Option<SerialPort>, Error> {
    let stdio = || stdio::serial_port().map(Some).map_err(Error::Runtime);
    match asked {
        Some(SerialArg::File(file)) => serial_file(file).map(Some),
        Some(SerialArg::Stdio) => stdio(),
        None if display == Display::None && has_port => stdio(),
        None => Ok(None),
    }
}

fn serial_file(file: &Path) -> Result<SerialPort, Error> {
    let created = std::fs::File::create(file);
    let output = created.map_err(|source| Error::SerialFile { file: file.to_owned(), source })?;
    Ok(SerialPort { output: Box::new(tokio::fs::File::from_std(output)), input: None })
}

pub(super) const fn accel(arg: AccelArg) -> Accel {
    match arg {
        AccelArg::Auto => Accel::Auto,
        AccelArg::Kvm => Accel::Kvm,
        AccelArg::Tcg => Accel::Tcg,
    }
}

const fn display_choice(arg: DisplayArg) -> DisplayChoice {
    match arg {
        DisplayArg::Auto => DisplayChoice::Auto,
        DisplayArg::None => DisplayChoice::Fixed(Display::None),
        DisplayArg::Gtk => DisplayChoice::Fixed(Display::Gtk),
        DisplayArg::Sdl => DisplayChoice::Fixed(Display::Sdl),
        DisplayArg::Vnc => DisplayChoice::Fixed(Display::Vnc),
    }
}

pub(super) const fn network(arg: NetworkArg) -> Network {
    match arg {
        NetworkArg::User => Network::User,
        NetworkArg::Isolated => Network::Isolated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks() -> Vec<DiskSpec> {
        let disk = |name: &str| DiskSpec {
            name: name.parse().unwrap(),
            nbd_socket: "/run/nbd".into(),
            export: name.to_owned(),
            size_bytes: 512,
            persist: None,
        };
        ["disk0", "data"].map(disk).into()
    }

    fn wish(text: &str) -> PersistArg {
        text.parse().unwrap_or_else(|never| match never {})
    }

    #[test]
    fn an_overlay_is_for_the_disk_that_it_names() {
        let mut kept = disks();
        keep(&mut kept, &[wish("data=/x/d.qcow2"), wish("a.qcow2")]).unwrap();
        assert_eq!(kept[0].persist.as_deref(), Some(Path::new("a.qcow2")));
        assert_eq!(kept[1].persist.as_deref(), Some(Path::new("/x/d.qcow2")));
        assert!(matches!(keep(&mut disks(), &[wish("disk9=a.qcow2")]), Err(Error::NoDisk { .. })));
        assert!(matches!(keep(&mut disks(), &[wish("a.qcow2"), wish("disk0=b")]), Err(Error::RepeatedDisk(_))));
    }

    #[test]
    fn a_path_with_a_slash_names_no_disk() {
        assert_eq!(wish("./a=b.qcow2"), PersistArg { disk: None, file: "./a=b.qcow2".into() });
        assert_eq!(wish("a=b=c"), PersistArg { disk: Some("a".parse().unwrap()), file: "b=c".into() });
    }

    #[test]
    fn a_serial_port_on_stdio_is_a_dash() {
        assert_eq!("-".parse(), Ok(SerialArg::Stdio));
        assert_eq!("./-".parse(), Ok(SerialArg::File("./-".into())));
    }
}
