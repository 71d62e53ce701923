//! Which files a vmdk image consists of, as its descriptor says.
//!
//! The descriptor is text: a file of its own, or the part of a sparse file behind its header. QEMU's block/vmdk.c reads
//! it with `sscanf`, which takes a line feed for a space. Here an extent stands on one line, or the image is refused.

use super::header::{Backing, Header, Image};
use crate::Error;
use crate::limits::{CHAIN_FILES_MAX, VMDK_DESCRIPTOR_BYTES_MAX};

const SECTOR: u64 = 512;

/// A file that holds a part of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// As the descriptor names it.
    pub(super) name: Vec<u8>,
    /// The bytes that the file must have at least, if it holds its part as it is.
    pub(super) flat_end: Option<u64>,
}

/// What a file begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A descriptor.
    Descriptor,
    /// Data.
    Sparse,
    /// A sparse file that holds a descriptor instead of data.
    Nested,
}

/// Tells what `image`'s file is.
pub(super) fn kind(image: &Image<'_>) -> Result<Kind, Error> {
    let bytes = image.bytes(0, 20)?;
    Ok(match bytes.first_chunk() {
        Some(b"COWD") => Kind::Sparse,
        Some(b"KDMV") if bytes.get(12..20).is_none_or(|capacity| capacity == [0; 8]) => Kind::Nested,
        Some(b"KDMV") => Kind::Sparse,
        _ => Kind::Descriptor,
    })
}

/// Reads the descriptor.
pub(super) fn read(image: &Image<'_>) -> Result<Header, Error> {
    match kind(image)? {
        // Its own descriptor names itself as the only extent, which QEMU does not look at.
        Kind::Sparse => {
            let text = image.bytes(SECTOR, 20 * SECTOR as usize)?;
            Ok(Header { backing: parent(image, &text)?, ..Header::default() })
        }
        Kind::Nested => Err(image.bad("its header says that it has no data")),
        Kind::Descriptor => {
            let text = image.bytes(0, VMDK_DESCRIPTOR_BYTES_MAX + 1)?;
            if text.len() > VMDK_DESCRIPTOR_BYTES_MAX {
                return Err(image.bad("it has neither a header nor a descriptor"));
            }
            let extents = extents(image, &text)?;
            if extents.is_empty() {
                return Err(image.bad("it has neither a header nor a descriptor that names files"));
            }
            Ok(Header { backing: parent(image, &text)?, extents, ..Header::default() })
        }
    }
}

/// The image below. Nothing but a vmdk image can be that, so its format needs no record.
fn parent(image: &Image<'_>, text: &[u8]) -> Result<Option<Backing>, Error> {
    const FIELD: &[u8] = b"parentFileNameHint";
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let Some(at) = text.windows(FIELD.len()).position(|window| window == FIELD) else { return Ok(None) };
    // QEMU skips `="` whatever it is.
    let value = text.get(at + FIELD.len() + 2..).unwrap_or_default();
    match value.iter().position(|&byte| byte == b'"') {
        Some(0) => Ok(None),
        Some(end) => Ok(Some(Backing { name: value[..end].to_vec(), format: Some(b"vmdk".to_vec()) })),
        None => Err(image.bad("its parent's name has no end")),
    }
}

fn extents(image: &Image<'_>, text: &[u8]) -> Result<Vec<Extent>, Error> {
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut extents = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        let is_extent = line.strip_prefix(b"RW").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace));
        if !is_extent {
            continue;
        }
        extents.extend(extent(line).ok_or_else(|| image.bad("a line of its descriptor cannot be understood"))?);
        if extents.len() > CHAIN_FILES_MAX {
            return Err(image.bad(format!("it consists of more than {CHAIN_FILES_MAX} files")));
        }
    }
    Ok(extents)
}

/// An extent's line: `RW SECTORS TYPE "NAME" [SECTOR]`; nothing for an extent of zeros, which has no file.
fn extent(line: &[u8]) -> Option<Option<Extent>> {
    let line = std::str::from_utf8(line).ok()?;
    let mut quoted = line.splitn(3, '"');
    let mut words = quoted.next()?.split_ascii_whitespace().skip(1);
    let sectors: u64 = words.next()?.parse().ok()?;
    let kind = words.next()?;
    if words.next().is_some() {
        return None;
    }
    if kind == "ZERO" {
        return quoted.next().is_none().then_some(None);
    }
    let (name, rest) = (quoted.next()?, quoted.next()?);
    let start: u64 = if rest.trim().is_empty() { 0 } else { rest.trim().parse().ok()? };
    let end = start.checked_add(sectors)?.checked_mul(SECTOR)?;
    let flat_end = matches!(kind, "FLAT" | "VMFS").then_some(end);
    Some(Some(Extent { name: name.as_bytes().to_vec(), flat_end }))
}
