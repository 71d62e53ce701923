//! `build`: publishes a version of a package.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;
use url::Url;
use vmnetx_format::{Accelerator, Chunker, Name, Title};
use vmnetx_store::size::parse_size_bytes;

use super::common::{ReportArgs, WaitArgs};
use super::domain;
use super::hardware::HardwareArgs;
use super::order::{LevelArgs, put_orders};
use super::output::{put, shown_bytes};
use super::sign::SigningArgs;
use crate::domain::Description;
use crate::{
    BaseOptions, BuildOptions, BuildReport, DiskFile, DiskFormat, Error, LEVEL_DEFAULT, MemoryFile, OrderChoice,
    VersionName, build, read_records,
};

/// Publish a version of the package NAME into the repository REPO.
///
/// REPO is made if it does not exist. Chunks that it holds already, from whatever package, are not stored again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name: letters, digits, '.', '_' and '-'.
    name: Name,
    /// The disks: regular files or block devices. Without names they are disk0, disk1 and so on.
    /// With --domain they take the places of the domain's disks, in the order in which these boot.
    #[arg(long, value_name = "[NAME=]FILE", required_unless_present = "domain", num_args = 1..)]
    disk: Vec<OsString>,
    /// The format of the --disk files: one for all, or one for each in their order (`--format raw,qcow2`). Without it they
    /// are raw: it is never guessed.
    #[arg(long, value_name = "FORMAT", requires = "disk", value_delimiter = ',')]
    format: Vec<DiskFormat>,
    /// Read an image's backing files and other parts also where they lie outside of the image's folder.
    #[arg(long)]
    allow_backing: bool,
    /// Start from this version of NAME, `current` or as `log` shows it: qcow2 disks are overlays over its disks of the
    /// same names, of which only the changes are read; other formats are whole disks; disks that are not given are
    /// taken over.
    #[arg(long, value_name = "VERSION", conflicts_with = "chunk_size")]
    base: Option<VersionName>,
    /// Take qcow2 disks for overlays over --base also if they do not say so, as those of `vmnetx run --persist` do.
    #[arg(long, requires = "base")]
    trust_base: bool,
    #[command(flatten)]
    hardware: HardwareArgs,
    /// The memory that the VM had when its disks were what they are: what QMP's `migrate` wrote to a file or a pipe, or a
    /// file of `virsh save`; `-` is standard input. Whoever can read the package can then read all that was in its RAM.
    #[arg(long, value_name = "FILE|-")]
    memory: Option<PathBuf>,
    /// What ran the guest's instructions when its memory was saved.
    #[arg(long, value_name = "kvm|tcg", requires = "memory", value_parser = parse_accelerator)]
    saved_accel: Option<Accelerator>,
    /// The version of the QEMU that saved the memory, such as 7.2.22.
    #[arg(long, value_name = "VERSION", requires = "memory")]
    saved_qemu: Option<String>,
    /// The title that people see.
    #[arg(long, value_name = "TEXT")]
    title: Option<Title>,
    /// Where REPO can be read, the canonical URL first. Without it the link works wherever it lies.
    #[arg(long, value_name = "URL", num_args = 1.., value_parser = parse_repository_url)]
    url: Vec<Url>,
    /// The mean length of chunks of uninterrupted data, of disks: saved memory is cut its own way. Without it: that of the version before, else 48K.
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    chunk_size: Option<u64>,
    /// Retain this many earlier versions, newest first, and those that are pinned. Without it all stay retained.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// The zstd level of chunks.
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// A record of what a boot touches, as `vmnetx-nbd serve --record-order` writes it; several are merged. Readers fetch
    /// that ahead of the guest. Without it, the order of the version before (or of --base) is laid out for the new one.
    #[arg(long, value_name = "FILE")]
    order: Vec<PathBuf>,
    /// Publish without an order.
    #[arg(long, conflicts_with = "order")]
    no_order: bool,
    #[command(flatten)]
    order_level: LevelArgs,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// The report in JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    #[serde(flatten)]
    report: &'a BuildReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a Description>,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let reporting = args.report;
    let (options, domain) = options(args)?;
    if let Some(domain) = domain.as_ref().filter(|_| !reporting.json) {
        let names: Vec<_> = options.disks.iter().map(|disk| disk.name.clone()).collect();
        domain::tell(domain, &names);
    }
    let progress = reporting.progress("read");
    let report = build(&options, &progress)?;
    drop(progress);
    reporting.put(&JsonReport { report: &report, domain: domain.as_ref() }, |_| print(&report));
    Ok(())
}

