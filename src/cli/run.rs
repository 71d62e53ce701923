//! `run`: launches the VM that a link names.

#[cfg(feature = "libvirt")]
mod libvirt;

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Disk, Manifest, Name};
use vmnetx_nbd::control::api::{AttachRequest, Attached, AttachmentStats, NoticeText, OrderUse};
use vmnetx_store::failure::describe;
use vmnetx_store::{LinkArgs, interrupt};

use super::resume::{ResumeArg, Show, Shown};
use super::through::ThroughArgs;
use super::{Error, stdio};
#[cfg(feature = "libvirt")]
use crate::libvirt::Uri;
use crate::registry::{Claim, Registry, RegistryError};
use crate::resume::{self, Failed, Fill, Mode, Plan, Progress, Saved};
use crate::server::Lease;
use crate::vm::{self, Accel, DiskSpec, Display, DisplayChoice, Network, Outcome, Programs, RunDir, SerialPort, Spec};

/// How long a guest's read is tried again when the origin fails. Then the guest stands still and is continued every few
/// seconds, which tries again.
const RETRY_FOR: Duration = Duration::from_secs(15);

/// Launch the VM that LINK names, until it powers off or is interrupted.
///
/// Only what the guest reads is fetched. What it writes is thrown away in the end, unless --persist keeps it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    of: LinkArgs,
    /// Call the VM this, which no other of yours may be called. Without it, it has the package's name, with a number if that
    /// is taken.
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
    #[command(flatten)]
    through: ThroughArgs,
    /// Send no request to any host: what `vmnetx-nbd pull` has made complete in the server's cache directory must do.
    #[arg(long)]
    offline: bool,
    /// Whether to bring ahead what the boot will read: in the order that was recorded with the package, and as it was read
    /// here the last time.
    #[arg(long, value_enum, default_value_t)]
    order: OrderUse,
    /// How a VM that was saved with its memory goes on. Another mode than auto is taken or the run fails.
    #[arg(long, value_enum, default_value_t)]
    resume: ResumeArg,
    /// Tell programs how far resuming is: JSON objects on standard output, each on its line.
    #[arg(long)]
    json: bool,
    /// The QEMU to run; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// What runs the VM: QEMU as a child of this program, or libvirt as a domain that is gone when it ends.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendArg,
    /// The libvirt of this host to use [default: qemu:///system for root, else qemu:///session].
    #[cfg(feature = "libvirt")]
    #[arg(long, value_name = "URI")]
    connect: Option<Uri>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum BackendArg {
    #[default]
    Qemu,
    #[cfg(feature = "libvirt")]
    Libvirt,
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

/// A run on its way: what it was asked for, and what this host has for it.
struct Run<'a> {
    args: &'a Args,
    programs: Programs,
    display: Display,
    request: AttachRequest,
    shutdown: CancellationToken,
}

/// How a launch went: the VM has ended, or its saved memory could not be resumed and it may be booted.
enum Launched {
    Ended(Outcome),
    NotResumed(Box<Spec>),
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    // What this host lacks is found before anything is fetched.
    let programs = Programs::find(&args.qemu)?;
    let display = match args.backend {
        BackendArg::Qemu => display_choice(args.display).resolve(&programs).await?,
        #[cfg(feature = "libvirt")]
        BackendArg::Libvirt => {
            libvirt::check(&args)?;
            Display::None
        }
    };
    let request = request(&args.of)?;
    let request = AttachRequest { order: args.order, offline: args.offline, ..request };
    let run = Run { args: &args, programs, display, request, shutdown };
    match run.to_its_end().await? {
        Outcome::PoweredOff => tracing::info!("the guest has powered off"),
        Outcome::Closed => tracing::info!("the VM was closed"),
        Outcome::Cancelled => tracing::info!("the VM was ended"),
    }
    Ok(())
}

