//! `retain`: which versions stay.

use std::path::PathBuf;

use vmnetx_format::Name;

use super::common::WaitArgs;
use super::output::{put_json, put_link};
use super::sign::SigningArgs;
use crate::{Error, LinkOptions, RetainOptions, VersionName, retain};

/// Say which earlier versions of the package NAME can still be read.
///
/// `prune` frees the space of those that are given up.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name.
    name: Name,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Wishes {
    /// Keep this many retained versions, newest first, and those that are pinned.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Keep this version until it is unpinned.
    #[arg(long, value_name = "VERSION")]
    pin: Vec<VersionName>,
    /// Let this version go when newer ones are enough.
    #[arg(long, value_name = "VERSION")]
    unpin: Vec<VersionName>,
    /// Give this retained version up now.
    #[arg(long, value_name = "VERSION")]
    give_up: Vec<VersionName>,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let options = LinkOptions {
        repository: args.repo,
        name: args.name,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let Wishes { keep, pin, unpin, give_up } = args.wishes;
    let report = retain(&options, &RetainOptions { keep, pin, unpin, give_up })?;
    if args.json {
        put_json(&report);
    } else {
        put_link(&report);
    }
    Ok(())
}
