//! `prune`: frees space.

use std::path::PathBuf;
use std::time::Duration;

use vmnetx_store::dir::Wait;

use super::output::{put, put_json, shown_bytes};
use super::progress::Shown;
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
    /// Wait if another publisher works in REPO.
    #[arg(long)]
    wait: bool,
    /// Print one JSON object, and no progress.
    #[arg(long)]
    json: bool,
    /// Show no progress.
    #[arg(long)]
    quiet: bool,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let progress = Shown::new("removed", args.json || args.quiet);
    let wait = if args.wait { Wait::Yes } else { Wait::No };
    let options = PruneOptions { repository: args.repo, grace: args.grace, dry_run: args.dry_run, wait };
    let report = prune(&options, &progress)?;
    drop(progress);
    if args.json {
        put_json(&report);
    } else {
        print(&report);
    }
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
