//! `export`: writes a disk as a raw image, or a saved VM as a migration stream.

use std::path::PathBuf;

use vmnetx_store::Location;

use super::common::{ReadArgs, ReportArgs};
use super::output::{put, put_json, say, shown_bytes};
use crate::{Error, ExportOptions, Output, export};

/// Write a disk of a package as a raw image, verified.
///
/// Of a saved VM, ram:BLOCK and vm:device-state are images, too, and vm:stream is all of it, as a migration stream: a QEMU of the
/// same machine goes on from it (-incoming 'exec:cat FILE').
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    link: Location,
    /// The disk's name, or one of those of a saved VM.
    disk: String,
    /// The file to write, sparse; '-' writes to standard output.
    out: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
    /// Replace OUT if it exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let to_stdout = args.out.as_os_str() == "-";
    if to_stdout && args.report.json {
        return Err(Error::Usage("the image and --json cannot both go to standard output".to_owned()));
    }
    let out = if to_stdout { Output::Stdout } else { Output::File { path: args.out.clone(), force: args.force } };
    let progress = args.report.progress("exported");
    let reader = args.read.reader();
    let report = export(&ExportOptions { link: args.link, disk: args.disk, out, reader }, &progress)?;
    drop(progress);
    if args.report.json {
        put_json(&report);
        return Ok(());
    }
    let [size, data] = [report.size_bytes, report.data_bytes].map(shown_bytes);
    let text = format!("exported  {} of version {}: {size}, {data} of data", report.disk, report.version);
    match (to_stdout, args.report.quiet) {
        (true, true) => {}
        (true, false) => say(&text),
        (false, _) => put(&text),
    }
    Ok(())
}
