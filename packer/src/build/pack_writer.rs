//! Appends frames to packs and hands each finished pack to a thread that flushes it to the disk.

use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender};

use vmnetx_format::limits::PACK_BYTES_TARGET;
use vmnetx_format::{Digest, Kind, PackBuilder, pack_path};
use vmnetx_store::dir::{Publisher, TemporaryObject};

use crate::Error;
use crate::catalogue::Stored;

/// Bytes that are gathered before they are written to a pack.
const WRITE_BYTES: usize = 1 << 20;

/// The packs that places refer to by number. One that is still being written has no digest.
#[derive(Debug)]
pub(crate) struct PackTable(Vec<Option<Digest>>);

/// Writes one pack after the other.
pub(crate) struct PackWriter<'a> {
    publisher: &'a Publisher,
    sealer: SyncSender<Sealed<'a>>,
    open: Option<OpenPack<'a>>,
    written_bytes: u64,
}

/// A pack whose bytes are complete but perhaps not on the disk.
pub(crate) struct Sealed<'a> {
    object: TemporaryObject<'a>,
    digest: Digest,
}

struct OpenPack<'a> {
    number: u32,
    builder: PackBuilder,
    out: BufWriter<TemporaryObject<'a>>,
}

impl PackTable {
    pub(crate) fn new(packs: &[Digest]) -> Self {
        Self(packs.iter().copied().map(Some).collect())
    }

    /// The digest of a pack, if it is finished.
    pub(crate) fn digest(&self, number: u32) -> Option<Digest> {
        self.0.get(number as usize).copied().flatten()
    }

    fn reserve(&mut self) -> u32 {
        self.0.push(None);
        self.0.len() as u32 - 1
    }

    fn finish(&mut self, number: u32, digest: Digest) {
        if let Some(pack) = self.0.get_mut(number as usize) {
            *pack = Some(digest);
        }
    }
}

impl<'a> PackWriter<'a> {
    pub(crate) fn new(publisher: &'a Publisher, sealer: SyncSender<Sealed<'a>>) -> Self {
        Self { publisher, sealer, open: None, written_bytes: 0 }
    }

    /// Bytes of all packs so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes + self.open.as_ref().map_or(0, |pack| pack.builder.len())
    }

    /// Makes sure that the next `bytes` of frames go into one pack.
    pub(crate) fn keep_together(&mut self, table: &mut PackTable, bytes: u64) -> Result<(), Error> {
        match &self.open {
            Some(pack) if pack.builder.is_full() || pack.builder.len() + bytes > PACK_BYTES_TARGET => {
                self.finish(table)
            }
            _ => Ok(()),
        }
    }

    /// Appends a frame to the open pack, wherever that leads to.
    pub(crate) fn append(
        &mut self,
        table: &mut PackTable,
        kind: Kind,
        digest: Digest,
        plain_len: u32,
        stored: &[u8],
    ) -> Result<Stored, Error> {
        let pack = match &mut self.open {
            Some(pack) => pack,
            None => self.open.insert(OpenPack::create(self.publisher, table)?),
        };
        let offset = pack.builder.push(kind, digest, plain_len, stored) as u32;
        pack.write(stored)?;
        Ok(Stored { pack: pack.number, offset, stored_len: stored.len() as u32 })
    }

    /// Ends the open pack, if there is one.
    pub(crate) fn finish(&mut self, table: &mut PackTable) -> Result<(), Error> {
        let Some(mut pack) = self.open.take() else { return Ok(()) };
        let frames_bytes = pack.builder.len();
        let (footer, digest) = std::mem::take(&mut pack.builder).finish().map_err(Error::Compress)?;
        pack.write(&footer)?;
        self.written_bytes += frames_bytes + footer.len() as u64;
        table.finish(pack.number, digest);
        let object = pack.out.into_inner().map_err(|error| written(error.into_error()))?;
        self.sealer.send(Sealed { object, digest }).map_err(|_| Error::Stopped)
    }
}

impl<'a> OpenPack<'a> {
    fn create(publisher: &'a Publisher, table: &mut PackTable) -> Result<Self, Error> {
        let out = BufWriter::with_capacity(WRITE_BYTES, publisher.temporary()?);
        let mut pack = Self { number: table.reserve(), builder: PackBuilder::new(), out };
        pack.write(PackBuilder::HEADER)?;
        Ok(pack)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(written)
    }
}

/// Flushes packs to the disk and gives them their names until there are no more.
pub(crate) fn seal_all(packs: Receiver<Sealed<'_>>) -> Result<(), Error> {
    for Sealed { object, digest } in packs {
        object.commit(&pack_path(&digest), &digest)?;
    }
    Ok(())
}

fn written(source: std::io::Error) -> Error {
    Error::File { action: "write", path: "a pack of the repository".into(), source }
}
