//! `vmnetx`: runs, publishes and serves virtual machines that lie on web servers.

use std::process::ExitCode;

use clap::Parser;
use vmnetx::cli::{self, Args};

#[derive(Parser)]
#[command(name = "vmnetx", version, about)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    cli::main(Program::parse().args)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_of_all_commands_fit_each_other() {
        Program::command().debug_assert();
    }
}
