//! `capture`: saves a running VM, disks and memory at one moment, as a version of a package.

use std::convert::Infallible;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use url::Url;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Accelerator, Digest, Name, Title, link_path};
use vmnetx_nbd::control::api::AttachRequest;
use vmnetx_pack::cli::{HardwareArgs, ReportArgs, SigningArgs, WaitArgs, parse_repository_url, print_build};
use vmnetx_pack::{
    BaseOptions, BuildOptions, BuildReport, ChainFile, LEVEL_DEFAULT, ORDER_LEVEL_DEFAULT, OrderChoice, OrderOptions,
    OrderReport, Progress, Signing, VersionName,
};
use vmnetx_store::dir::{DirError, RepositoryDir};
use vmnetx_store::failure::describe;
use vmnetx_store::interrupt;

use super::Error;
use super::rehearse::{self, HowArgs, OfArg};
use super::run::{AccelArg, NetworkArg};
use crate::capture::{self, Captured, Plan, Vm};
use crate::registry::Registry;
use crate::vm::Programs;

/// Save a running VM, disks and memory as they are at one moment, as a version of the package NAME in the repository REPO.
///
/// The guest stands still for as long as its memory takes to be saved on this host, and runs on while that is published. The new
/// version holds what the VM's disks have that the version which it runs does not; that version must be in REPO, under NAME.
///
/// Whoever can read the package can read what was in the guest's RAM: passwords and keys, too.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The VM: the name that `vmnetx run` has given it, or the QMP socket of any QEMU of this user.
    #[arg(value_name = "VM|unix:PATH")]
    vm: VmArg,
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name there.
    name: Name,
    /// End the VM once it is published; it stands still until then.
    #[arg(long)]
    stop: bool,
    /// Do not ask whether the guest's memory may be published.
    #[arg(long)]
    yes: bool,
    /// Do not resume what was published in scratch, to record what a resume needs first.
    #[arg(long)]
    no_rehearse: bool,
    /// Publish all of the disks, whatever they lie over. A disk of which parts were not read yet is fetched whole.
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    hardware: HardwareArgs,
    /// The title that people see.
    #[arg(long, value_name = "TEXT")]
    title: Option<Title>,
    /// Where REPO can be read, the canonical URL first. Without it the link keeps those that it has.
    #[arg(long, value_name = "URL", num_args = 1.., value_parser = parse_repository_url)]
    url: Vec<Url>,
    /// The zstd level of chunks.
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// The QEMU of this host; qemu-img is looked for beside it first.
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Which VM.
#[derive(Debug, Clone, PartialEq, Eq)]
enum VmArg {
    Named(String),
    Socket(PathBuf),
}

impl FromStr for VmArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix("unix:") {
            Some(path) => Self::Socket(path.into()),
            None => Self::Named(text.to_owned()),
        })
    }
}

/// A VM that was found, and what is known of it without asking it.
struct Found {
    vm: Vm,
    machine: Machine,
    /// The version that it runs.
    version: Option<Digest>,
}

/// The report in JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    #[serde(flatten)]
    report: &'a BuildReport,
    /// How long the guest stood still, if it ran before and runs again.
    #[serde(skip_serializing_if = "Option::is_none")]
    stood_still_ms: Option<u64>,
    /// Whether the VM was ended.
    stopped: bool,
    /// What was recorded of how it is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<OrderReport>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    // What is wrong with the command line is said before anything is done.
    let programs = Programs::find(&args.qemu)?;
    let signing = args.signing.signing()?;
    confirm(&args)?;
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let Found { vm, machine, version } = find(&args).await?;
    let base = base(&args, version, &signing)?;
    tell_of_copies(&machine);
    let progress = Unnamed(args.report.progress("copied"));
    let plan = Plan { machine: &machine, base, hold: args.stop, programs: &programs, progress: &progress };
    let mut captured = vm.capture(plan, &shutdown).await?;
    drop(progress);
    if let Some(stood_still) = captured.stood_still {
        tracing::info!("the guest stood still for {:.2} s and runs on", stood_still.as_secs_f64());
    }
    let accelerator = captured.memory.accelerator;
    let published = publish(&args, &mut captured, (machine, base), signing.clone(), &shutdown).await;
    let stood_still_ms = captured.stood_still.map(|time| time.as_millis() as u64);
    let report = match published {
        Ok(report) => report,
        Err(error) => {
            if let Err(also) = captured.let_run().await {
                tracing::warn!("the VM does not run on: {}", describe(&also));
            }
            return Err(error);
        }
    };
    captured.stop().await?;
    let order = if args.no_rehearse {
        None
    } else {
        rehearse(&args, report.version, accelerator, signing, &shutdown).await.unwrap_or_else(|error| {
            // What was captured is published, whatever becomes of this.
            tracing::warn!("no order is recorded of how the VM is resumed: {}", describe(&error));
            None
        })
    };
    let report = JsonReport { report: &report, stood_still_ms, stopped: args.stop, order };
    args.report.put(&report, |report| print_build(report.report));
    Ok(())
}

