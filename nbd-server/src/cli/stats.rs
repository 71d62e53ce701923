//! `stats`: asks a running server for its counts.

use vmnetx_store::origin::MirrorState;

use super::put;
use super::server::ServerArgs;
use crate::Error;
use crate::control::api::AttachmentStats;

/// Show what a running server has done.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let stats = args.server.control().stats().await?;
    if args.json {
        // A structure of numbers and text always serialises.
        put(&serde_json::to_string(&stats).unwrap_or_default());
        return Ok(());
    }
    put(&format!(
        "up {} s; memory tier {} bytes, disk tier {} bytes; {} attachments",
        stats.uptime_s,
        stats.memory_bytes,
        stats.disk_bytes,
        stats.attachments.len()
    ));
    stats.attachments.iter().for_each(put_attachment);
    Ok(())
}

fn put_attachment(stats: &AttachmentStats) {
    let AttachmentStats { id, uid, package, version, socket, holders, .. } = stats;
    put(&format!("{id}: package {package} version {version} at {socket}; user {uid}, {holders} holders"));
    if stats.complete {
        put("complete: safe to disconnect");
    }
    if let Some(pull) = &stats.pull {
        put(&format!("pulled: {} of {} bytes are here", pull.done_bytes, pull.total_bytes));
    }
    let origin = &stats.origin;
    put(&format!(
        "origin {} requests ({} again, {} hedges, {} of them first), {} bytes; {} damaged frames",
        origin.requests, origin.retries, origin.hedges, origin.hedges_won, stats.origin_bytes, origin.damaged_frames,
    ));
    for mirror in &stats.mirrors {
        let MirrorState { place, requests, failures, avoided_objects, .. } = mirror;
        let rests = if mirror.resting { "; it rests" } else { "" };
        put(&format!(
            "mirror {place}: {requests} requests, {failures} failed, {avoided_objects} objects avoided{rests}"
        ));
    }
    if let Some(order) = &stats.order {
        put(&format!(
            "order: {} frames planned ({} bytes), {} fetched ahead ({} bytes, {} of them from the origin), {} used ({} bytes), \
             {} not used yet ({} bytes), {} failed{}",
            order.planned_frames,
            order.planned_bytes,
            order.prefetched_frames,
            order.prefetched_bytes,
            order.origin_bytes,
            order.used_frames,
            order.used_bytes,
            order.wasted_frames,
            order.wasted_bytes,
            order.failed_frames,
            if order.done { "; done" } else { "" },
        ));
    }
    for export in &stats.exports {
        let counts = &export.counts;
        put(&format!(
            "{}: {} connections, {} requests ({} answered at once, {} refused, {} failed), {} bytes read; chunks: {} \
             memory, {} disk, {} origin ({} read ahead, {} prefetched, {} bytes)",
            export.name,
            export.connections,
            export.requests,
            export.inline_reads,
            export.refused,
            export.failed,
            counts.read_bytes,
            counts.memory_chunks,
            counts.disk_chunks,
            counts.origin_chunks,
            counts.read_ahead_chunks,
            counts.prefetched_chunks,
            counts.origin_bytes,
        ));
    }
}
