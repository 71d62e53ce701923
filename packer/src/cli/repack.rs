//! `repack`: moves what is in use out of packs that mostly hold what is not.

use std::path::PathBuf;

use vmnetx_store::dir::Wait;

use super::output::{parse_percent, put, put_json, shown_bytes};
use super::progress::Shown;
use super::sign::SigningArgs;
use crate::{Error, LEVEL_DEFAULT, RepackOptions, RepackReport, repack};

/// Move what links lead to out of packs of which little is in use.
///
/// Versions keep their identity, and whoever reads one goes on undisturbed. `prune` frees the packs that are empty then.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// Empty the packs of which less than this part is in use.
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = parse_percent)]
    below: f64,
    /// The zstd level of the chunks that are moved.
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    #[command(flatten)]
    signing: SigningArgs,
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
    let progress = Shown::new("moved", args.json || args.quiet);
    let options = RepackOptions {
        repository: args.repo,
        below: args.below / 100.0,
        level: args.level,
        signing: args.signing.signing()?,
        wait: if args.wait { Wait::Yes } else { Wait::No },
    };
    let report = repack(&options, &progress)?;
    drop(progress);
    if args.json {
        put_json(&report);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &RepackReport) {
    let RepackReport { packs, emptied, moved_bytes, written_bytes, versions, links } = report;
    let [all, emptied_bytes, moved, written] =
        [packs.bytes, emptied.bytes, *moved_bytes, *written_bytes].map(shown_bytes);
    put(&format!("packs     {} in use, {all}", packs.count));
    put(&format!("emptied   {} of them, {emptied_bytes}, of which {moved} were in use", emptied.count));
    put(&format!("written   {written}, {versions} versions laid out anew"));
    for name in links {
        put(&format!("published {name}"));
    }
}
