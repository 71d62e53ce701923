//! `repack`: moves what is in use out of packs that mostly hold what is not.

use std::path::PathBuf;

use super::common::{ReportArgs, WaitArgs};
use super::output::{parse_percent, put, shown_bytes};
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
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let progress = args.report.progress("moved");
    let options = RepackOptions {
        repository: args.repo,
        below: args.below / 100.0,
        level: args.level,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let report = repack(&options, &progress)?;
    drop(progress);
    args.report.put(&report, print);
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
