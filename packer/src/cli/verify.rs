//! `verify`: looks for damage.

use std::path::Path;

use vmnetx_format::{LINK_SUFFIX, Name, link_path};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::trust::Trust;
use vmnetx_store::{Location, Place};

use super::common::{ReadArgs, ReportArgs};
use super::output::{parse_percent, put, say, shown_bytes};
use crate::{Depth, Error, Finding, VerifyReport, verify_link, verify_remote, verify_repository};

/// Compare every byte of a package or of a whole repository with its digests.
///
/// All damage is listed, with the disks and bytes that it affects; the exit code is 4 if there is any.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of a repository, the path of a link file in one, or an http(s) or vmnetx+http(s) URL. Of a URL the
    /// current version is verified, or the one that #b3=DIGEST asks for.
    #[arg(value_name = "LINK|REPO")]
    target: Location,
    #[command(flatten)]
    read: ReadArgs,
    /// Read the index, and compare it with what the packs say of themselves, but read no chunks.
    #[arg(long)]
    quick: bool,
    /// Read this part of the chunks, chosen anew each time, instead of all.
    #[arg(long, value_name = "PERCENT", conflicts_with = "quick", value_parser = parse_percent)]
    sample: Option<f64>,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let progress = args.report.progress("verified");
    let reader = args.read.reader();
    let depth = match args.sample {
        _ if args.quick => Depth::Part(0.0),
        Some(percent) => Depth::Part(percent / 100.0),
        None => Depth::Deep,
    };
    let report = match &args.target.place {
        Place::Url(_) => verify_remote(&args.target, depth, &reader, &progress)?,
        Place::Path(path) if path.is_dir() => {
            let repository = RepositoryDir::open(path)?;
            demand(&reader.trust, &repository, &repository.links()?)?;
            verify_repository(&repository, depth, &progress)?
        }
        Place::Path(path) => {
            let (repository, name) = link(path)?;
            demand(&reader.trust, &repository, std::slice::from_ref(&name))?;
            verify_link(&repository, &name, depth, &progress)?
        }
    };
    drop(progress);
    args.report.put(&report, print);
    match report.findings.len() as u64 + report.more_findings {
        0 => Ok(()),
        1 => Err(Error::Findings("one piece of damage".to_owned())),
        count => Err(Error::Findings(format!("{count} pieces of damage"))),
    }
}

/// Compares the keys of links on this host with those that the user demands. Everything else about them is for the report.
fn demand(trust: &Trust, repository: &RepositoryDir, names: &[Name]) -> Result<(), Error> {
    for name in names.iter().filter(|_| !trust.keys.is_empty()) {
        if let Some(envelope) = repository.link(name)? {
            let checked = trust.check_file(&repository.root().join(link_path(name)), &envelope);
            checked.map_err(|error| Error::Read(error.into()))?;
        }
    }
    Ok(())
}

fn link(path: &Path) -> Result<(RepositoryDir, Name), Error> {
    // What cannot be read at all is told as such.
    std::fs::metadata(path).map_err(Error::file("open", path))?;
    let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    let name = file.strip_suffix(LINK_SUFFIX).and_then(|name| name.parse().ok());
    let name = name.ok_or_else(|| {
        Error::Usage(format!("{} is neither a repository nor a link file NAME{LINK_SUFFIX}", path.display()))
    })?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((RepositoryDir::open(folder)?, name))
}

fn print(report: &VerifyReport) {
    for Finding { object, what, affects } in &report.findings {
        let affected = affects.as_ref().map_or_else(String::new, |affected| {
            let disk = affected.disk.as_ref().map_or_else(String::new, |disk| {
                format!(", disk {disk}, bytes {} to {}", affected.start, affected.end)
            });
            format!(" version {}{disk}", affected.version)
        });
        put(&format!("damaged   {object}{affected}: {what}"));
    }
    if report.more_findings > 0 {
        put(&format!("damaged   and {} more", report.more_findings));
    }
    for object in &report.unreferenced {
        say(&format!("note: no link leads to {object}"));
    }
    for path in &report.strangers {
        say(&format!("note: {} is no object of a repository", path.display()));
    }
    let VerifyReport { links, versions, packs, chunks, .. } = report;
    let [bytes, read] = [report.pack_bytes, report.read_bytes].map(shown_bytes);
    let orders = if report.orders == 0 { String::new() } else { format!("{} orders, ", report.orders) };
    // What lies beside a version that is published elsewhere cannot be listed.
    let [chunks, packs] = match *packs {
        0 => [String::new(), String::new()],
        packs => [format!("{chunks} chunks, "), format!("{packs} packs of {bytes}, ")],
    };
    put(&format!("verified  {links} links, {versions} versions, {chunks}{orders}{packs}{read} read"));
}
