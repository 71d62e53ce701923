//! Writes a disk of a published version as the raw image that it was built from, or its saved VM as a migration stream, every
//! chunk verified.

mod local;
mod remote;
mod stream;
mod target;

use std::path::PathBuf;

use serde::Serialize;
use vmnetx_format::{Digest, Manifest};
use vmnetx_store::Location;

use self::target::Target;
use crate::local::{LocalLink, Packs, images};
use crate::{Error, Progress, Reader};

/// What is exported under this name is the whole of a saved VM. No disk has a colon in its name.
pub const STREAM: &str = "vm:stream";

/// What is to be exported.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The package.
    pub link: Location,
    /// The disk's name, or [`STREAM`].
    pub disk: String,
    /// Where the image goes.
    pub out: Output,
    /// How it is read if it is published elsewhere.
    pub reader: Reader,
}

/// Where an exported image goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Into a file, with holes where the image is zero. It appears under its name when it is complete.
    File {
        /// The file.
        path: PathBuf,
        /// Whether a file that has this name already is replaced.
        force: bool,
    },
    /// To standard output, from the first byte to the last.
    Stdout,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The version.
    pub version: Digest,
    /// The disk.
    pub disk: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of it that are stored, in whole blocks; the rest is zero.
    pub data_bytes: u64,
}

/// Exports a disk.
///
/// # Errors
/// [`Error`] when the version cannot be read, is damaged, or the output cannot be written. A file is then as it was.
pub fn export(options: &ExportOptions, progress: &dyn Progress) -> Result<ExportReport, Error> {
    let target = Target::open(&options.out)?;
    if options.disk == STREAM {
        return stream::export(options, target, progress);
    }
    let Some(found) = LocalLink::find(&options.link)? else { return remote::export(options, target, progress) };
    found.signer(&options.reader.trust)?;
    let version = found.version(&options.link)?;
    let unreadable = |source| Error::Version { link: options.link.to_string(), source: Box::new(source) };
    let manifest = found.repository.manifest(version).map_err(|error| unreadable(error.into()))?;
    let disk = disk_position(&manifest, options)?;
    let image = images(&found.repository, version, &manifest).map_err(unreadable)?.into_iter().nth(disk);
    let image = image.ok_or(Error::Stopped)?;
    let packs = Packs::new(found.repository.clone());
    let data_bytes = local::export(&packs, &image, target, progress)?;
    let size_bytes = image.geometry.size_bytes();
    Ok(ExportReport { version: version.manifest, disk: options.disk.clone(), size_bytes, data_bytes })
}

fn disk_position(manifest: &Manifest, options: &ExportOptions) -> Result<usize, Error> {
    let position = manifest.images().position(|image| image.name == options.disk);
    position.ok_or_else(|| no_such_disk(manifest, options))
}

fn no_such_disk(manifest: &Manifest, options: &ExportOptions) -> Error {
    let mut disks: Vec<_> = manifest.images().map(|image| image.name.to_string()).collect();
    disks.extend(manifest.memory.is_some().then(|| STREAM.to_owned()));
    Error::NoSuchDisk { link: options.link.to_string(), disk: options.disk.clone(), disks: disks.join(", ") }
}

/// The error for a part of a disk that cannot be had.
fn damaged(disk: &str, bytes: std::ops::Range<u64>, source: crate::Damage) -> Error {
    Error::Damaged { disk: disk.to_owned(), start: bytes.start, end: bytes.end, source: Box::new(source) }
}
