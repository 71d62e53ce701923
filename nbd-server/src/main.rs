//! `vmnetx-nbd`: serves packages over NBD.

use std::process::ExitCode;

use clap::Parser;
use vmnetx_nbd::cli::{self, Args};

#[derive(Parser)]
#[command(name = "vmnetx-nbd", version, about, propagate_version = true)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    cli::main(Program::parse().args)
}
