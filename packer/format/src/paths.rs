//! Where the objects of a repository lie, as paths relative to its root.

use crate::{Digest, Name};

/// What a link file's name ends in.
pub const LINK_SUFFIX: &str = ".vmnetx";

/// The link of the package `name`.
#[must_use]
pub fn link_path(name: &Name) -> String {
    format!("{name}{LINK_SUFFIX}")
}

/// The manifest known by `digest`.
#[must_use]
pub fn manifest_path(digest: &Digest) -> String {
    format!("manifests/{digest}.json")
}

/// The layout object known by `digest`.
#[must_use]
pub fn layout_path(digest: &Digest) -> String {
    format!("layouts/{digest}.layout")
}

/// The order object known by `digest`.
#[must_use]
pub fn order_path(digest: &Digest) -> String {
    format!("orders/{digest}.order")
}

/// The pack known by `digest`, in one of 256 folders so that none grows too long.
#[must_use]
pub fn pack_path(digest: &Digest) -> String {
    let hex = digest.to_string();
    format!("packs/{}/{hex}.pack", &hex[..2])
}
