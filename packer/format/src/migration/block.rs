//! RAM blocks, and places in them.

use super::error::WriteError;
use super::{PAGE_BYTES, wire};
use crate::limits::{IMAGE_BYTES_MAX, RAM_BLOCK_NAME_BYTES_MAX, RAM_BLOCKS_MAX};
use crate::name::printable;

/// A RAM block of a saved VM, as QEMU names it: guest RAM, video memory, a ROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// QEMU's name: 1 to 255 bytes of printable ASCII.
    pub name: String,
    /// Its size, whole pages.
    pub size_bytes: u64,
    /// Where it is in the guest's physical memory. Only streams with
    /// [`ignore_shared`](super::Configuration::ignore_shared) say that; 0 in others, and where it is not known.
    pub guest_address: u64,
}

/// Where a page lies. Guest addresses are no offsets in a block above the PCI hole, so RAM is known by its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    /// Position of the block among the stream's blocks.
    pub block: usize,
    /// Offset in the block, whole pages.
    pub offset_bytes: u64,
}

/// Some pages of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// Position of the block among the stream's blocks.
    pub block: usize,
    /// Where they begin in the block, whole pages.
    pub start_bytes: u64,
    /// How long they are, whole pages, not 0.
    pub length_bytes: u64,
}

impl Block {
    /// A block whose place in the guest's physical memory is not known.
    #[must_use]
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self { name: name.into(), size_bytes, guest_address: 0 }
    }

    /// Whether a page of this block begins there.
    pub(super) const fn has_page(&self, offset_bytes: u64) -> bool {
        offset_bytes.is_multiple_of(PAGE_BYTES as u64) && offset_bytes < self.size_bytes
    }

    /// Whether these are pages of this block.
    pub(super) const fn has_range(&self, start_bytes: u64, length_bytes: u64) -> bool {
        let whole = length_bytes.is_multiple_of(PAGE_BYTES as u64) && length_bytes != 0;
        whole && self.has_page(start_bytes) && length_bytes <= self.size_bytes - start_bytes
    }
}

/// The bytes of all blocks, if they are such as a VM can have.
pub(super) fn check(blocks: &[Block]) -> Result<u64, WriteError> {
    if blocks.is_empty() || blocks.len() > RAM_BLOCKS_MAX {
        return Err(WriteError::BlockCount(blocks.len()));
    }
    let mut total_bytes = 0_u64;
    for (index, Block { name, size_bytes, .. }) in blocks.iter().enumerate() {
        let named = name.len() <= RAM_BLOCK_NAME_BYTES_MAX && wire::is_graphic(name.as_bytes());
        if !named || blocks.iter().take(index).any(|other| other.name == *name) {
            return Err(WriteError::BlockName(printable(name)));
        }
        if *size_bytes == 0 || *size_bytes > IMAGE_BYTES_MAX || !size_bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(WriteError::BlockSize { block: name.clone(), size_bytes: *size_bytes });
        }
        // No overflow: 256 blocks of 32 TiB.
        total_bytes += size_bytes;
    }
    Ok(total_bytes)
}
