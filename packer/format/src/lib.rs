//! The VMNetX package format, number 0: chunks, trees, packs, orders, manifests and links, without I/O.
//!
//! `docs/format.md` describes the bytes. Nothing in this crate opens a file or a socket, reads a clock or starts a
//! thread; it turns bytes into checked values and back. Bytes are taken for hostile: no decoder panics, none allocates
//! before it has compared a size with its limit in [`limits`].

mod binding;
mod chunker;
mod digest;
mod frame;
mod json;
mod link;
mod manifest;
mod name;
mod order;
mod pack;
mod paths;
mod signature;
mod tree;
mod wire;

pub mod limits;
pub mod machine;
pub mod migration;

pub use binding::{Binding, NoBinding};
pub use chunker::{Chunker, ChunkerError, Cutter, Run};
pub use digest::{Digest, DigestError, Hasher};
pub use frame::{Compressor, FrameError, decode_frame};
pub use link::{Envelope, Link, LinkError, Version};
pub use manifest::{
    Accelerator, DEVICE_STATE_IMAGE, DeviceStateImage, Disk, MAIN_RAM_BLOCK, Manifest, ManifestError, ManifestImage,
    Memory, RamBlock, ram_image_name,
};
pub use name::{Name, NameError, Title};
pub use order::{
    Covered, MergeError, Order, OrderError, OrderFrame, Purpose, Record, RecordError, RecordTouch, Touch, merge,
};
pub use pack::{Catalogue, Entry, Kind, PackBuilder, PackError, Trailer};
pub use paths::{LINK_SUFFIX, layout_path, link_path, manifest_path, order_path, pack_path};
pub use signature::{Hex, KeyError, PublicKey, SecretKey, Signature, SignatureError};
pub use tree::{
    ContentInner, ContentLeaf, Geometry, LayoutInner, LayoutLeaf, LayoutObject, LeafChunk, NodePlace, Place, Roots,
    TreeError,
};

/// The number of the format that this crate reads and writes. Number 0 is not frozen.
pub const FORMAT_NUMBER: u32 = 0;

/// Bytes of a block: the unit in which disks and RAM are cut into chunks.
pub const BLOCK_BYTES: usize = 4096;

/// Says whether a piece of plain data holds nothing but zeros.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    data.chunks(BLOCK_BYTES).all(|piece| *piece == ZEROS[..piece.len()])
}
