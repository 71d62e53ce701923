//! `keygen`: makes a key to sign links with.

use std::path::PathBuf;

use super::output::{put, put_json};
use crate::{Error, generate_key};

/// Make a key to sign links with, in FILE, and its public key in FILE.pub.
///
/// Whoever has FILE can publish in your name, and whoever loses it cannot publish under the same key again: keep a copy
/// where nobody else finds it. Files that exist are never replaced.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The key file to make, readable for its owner alone.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let report = generate_key(&args.file)?;
    if args.json {
        put_json(&report);
        return Ok(());
    }
    put(&format!("key       {}", report.key));
    put(&format!("secret    {}", report.file.display()));
    put(&format!("public    {}", report.public_file.display()));
    Ok(())
}
