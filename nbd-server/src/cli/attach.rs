//! `attach`: lets a running server serve a package, for as long as this command runs.

use vmnetx_store::{LinkArgs, interrupt};

use super::server::ServerArgs;
use super::{put, say};
use crate::Error;
use crate::control::api::{AttachRequest, AttachmentId, NoticeText, OrderUse};

/// Let a running server serve the disks of the package that LINK names, on a socket for you alone, until interrupted.
///
/// Prints the NBD URI of each disk. If the server ends, so does this command.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    of: LinkArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Call the attachment this; the path of its socket follows from it. Without it, by a random number.
    #[arg(long, value_name = "ID")]
    id: Option<AttachmentId>,
    /// Serve this disk alone.
    #[arg(long, value_name = "NAME")]
    export: Option<String>,
    /// Seconds for which a read is tried again when the origin fails [default: the server's].
    #[arg(long, value_name = "SECONDS")]
    retry_for: Option<u64>,
    /// Send no request to any host: what `vmnetx-nbd pull` has made complete in the server's cache directory must do.
    #[arg(long)]
    offline: bool,
    /// Whether to fetch ahead, in the order that was recorded with the package, what a boot will read.
    #[arg(long, value_enum, default_value_t)]
    order: OrderUse,
    /// Print one JSON object: what the server says of the attachment.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let shutdown = interrupt::token().map_err(Error::Runtime)?;
    let control = args.server.control();
    let id = args.id.clone().map_or_else(AttachmentId::random, Ok).map_err(Error::Runtime)?;
    let request = AttachRequest {
        retry_for_s: args.retry_for,
        offline: args.offline,
        order: args.order,
        exports: args.export.into_iter().collect(),
        ..AttachRequest::of(&args.of)?
    };
    let Some(attached) = shutdown.run_until_cancelled(control.attach(&id, &request)).await else { return Ok(()) };
    let attached = attached?;
    let lease = control.hold(&id).await?;
    attached.notices.iter().for_each(NoticeText::log);
    if args.json {
        put(&serde_json::to_string(&attached).unwrap_or_default());
    } else {
        for export in &attached.exports {
            put(&format!("nbd+unix:///{}?socket={}", export.name, attached.socket));
        }
    }
    if shutdown.run_until_cancelled(lease.ended()).await.is_some() {
        return Err(Error::LeaseLost(id));
    }
    let stats = control.detach(&id).await?;
    say(&format!("fetched {} bytes in {} requests", stats.origin_bytes, stats.origin.requests));
    Ok(())
}
