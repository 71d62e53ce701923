//! `sign`: signs a link that is published, and the options of every command that publishes one.

use std::path::{Path, PathBuf};

use vmnetx_format::Name;

use super::common::WaitArgs;
use super::output::{put, put_json, say};
use crate::{Error, Signing, read_key, sign};

/// Sign the link of the package NAME in the repository REPO as it is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// The package's name.
    name: Name,
    #[command(flatten)]
    with: With,
    /// Sign although another key has signed the link before. Readers who know that key will ask you whether it is true.
    #[arg(long, conflicts_with = "remove")]
    replace_key: bool,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What is to be done.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct With {
    /// Sign with the key in this file, which `keygen` has made.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Take the signature off. Readers who know it will refuse the link.
    #[arg(long)]
    remove: bool,
}

/// How a command that publishes signs what it publishes.
#[derive(Debug, Default, clap::Args)]
pub struct SigningArgs {
    /// Sign the link with the key in this file, which `keygen` has made. A link that is signed must be signed again.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Sign although another key has signed the link before. Readers who know that key will ask you whether it is true.
    #[arg(long, requires = "sign_key")]
    replace_key: bool,
}

impl SigningArgs {
    /// Reads the key.
    ///
    /// # Errors
    /// [`Error`] when the file is no key, or others may read it.
    pub fn signing(&self) -> Result<Signing, Error> {
        signing(self.sign_key.as_deref(), self.replace_key)
    }
}

fn signing(key: Option<&Path>, replace: bool) -> Result<Signing, Error> {
    Ok(Signing { key: key.map(read_key).transpose()?, replace })
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let signing = signing(args.with.sign_key.as_deref(), args.replace_key || args.with.remove)?;
    let report = sign(&args.repo, &args.name, &signing, args.wait.wait())?;
    if args.with.remove && report.changed {
        say("note: readers who know the key that the link was signed with will refuse it");
    }
    if args.json {
        put_json(&report);
        return Ok(());
    }
    let (name, serial) = (&report.name, report.serial);
    match (report.key, report.changed) {
        (Some(key), true) => put(&format!("signed    {name}, serial {serial}, with {key}")),
        (Some(key), false) => put(&format!("{name}, serial {serial}, is signed with {key} already")),
        (None, true) => put(&format!("unsigned  {name}, serial {serial}")),
        (None, false) => put(&format!("{name}, serial {serial}, has no signature to remove")),
    }
    Ok(())
}
