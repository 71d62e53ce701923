//! `cache`: looks after a cache directory, or has its server do so.

use indicatif::HumanBytes;
use serde_json::json;
use tokio::task::block_in_place;
use vmnetx_store::size::parse_size_bytes;
use vmnetx_store::{DiskCache, DiskVerified, Pin};

use super::put;
use super::server::{CacheArgs, Directory};
use crate::control::api::{CacheReport, PruneRequest, UnpinRequest, Unpinned};
use crate::{Error, upkeep};

/// Look after the cache directory. If a server has it, that one does the work, beside what it serves.
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

pub(super) async fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Du(common) => {
            show_usage(&common, &common.open().await?.report().await?);
            Ok(())
        }
        Command::Verify(common) => verify(&common).await,
        Command::Prune { common, to } => {
            show_usage(&common, &common.open().await?.prune(to).await?);
            Ok(())
        }
        Command::Pin { common, remove: Some(which), .. } => {
            show_removed(&common, &common.open().await?.unpin(which).await?);
            Ok(())
        }
        Command::Pin { common, .. } => {
            show_pins(&common, &common.open().await?.report().await?);
            Ok(())
        }
    }
}

impl Common {
    async fn open(&self) -> Result<Directory<DiskCache>, Error> {
        self.cache.open(DiskCache::open_as_it_is).await
    }
}

/// All of this waits for the disk, and there is nothing else to be done meanwhile.
impl Directory<DiskCache> {
    async fn report(&self) -> Result<CacheReport, Error> {
        match self {
            Self::Ours(cache) => Ok(block_in_place(|| upkeep::report(cache))),
            Self::Served(control) => control.cache().await,
        }
    }

    async fn verify(&self) -> Result<DiskVerified, Error> {
        match self {
            Self::Ours(cache) => Ok(block_in_place(|| cache.verify(|_| ()))),
            Self::Served(control) => control.verify().await,
        }
    }

    async fn prune(&self, to_bytes: u64) -> Result<CacheReport, Error> {
        match self {
            Self::Ours(cache) => block_in_place(|| upkeep::prune(cache, to_bytes)),
            Self::Served(control) => control.prune(PruneRequest { to_bytes }).await,
        }
    }

    async fn unpin(&self, which: String) -> Result<Unpinned, Error> {
        match self {
            Self::Ours(cache) => block_in_place(|| upkeep::unpin(cache, &which)),
            Self::Served(control) => control.unpin(&UnpinRequest { which }).await,
        }
    }
}

fn show_usage(common: &Common, report: &CacheReport) {
    let CacheReport { dir, usage, pins } = report;
    if common.json {
        // Numbers and text always serialise.
        put(&serde_json::to_string(report).unwrap_or_default());
        return;
    }
    let [bytes, pinned] = [usage.bytes, usage.pinned_bytes].map(HumanBytes);
    let (records, segments) = (usage.records, usage.segments);
    put(&format!("{dir}: {bytes} in {segments} segments, {records} chunks; {pinned} are kept for good"));
    pins.iter().for_each(show_pin);
}

fn show_pin(pin: &Pin) {
    put(&format!("{} version {}: {}, from {}", pin.name, pin.manifest, HumanBytes(pin.bytes), pin.link));
}

async fn verify(common: &Common) -> Result<(), Error> {
    let directory = common.open().await?;
    let (dir, verified) = (directory.report().await?.dir, directory.verify().await?);
    if common.json {
        put(&json!({ "dir": dir, "verified": verified }).to_string());
    } else {
        put(&format!("{dir}: {} chunks verified, {} of them damaged", verified.records, verified.damaged));
    }
    if verified.damaged == 0 { Ok(()) } else { Err(Error::DamagedCache { dir: dir.into(), damaged: verified.damaged }) }
}

fn show_pins(common: &Common, CacheReport { dir, pins, .. }: &CacheReport) {
    if common.json {
        put(&json!({ "dir": dir, "pins": pins }).to_string());
    } else {
        pins.iter().for_each(show_pin);
    }
}

fn show_removed(common: &Common, unpinned: &Unpinned) {
    if common.json {
        put(&serde_json::to_string(unpinned).unwrap_or_default());
    } else {
        unpinned.removed.iter().for_each(show_pin);
    }
}
