//! `diff`: two versions compared.

use vmnetx_store::Location;

use super::order::told;
use super::output::{put, put_json, shown_bytes};
use crate::{DiskDiff, Error, Part, VersionName, diff};

/// Say what two versions of a package share and what each has alone.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The path of a link file in a repository on this host.
    link: Location,
    /// The version to compare with: the first digits of its digest, as `log` shows them.
    from: VersionName,
    /// The version to describe.
    #[arg(default_value = "current")]
    to: VersionName,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let report = diff(&args.link, &args.from, &args.to)?;
    if args.json {
        put_json(&report);
        return Ok(());
    }
    put(&format!("from      {}", report.from));
    put(&format!("to        {}", report.to));
    for (name, disk) in &report.disks {
        print(name, disk);
    }
    if report.disks.len() > 1 {
        print("together", &report.total);
    }
    for (which, orders) in [("from", &report.orders_from), ("to", &report.orders_to)] {
        for order in orders {
            put(&format!("{which:9} order  {}", told(order)));
        }
    }
    Ok(())
}

fn print(name: &str, DiskDiff { shared, new, gone }: &DiskDiff) {
    for (what, part) in [("shared", shared), ("new", new), ("gone", gone)] {
        let Part { chunks, bytes, stored_bytes } = part;
        let [bytes, stored] = [bytes, stored_bytes].map(|bytes| shown_bytes(*bytes));
        put(&format!("{name:9} {what:6} {bytes} in {chunks} chunks, {stored} compressed"));
    }
}
