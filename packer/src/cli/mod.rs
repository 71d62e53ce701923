//! The command line of `vmnetx-pack`, which is also `vmnetx pack`.

mod build;
mod common;
mod describe_domain;
mod diff;
mod domain;
mod export;
mod hardware;
mod info;
mod keygen;
mod list;
mod log;
mod order;
mod output;
mod progress;
mod prune;
mod push;
mod repack;
mod repair;
mod retain;
mod rollback;
mod serve;
mod sign;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmnetx_store::failure::{Told, tell};

pub use self::build::{parse_repository_url, print as print_build};
pub use self::common::{ReportArgs, WaitArgs};
pub use self::hardware::HardwareArgs;
pub use self::sign::SigningArgs;

use self::output::say;
use crate::Error;

/// Publishes disks as packages: static files that any web server can serve.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<build::Args>),
    DescribeDomain(describe_domain::Args),
    Info(info::Args),
    List(list::Args),
    Log(log::Args),
    Diff(diff::Args),
    Rollback(rollback::Args),
    Retain(retain::Args),
    Order(order::Args),
    Prune(prune::Args),
    Repack(repack::Args),
    Repair(repair::Args),
    Verify(verify::Args),
    Export(export::Args),
    Push(push::Args),
    Serve(serve::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
}

/// Runs a command to its end and tells of its failure.
#[must_use]
pub fn main(args: Args) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&tell(&error));
            ExitCode::from(error.class().exit_code())
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Why it failed.
pub fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Build(args) => build::run(*args),
        Command::DescribeDomain(args) => describe_domain::run(&args),
        Command::Info(args) => info::run(&args),
        Command::List(args) => list::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Rollback(args) => rollback::run(args),
        Command::Retain(args) => retain::run(args),
        Command::Order(args) => order::run(args),
        Command::Prune(args) => prune::run(args),
        Command::Repack(args) => repack::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Verify(args) => verify::run(&args),
        Command::Export(args) => export::run(args),
        Command::Push(args) => push::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Sign(args) => sign::run(&args),
    }
}
