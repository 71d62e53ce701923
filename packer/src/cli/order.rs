//! `order`: publishes the orders of a version that is published.

use std::path::PathBuf;

use vmnetx_format::Name;

use super::common::{ReportArgs, WaitArgs};
use super::output::{put, put_link, shown_bytes};
use super::sign::SigningArgs;
use crate::{
    Error, LaidOrder, ORDER_LEVEL_DEFAULT, OrderChoice, OrderInfo, OrderOptions, OrderReport, VersionName,
    publish_order, read_records,
};

/// Publish what a boot or a resume of the package NAME touches, in sequence, so that readers fetch it ahead of the guest.
///
/// Several records of the same purpose become one order. Later versions inherit it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name.
    name: Name,
    /// Records, as `vmnetx-nbd serve --record-order` writes them.
    #[arg(value_name = "FILE", required_unless_present = "drop", conflicts_with = "drop")]
    records: Vec<PathBuf>,
    /// The version, `current` or as `log` shows it.
    #[arg(long, value_name = "VERSION", default_value = "current")]
    version: VersionName,
    /// Let the version have no orders.
    #[arg(long)]
    drop: bool,
    #[command(flatten)]
    level: LevelArgs,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// How much work an order is worth.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct LevelArgs {
    /// The zstd level of what is written for an order. What an earlier order has is left as it is.
    #[arg(long, value_name = "LEVEL", default_value_t = ORDER_LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(super) order_level: i32,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let choice = if args.drop { OrderChoice::Drop } else { OrderChoice::Records(read_records(&args.records)?) };
    let progress = args.report.progress("laid out");
    let options = OrderOptions {
        repository: args.repo,
        name: args.name,
        version: args.version,
        choice,
        level: args.level.order_level,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let report = publish_order(&options, &progress)?;
    drop(progress);
    args.report.put(&report, print);
    Ok(())
}

fn print(report: &OrderReport) {
    put_link(&report.named);
    put_orders(&report.orders);
}

/// Says what orders were laid out.
pub(super) fn put_orders(orders: &[LaidOrder]) {
    for LaidOrder { info, reused_bytes, written_bytes } in orders {
        let [reused, written] = [*reused_bytes, *written_bytes].map(shown_bytes);
        put(&format!("order     {}, {written} written, {reused} of an earlier one", told(info)));
    }
}

/// An order in a few words.
pub(super) fn told(order: &OrderInfo) -> String {
    let OrderInfo { purpose, touches, frames, .. } = order;
    let [plain, stored] = [order.plain_bytes, order.stored_bytes].map(shown_bytes);
    format!("of a {purpose}: {touches} touches, {plain} in {frames} frames, copied in {stored}")
}
