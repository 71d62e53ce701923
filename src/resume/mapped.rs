//! The main memory of a saved VM as the server holds it for VMs to share.

use std::os::fd::OwnedFd;

use tokio::time::timeout;
use vmnetx_format::{MAIN_RAM_BLOCK, Manifest};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::{Attached, MapProgress, MapRequest};
use vmnetx_store::failure::describe;

use super::Progress;
use super::limits::MAP_DEADLINE;

/// All of the main memory of the package of this manifest, which is attached with its memory; what is not on this host is
/// fetched.
///
/// # Errors
/// When the server cannot give it.
pub async fn map(
    control: &Control,
    attached: &Attached,
    manifest: &Manifest,
    progress: &Progress,
) -> Result<OwnedFd, vmnetx_nbd::Error> {
    ask(control, attached, manifest, MapRequest { bring: true }, progress).await
}

/// The same if it takes no time: all of it is on this host, and the server has it ready soon. A guest that would have to wait for
/// it longer runs sooner when it is resumed lazily.
pub async fn map_soon(
    control: &Control,
    attached: &Attached,
    manifest: &Manifest,
    progress: &Progress,
) -> Option<OwnedFd> {
    let mapping = ask(control, attached, manifest, MapRequest { bring: false }, progress);
    match timeout(MAP_DEADLINE, mapping).await {
        Ok(Ok(ram)) => Some(ram),
        Ok(Err(error)) => {
            tracing::debug!("its memory is not mapped: {}", describe(&error));
            None
        }
        Err(_) => None,
    }
}

async fn ask(
    control: &Control,
    attached: &Attached,
    manifest: &Manifest,
    request: MapRequest,
    progress: &Progress,
) -> Result<OwnedFd, vmnetx_nbd::Error> {
    let blocks = manifest.memory.iter().flat_map(|memory| &memory.blocks);
    let size_bytes = blocks.filter(|block| block.name == MAIN_RAM_BLOCK).map(|block| block.size_bytes).sum();
    let tell = |told: &MapProgress| progress.tell(told.done_bytes, told.size_bytes);
    control.map(&attached.id, request, size_bytes, tell).await
}
