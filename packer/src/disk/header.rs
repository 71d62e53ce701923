//! Which other files an image says that it consists of, as its own header says.
//!
//! QEMU opens the files that a header names, whatever and wherever they are: `qemu-img info` on a prepared qcow2 file
//! used to open its "data file", which could be any file, device or host (CVE-2024-4467). So headers are read here,
//! before any of QEMU's programs sees the image, and QEMU is then told each file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::DiskError;
use super::{DiskFormat, vmdk};
use crate::Error;
use crate::limits::{BACKING_NAME_BYTES_MAX, QCOW2_EXTENSIONS_MAX};

/// What an image's header says of other files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The image below.
    pub(super) backing: Option<Backing>,
    /// The file that holds a qcow2 image's clusters.
    pub(super) data_file: Option<Vec<u8>>,
    /// The files of which a vmdk image consists.
    pub(super) extents: Vec<vmdk::Extent>,
}

/// The image below another one, as that one names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: Vec<u8>,
    /// The name of its format, if it is recorded.
    pub(super) format: Option<Vec<u8>>,
}

/// An image's file and format, for messages.
pub(super) struct Image<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) format: DiskFormat,
}

impl Image<'_> {
    /// Bytes of the file at `offset`; fewer at its end.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::file("read disk image", self.path)(error)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// The file is no image of this format, or a damaged one.
    pub(super) fn bad(&self, why: impl Into<String>) -> Error {
        DiskError::NotThatFormat { file: self.path.to_owned(), format: self.format, why: why.into() }.into()
    }

    /// Something that stands where the header says, all of it.
    fn named(&self, what: &str, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        if length > BACKING_NAME_BYTES_MAX {
            return Err(self.bad(format!("{what} of {length} bytes")));
        }
        let bytes = self.bytes(offset, length as usize)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(self.bad(format!("{what} lies behind its end"))) }
    }

    fn encrypted(&self) -> Error {
        DiskError::Encrypted { file: self.path.to_owned() }.into()
    }
}

/// Reads the header of `image`.
///
/// # Errors
/// [`DiskError::NotThatFormat`], [`DiskError::Encrypted`], [`DiskError::Damaged`]; [`Error::File`].
pub(super) fn read(image: &Image<'_>) -> Result<Header, Error> {
    match image.format {
        DiskFormat::Qcow2 => qcow2(image),
        DiskFormat::Qcow => qcow(image),
        DiskFormat::Qed => qed(image),
        DiskFormat::Vmdk => vmdk::read(image),
        DiskFormat::Vdi => vdi(image).map(|()| Header::default()),
        // QEMU follows no reference of any other format: differencing images of these are not supported.
        _ => Ok(Header::default()),
    }
}

/// The format that a file begins like, of those that are easily told.
///
/// # Errors
/// [`Error::File`].
pub(super) fn looks_like(path: &Path) -> Result<Option<DiskFormat>, Error> {
    let file = File::open(path).map_err(Error::file("open disk image", path))?;
    let start = Image { file: &file, path, format: DiskFormat::Raw }.bytes(0, 0x44)?;
    let begins = |magic: &[u8]| start.starts_with(magic);
    Ok(match () {
        () if begins(b"QFI\xfb\0\0\0\x01") => Some(DiskFormat::Qcow),
        () if begins(b"QFI\xfb") => Some(DiskFormat::Qcow2),
        () if begins(b"QED\0") => Some(DiskFormat::Qed),
        () if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk DescriptorFile") => Some(DiskFormat::Vmdk),
        () if begins(b"vhdxfile") => Some(DiskFormat::Vhdx),
        () if begins(b"conectix") => Some(DiskFormat::Vpc),
        () if start.get(0x40..) == Some(&[0x7f, 0x10, 0xda, 0xbe]) => Some(DiskFormat::Vdi),
        () => None,
    })
}

