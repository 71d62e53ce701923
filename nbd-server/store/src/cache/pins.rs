//! Pins: versions that are kept whole in the cache directory until somebody says otherwise, each in a file of its own.
//!
//! ```text
//! "VXP0", u32 length of the JSON, JSON (a Pin), 32 bytes for each frame: its digest; 32 bytes: the BLAKE3 of all before
//! ```

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use vmnetx_format::Digest;

use crate::file::open_regular;
use crate::limits::{PIN_FILE_BYTES_MAX, PIN_TEXT_BYTES_MAX};

const FOLDER: &str = "pins";
const SUFFIX: &str = ".pin";
const MAGIC: &[u8; 4] = b"VXP0";

/// A version that is kept whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The package's name.
    pub name: String,
    /// The version: its manifest's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub manifest: Digest,
    /// Where its link was read.
    pub link: String,
    /// When it was complete, in seconds since 1970.
    pub pinned_unix_s: u64,
    /// Bytes of its frames as stored.
    pub bytes: u64,
    /// Manifest, layout and orders.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub objects: Vec<Digest>,
}

/// A pin and the frames that it keeps.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) pin: Pin,
    pub(crate) frames: Vec<Digest>,
}

impl Pinned {
    fn encode(&self) -> Vec<u8> {
        // A structure of numbers and text always serialises.
        let text = serde_json::to_vec(&self.pin).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
        self.frames.iter().for_each(|digest| bytes.extend(digest.as_bytes()));
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_last_chunk::<{ Digest::BYTES }>()?;
        if Digest::of(body).as_bytes() != check {
            return None;
        }
        let (len, rest) = body.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        let (text, frames) = rest.split_at_checked(len as usize).filter(|_| len <= PIN_TEXT_BYTES_MAX)?;
        let pin = serde_json::from_slice(text).ok()?;
        let frames = frames.chunks_exact(Digest::BYTES);
        let frames = frames.map(|digest| Some(Digest::from_bytes(*digest.first_chunk()?))).collect::<Option<_>>()?;
        Some(Self { pin, frames })
    }

    /// Writes the pin's file, which is on the disk itself afterwards.
    pub(crate) fn write(&self, cache_dir: &Path) -> std::io::Result<()> {
        let dir = cache_dir.join(FOLDER);
        std::fs::create_dir_all(&dir)?;
        let mut file = NamedTempFile::new_in(&dir)?;
        file.write_all(&self.encode())?;
        file.as_file().sync_all()?;
        file.persist(path(cache_dir, &self.pin.manifest)).map_err(|error| error.error)?;
        std::fs::File::open(dir)?.sync_all()
    }
}

/// The pins of a cache directory. One that is damaged keeps nothing, and says so.
pub(crate) fn load(cache_dir: &Path) -> Vec<Pinned> {
    let Ok(entries) = std::fs::read_dir(cache_dir.join(FOLDER)) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_pin = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == &SUFFIX[1..]);
    let mut pins: Vec<Pinned> = paths.filter(is_pin).filter_map(|path| read(&path)).collect();
    pins.sort_by(|a, b| (&a.pin.name, a.pin.manifest).cmp(&(&b.pin.name, b.pin.manifest)));
    pins
}

fn read(path: &Path) -> Option<Pinned> {
    let mut bytes = Vec::new();
    let opened = open_regular(path).and_then(|file| file.take(PIN_FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let pinned = opened.ok().filter(|&len| len as u64 <= PIN_FILE_BYTES_MAX).and_then(|_| Pinned::decode(&bytes));
    if pinned.is_none() {
        tracing::warn!(pin = %path.display(), "a pin is damaged and keeps nothing: pull the package again");
    }
    pinned
}

/// Removes a pin; says whether there was one.
pub(crate) fn remove(cache_dir: &Path, manifest: &Digest) -> std::io::Result<bool> {
    match std::fs::remove_file(path(cache_dir, manifest)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn path(cache_dir: &Path, manifest: &Digest) -> PathBuf {
    cache_dir.join(FOLDER).join(format!("{manifest}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_what_was_written_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        let manifest = Digest::of(b"manifest");
        let pin = Pin {
            name: "vm".into(),
            manifest,
            link: "https://h/vm.vmnetx".into(),
            pinned_unix_s: 1,
            bytes: 9,
            objects: vec![manifest],
        };
        let frames = vec![Digest::of(b"a"), Digest::of(b"b")];
        Pinned { pin: pin.clone(), frames: frames.clone() }.write(dir.path()).unwrap();
        let [pinned] = &load(dir.path())[..] else { panic!("one pin") };
        assert_eq!((&pinned.pin, &pinned.frames), (&pin, &frames));
        let file = path(dir.path(), &manifest);
        let bytes = std::fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Pinned::decode(&damaged).is_none() && Pinned::decode(&bytes[..at]).is_none(), "byte {at}");
        }
        assert!(remove(dir.path(), &manifest).unwrap() && !remove(dir.path(), &manifest).unwrap());
    }
}
