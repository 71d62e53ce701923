//! `repair`: brings back what is damaged.

use std::path::PathBuf;

use vmnetx_store::origin::AccessArgs;

use super::common::{ReportArgs, WaitArgs};
use super::output::{put, shown_bytes};
use super::sign::SigningArgs;
use crate::{Error, LEVEL_DEFAULT, RepairOptions, RepairReport, RepairSource, repair};

/// Bring back what is damaged or missing in the repository REPO from another one that holds the same versions.
///
/// Objects that the other repository has are copied. Where it is packed otherwise, the data itself is read there. Nothing
/// is taken whose digest is not right. The exit code is 4 if something is still damaged.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The other repository: a directory, or the http(s) URL of its folder.
    #[arg(long, value_name = "DIR|URL")]
    from: RepairSource,
    #[command(flatten)]
    access: AccessArgs,
    /// The zstd level of chunks that have to be packed again.
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let progress = args.report.progress("looked at");
    let options = RepairOptions {
        repository: args.repo,
        from: args.from,
        access: args.access,
        level: args.level,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let report = repair(&options, &progress)?;
    drop(progress);
    args.report.put(&report, print);
    match report.left.len() {
        0 => Ok(()),
        1 => Err(Error::Findings("one version that cannot be repaired".to_owned())),
        count => Err(Error::Findings(format!("{count} versions that cannot be repaired"))),
    }
}

fn print(report: &RepairReport) {
    put(&format!("damaged   {} objects", report.damaged.len()));
    for object in &report.copied {
        put(&format!("copied    {object}"));
    }
    for version in &report.relaid {
        put(&format!("relaid    {version}"));
    }
    for left in &report.left {
        let version = left.version.map_or_else(String::new, |version| format!(" version {version}"));
        put(&format!("left      {}{version}: {}", left.link, left.why));
    }
    let [copied, written] = [report.copied_bytes, report.written_bytes].map(shown_bytes);
    put(&format!("repaired  {copied} copied, {written} packed again"));
}