/// Numbers at fixed places of a header; zero behind its end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// QEMU's docs/interop/qcow2.txt.
fn qcow2(image: &Image<'_>) -> Result<Header, Error> {
    const CORRUPT: u64 = 1 << 1;
    const DATA_FILE: u64 = 1 << 2;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE_NAME: u32 = 0x4441_5441;
    let bytes = image.bytes(0, 112)?;
    let fields = Fields(&bytes);
    if !bytes.starts_with(b"QFI\xfb") {
        return Err(image.bad("its magic number is another"));
    }
    let version = fields.be32(4);
    let (incompatible, header_bytes) = match version {
        2 => (0, 72),
        3 => (fields.be64(72), fields.be32(100)),
        _ => return Err(image.bad(format!("it has version {version}"))),
    };
    let cluster_bits = fields.be32(20);
    if !(9..=21).contains(&cluster_bits) || bytes.len() < 72 {
        return Err(image.bad("its header is damaged"));
    }
    if fields.be32(32) != 0 {
        return Err(image.encrypted());
    }
    if incompatible & CORRUPT != 0 {
        let why = "it is marked corrupt".to_owned();
        return Err(DiskError::Damaged { file: image.path.to_owned(), why }.into());
    }
    let (backing_at, backing_bytes) = (fields.be64(8), u64::from(fields.be32(16)));
    let mut header = Header::default();
    let mut format = None;
    // The extensions end with the cluster, or where the backing file's name begins.
    let end = if backing_at == 0 { 1 << cluster_bits } else { backing_at.min(1 << cluster_bits) };
    let mut at = u64::from(header_bytes);
    for _ in 0..QCOW2_EXTENSIONS_MAX {
        let head = image.bytes(at, 8)?;
        let (kind, length) = (Fields(&head).be32(0), u64::from(Fields(&head).be32(4)));
        if kind == 0 || at + 8 > end {
            break;
        }
        match kind {
            BACKING_FORMAT => format = Some(image.named("a backing format", at + 8, length)?),
            DATA_FILE_NAME => header.data_file = Some(image.named("a data file's name", at + 8, length)?),
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
    }
    if backing_at != 0 && backing_bytes != 0 {
        header.backing =
            Some(Backing { name: image.named("a backing file's name", backing_at, backing_bytes)?, format });
    }
    match (incompatible & DATA_FILE != 0, &header.data_file) {
        // A name without the feature means nothing.
        (false, _) => header.data_file = None,
        (true, None) => return Err(image.bad("it keeps its data in another file and does not say in which")),
        (true, Some(_)) => {}
    }
    Ok(header)
}

/// QEMU's block/qcow.c, `QCowHeader`.
fn qcow(image: &Image<'_>) -> Result<Header, Error> {
    let bytes = image.bytes(0, 48)?;
    let fields = Fields(&bytes);
    if !bytes.starts_with(b"QFI\xfb") || fields.be32(4) != 1 {
        return Err(image.bad("its magic number or version is another"));
    }
    if fields.be32(36) != 0 {
        return Err(image.encrypted());
    }
    let (backing_at, backing_bytes) = (fields.be64(8), u64::from(fields.be32(16)));
    let mut header = Header::default();
    if backing_at != 0 && backing_bytes != 0 {
        let name = image.named("a backing file's name", backing_at, backing_bytes)?;
        header.backing = Some(Backing { name, format: None });
    }
    Ok(header)
}

/// QEMU's docs/interop/qed_spec.txt.
fn qed(image: &Image<'_>) -> Result<Header, Error> {
    const BACKING_FILE: u64 = 1;
    const BACKING_IS_RAW: u64 = 1 << 2;
    let bytes = image.bytes(0, 64)?;
    let fields = Fields(&bytes);
    if !bytes.starts_with(b"QED\0") {
        return Err(image.bad("its magic number is another"));
    }
    let features = fields.le64(16);
    let mut header = Header::default();
    if features & BACKING_FILE != 0 {
        let (at, length) = (u64::from(fields.le32(56)), u64::from(fields.le32(60)));
        let format = (features & BACKING_IS_RAW != 0).then(|| b"raw".to_vec());
        header.backing = Some(Backing { name: image.named("a backing file's name", at, length)?, format });
    }
    Ok(header)
}

/// QEMU's block/vdi.c, `VdiHeader`. It names no other file, but QEMU's check does not notice that its end is missing.
fn vdi(image: &Image<'_>) -> Result<(), Error> {
    let bytes = image.bytes(0, 512)?;
    let fields = Fields(&bytes);
    if fields.le32(0x40) != 0xbeda_107f {
        return Err(image.bad("its magic number is another"));
    }
    let (data_at, block_bytes, blocks) = (fields.le32(0x158), fields.le32(0x178), fields.le32(0x184));
    let end = u64::from(data_at).saturating_add(u64::from(block_bytes).saturating_mul(u64::from(blocks)));
    let length = image.file.metadata().map_err(Error::file("read disk image", image.path))?;
    // A block device is as long as it is.
    if length.is_file() && length.len() < end {
        let why = format!("it has {} bytes, and its header says {end}", length.len());
        return Err(DiskError::Damaged { file: image.path.to_owned(), why }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAGICS: [(&[u8], DiskFormat); 7] = [
        (b"QFI\xfb\0\0\0\x03", DiskFormat::Qcow2),
        (b"QFI\xfb\0\0\0\x02", DiskFormat::Qcow2),
        (b"QFI\xfb\0\0\0\x01", DiskFormat::Qcow),
        (b"QED\0", DiskFormat::Qed),
        (b"KDMV", DiskFormat::Vmdk),
        (b"RW 1 FLAT \"", DiskFormat::Vmdk),
        (b"\0", DiskFormat::Vdi),
    ];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            index in 0_usize..MAGICS.len(),
            // Small numbers are taken for offsets and lengths, and lead on.
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..40, 1 => any::<u8>()], 0..1500),
            valid_clusters: bool,
        ) {
            let (magic, format) = MAGICS[index];
            let mut all = [magic, &bytes].concat();
            if let Some(bits) = all.get_mut(20..24).filter(|_| valid_clusters && format == DiskFormat::Qcow2) {
                bits.copy_from_slice(&[0, 0, 0, 9]);
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            std::fs::write(&path, &all).unwrap();
            let file = File::open(&path).unwrap();
            let _ = read(&Image { file: &file, path: &path, format });
        }
    }
}
