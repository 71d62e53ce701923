//! `vmnetx-pack`: publishes disks as VMNetX packages.

use std::process::ExitCode;

use clap::Parser;

/// Publish disks as VMNetX packages: static files on any web server.
#[derive(Debug, Parser)]
#[command(name = "vmnetx-pack", version)]
struct Program {
    #[command(flatten)]
    args: vmnetx_pack::cli::Args,
}

fn main() -> ExitCode {
    vmnetx_pack::cli::main(Program::parse().args)
}
