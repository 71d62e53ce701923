//! `drain`: lets a running server end when nobody needs it any more.

use super::server::ServerArgs;
use super::{put, say};
use crate::Error;

/// Let a running server take no more attachments, and end when the last one is gone.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args) -> Result<(), Error> {
    let versions = args.server.control().drain().await?;
    if args.json {
        put(&serde_json::to_string(&versions).unwrap_or_default());
    } else {
        say(&format!("process {} ends when its last attachment is gone", versions.pid));
    }
    Ok(())
}
