//! The command line of `vmnetx-nbd`, which is also `vmnetx nbd`.

mod attach;
mod cache;
mod drain;
mod progress;
mod pull;
mod serve;
mod server;
mod stats;
mod tls;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmnetx_store::failure::{Told, tell};

use crate::Error;

/// Serves packages over NBD.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Pull(Box<pull::Args>),
    Cache(cache::Args),
    Attach(Box<attach::Args>),
    Stats(stats::Args),
    Drain(drain::Args),
}

/// The exit code of a server that finds another one in its cache directory.
pub const ANOTHER_SERVES: u8 = 3;

/// The control socket of the server of a cache directory.
#[must_use]
pub fn control_socket(cache_dir: &Path) -> PathBuf {
    cache_dir.join("control.sock")
}

/// Runs a command to its end and tells of its failure.
#[must_use]
pub fn main(args: Args) -> ExitCode {
    log_to_stderr();
    let serves = matches!(args.command, Command::Serve(_));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&tell(&error));
            ExitCode::from(match error {
                Error::Store(vmnetx_store::Error::CacheInUse { .. }) if serves => ANOTHER_SERVES,
                error => error.class().exit_code(),
            })
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Why it failed.
pub fn run(args: Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let result = runtime.block_on(async {
        match args.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Pull(args) => pull::run(*args).await,
            Command::Cache(args) => cache::run(args).await,
            Command::Attach(args) => attach::run(*args).await,
            Command::Stats(args) => stats::run(args).await,
            Command::Drain(args) => drain::run(&args).await,
        }
    });
    // A read of a stalled disk must not keep the program from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("VMNETX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // The root program may have set up its own.
    let _ = subscriber.with_target(false).try_init();
}

/// Talks to the user.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Gives data to whatever reads standard output.
fn put(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
