//! `log`: the versions of a package.

use vmnetx_store::Location;

use super::common::ReadArgs;
use super::output::{put, put_json, shown_bytes, shown_time};
use super::progress::Shown;
use crate::{Error, State, log};

/// List the versions of the package that LINK names, and what each added to those before it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file.
    link: Location,
    #[command(flatten)]
    read: ReadArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let progress = Shown::new("read", args.json);
    let report = log(&args.link, &args.read.reader(), &progress)?;
    drop(progress);
    if args.json {
        put_json(&report);
        return Ok(());
    }
    for entry in report.versions {
        let state = match entry.state {
            State::Current => "current ",
            State::Retained => "retained",
        };
        let added = entry.added.map_or_else(String::new, |added| {
            let [bytes, stored] = [added.bytes, added.stored_bytes].map(shown_bytes);
            format!("  adds {bytes} in {} chunks, {stored} compressed", added.chunks)
        });
        let orders: String = entry
            .orders
            .iter()
            .map(|order| format!("  {} order of {}", order.purpose, shown_bytes(order.stored_bytes)))
            .collect();
        let pinned = if entry.pinned { "  pinned" } else { "" };
        put(&format!("{}  {}  {state}{added}{orders}{pinned}", entry.version, shown_time(entry.published_unix_s)));
    }
    Ok(())
}
