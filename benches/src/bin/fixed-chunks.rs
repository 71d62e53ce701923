//! Counts what an image costs in chunks of one fixed size, beyond the chunks that older images have.
#![allow(clippy::print_stdout, reason = "the program's output")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use anyhow::Context;
use clap::Parser;
use vmnetx_benches::fixed_chunks::{Options, added};
use vmnetx_benches::units::parse_size_bytes;

/// Every thread holds some chunks in memory.
const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// Count the distinct non-zero chunks of fixed size that IMAGE adds to its bases, and their compressed bytes.
#[derive(Parser)]
struct Args {
    /// Raw disk image
    image: PathBuf,
    /// An image whose chunks cost nothing any more; may be repeated
    #[arg(long, value_name = "OLD_IMAGE")]
    base: Vec<PathBuf>,
    /// Length of a chunk
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = parse_size_bytes)]
    chunk_size: u64,
    /// zstd level
    #[arg(long, default_value_t = 3, allow_negative_numbers = true)]
    level: i32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.chunk_size <= MAX_CHUNK_BYTES, "--chunk-size must be at most {MAX_CHUNK_BYTES} bytes");
    let chunk_bytes = NonZeroUsize::new(usize::try_from(args.chunk_size)?);
    let chunk_bytes = chunk_bytes.context("--chunk-size must not be 0")?;
    let threads = thread::available_parallelism()?;
    let added = added(&args.image, &args.base, &Options { chunk_bytes, level: args.level, threads })?;
    if args.json {
        println!("{}", serde_json::to_string(&added)?);
    } else {
        println!("chunks            {:>14}", added.chunks);
        println!("plain bytes       {:>14}", added.plain_bytes);
        println!("compressed bytes  {:>14}", added.compressed_bytes);
    }
    Ok(())
}
