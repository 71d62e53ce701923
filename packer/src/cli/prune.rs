//! `prune`: frees space.

use std::path::PathBuf;
use std::time::Duration;

use super::common::{ReportArgs, WaitArgs};
use super::output::{put, shown_bytes};
use crate::{Error, Objects, PruneOptions, PruneReport, prune};

/// Free the space of what no link of the repository REPO leads to any more.
///
/// The first run marks it, a run after the grace period removes it: whoever still reads a version that was given up has
/// that long to end.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// How long an object stays after it was marked, such as 7d or 12h.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Change nothing, only say what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let progress = args.report.progress("removed");
    let options =
        PruneOptions { repository: args.repo, grace: args.grace, dry_run: args.dry_run, wait: args.wait.wait() };
    let report = prune(&options, &progress)?;
    drop(progress);
    args.report.put(&report, print);
    Ok(())
}

fn print(report: &PruneReport) {
    let PruneReport { reached, marked, waiting, removed, spared } = report;
    for (what, objects) in [("in use", reached), ("marked", marked), ("waiting", waiting), ("removed", removed)] {
        let Objects { count, bytes } = objects;
        put(&format!("{what:9} {count} objects, {}", shown_bytes(*bytes)));
    }
    if *spared > 0 {
        put(&format!("spared    {spared} objects, which are in use again"));
    }
}
