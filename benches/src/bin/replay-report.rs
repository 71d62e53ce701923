//! Prints what `benches/links` has measured as tables, and draws it.
#![allow(clippy::print_stdout, reason = "the program's output")]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use vmnetx_benches::links::{Runs, picture, table};

/// Print the runs that benches/links has kept as Markdown: medians, ratios, goals.
#[derive(Parser)]
struct Args {
    /// The runs, as benches/links writes them
    runs: PathBuf,
    /// Draw them, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let shown = args.runs.display();
    let text = std::fs::read(&args.runs).with_context(|| format!("read {shown}"))?;
    let runs: Runs =
        serde_json::from_slice(&text).with_context(|| format!("{shown} is not what benches/links writes"))?;
    print!("{}", table(&runs)?);
    if let Some(file) = &args.svg {
        std::fs::write(file, picture(&runs)?).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
