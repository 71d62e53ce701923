//! `rollback`: makes an earlier version current.

use std::path::PathBuf;

use vmnetx_format::Name;

use super::common::WaitArgs;
use super::output::{put_json, put_link};
use super::sign::SigningArgs;
use crate::{Error, LinkOptions, VersionName, roll_back};

/// Make an earlier version of the package NAME current again; the one that is current now stays retained.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name.
    name: Name,
    /// The version: the first digits of its digest, as `log` shows them.
    version: VersionName,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let options = LinkOptions {
        repository: args.repo,
        name: args.name,
        signing: args.signing.signing()?,
        wait: args.wait.wait(),
    };
    let report = roll_back(&options, &args.version)?;
    if args.json {
        put_json(&report);
    } else {
        put_link(&report);
    }
    Ok(())
}
