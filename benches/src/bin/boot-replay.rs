//! Replays the reads of a recorded boot against an NBD server, and says how long they took.
#![allow(clippy::print_stdout, reason = "the program's output")]

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use vmnetx_benches::replay::{Replay, load_trace};
use vmnetx_benches::units::parse_duration;

/// Send the reads of a trace to an NBD server in their order, one at a time, and print how long they took.
///
/// The time starts with the program and includes the wait for the server's socket, so that a server started at the same
/// moment is timed from its start.
#[derive(Parser)]
struct Args {
    /// The trace, as benches/record-trace writes it
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// The server's Unix socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The export
    #[arg(long, default_value = "")]
    export: String,
    /// A raw image that every byte must be equal to; compared after the time was taken
    #[arg(long, value_name = "RAWFILE")]
    verify: Option<PathBuf>,
    /// How long to wait for the socket
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    wait: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

// One thread: a request and its reply need no other thread to be woken.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Args { trace, socket, export, verify, wait, json } = Args::parse();
    let trace = load_trace(&trace)?;
    let verified = if verify.is_some() { ", all as in the image" } else { "" };
    let report = Replay { trace, socket, export, verify, wait }.run().await?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("reads    {:>14}{verified}", report.reads);
        println!("bytes    {:>14}", report.bytes);
        println!("seconds  {:>14.3} (until connected {:.3})", report.seconds, report.connect_seconds);
        println!("p50 ms   {:>14.3}", report.p50_ms);
        println!("p99 ms   {:>14.3}", report.p99_ms);
    }
    Ok(())
}
