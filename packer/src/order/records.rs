//! Records of runs: reads them from files, and finds the images that they speak of.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use vmnetx_format::limits::RECORD_BYTES_MAX;
use vmnetx_format::{Manifest, Purpose, Record, Touch};

use crate::{Error, Progress};

/// Reads the file in which a run was recorded.
///
/// # Errors
/// [`Error::File`] when it cannot be read, [`Error::Record`] when it is no record.
pub fn read_record(path: &Path) -> Result<Record, Error> {
    let cannot = Error::file("read the record", path);
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path).and_then(|file| {
        // One byte more than may be shows that there is more.
        file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes)
    });
    opened.map_err(cannot)?;
    Record::decode(&bytes).map_err(|source| Error::Record { path: path.to_owned(), source })
}

/// Says whether all of these are records of boots.
pub(super) fn check(records: &[Record]) -> Result<(), Error> {
    if records.iter().all(|record| record.purpose == Purpose::Boot) {
        return Ok(());
    }
    Err(Error::Usage("a record is of a resume, not of a boot".to_owned()))
}

/// The touches of `records`, merged, by the numbers that the images of `manifest` have. Another version of the package will
/// do; images that this one does not have are left out.
pub(super) fn touches(records: &[Record], manifest: &Manifest, progress: &dyn Progress) -> Result<Vec<Touch>, Error> {
    let disks = manifest.disks.iter().map(|disk| disk.name.as_str());
    let blocks = manifest.memory.iter().flat_map(|memory| &memory.blocks).map(|block| block.name.as_str());
    let names: Vec<&str> = disks.chain(blocks).collect();
    let mut unknown = BTreeSet::new();
    let mut touches = Vec::new();
    for touch in Record::merge(records) {
        match names.iter().position(|name| *name == touch.image) {
            Some(image) => touches.push(Touch {
                after_ms: touch.after_ms,
                image: image as u32,
                first_block: touch.first_block,
                blocks: touch.blocks,
            }),
            None => {
                unknown.insert(touch.image);
            }
        }
    }
    if touches.is_empty() {
        return Err(Error::EmptyOrder);
    }
    for name in unknown {
        progress.warn(&format!("the record speaks of {name:?}, which the package does not have: left out"));
    }
    Ok(touches)
}
