//! The options that say which server a VM reads through.

use std::path::PathBuf;

use vmnetx_store::default_cache_dir;
use vmnetx_store::size::parse_size_bytes;

use crate::server::{Sizes, Wanted};

/// The server of a cache directory, another one, or none but the VM's own.
#[derive(Debug, clap::Args)]
pub(super) struct ThroughArgs {
    /// Keep fetched chunks in this directory, for the next time [default: vmnetx in the user's cache directory]. All runs with
    /// the same directory share one server, which the first of them starts and which ends when it is idle.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Use the server that listens on this control socket, such as a service of this host.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["cache_dir", "disk_cache", "memory_cache"])]
    server: Option<PathBuf>,
    /// Bytes of chunks to keep in the cache directory, if its server is started now; 0 for none, and no shared server.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size_bytes)]
    disk_cache: u64,
    /// Bytes of chunks to keep in memory, if the server is started now.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size_bytes)]
    memory_cache: u64,
}

impl ThroughArgs {
    /// The server that the options speak of.
    pub(super) fn wanted(&self) -> Wanted {
        if let Some(socket) = &self.server {
            return Wanted::Given(socket.clone());
        }
        let named = self.cache_dir.clone().map(|dir| (dir, true));
        match named.or_else(|| default_cache_dir().map(|dir| (dir, false))) {
            Some((dir, is_named)) if self.disk_cache > 0 => Wanted::Shared { dir, is_named },
            _ => Wanted::Private,
        }
    }

    /// How it is started, if it is.
    pub(super) const fn sizes(&self) -> Sizes {
        Sizes { memory_bytes: self.memory_cache, disk_bytes: self.disk_cache }
    }
}
