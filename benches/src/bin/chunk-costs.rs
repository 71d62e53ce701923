//! Counts what an image and its later versions cost when they are cut in given ways and compressed at given levels.
#![allow(clippy::print_stdout, reason = "the program's output")]

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;
use vmnetx_benches::chunking::{Cost, CutImage, Cutter};
use vmnetx_benches::replay::load_trace;

/// Count the distinct chunks of IMAGE, what each later version adds, and what a boot's reads touch.
#[derive(Parser)]
struct Args {
    /// Raw disk image
    image: PathBuf,
    /// A later version of it; may be repeated, each is compared with IMAGE alone
    #[arg(long, value_name = "IMAGE")]
    later: Vec<PathBuf>,
    /// Reads of a boot, lines of offset and length
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A way of cutting: fixed:64K, blocks:MIN,CUT,MAX or bytes:64K; may be repeated
    #[arg(long, value_name = "CUTTER", default_values_t = ["fixed:64K".to_owned(), "blocks:4,8,32".to_owned()])]
    cutter: Vec<String>,
    /// A zstd level; may be repeated
    #[arg(long, default_values_t = [3], allow_negative_numbers = true)]
    level: Vec<i32>,
}

/// One line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    cutter: &'a str,
    level: i32,
    image: Cost,
    later: Vec<Cost>,
    touched: Option<Cost>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let trace = args.trace.as_deref().map(load_trace).transpose()?;
    for text in &args.cutter {
        let cutter: Cutter = text.parse()?;
        let image = CutImage::cut(&args.image, cutter)?;
        let all = image.added(&[]);
        let touched = trace.as_ref().map(|trace| image.touched(trace));
        let later: Vec<CutImage> =
            args.later.iter().map(|path| CutImage::cut(path, cutter)).collect::<Result<_, _>>()?;
        for &level in &args.level {
            let line = Line {
                cutter: text,
                level,
                image: image.cost(&all, level)?,
                later: later.iter().map(|next| next.cost(&next.added(&[&image]), level)).collect::<Result<_, _>>()?,
                touched: touched.as_ref().map(|chunks| image.cost(chunks, level)).transpose()?,
            };
            println!("{}", serde_json::to_string(&line)?);
        }
    }
    Ok(())
}
