//! The head of a file that libvirt saved a domain in; the migration stream follows it, perhaps compressed.
//!
//! ```text
//! 16 bytes      "LibvirtQemudSave"; "LibvirtQemudPart" while libvirt writes the file
//! 5 x u32       version (2), bytes of the data, whether the domain ran, compression, the cookie's place in the data or 0,
//! 14 x u32      unused; all in the byte order of the host that wrote it
//! data          the domain's XML, a byte 0; perhaps a cookie, a byte 0; zeros as room for longer XML
//! ```

use std::io::{ErrorKind, Read};

use super::error::SaveFileError;
use crate::limits::SAVE_FILE_DATA_BYTES_MAX;

const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
/// Version 1 had no compression; its field was not written.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 92;
/// Zeros that libvirt leaves behind the XML, so that it can be edited.
const ROOM_BYTES: usize = 64 << 10;
/// `VIR_QEMU_SAVE_FORMAT_SPARSE`: QEMU's mapped-ram.
const SPARSE: u32 = 6;

/// What libvirt writes before a migration stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveFile {
    /// The domain that was saved, as XML.
    pub xml: String,
    /// What libvirt notes for itself, as XML.
    pub cookie: Option<String>,
    /// Whether the domain ran, and will when it is restored.
    pub was_running: bool,
    /// How the stream behind it is stored.
    pub compression: Compression,
}

/// How libvirt stores a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of programs")]
pub enum Compression {
    Raw,
    Gzip,
    Bzip2,
    Xz,
    Lzop,
    Zstd,
}

impl SaveFile {
    /// Whether a file that begins with these bytes, 16 or more, is one that libvirt saved or began to save a domain in.
    #[must_use]
    pub fn is_head(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC) || bytes.starts_with(PARTIAL)
    }

    /// Reads the head; the source then stands before the stream.
    ///
    /// # Errors
    /// [`SaveFileError`].
    pub fn read(source: &mut impl Read) -> Result<Self, SaveFileError> {
        let mut head = [0; HEAD_BYTES];
        fill(source, &mut head)?;
        let (magic, words) = head.split_first_chunk().ok_or(SaveFileError::Truncated("head"))?;
        match magic {
            MAGIC => {}
            PARTIAL => return Err(SaveFileError::Partial),
            _ => return Err(SaveFileError::NotASaveFile),
        }
        let [version, data_bytes, was_running, compression, cookie_at] = words_of(words)?;
        let compression = if version < VERSION { Compression::Raw } else { Compression::of(compression)? };
        let data = read_data(source, data_bytes)?;
        let cookie_at = if version < VERSION { 0 } else { cookie_at };
        let (xml, cookie) = match cookie_at {
            0 => (data.as_slice(), None),
            at => {
                let parts = data.split_at_checked(at as usize).filter(|(_, cookie)| !cookie.is_empty());
                let (xml, cookie) = parts.ok_or(SaveFileError::Cookie(at))?;
                (xml, Some(text(cookie, "cookie")?))
            }
        };
        Ok(Self { xml: text(xml, "XML")?, cookie, was_running: was_running != 0, compression })
    }

    /// The head as libvirt reads it on a host of this byte order.
    ///
    /// # Errors
    /// [`SaveFileError::DataBytes`] and [`SaveFileError::Text`] for XML that libvirt cannot have written.
    pub fn encode(&self) -> Result<Vec<u8>, SaveFileError> {
        let cookie_bytes = self.cookie.as_ref().map_or(0, |cookie| cookie.len() + 1);
        let data_bytes = self.xml.len() + 1 + cookie_bytes + ROOM_BYTES;
        let data_bytes_u32 = u32::try_from(data_bytes).ok().filter(|bytes| *bytes <= SAVE_FILE_DATA_BYTES_MAX);
        let data_bytes_u32 = data_bytes_u32.ok_or(SaveFileError::DataBytes(data_bytes as u64))?;
        let cookie_at = self.cookie.as_ref().map_or(0, |_| self.xml.len() as u32 + 1);
        let mut out = MAGIC.to_vec();
        let words = [VERSION, data_bytes_u32, self.was_running.into(), self.compression.number(), cookie_at];
        out.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        out.resize(HEAD_BYTES, 0);
        for (text, what) in [(Some(&self.xml), "XML"), (self.cookie.as_ref(), "cookie")] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.contains('\0') {
                return Err(SaveFileError::Text(what));
            }
            out.extend(text.as_bytes());
            out.push(0);
        }
        out.resize(HEAD_BYTES + data_bytes, 0);
        Ok(out)
    }
}

impl Compression {
    /// Its name in libvirt, which is also that of the program that decompresses it with `-dc`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzop => "lzop",
            Self::Zstd => "zstd",
        }
    }

    const fn number(self) -> u32 {
        self as u32
    }

    const fn of(number: u32) -> Result<Self, SaveFileError> {
        Ok(match number {
            0 => Self::Raw,
            1 => Self::Gzip,
            2 => Self::Bzip2,
            3 => Self::Xz,
            4 => Self::Lzop,
            5 => Self::Zstd,
            SPARSE => return Err(SaveFileError::Sparse),
            other => return Err(SaveFileError::Compression(other)),
        })
    }
}

/// The five words that mean something, in the byte order in which the version is one that is known.
fn words_of(bytes: &[u8]) -> Result<[u32; 5], SaveFileError> {
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let [version, ..] = words;
    match version {
        _ if VERSIONS.contains(&version) => Ok(words),
        _ if VERSIONS.contains(&version.swap_bytes()) => Ok(words.map(u32::swap_bytes)),
        _ => Err(SaveFileError::Version(version)),
    }
}

fn fill(source: &mut impl Read, head: &mut [u8]) -> Result<(), SaveFileError> {
    source.read_exact(head).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => SaveFileError::Truncated("head"),
        _ => SaveFileError::Read(error),
    })
}

/// Reads the data, as much as is there rather than as much as the head says.
fn read_data(source: &mut impl Read, bytes: u32) -> Result<Vec<u8>, SaveFileError> {
    if bytes == 0 || bytes > SAVE_FILE_DATA_BYTES_MAX {
        return Err(SaveFileError::DataBytes(bytes.into()));
    }
    let mut data = Vec::new();
    source.take(bytes.into()).read_to_end(&mut data).map_err(SaveFileError::Read)?;
    if data.len() == bytes as usize { Ok(data) } else { Err(SaveFileError::Truncated("XML")) }
}

/// Text up to the first byte 0, of which there must be one: behind it, there is only room.
fn text(bytes: &[u8], what: &'static str) -> Result<String, SaveFileError> {
    let damaged = || SaveFileError::Text(what);
    let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
    let (text, room) = bytes.split_at_checked(end).ok_or_else(damaged)?;
    let text = str::from_utf8(text).map_err(|_| damaged())?;
    if text.is_empty() || room.iter().any(|byte| *byte != 0) { Err(damaged()) } else { Ok(text.to_owned()) }
}