/// Resumes what was published once, in scratch and without a network, and publishes what that needed first. Nothing if the user
/// has ended it.
async fn rehearse(
    args: &Args,
    version: Digest,
    accelerator: Option<Accelerator>,
    signing: Signing,
    shutdown: &CancellationToken,
) -> Result<Option<OrderReport>, Error> {
    let link = std::path::absolute(args.repo.join(link_path(&args.name))).map_err(Error::Runtime)?;
    let request = AttachRequest { version: Some(version), ..AttachRequest::new(link.to_string_lossy()) };
    let how = HowArgs {
        of: OfArg::Resume,
        quiet_for: None,
        at_most: None,
        accel: match accelerator {
            Some(Accelerator::Kvm) => AccelArg::Kvm,
            Some(Accelerator::Tcg) => AccelArg::Tcg,
            None => AccelArg::Auto,
        },
        network: NetworkArg::Isolated,
        qemu: args.qemu.clone(),
    };
    let Some(rehearsed) = rehearse::rehearse(&how, request, shutdown).await? else { return Ok(None) };
    let publishing = rehearse::publish(OrderOptions {
        repository: args.repo.clone(),
        name: args.name.clone(),
        version: VersionName::Starts(version.to_string()),
        choice: OrderChoice::Records(vec![rehearsed.record]),
        level: ORDER_LEVEL_DEFAULT,
        signing,
        wait: args.wait.wait(),
    });
    publishing.await.map(Some)
}

/// Progress that does not tell which files disks are read from: they are ours, and gone when this ends.
struct Unnamed<P>(P);

impl<P: Progress> Progress for Unnamed<P> {
    fn total(&self, bytes: u64) {
        self.0.total(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }

    fn warn(&self, text: &str) {
        self.0.warn(text);
    }

    fn reads(&self, _disk: &Name, _files: &[ChainFile]) {}
}

/// Publishes what was captured.
async fn publish(
    args: &Args,
    captured: &mut Captured,
    (machine, base): (Machine, Option<Digest>),
    signing: Signing,
    shutdown: &CancellationToken,
) -> Result<BuildReport, Error> {
    let version = base.map(|version| VersionName::Starts(version.to_string()));
    let options = BuildOptions {
        repository: args.repo.clone(),
        name: args.name.clone(),
        disks: captured.disks.clone(),
        allow_backing: false,
        base: version.map(|version| BaseOptions { version, trust: false }),
        machine: Some(machine),
        title: args.title.clone(),
        urls: args.url.clone(),
        memory: Some(captured.memory.clone()),
        chunker: None,
        keep: None,
        level: args.level,
        orders: OrderChoice::Inherit,
        order_level: ORDER_LEVEL_DEFAULT,
        signing,
        wait: args.wait.wait(),
    };
    let progress = Unnamed(args.report.progress("published"));
    let building = tokio::task::spawn_blocking(move || vmnetx_pack::build(&options, &progress));
    // An interrupted build leaves every version whole.
    let built = shutdown.run_until_cancelled(building).await.ok_or(capture::Error::Interrupted)?;
    Ok(built.map_err(|error| Error::Runtime(std::io::Error::other(error)))??)
}

/// The VM that is meant.
async fn find(args: &Args) -> Result<Found, Error> {
    match &args.vm {
        VmArg::Socket(socket) => {
            let vm = Vm::open(socket).await?;
            let machine = args.hardware.of_running(vm.disk_names().len())?;
            let machine = machine.ok_or_else(|| Error::NotDescribed(socket.clone()))?;
            Ok(Found { vm, machine, version: None })
        }
        VmArg::Named(name) => {
            let name: Name = name.parse().map_err(|error| vmnetx_pack::Error::Usage(format!("{error}")))?;
            if args.hardware.is_given() {
                return Err(Error::Described(name));
            }
            let running = Registry::of_user()?.find(&name)?.vm.ok_or(capture::Error::Starting(name))?;
            let vm = Vm::open_running(&running).await?;
            Ok(Found { vm, machine: running.machine, version: Some(running.version) })
        }
    }
}

/// The version that the new one starts from; nothing where all of the disks are to be published.
fn base(args: &Args, version: Option<Digest>, signing: &Signing) -> Result<Option<Digest>, Error> {
    let before = match RepositoryDir::open(&args.repo) {
        // It is made.
        Err(_) if !args.repo.exists() => None,
        Ok(repository) => repository.link(&args.name).map_err(vmnetx_pack::Error::from)?,
        Err(DirError::NotARepository { .. }) => None,
        Err(error) => return Err(vmnetx_pack::Error::from(error).into()),
    };
    signing.check(before.as_ref())?;
    let Some(version) = version.filter(|_| !args.whole) else { return Ok(None) };
    if before.is_some_and(|envelope| envelope.link.version(&version).is_some()) {
        return Ok(Some(version));
    }
    Err(capture::Error::NoBase { repository: args.repo.clone(), name: args.name.clone(), version }.into())
}

/// Says in what all guests will be alike that are resumed from this one.
fn tell_of_copies(machine: &Machine) {
    if !machine.nics.is_empty() {
        tracing::info!("the guest keeps the address of its network card, so every VM that is resumed from this has it");
    }
    if !machine.vmgenid {
        tracing::info!(
            "the machine has no VM generation ID (`vmgenid`), so guests that are resumed from this do not know that they are copies, \
             and draw the same random numbers at first"
        );
    }
    if !machine.guest_agent {
        tracing::info!(
            "the machine has no port for a guest agent (`guest_agent`), so guests that are resumed from this keep its time"
        );
    }
}

/// Asks whether the guest's memory may be published, unless that was said.
fn confirm(args: &Args) -> Result<(), Error> {
    if args.yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::NotConfirmed);
    }
    let _ = write!(
        std::io::stderr(),
        "Whoever can read {} can then read all that is in the guest's RAM, passwords and keys, too. Publish it? [y/N] ",
        Path::new(&args.repo).display()
    );
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(Error::Runtime)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::Declined) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_a_name_or_a_socket() {
        assert_eq!("unix:/run/q".parse(), Ok(VmArg::Socket("/run/q".into())));
        assert_eq!("guest".parse(), Ok(VmArg::Named("guest".to_owned())));
    }
}