impl Run<'_> {
    async fn to_its_end(&self) -> Result<Outcome, Error> {
        let wants_memory = self.wants_memory()?;
        let Some(lease) = self.attach(wants_memory).await? else { return Ok(Outcome::Cancelled) };
        lease.attached().notices.iter().for_each(NoticeText::log);
        tracing::info!("{} version {}", lease.attached().name, lease.attached().version);
        let launched = match self.args.backend {
            BackendArg::Qemu => self.launch(&lease, wants_memory).await,
            #[cfg(feature = "libvirt")]
            BackendArg::Libvirt => self.launch_in_libvirt(&lease, wants_memory).await,
        };
        end(lease).await;
        match launched? {
            Launched::Ended(outcome) => Ok(outcome),
            Launched::NotResumed(spec) => self.boot_instead(*spec).await,
        }
    }

    /// Whether the VM is to be resumed, as far as can be told without its package.
    fn wants_memory(&self) -> Result<bool, Error> {
        let Args { resume, persist, .. } = self.args;
        let has_run = persist.iter().any(|wish| wish.file.exists());
        match resume {
            ResumeArg::Off => Ok(false),
            _ if !has_run => Ok(true),
            ResumeArg::Auto => {
                tracing::info!(
                    "the VM boots: its overlay has been run before, and saved memory is of the published disk"
                );
                Ok(false)
            }
            ResumeArg::Mapped | ResumeArg::Lazy | ResumeArg::Stream => Err(resume::Error::OtherDisk.into()),
        }
    }

    /// Attaches the package; nothing when cancelled before.
    async fn attach(&self, memory: bool) -> Result<Option<Lease>, Error> {
        let request = AttachRequest { memory, ..self.request.clone() };
        let wanted = self.args.through.wanted();
        let attaching = Lease::take(&wanted, self.args.through.sizes(), request);
        Ok(self.shutdown.run_until_cancelled(attaching).await.transpose()?)
    }

    /// Resumes the VM if it was saved and is to be resumed, and else boots it.
    async fn launch(&self, lease: &Lease, wants_memory: bool) -> Result<Launched, Error> {
        let attached = lease.attached();
        let manifest = manifest(attached)?;
        let spec = self.spec(attached, &manifest).await?;
        if wants_memory && manifest.memory.is_some() {
            return self.resume(lease, &manifest, spec).await;
        }
        if !matches!(self.args.resume, ResumeArg::Auto | ResumeArg::Off) {
            return Err(resume::Error::NoMemory.into());
        }
        Ok(Launched::Ended(vm::launch(spec, self.shutdown.clone()).await?))
    }

    /// Resumes the VM in the first way that works.
    async fn resume(&self, lease: &Lease, manifest: &Manifest, mut spec: Spec) -> Result<Launched, Error> {
        let mut shown = Shown::start(if self.args.json { Show::Json } else { Show::Words });
        let progress = shown.progress();
        let mapping = self.shutdown.run_until_cancelled(self.mapped(lease, manifest, &progress));
        let Some(ram) = mapping.await.transpose()? else { return Ok(Launched::Ended(Outcome::Cancelled)) };
        let mapped = ram.map(|ram| (vec![Mode::Mapped], Some(ram)));
        let modes = self.args.resume.modes();
        let unmapped = (!modes.is_empty()).then_some((modes, None));
        for (modes, ram) in mapped.into_iter().chain(unmapped) {
            let plan = Plan { modes, ram, fill: Fill::All, progress: shown.progress() };
            let saved = Saved::open(lease.control(), lease.attached(), manifest);
            match resume::start(spec, saved, plan, &self.shutdown).await {
                Ok(Some(resumed)) => {
                    shown.running(resumed.mode(), Some(resumed.qemu_took()));
                    return Ok(Launched::Ended(resumed.run(&self.shutdown).await?));
                }
                Ok(None) => return Ok(Launched::Ended(Outcome::Cancelled)),
                Err(Failed { error, spec: Some(again) }) if self.args.resume == ResumeArg::Auto => {
                    tracing::warn!("the VM cannot be resumed so: {}", describe(&error));
                    spec = *again;
                }
                Err(Failed { error, .. }) => return Err(error.into()),
            }
        }
        tracing::warn!("the VM boots, for it cannot be resumed");
        Ok(Launched::NotResumed(Box::new(spec)))
    }

    /// All of the main memory as the server holds it for VMs to share. Where nobody demands that, only if it takes no time.
    async fn mapped(&self, lease: &Lease, manifest: &Manifest, progress: &Progress) -> Result<Option<OwnedFd>, Error> {
        let (control, attached) = (lease.control(), lease.attached());
        match self.args.resume {
            ResumeArg::Mapped => Ok(Some(resume::map(control, attached, manifest, progress).await?)),
            ResumeArg::Auto => Ok(resume::map_soon(control, attached, manifest, progress).await),
            ResumeArg::Lazy | ResumeArg::Stream | ResumeArg::Off => Ok(None),
        }
    }

    /// Boots a VM that could not be resumed: what it will read is another order's.
    async fn boot_instead(&self, mut spec: Spec) -> Result<Outcome, Error> {
        let Some(lease) = self.attach(false).await? else { return Ok(Outcome::Cancelled) };
        let socket = &lease.attached().socket;
        spec.disks.iter_mut().for_each(|disk| disk.nbd_socket = socket.into());
        let launched = vm::launch(spec, self.shutdown.clone()).await;
        end(lease).await;
        Ok(launched?)
    }

    async fn spec(&self, attached: &Attached, manifest: &Manifest) -> Result<Spec, Error> {
        let args = self.args;
        let mut disks = disks(manifest, attached);
        keep(&mut disks, &args.persist)?;
        let claim = claim(args.name.as_ref(), &attached.name)?;
        Ok(Spec {
            name: claim.as_ref().map(Claim::name).or(args.name.as_ref()).unwrap_or(&attached.name).clone(),
            version: attached.version,
            disks,
            accel: accel(args.accel),
            display: self.display,
            network: network(args.network),
            serial: self.serial(manifest.machine.serial)?,
            machine: manifest.machine.clone(),
            incoming: None,
            claim,
            programs: self.programs.clone(),
            run_dir: RunDir::temporary().await?,
        })
    }

    fn serial(&self, has_port: bool) -> Result<Option<SerialPort>, Error> {
        let stdio = || stdio::serial_port().map(Some).map_err(Error::Runtime);
        match &self.args.serial {
            Some(SerialArg::File(file)) => serial_file(file).map(Some),
            Some(SerialArg::Stdio) if self.args.json => Err(Error::TwoOnStdout),
            Some(SerialArg::Stdio) => stdio(),
            None if self.display == Display::None && has_port && !self.args.json => stdio(),
            None => Ok(None),
        }
    }
}

