//! `info`: describes a package.

use vmnetx_store::Location;

use super::common::ReadArgs;
use super::order::told;
use super::output::{put, put_json, shown_bytes, shown_time};
use super::progress::Shown;
use crate::{DiskInfo, Error, PackageInfo, SignatureInfo, info};

/// Describe the package that LINK names: its versions, machine and disks.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An http(s) or vmnetx+http(s) URL, or a path to a link file; #b3=DIGEST asks for one version.
    link: Location,
    #[command(flatten)]
    read: ReadArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let progress = Shown::new("read", args.json);
    let found = info(&args.link, &args.read.reader(), &progress)?;
    drop(progress);
    if args.json {
        put_json(&found)
    } else {
        print(&found)
    }
    Ok(())
}

fn print(found: &PackageInfo) {
    put(&format!("name      {}", found.name));
    if let Some(title) = &found.title {
        put(&format!("title     {title}"));
    }
    put(&format!("serial    {}", found.serial));
    match &found.signature {
        None => put("signature none"),
        Some(SignatureInfo { key, good: true }) => put(&format!("signature good, with {key}")),
        Some(SignatureInfo { key, good: false }) => put(&format!("signature BAD: not made with {key} over this link")),
    }
    for url in &found.repositories {
        put(&format!("at        {url}"));
    }
    for (index, version) in found.versions.iter().enumerate() {
        let which = if index == 0 { "current" } else { "retained" };
        let shown = if version.version == found.version { ", described here" } else { "" };
        put(&format!("version   {} {}, {which}{shown}", version.version, shown_time(version.published_unix_s)));
    }
    for disk in &found.disks {
        let DiskInfo { name, size_bytes, stored } = disk;
        let stored = stored.as_ref().map_or_else(String::new, |stored| {
            let [data, packed] = [stored.data_bytes, stored.stored_bytes].map(shown_bytes);
            format!(", {data} of data in {} chunks, {packed} compressed", stored.chunks)
        });
        put(&format!("disk      {name}: {}{stored}", shown_bytes(*size_bytes)));
    }
    for order in &found.orders {
        put(&format!("order     {}", told(order)));
    }
    for line in found.machine.to_toml().lines() {
        put(&format!("machine   {line}"));
    }
}
