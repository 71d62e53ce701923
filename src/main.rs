//! `vmnetx`: runs, publishes and serves virtual machines that lie on web servers.

use std::process::ExitCode;

use clap::Parser;
use vmnetx::cli::{self, Args};

#[derive(Parser)]
#[command(name = "vmnetx", version, about, propagate_version = true)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    cli::main(Program::parse().args)
}