/// What is to be published, and what the domain is that it comes from.
fn options(args: Args) -> Result<(BuildOptions, Option<Description>), Error> {
    let chunker = args.chunk_size.map(Chunker::with_mean).transpose();
    let formats = formats(&args.format, args.disk.len())?;
    let given = args.disk.iter().zip(formats).enumerate();
    let given = given.map(|(index, (text, format))| disk(index, text, format)).collect::<Result<Vec<_>, _>>()?;
    let hardware = args.hardware;
    let (machine, disks, domain) = match &hardware.domain {
        Some(path) => {
            let description = hardware.domain(path, (given.len(), "--disk gives"))?;
            let disks = if given.is_empty() { own_disks(&description)? } else { given };
            let names: Vec<_> = disks.iter().map(|disk| disk.name.clone()).collect();
            (Some(description.machine_with(&names)), disks, Some(description))
        }
        // A new version of a package has the old one's hardware unless its publisher says otherwise.
        None if hardware.machine.is_none() && args.base.is_some() => (None, given, None),
        None => (Some(hardware.machine()?), given, None),
    };
    let options = BuildOptions {
        repository: args.repo,
        name: args.name,
        disks,
        allow_backing: args.allow_backing,
        base: args.base.map(|version| BaseOptions { version, trust: args.trust_base }),
        machine,
        memory: args.memory.map(|file| MemoryFile { file, accelerator: args.saved_accel, qemu: args.saved_qemu }),
        title: args.title,
        urls: args.url,
        chunker: chunker.map_err(|error| Error::Usage(error.to_string()))?,
        keep: args.keep,
        level: args.level,
        orders: orders(&args.order, args.no_order)?,
        order_level: args.order_level.order_level,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    Ok((options, domain))
}

fn orders(records: &[PathBuf], none: bool) -> Result<OrderChoice, Error> {
    Ok(match records {
        _ if none => OrderChoice::Drop,
        [] => OrderChoice::Inherit,
        files => OrderChoice::Records(read_records(files)?),
    })
}

/// The domain's own disks.
fn own_disks(description: &Description) -> Result<Vec<DiskFile>, Error> {
    let disks = description.disk_names().into_iter().zip(&description.disks);
    disks.map(|(name, disk)| domain::own_file(name, disk)).collect()
}

/// The format of each disk.
fn formats(given: &[DiskFormat], disks: usize) -> Result<Vec<DiskFormat>, Error> {
    match given {
        [] => Ok(vec![DiskFormat::Raw; disks]),
        [all] => Ok(vec![*all; disks]),
        each if each.len() == disks => Ok(each.to_vec()),
        each => {
            Err(Error::Usage(format!("--format: {} formats for {disks} disks; give one, or one for each", each.len())))
        }
    }
}

/// A disk's name and file. `NAME=` counts as a name only if it can be one: `./a=b` is a file.
fn disk(index: usize, text: &OsStr, format: DiskFormat) -> Result<DiskFile, Error> {
    let bytes = text.as_bytes();
    let named = bytes.iter().position(|&byte| byte == b'=').and_then(|at| {
        let name: Name = std::str::from_utf8(&bytes[..at]).ok()?.parse().ok()?;
        Some((name, PathBuf::from(OsStr::from_bytes(&bytes[at + 1..]))))
    });
    let (name, file) = match named {
        Some(named) => named,
        None => {
            let name = format!("disk{index}").parse().map_err(|error| Error::Usage(format!("{error}")))?;
            (name, text.into())
        }
    };
    Ok(DiskFile { name, file, format })
}

/// A repository's URL is that of a folder, so it ends in a slash whether the user wrote one or not.
///
/// # Errors
/// When it is no URL.
pub fn parse_repository_url(text: &str) -> Result<Url, url::ParseError> {
    let mut url: Url = text.parse()?;
    if !url.path().ends_with('/') && url.query().is_none() && url.fragment().is_none() {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn parse_accelerator(text: &str) -> Result<Accelerator, &'static str> {
    match text {
        "kvm" => Ok(Accelerator::Kvm),
        "tcg" => Ok(Accelerator::Tcg),
        _ => Err("say kvm or tcg"),
    }
}

/// Shows what was published.
pub fn print(report: &BuildReport) {
    let BuildReport { name, serial, version, chunks, new_chunks, .. } = report;
    if report.published {
        put(&format!("published {name}, serial {serial}"));
    } else {
        put(&format!("{name} is published just so already, serial {serial}: nothing was changed"));
    }
    put(&format!("version   {version}"));
    put(&format!("link      {}", report.link.display()));
    if let Some(key) = report.key {
        put(&format!("signed    with {key}"));
    }
    let [data, zero, new, written] =
        [report.data_bytes, report.zero_bytes, report.new_bytes, report.written_bytes].map(shown_bytes);
    let what = if report.memory.is_some() { "all  " } else { "disks" };
    let kept =
        if report.kept_bytes > 0 { format!(", {} taken over", shown_bytes(report.kept_bytes)) } else { String::new() };
    if let Some(memory) = &report.memory {
        let [ram, data, state] = [memory.ram_bytes, memory.data_bytes, memory.device_state_bytes].map(shown_bytes);
        put(&format!("memory    {ram} of RAM, {data} of it not zero, and {state} of device state"));
    }
    put(&format!("{what}     {data} of data, {zero} of zeros{kept}"));
    put(&format!("chunks    {chunks}, of them {new_chunks} new ({new})"));
    put(&format!("written   {written}"));
    put_orders(&report.orders);
}
