//! The largest sizes and counts that a reader of the format accepts.

use crate::manifest::RAM_IMAGE_PREFIX;

/// Blocks that a leaf of the trees covers: 16 MiB of an image. No chunk crosses a leaf's end.
pub const LEAF_BLOCKS: u32 = 4096;

/// Leaves below one inner node: 8 GiB of an image.
pub const INNER_FANOUT: u32 = 512;

/// Children of a root node.
pub const ROOT_FANOUT_MAX: u32 = 4096;

/// Bytes of the largest image: a full root of full inner nodes, 32 TiB.
pub const IMAGE_BYTES_MAX: u64 =
    LEAF_BLOCKS as u64 * INNER_FANOUT as u64 * ROOT_FANOUT_MAX as u64 * crate::BLOCK_BYTES as u64;

/// Blocks of the largest image.
pub const IMAGE_BLOCKS_MAX: u64 = IMAGE_BYTES_MAX / crate::BLOCK_BYTES as u64;

/// Blocks of the longest chunk that a reader accepts: 4 MiB.
pub const CHUNK_BLOCKS_MAX: u32 = 1024;

/// Plain bytes of the largest tree node: a content leaf of one-block chunks stays well below.
pub const NODE_BYTES_MAX: u32 = 1 << 20;

/// Plain bytes of anything that is stored as a frame in a pack.
pub const FRAME_PLAIN_BYTES_MAX: u32 = 4 << 20;

/// Entries of one pack.
pub const PACK_ENTRIES_MAX: u32 = 1 << 18;

/// Bytes at which a publisher ends a pack and begins the next.
pub const PACK_BYTES_TARGET: u64 = 32 << 20;

/// Bytes of the largest pack that a reader accepts.
pub const PACK_BYTES_MAX: u64 = 1 << 30;

/// Packs that one layout node or one order names.
pub const NODE_PACKS_MAX: u32 = 8192;

/// Bytes of a link file.
pub const LINK_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a manifest.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a layout object: full roots of a few images of 32 TiB.
pub const LAYOUT_BYTES_MAX: u64 = 16 << 20;

/// Versions that a link retains beside the current one.
pub const RETAINED_MAX: usize = 1024;

/// Repository URLs in a link.
pub const URLS_MAX: usize = 16;

/// Bytes of one URL.
pub const URL_BYTES_MAX: usize = 2048;

/// Orders of one version.
pub const ORDERS_MAX: usize = 16;

/// Bytes of an order object. Touches and frames as many as there may be take less, whatever they are.
pub const ORDER_BYTES_MAX: u64 = 16 << 20;

/// Touches of an order, and of a record.
pub const ORDER_TOUCHES_MAX: u32 = 1 << 17;

/// Frames of an order: 8 GiB of chunks of the usual length.
pub const ORDER_FRAMES_MAX: u32 = 1 << 18;

/// Bytes of a record of touches.
pub const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Records that are merged into one order.
pub const RECORDS_MAX: usize = 16;

/// Public keys of one list.
pub const KEYS_MAX: usize = 64;

/// Bytes of a file with keys, secret or public.
pub const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// Disks of a package.
pub const DISKS_MAX: usize = 16;

/// RAM blocks of a package's memory.
pub const RAM_BLOCKS_MAX: usize = 256;

/// Bytes of a package's RAM blocks beside its main memory: video memory and ROMs.
pub const OTHER_RAM_BYTES_MAX: u64 = 1 << 30;

/// Images of a package: its disks, its RAM blocks and its device state.
pub const IMAGES_MAX: u32 = (DISKS_MAX + RAM_BLOCKS_MAX + 1) as u32;

/// Bytes of an image's name: a disk's, or a RAM block's with its prefix.
pub const IMAGE_NAME_BYTES_MAX: usize = RAM_IMAGE_PREFIX.len() + RAM_BLOCK_NAME_BYTES_MAX;

/// Bytes of a RAM block's name, as QEMU limits it (`RAMBlock.idstr`).
pub const RAM_BLOCK_NAME_BYTES_MAX: usize = 255;

/// Bytes of a saved VM's device state: everything but its RAM.
pub const DEVICE_STATE_BYTES_MAX: u64 = 64 << 20;

/// Bytes of the version of the QEMU that saved a VM.
pub const QEMU_VERSION_BYTES_MAX: usize = 64;

/// Bytes of the domain XML that is kept of a VM that libvirt saved: without what is the host's it has 2 to 8 KiB.
pub const LIBVIRT_XML_BYTES_MAX: usize = 64 << 10;

/// Bytes of a package's or a disk's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Bytes of a package's title.
pub const TITLE_BYTES_MAX: usize = 256;

/// Frames of index that are fetched whole with one request rather than node by node, in stored bytes.
pub const SMALL_INDEX_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the JSON at the end of a saved VM, which describes its device state.
pub const VM_DESCRIPTION_BYTES_MAX: usize = 16 << 20;

/// Sections of a saved VM's device state.
pub const DEVICES_MAX: usize = 1 << 16;

/// Bytes of a machine type's name in a migration stream.
pub const MACHINE_TYPE_BYTES_MAX: u8 = 128;

/// Capabilities that a migration stream lists.
pub const CAPABILITIES_MAX: u32 = 64;

/// Bytes of a migration stream that are read ahead.
pub const STREAM_BUFFER_BYTES: usize = 64 << 10;

/// Bytes of a command's data in a migration stream: its length has 16 bits.
pub const COMMAND_BYTES_MAX: usize = u16::MAX as usize;

/// Ranges of missing pages that one command of a postcopy migration tells.
pub const DISCARD_RANGES_MAX: usize = 4000;

/// Bytes of the XML, the cookie and the room behind them in a libvirt save file.
pub const SAVE_FILE_DATA_BYTES_MAX: u32 = 16 << 20;
