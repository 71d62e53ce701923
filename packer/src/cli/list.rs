//! `list`: the packages of a repository.

use std::path::PathBuf;

use vmnetx_store::dir::RepositoryDir;

use super::output::{put, put_json, shown_bytes, shown_time};
use crate::{Error, list};

/// List the packages in the repository REPO.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the repository.
    repo: PathBuf,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let packages = list(&RepositoryDir::open(&args.repo)?)?;
    if args.json {
        put_json(&packages);
        return Ok(());
    }
    let width = packages.iter().map(|package| package.name.as_str().len()).max().unwrap_or_default();
    for package in packages {
        let title = package.title.map_or_else(String::new, |title| format!("  {title}"));
        let plural = if package.disks == 1 { "" } else { "s" };
        put(&format!(
            "{:width$}  {}  {} disk{plural}, {}, {} retained{title}",
            package.name.as_str(),
            shown_time(package.published_unix_s),
            package.disks,
            shown_bytes(package.disk_bytes),
            package.retained,
        ));
    }
    Ok(())
}
