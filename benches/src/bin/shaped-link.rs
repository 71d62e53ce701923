//! Forwards TCP connections over one slow line, and says at the end what the line has carried.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the program's output")]

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use vmnetx_benches::link::{Link, Shape};
use vmnetx_benches::units::{parse_duration, parse_rate_bits_per_s};

/// Forward TCP connections over one slow line that they share, until SIGTERM or SIGINT; then print what it has carried.
#[derive(Parser)]
struct Args {
    /// Where clients connect; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// The server behind the line
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Rate of each direction in bit/s (K, M, G: powers of 1000)
    #[arg(long, default_value = "100M", value_parser = parse_rate_bits_per_s)]
    rate: u64,
    /// Round trip; a new connection takes one more
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_duration)]
    rtt: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut link = Link::new(Shape { rate_bits_per_s: args.rate, rtt: args.rtt })?;
    let address = link.forward(args.listen, args.to).await?;
    eprintln!("listening on {address}");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let totals = link.totals();
    if args.json {
        println!("{}", serde_json::to_string(&totals)?);
    } else {
        println!("up bytes     {:>14}", totals.up_bytes);
        println!("down bytes   {:>14}", totals.down_bytes);
        println!("connections  {:>14}", totals.connections);
    }
    Ok(())
}
