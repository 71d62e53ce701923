//! The counters of a server: what its attachments have counted together, those that are gone included.

use crate::control::api::{AttachmentStats, ExportStats};

/// A counter of a server. `docs/operations.md` has them all.
pub(crate) struct Counter {
    /// Its name, without the ending of its unit and `_total`.
    pub(crate) name: &'static str,
    /// One line of help.
    pub(crate) help: &'static str,
    /// Whether it counts bytes.
    pub(crate) is_bytes: bool,
    value: fn(&AttachmentStats) -> u64,
}

/// How many counters there are: a type may not depend on their values, which lead back to it.
const COUNTERS_LEN: usize = 28;

/// The counters, in the sequence of their sums.
pub(crate) const COUNTERS: [Counter; COUNTERS_LEN] = [
    count("vmnetx_nbd_connections", "NBD connections that reached an export", |of| {
        sum(of, |export| export.connections)
    }),
    count("vmnetx_nbd_requests", "NBD requests of all kinds", |of| sum(of, |export| export.requests)),
    count("vmnetx_nbd_inline_reads", "NBD reads that the memory tier answered at once", |of| {
        sum(of, |export| export.inline_reads)
    }),
    count("vmnetx_nbd_refused", "NBD requests that a read-only export does not allow", |of| {
        sum(of, |export| export.refused)
    }),
    count("vmnetx_nbd_failed", "NBD requests that failed for want of a chunk", |of| sum(of, |export| export.failed)),
    bytes("vmnetx_read", "Plain bytes that were read, zeros included", |of| sum(of, |export| export.counts.read_bytes)),
    count("vmnetx_memory_chunks", "Chunks that the memory tier had", |of| {
        sum(of, |export| export.counts.memory_chunks)
    }),
    count("vmnetx_disk_chunks", "Chunks that the disk tier had", |of| sum(of, |export| export.counts.disk_chunks)),
    count("vmnetx_origin_chunks", "Chunks that came from origins", |of| sum(of, |export| export.counts.origin_chunks)),
    count("vmnetx_joined_chunks", "Chunks that another fetch was bringing already", |of| {
        sum(of, |export| export.counts.joined_chunks)
    }),
    count("vmnetx_read_ahead_chunks", "Chunks that were read ahead", |of| {
        sum(of, |export| export.counts.read_ahead_chunks)
    }),
    count("vmnetx_prefetched_chunks", "Chunks that were asked for ahead of any read (CACHE)", |of| {
        sum(of, |export| export.counts.prefetched_chunks)
    }),
    count("vmnetx_failed_chunks", "Chunks that could not be had", |of| sum(of, |export| export.counts.failed_chunks)),
    count("vmnetx_origin_requests", "Requests for ranges of packs", |of| of.origin.requests),
    bytes("vmnetx_origin", "Bytes of bodies that came from origins", |of| of.origin_bytes),
    count("vmnetx_origin_retries", "Requests that repeat what failed", |of| of.origin.retries),
    count("vmnetx_origin_hedges", "Requests that went out because another one was late", |of| of.origin.hedges),
    count("vmnetx_origin_hedges_won", "Hedges that were answered first", |of| of.origin.hedges_won),
    count("vmnetx_origin_damaged_frames", "Frames that arrived damaged", |of| of.origin.damaged_frames),
    bytes("vmnetx_origin_demand", "Bytes of packs that readers waited for", |of| of.origin.demand_bytes),
    bytes("vmnetx_origin_order", "Bytes of packs that came because of an order", |of| of.origin.order_bytes),
    bytes("vmnetx_origin_read_ahead", "Bytes of packs that read-ahead asked for itself", |of| {
        of.origin.read_ahead_bytes
    }),
    bytes("vmnetx_origin_background", "Bytes of packs that came for the background", |of| of.origin.background_bytes),
    bytes("vmnetx_order_planned", "Stored bytes that recorded orders name", |of| {
        of.order.map_or(0, |order| order.planned_bytes)
    }),
    bytes("vmnetx_order_prefetched", "Stored bytes that were fetched ahead by orders", |of| {
        of.order.map_or(0, |order| order.prefetched_bytes)
    }),
    bytes("vmnetx_order_used", "Stored bytes that were fetched ahead by orders and then read", |of| {
        of.order.map_or(0, |order| order.used_bytes)
    }),
    count("vmnetx_order_failed_frames", "Frames of orders that could not be had", |of| {
        of.order.map_or(0, |order| order.failed_frames)
    }),
    count("vmnetx_attached", "Attachments that were made", |_| 1),
];

/// What was counted, for each of [`COUNTERS`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums([u64; COUNTERS_LEN]);

impl Sums {
    pub(crate) fn add(&mut self, stats: &AttachmentStats) {
        for (sum, counter) in self.0.iter_mut().zip(&COUNTERS) {
            *sum += (counter.value)(stats);
        }
    }

    /// The counters and their sums.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static Counter, u64)> {
        COUNTERS.iter().zip(self.0)
    }
}

const fn count(name: &'static str, help: &'static str, value: fn(&AttachmentStats) -> u64) -> Counter {
    Counter { name, help, is_bytes: false, value }
}

const fn bytes(name: &'static str, help: &'static str, value: fn(&AttachmentStats) -> u64) -> Counter {
    Counter { name, help, is_bytes: true, value }
}

fn sum(stats: &AttachmentStats, value: fn(&ExportStats) -> u64) -> u64 {
    stats.exports.iter().map(value).sum()
}