/// Enters the VM among those that run: under the name that the user gave, which must be free, or one like its package's.
fn claim(given: Option<&Name>, package: &Name) -> Result<Option<Claim>, Error> {
    let claimed = Registry::of_user().and_then(|registry| match given {
        Some(name) => registry.claim(name),
        None => registry.claim_like(package),
    });
    match claimed {
        Ok(claim) => {
            if claim.name() != package && given.is_none() {
                tracing::info!("the VM is called {}: one called {package} runs already", claim.name());
            }
            Ok(Some(claim))
        }
        Err(error @ RegistryError::Taken(_)) => Err(vm::Error::from(error).into()),
        // It runs all the same; nobody finds it by its name.
        Err(error) => {
            tracing::warn!("the VM is not entered among those that run: {}", describe(&error));
            Ok(None)
        }
    }
}

/// Gives the attachment up, and tells what the run has cost.
async fn end(lease: Lease) {
    if let Some(stats) = lease.end().await {
        log_fetched(&stats);
    }
}

/// What a VM asks of its server: the package that a link names, and reads that fail soon enough for the guest to stand still.
pub(super) fn request(args: &LinkArgs) -> Result<AttachRequest, Error> {
    let request = AttachRequest::of(args)?;
    Ok(AttachRequest { retry_for_s: Some(RETRY_FOR.as_secs()), ..request })
}

/// The manifest of what is attached.
pub(super) fn manifest(attached: &Attached) -> Result<Manifest, Error> {
    Manifest::decode(attached.manifest.get().as_bytes()).map_err(Error::Manifest)
}

/// What the run has cost, which is what this program is for.
fn log_fetched(stats: &AttachmentStats) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let size: u64 = stats.exports.iter().map(|export| export.size_bytes).sum();
    let read: u64 = stats.exports.iter().map(|export| export.counts.read_bytes).sum();
    tracing::info!(
        "fetched {:.1} MB in {} requests; the guest read {:.1} MB of its disks and memory of {:.1} MB",
        megabytes(stats.origin_bytes),
        stats.origin.requests,
        megabytes(read),
        megabytes(size),
    );
    if let Some(order) = stats.order {
        tracing::info!(
            "fetched {:.1} MB ahead, as recorded; the guest has read {:.1} MB of them",
            megabytes(order.prefetched_bytes),
            megabytes(order.used_bytes),
        );
    }
}

/// The package's disks where they are attached, each with a temporary overlay.
pub(super) fn disks(manifest: &Manifest, attached: &Attached) -> Vec<DiskSpec> {
    let disk = |disk: &Disk| DiskSpec {
        name: disk.name.clone(),
        nbd_socket: attached.socket.clone().into(),
        export: disk.name.to_string(),
        size_bytes: disk.size_bytes,
        persist: None,
    };
    manifest.disks.iter().map(disk).collect()
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
