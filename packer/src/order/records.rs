//! Reads the files that recorders write.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use vmnetx_format::Record;
use vmnetx_format::limits::RECORD_BYTES_MAX;

use crate::Error;

/// Reads records of touches.
///
/// # Errors
/// [`Error::File`] when one cannot be read, [`Error::RecordFile`] when it is none.
pub fn read_records(files: &[PathBuf]) -> Result<Vec<Record>, Error> {
    let read = |path: &PathBuf| {
        let failed = Error::file("read record", path);
        let mut bytes = Vec::new();
        // One byte more than may be shows that there is more.
        let opened = File::open(path).and_then(|file| file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes));
        opened.map_err(failed)?;
        Record::decode(&bytes).map_err(|source| Error::RecordFile { path: path.clone(), source })
    };
    files.iter().map(read).collect()
}
