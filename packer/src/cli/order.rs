//! `order`: publishes the order in which a boot reads a version.

use std::path::PathBuf;

use vmnetx_format::Name;

use super::common::{ReportArgs, WaitArgs};
use super::output::{put, shown_bytes};
use super::sign::SigningArgs;
use crate::{Error, LinkOptions, OrderOptions, OrderReport, PublishedOrder, VersionName, order, read_record};

/// Store what a boot of the package NAME reads once more, in the order in which it reads it.
///
/// Readers then fetch it ahead of the guest in a few long requests. The order takes the place of the one that the version
/// has; later versions inherit it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name.
    name: Name,
    /// Records of `vmnetx-nbd serve --record-order`, of this package in any of its versions; several are merged.
    #[arg(required = true)]
    record: Vec<PathBuf>,
    /// The version that gets the order: `current`, or the first digits of its digest, as `log` shows them.
    #[arg(long, value_name = "VERSION", default_value = "current")]
    version: VersionName,
    /// The zstd level of what is stored [default: 19]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: Option<i32>,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let link = LinkOptions {
        repository: args.repo,
        name: args.name,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let records = args.record.iter().map(|file| read_record(file)).collect::<Result<_, _>>()?;
    let wanted = OrderOptions { records, version: args.version, level: args.level };
    let progress = args.report.progress("compress");
    let report = order(&link, &wanted, &progress)?;
    drop(progress);
    args.report.put(&report, print_published);
    Ok(())
}

fn print_published(report: &PublishedOrder) {
    let PublishedOrder { name, serial, version, .. } = report;
    if report.published {
        put(&format!("published an order of {name}, serial {serial}"));
    } else {
        put(&format!("{name} has just this order already, serial {serial}: nothing was changed"));
    }
    put(&format!("version   {version}"));
    put(&format!("link      {}", report.link.display()));
    print(&report.order);
}

/// Shows an order in one line.
pub(super) fn print(order: &OrderReport) {
    let OrderReport { touches, frames, reused_frames, .. } = order;
    let [plain, stored, written] = [order.plain_bytes, order.stored_bytes, order.written_bytes].map(shown_bytes);
    let reused =
        if *reused_frames > 0 { format!(", {reused_frames} as they were stored before") } else { String::new() };
    put(&format!(
        "order     {touches} touches, {frames} chunks and nodes of {plain}, {stored} compressed{reused}; {written} written"
    ));
}
