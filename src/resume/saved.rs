//! A saved VM as a server has it: its RAM blocks and its device state are exports beside the disks.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::timeout;
use vmnetx_format::migration::{Block, Configuration, DeviceState, PAGE_BYTES, PageRange};
use vmnetx_format::{BLOCK_BYTES, DEVICE_STATE_IMAGE, Manifest, Memory, RecordTouch, ram_image_name};
use vmnetx_nbd::control::Control;
use vmnetx_nbd::control::api::Attached;
use vmnetx_nbd_proto::client::SparseData;

use super::Error;
use super::export::{Export, Outage, Run};
use super::limits::{ORDER_DEADLINE, READ_BYTES};

/// A saved VM whose device state has been read; its RAM is read as it is needed.
#[derive(Debug)]
pub struct Saved {
    pub(super) configuration: Configuration,
    pub(super) blocks: Vec<Block>,
    pub(super) device_state: DeviceState,
    /// The pages that the guest is known to need first, in this sequence.
    pub(super) order: Vec<PageRange>,
    /// By block.
    exports: Vec<Export>,
    outage: Arc<Outage>,
}

/// Pages of a block that were read.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    range: PageRange,
    /// Perhaps more than these pages.
    read: Arc<SparseData>,
    read_start_bytes: u64,
}

/// One page that was read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Page<'a> {
    Zero,
    Data(&'a [u8; PAGE_BYTES]),
}

impl Saved {
    /// Reads what is needed of the saved VM before its RAM, from the server to which the package of this manifest is attached with
    /// its memory, and what is recorded of the sequence in which it needs its RAM.
    ///
    /// # Errors
    /// [`Error`] when the package has no memory, or it cannot be read.
    pub async fn open(control: &Control, attached: &Attached, manifest: &Manifest) -> Result<Self, Error> {
        let Memory { blocks, device_state, .. } = manifest.memory.as_ref().ok_or(Error::NoMemory)?;
        let outage = Arc::new(Outage::new());
        let export = |name: String| Export::new(PathBuf::from(&attached.socket), name, Arc::clone(&outage));
        let image = export(DEVICE_STATE_IMAGE.to_owned());
        // At most 64 MiB, as the manifest's reader has seen to.
        let reading = image.read(0, device_state.size_bytes);
        let (read, touches) = tokio::join!(reading, recorded(control, attached));
        let exports = blocks.iter().map(|block| export(ram_image_name(&block.name))).collect();
        let blocks: Vec<_> = blocks.iter().map(|block| Block::new(&block.name, block.size_bytes)).collect();
        Ok(Self {
            configuration: Configuration::new(manifest.machine.machine.to_string()),
            device_state: DeviceState::decode(read?.data).map_err(Error::DeviceState)?,
            order: pages(&touches, &blocks),
            blocks,
            exports,
            outage,
        })
    }

    /// All RAM, in the pieces that are read at once.
    pub(super) fn pieces(&self) -> Vec<PageRange> {
        let whole = |(block, of): (usize, &Block)| PageRange { block, start_bytes: 0, length_bytes: of.size_bytes };
        self.blocks.iter().enumerate().map(whole).flat_map(in_pieces).collect()
    }

    /// Bytes of all RAM blocks.
    pub(super) fn ram_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.size_bytes).sum()
    }

    /// From now on a guest waits for its memory, and cannot be started otherwise.
    pub(super) fn guest_runs(&self) {
        self.outage.guest_runs();
    }

    /// Reads pages that are waited for.
    pub(super) async fn read(&self, range: PageRange) -> Result<Pages, Error> {
        let read = self.export(range.block)?.read(range.start_bytes, range.length_bytes).await?;
        Ok(Pages { range, read: Arc::new(read), read_start_bytes: range.start_bytes })
    }

    /// Reads pages that nobody waits for; nothing if some of them are damaged or absent.
    pub(super) async fn read_ahead(&self, range: PageRange) -> Result<Option<Pages>, Error> {
        let read = self.export(range.block)?.read_ahead(range.start_bytes, range.length_bytes).await?;
        Ok(read.map(|read| Pages { range, read: Arc::new(read), read_start_bytes: range.start_bytes }))
    }

    /// Has the server bring pages; false if some of them are damaged or absent.
    pub(super) async fn bring(&self, range: PageRange) -> Result<bool, Error> {
        self.export(range.block)?.bring(range.start_bytes, range.length_bytes).await
    }

    /// Which of these pages are on this host; perhaps of the front of them alone.
    pub(super) async fn residency(&self, range: PageRange) -> Result<Vec<Run>, Error> {
        self.export(range.block)?.residency(range.start_bytes, range.length_bytes).await
    }

    fn export(&self, block: usize) -> Result<&Export, Error> {
        // Blocks are those of this value, wherever their numbers come from.
        self.exports.get(block).ok_or(Error::Task)
    }
}

