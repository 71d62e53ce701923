//! `cache`: looks after a cache directory whose server has nothing to serve at the moment.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde_json::json;
use vmnetx_store::size::parse_size_bytes;
use vmnetx_store::{DiskCache, Pin, default_cache_dir};

use super::put;
use super::server::open_when_free;
use crate::Error;

/// Look after the cache directory, while its server serves nothing; it ends then.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show how full it is, and what is kept for good.
    Du(Common),
    /// Read every chunk, compare it with its digest, and drop the damaged ones; exit code 4 if there were any.
    Verify(Common),
    /// Empty it: everything that is not kept for good, or the oldest until SIZE is left.
    Prune {
        #[command(flatten)]
        common: Common,
        /// Bytes that may be left.
        #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size_bytes)]
        to: u64,
    },
    /// List the packages that are kept for good, as `pull` does, or let go of one.
    Pin {
        #[command(flatten)]
        common: Common,
        /// Let go of this package: its name, its link, or the digest of its manifest. Its chunks stay until others need room.
        #[arg(long, value_name = "WHICH", required_unless_present = "list")]
        remove: Option<String>,
        /// List them.
        #[arg(long, conflicts_with = "remove")]
        list: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    cache: CacheArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Which cache directory.
#[derive(Debug, clap::Args)]
pub(super) struct CacheArgs {
    /// The cache directory [default: vmnetx in the user's cache directory].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl CacheArgs {
    /// The directory that was named, or the user's.
    pub(super) fn dir(&self) -> Result<PathBuf, Error> {
        self.cache_dir.clone().or_else(default_cache_dir).ok_or(Error::NoCacheDir)
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    // All of it waits for the disk, and there is nothing else to be done.
    let done = tokio::task::spawn_blocking(move || match args.command {
        Command::Du(common) => du(&common),
        Command::Verify(common) => verify(&common),
        Command::Prune { common, to } => prune(&common, to),
        Command::Pin { common, remove: Some(which), .. } => unpin(&common, &which),
        Command::Pin { common, .. } => list(&common),
    });
    done.await.map_err(|error| Error::Runtime(std::io::Error::other(error)))?
}

impl Common {
    fn open(&self) -> Result<(PathBuf, DiskCache), Error> {
        let dir = self.cache.dir()?;
        let opening = open_when_free(&dir, || DiskCache::open_as_it_is(&dir));
        let cache = tokio::runtime::Handle::current().block_on(opening)?;
        Ok((dir, cache))
    }
}

fn du(common: &Common) -> Result<(), Error> {
    let (dir, cache) = common.open()?;
    show_usage(common, &dir, &cache);
    Ok(())
}

fn show_usage(common: &Common, dir: &Path, cache: &DiskCache) {
    let (usage, pins) = (cache.usage(), cache.pins());
    if common.json {
        put(&json!({ "dir": dir, "usage": usage, "pins": pins }).to_string());
        return;
    }
    let [bytes, pinned] = [usage.bytes, usage.pinned_bytes].map(HumanBytes);
    let (records, segments) = (usage.records, usage.segments);
    put(&format!("{}: {bytes} in {segments} segments, {records} chunks; {pinned} are kept for good", dir.display()));
    pins.iter().for_each(show_pin);
}

fn show_pin(pin: &Pin) {
    put(&format!("{} version {}: {}, from {}", pin.name, pin.manifest, HumanBytes(pin.bytes), pin.link));
}

fn verify(common: &Common) -> Result<(), Error> {
    let (dir, cache) = common.open()?;
    let verified = cache.verify(|_| ());
    if common.json {
        put(&json!({ "dir": dir, "verified": verified }).to_string());
    } else {
        put(&format!("{}: {} chunks verified, {} of them damaged", dir.display(), verified.records, verified.damaged));
    }
    if verified.damaged == 0 { Ok(()) } else { Err(Error::DamagedCache { dir, damaged: verified.damaged }) }
}

fn prune(common: &Common, to_bytes: u64) -> Result<(), Error> {
    let (dir, cache) = common.open()?;
    cache.prune(to_bytes)?;
    show_usage(common, &dir, &cache);
    Ok(())
}

fn list(common: &Common) -> Result<(), Error> {
    let (dir, cache) = common.open()?;
    let pins = cache.pins();
    if common.json {
        put(&json!({ "dir": dir, "pins": pins }).to_string());
    } else {
        pins.iter().for_each(show_pin);
    }
    Ok(())
}

fn unpin(common: &Common, which: &str) -> Result<(), Error> {
    let (dir, cache) = common.open()?;
    let is_meant = |pin: &Pin| pin.name == which || pin.link == which || pin.manifest.to_string() == which;
    let (removed, left): (Vec<Pin>, Vec<Pin>) = cache.pins().into_iter().partition(is_meant);
    if removed.is_empty() {
        return Err(Error::NoPin { dir, which: which.to_owned() });
    }
    for pin in &removed {
        cache.unpin(&pin.manifest)?;
    }
    if common.json {
        put(&json!({ "dir": dir, "removed": removed, "pins": left }).to_string());
    } else {
        removed.iter().for_each(show_pin);
    }
    Ok(())
}
