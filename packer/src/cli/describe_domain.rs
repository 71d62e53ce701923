//! `describe-domain`: shows what a libvirt domain is as a package's machine.

use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::machine::Machine;

use super::domain;
use super::hardware::default_machine;
use super::output::{put, put_json};
use crate::Error;
use crate::domain::{Description, DiskFiles};

/// Describe the machine that `build --domain FILE` would publish, in TOML for `build --machine`.
///
/// What of the domain is not in it is said on standard error, each element by its path. Nothing is written or published,
/// and no disk is read.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The domain, as `virsh dumpxml --inactive` writes it.
    file: PathBuf,
    /// Print one JSON object with the machine, the disks and the remarks.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    #[serde(flatten)]
    description: Description,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let description = domain::read(&args.file, default_machine()?, DiskFiles::FromDomain)?;
    let names = description.disk_names();
    let machine = description.machine_with(&names);
    if args.json {
        put_json(&Report { machine, description });
    } else {
        domain::tell(&description, &names);
        put(machine.to_toml().trim_end());
    }
    Ok(())
}
