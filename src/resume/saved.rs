//! A saved VM as a server has it: its RAM blocks and its device state are exports beside the disks.

use std::path::PathBuf;
use std::sync::Arc;

use vmnetx_format::migration::{Block, Configuration, DeviceState, PAGE_BYTES, PageRange};
use vmnetx_format::{DEVICE_STATE_IMAGE, Manifest, Memory, ram_image_name};
use vmnetx_nbd_proto::client::SparseData;

use super::Error;
use super::export::{Export, Outage, Run};

/// A saved VM whose device state has been read; its RAM is read as it is needed.
#[derive(Debug)]
pub struct Saved {
    pub(super) configuration: Configuration,
    pub(super) blocks: Vec<Block>,
    pub(super) device_state: DeviceState,
    /// By block.
    exports: Vec<Export>,
    outage: Arc<Outage>,
}

/// Pages of a block that were read.
#[derive(Debug)]
pub(super) struct Pages {
    range: PageRange,
    read: SparseData,
}

/// One page that was read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Page<'a> {
    Zero,
    Data(&'a [u8; PAGE_BYTES]),
}

impl Saved {
    /// Reads what is needed of the saved VM before its RAM, from the socket at which the package of this manifest is attached
    /// with its memory.
    ///
    /// # Errors
    /// [`Error`] when the package has no memory, or it cannot be read.
    pub async fn open(socket: PathBuf, manifest: &Manifest) -> Result<Self, Error> {
        let Memory { blocks, device_state, .. } = manifest.memory.as_ref().ok_or(Error::NoMemory)?;
        let outage = Arc::new(Outage::new());
        let export = |name: String| Export::new(socket.clone(), name, Arc::clone(&outage));
        // At most 64 MiB, as the manifest's reader has seen to.
        let read = export(DEVICE_STATE_IMAGE.to_owned()).read(0, device_state.size_bytes).await?;
        Ok(Self {
            configuration: Configuration::new(manifest.machine.machine.to_string()),
            blocks: blocks.iter().map(|block| Block::new(&block.name, block.size_bytes)).collect(),
            device_state: DeviceState::decode(read.data).map_err(Error::DeviceState)?,
            exports: blocks.iter().map(|block| export(ram_image_name(&block.name))).collect(),
            outage,
        })
    }

    /// Bytes of all RAM blocks.
    pub(super) fn ram_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.size_bytes).sum()
    }

    /// From now on a guest waits for its memory, and cannot be started otherwise.
    pub(super) fn guest_runs(&self) {
        self.outage.guest_runs();
    }

    /// Reads pages, whatever it takes.
    pub(super) async fn read(&self, range: PageRange) -> Result<Pages, Error> {
        let read = self.export(range.block)?.read(range.start_bytes, range.length_bytes).await?;
        Ok(Pages { range, read })
    }

    /// Has the server bring pages.
    pub(super) async fn bring(&self, range: PageRange) -> Result<(), Error> {
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

impl Pages {
    /// Each page with its offset in the block.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Page<'_>)> {
        let holes = self.read.pieces.iter().filter(|piece| piece.hole);
        let mut holes = holes.map(|piece| piece.offset..piece.offset + u64::from(piece.length)).peekable();
        let offsets = (self.range.start_bytes..).step_by(PAGE_BYTES);
        offsets.zip(self.read.data.as_chunks::<PAGE_BYTES>().0).map(move |(offset, bytes)| {
            while holes.next_if(|hole| hole.end <= offset).is_some() {}
            // A page that is a hole in part only is told as data, which is right, too.
            let is_hole =
                holes.peek().is_some_and(|hole| hole.start <= offset && hole.end >= offset + PAGE_BYTES as u64);
            (offset, if is_hole { Page::Zero } else { Page::Data(bytes) })
        })
    }

    pub(super) const fn range(&self) -> PageRange {
        self.range
    }
}
