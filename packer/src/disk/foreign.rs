//! A disk in another format than raw, as `qemu-nbd` reads it.

use std::ops::Range;

use vmnetx_format::{BLOCK_BYTES, Geometry};
use vmnetx_nbd_proto::client::ClientError;

use super::chain::Chain;
use super::error::{DiskError, NbdError};
use super::leaves::by_leaf;
use super::nbd::{NbdImage, State};
use super::qemu::{QemuNbd, check};
use super::{BLOCK, LEAF_BYTES, Leaf, Source};
use crate::Error;

/// An image with all that lies below it, or all that lies above a published disk.
#[derive(Debug)]
pub(super) struct ForeignDisk {
    // The connection ends before the program.
    nbd: NbdImage,
    qemu: QemuNbd,
    chain: Chain,
    geometry: Geometry,
}

/// Whether it matters that a part of an image is not in any file of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// It is zero there.
    Ignored,
    /// It is there what the chain lies over.
    Wanted,
}

impl ForeignDisk {
    /// Has QEMU check and open the images of `chain`.
    ///
    /// # Errors
    /// [`DiskError`] for what QEMU does not take; [`Error::DiskTooLarge`], [`Error::File`], [`Error::Runtime`].
    pub(super) fn open(chain: Chain, depth: Depth) -> Result<Self, Error> {
        for (file, node) in chain.checkable()? {
            check(file, &node)?;
        }
        let options: &[&str] = if depth == Depth::Wanted { &["--allocation-depth"] } else { &[] };
        let (qemu, stream) = QemuNbd::start(chain.top(), &chain.node()?, options)?;
        let nbd = NbdImage::connect(stream, depth == Depth::Wanted)?;
        let nbd = nbd.map_err(|error| explained(&qemu, &chain, error))?;
        let geometry = Geometry::new(nbd.size_bytes());
        let geometry = geometry.map_err(|source| Error::DiskTooLarge { path: chain.top().to_owned(), source })?;
        Ok(Self { nbd, qemu, chain, geometry })
    }

    /// What the image is from its first byte to its last, in order and without gaps.
    pub(super) fn runs(&self) -> impl Iterator<Item = Result<(Range<u64>, State), Error>> {
        self.nbd.runs().map(|run| run.map_err(|error| self.explained(error)))
    }

    /// Reads ranges of the image one after the other into the front of `buffer`.
    pub(super) fn read_ranges(&self, ranges: impl Iterator<Item = Range<u64>>, buffer: &mut [u8]) -> Result<(), Error> {
        self.nbd.read(ranges, buffer).map_err(|error| self.explained(error))
    }

    pub(super) const fn chain(&self) -> &Chain {
        &self.chain
    }

    fn explained(&self, error: NbdError) -> Error {
        explained(&self.qemu, &self.chain, error)
    }
}

impl Source for ForeignDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn leaves(&self) -> Box<dyn Iterator<Item = Result<Leaf, Error>> + '_> {
        let data = self.runs().filter_map(|run| match run {
            Ok((range, State::Data)) => Some(Ok(range)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        Box::new(by_leaf(data, self.geometry.blocks()).map(|found| found.map(Leaf::Data)))
    }

    fn read(&self, leaf: &Leaf, buffer: &mut [u8]) -> Result<(), Error> {
        let Leaf::Data(extents) = leaf else { return Ok(()) };
        let start = u64::from(extents.leaf) * LEAF_BYTES;
        let size = self.geometry.size_bytes();
        let ranges = extents.runs.iter().map(|&(first_block, blocks)| {
            let offset = start + u64::from(first_block) * BLOCK;
            offset..(offset + u64::from(blocks) * BLOCK).min(size)
        });
        // Only the image's last block can be partial, and it is the last to be read.
        let partial = (size % BLOCK) as usize;
        let is_last = extents
            .runs
            .last()
            .is_some_and(|&(first_block, blocks)| start + u64::from(first_block + blocks) * BLOCK > size);
        if is_last && partial > 0 {
            let end = extents.bytes();
            buffer[end - BLOCK_BYTES + partial..end].fill(0);
        }
        self.read_ranges(ranges, buffer)
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        self.chain.check_unchanged()
    }
}

/// What a failure of the connection really is: mostly the end of the program behind it, which says why.
fn explained(qemu: &QemuNbd, chain: &Chain, error: NbdError) -> Error {
    let is_end = matches!(error, NbdError::Client(ClientError::Connection(_) | ClientError::Negotiate(_)));
    let died = if is_end { qemu.died() } else { None };
    died.unwrap_or_else(|| DiskError::Nbd { file: chain.top().to_owned(), source: error }).into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::DiskFormat;
    use super::*;

    #[test]
    fn the_end_of_qemu_nbd_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk.qcow2");
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&file).arg("64M").status();
        assert!(made.unwrap().success());
        let written = Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 7 0 1M"]).arg(&file).output();
        assert!(written.unwrap().status.success());
        let disk = ForeignDisk::open(Chain::walk(&file, DiskFormat::Qcow2, false).unwrap(), Depth::Ignored).unwrap();
        let leaf = disk.leaves().next().unwrap().unwrap();
        let mut buffer = vec![1; leaf.bytes()];
        disk.read(&leaf, &mut buffer).unwrap();
        assert!(buffer.iter().all(|&byte| byte == 7));
        disk.qemu.kill();
        let error = disk.read(&leaf, &mut buffer).unwrap_err();
        assert!(matches!(error, Error::Disk(DiskError::Program { program: "qemu-nbd", .. })), "{error}");
    }
}
