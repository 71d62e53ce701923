//! What each fuzz target does with its bytes: one function a target, named as the target.
//!
//! A target fails by a panic: one of the code under test, or of an assertion here about what must hold for any bytes.

#![forbid(unsafe_code)]
#![warn(unreachable_pub, unused_qualifications)]

mod format;
mod migration;
mod nbd;
mod packer;
mod store;

// The client of QEMU's monitor is no public part of its crate, so its source is compiled into this one.
#[path = "../../src/vm/limits.rs"]
#[allow(dead_code, reason = "only the limits of the monitor are used here")]
mod limits;
#[path = "../../src/vm/qmp.rs"]
#[allow(dead_code, unreachable_pub, reason = "only what reads the monitor is used here")]
mod qmp;

use peak_alloc::PeakAlloc;

pub use format::{
    catalogue, content_nodes, frame, layout_nodes, layout_object, link, link_text, machine, manifest, names, order,
    record,
};
pub use migration::{libvirt_save, migration_stream, return_path};
pub use nbd::{nbd_client, nbd_handshake, nbd_replies, nbd_requests};
pub use packer::{domain, image_chain, keys, tombstones};
pub use store::{disk_tier, location};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The client of QEMU's monitor on a connection that sends `data`.
pub fn qmp(data: &[u8]) {
    store::monitor(data);
}

/// Does `work`, which must not have allocated more than `bytes_max` at any moment. zstd's own memory is not counted;
/// libFuzzer's `-rss_limit_mb` bounds that.
fn bounded<T>(bytes_max: usize, work: impl FnOnce() -> T) -> T {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = work();
    let used = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(used <= bytes_max, "{used} bytes were allocated at once, more than {bytes_max}");
    result
}

/// An error's text goes to a terminal: nothing in it may steer one.
fn assert_printable(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
    assert!(text.len() < 4096, "an error of {} bytes", text.len());
}