/// What is recorded of the sequence in which the VM touches its images; nothing if that cannot be told soon.
async fn recorded(control: &Control, attached: &Attached) -> Vec<RecordTouch> {
    match timeout(ORDER_DEADLINE, control.order(&attached.id)).await {
        Ok(Ok(record)) => record.touches,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the server does not tell the recorded order");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// The pages of touches, as far as they are of these blocks: no more than these have, however often an order names the same.
fn pages(touches: &[RecordTouch], blocks: &[Block]) -> Vec<PageRange> {
    let of = |touch: &RecordTouch| {
        let block = blocks.iter().position(|block| ram_image_name(&block.name) == touch.image)?;
        let size_bytes = blocks.get(block)?.size_bytes;
        let start_bytes = touch.first_block.checked_mul(PAGE_BYTES as u64)?;
        let length_bytes = (u64::from(touch.blocks) * PAGE_BYTES as u64).min(size_bytes.checked_sub(start_bytes)?);
        (length_bytes > 0).then_some(PageRange { block, start_bytes, length_bytes })
    };
    let mut room_bytes: u64 = blocks.iter().map(|block| block.size_bytes).sum();
    let fits = |range: &PageRange| {
        let left = room_bytes.checked_sub(range.length_bytes);
        room_bytes = left.unwrap_or(0);
        left.is_some()
    };
    touches.iter().filter_map(of).flat_map(in_pieces).take_while(fits).collect()
}

/// A range in the pieces that are read at once.
pub(super) fn in_pieces(range: PageRange) -> impl Iterator<Item = PageRange> {
    let end = range.start_bytes + range.length_bytes;
    (range.start_bytes..end).step_by(READ_BYTES as usize).map(move |start_bytes| {
        let length_bytes = READ_BYTES.min(end - start_bytes);
        PageRange { start_bytes, length_bytes, ..range }
    })
}

// A touch of an image is counted in blocks of the format, each of them a page.
const _: () = assert!(BLOCK_BYTES == PAGE_BYTES);

impl Pages {
    /// Each page with its offset in the block.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Page<'_>)> {
        let PageRange { start_bytes, length_bytes, .. } = self.range;
        let holes = self.read.pieces.iter().filter(|piece| piece.hole);
        let mut holes = holes.map(|piece| piece.offset..piece.offset + u64::from(piece.length)).peekable();
        let offsets = (self.read_start_bytes..).step_by(PAGE_BYTES);
        let pages = offsets.zip(self.read.data.as_chunks::<PAGE_BYTES>().0);
        let pages = pages.skip(((start_bytes - self.read_start_bytes) / PAGE_BYTES as u64) as usize);
        pages.take((length_bytes / PAGE_BYTES as u64) as usize).map(move |(offset, bytes)| {
            while holes.next_if(|hole| hole.end <= offset).is_some() {}
            // A page that is a hole in part only is told as data, which is right, too.
            let is_hole =
                holes.peek().is_some_and(|hole| hole.start <= offset && hole.end >= offset + PAGE_BYTES as u64);
            (offset, if is_hole { Page::Zero } else { Page::Data(bytes) })
        })
    }

    /// The same pages in parts of at most so many bytes that are not zero, each with how many those are.
    pub(super) fn in_parts(&self, data_bytes_max: u64) -> Vec<(Self, u64)> {
        let PageRange { block, start_bytes, length_bytes } = self.range;
        let part = |start_bytes, end_bytes: u64| Self {
            range: PageRange { block, start_bytes, length_bytes: end_bytes - start_bytes },
            ..self.clone()
        };
        let (mut parts, mut part_start_bytes, mut data_bytes) = (Vec::new(), start_bytes, 0);
        for (offset_bytes, page) in self.iter() {
            if data_bytes >= data_bytes_max {
                parts.push((part(part_start_bytes, offset_bytes), data_bytes));
                (part_start_bytes, data_bytes) = (offset_bytes, 0);
            }
            data_bytes += if matches!(page, Page::Data(_)) { PAGE_BYTES as u64 } else { 0 };
        }
        parts.push((part(part_start_bytes, start_bytes + length_bytes), data_bytes));
        parts
    }

    pub(super) const fn range(&self) -> PageRange {
        self.range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_pages_of_the_blocks_and_no_others() {
        let block = Block::new("pc.ram", 4 << 20);
        let touch = |image: &str, first_block, blocks| {
            let image = image.to_owned();
            RecordTouch { after_ms: 0, image, first_block, blocks }
        };
        let touches = [
            touch("ram:pc.ram", 1, 2),
            touch("disk0", 0, 1),
            touch("ram:pc.ram", 1023, u32::MAX),
            touch("ram:pc.ram", 1024, 1),
            touch("ram:pc.ram", u64::MAX, 1),
            touch("ram:pc.ram", 256, 512),
        ];
        let ranges: Vec<_> = pages(&touches, &[block]).iter().map(|at| (at.start_bytes, at.length_bytes)).collect();
        let mib = 1 << 20;
        assert_eq!(ranges, [(4096, 8192), (4 * mib - 4096, 4096), (mib, mib), (2 * mib, mib)]);
    }

    #[test]
    fn an_order_that_names_the_same_for_ever_is_no_longer_than_the_blocks() {
        let touch = RecordTouch { after_ms: 0, image: "ram:pc.ram".to_owned(), first_block: 0, blocks: u32::MAX };
        let ranges = pages(&vec![touch; 1 << 17], &[Block::new("pc.ram", 64 << 20), Block::new("pc.rom", 4096)]);
        assert_eq!(ranges.len(), 64);
    }
}
