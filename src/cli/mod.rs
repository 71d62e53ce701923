//! The command line of `vmnetx`.

mod capture;
mod doctor;
mod error;
mod rehearse;
mod resume;
mod run;
mod stdio;
mod through;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmnetx_store::failure::{Told, tell};

pub use error::Error;

/// For tasks that still run when a command has ended, such as a read of a stalled disk.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(1);

/// Runs, publishes and serves virtual machines that lie on web servers.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Capture(Box<capture::Args>),
    Rehearse(Box<rehearse::Args>),
    Doctor(Box<doctor::Args>),
    /// Publish disks as packages (the program `vmnetx-pack`)
    Pack(Box<vmnetx_pack::cli::Args>),
    /// Serve packages to other NBD clients (the program `vmnetx-nbd`)
    Nbd(Box<vmnetx_nbd::cli::Args>),
    /// Stand by while another process captures a VM
    #[command(name = crate::capture::GUARD_COMMAND, hide = true)]
    CaptureGuard,
}

/// Runs a command to its end and tells of its failure.
#[must_use]
pub fn main(args: Args) -> ExitCode {
    log_to_stderr();
    let result = match args.command {
        Command::Run(args) => block_on(run::run(*args)),
        Command::Capture(args) => block_on(capture::run(*args)),
        Command::CaptureGuard => block_on(async { Ok(crate::capture::guard().await?) }),
        Command::Rehearse(args) => block_on(rehearse::run(*args)),
        Command::Doctor(args) => block_on(doctor::run(*args)),
        Command::Pack(args) => return vmnetx_pack::cli::main(*args),
        Command::Nbd(args) => return vmnetx_nbd::cli::main(*args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody reads it, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{}", tell(&error));
            ExitCode::from(error.class().exit_code())
        }
    }
}

fn block_on(command: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(RUNTIME_DEADLINE);
    result
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("VMNETX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
