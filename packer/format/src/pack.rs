//! Packs: files of frames, one after the other, that end in a catalogue of what they hold.

use crate::limits::{FRAME_PLAIN_BYTES_MAX, PACK_ENTRIES_MAX};
use crate::wire::{Reader, WireError, put_varint};
use crate::{Compressor, Digest, FrameError, Hasher};

const HEADER: &[u8; 8] = b"VMNXPAK0";
const END: &[u8; 8] = b"VMNXEND0";
/// zstd level of the catalogue, which is mostly digests.
const CATALOGUE_LEVEL: i32 = 3;
/// Bytes of a catalogue when plain: the longest encoding of the most entries.
const CATALOGUE_BYTES_MAX: u32 = 16 << 20;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A chunk of an image.
    Chunk,
    /// A node of a content tree; the frame behind it is the layout node that belongs to it.
    Content,
    /// A node of a layout tree.
    Layout,
    /// A chunk or a node that lies elsewhere too, stored once more for an order. No layout leads to it.
    Copy,
}

/// One frame of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it holds.
    pub kind: Kind,
    /// The digest of its plain bytes.
    pub digest: Digest,
    /// Bytes when plain.
    pub plain_len: u32,
    /// Bytes as stored.
    pub stored_len: u32,
}

/// Keeps account of a pack while its bytes are written elsewhere.
#[derive(Debug)]
pub struct PackBuilder {
    hasher: Hasher,
    entries: Vec<Entry>,
    len: u64,
}

/// The last [`Trailer::BYTES`] bytes of a pack: where its catalogue lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of the catalogue as stored, right before the trailer.
    pub stored_len: u32,
    /// Bytes of the catalogue when plain.
    pub plain_len: u32,
    /// The digest of the plain catalogue.
    pub digest: Digest,
}

/// The frames of a pack in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// Why bytes are not a pack's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The pack does not begin as packs of format 0 do.
    #[error("it does not begin as a pack of format 0 does")]
    Header,
    /// The pack's last bytes are no trailer.
    #[error("it does not end in a pack's trailer: it may have been cut off")]
    Trailer,
    /// The catalogue is not what the trailer says.
    #[error("its catalogue does not have the digest that its trailer names")]
    CatalogueDigest,
    /// The catalogue does not decompress.
    #[error("its catalogue is damaged: {0}")]
    CatalogueFrame(#[from] FrameError),
    /// The catalogue decompresses to nonsense.
    #[error("its catalogue is damaged: {0}")]
    Catalogue(String),
}

impl Kind {
    const fn tag(self) -> u8 {
        match self {
            Self::Chunk => 0,
            Self::Content => 1,
            Self::Layout => 2,
            Self::Copy => 3,
        }
    }
}

impl PackBuilder {
    /// Bytes that every pack begins with; the caller writes them first.
    pub const HEADER: &'static [u8] = HEADER;

    /// Starts a pack with no frames.
    #[must_use]
    pub fn new() -> Self {
        let mut hasher = Hasher::new();
        hasher.update(HEADER);
        Self { hasher, entries: Vec::new(), len: HEADER.len() as u64 }
    }

    /// Bytes so far.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether no frame was added yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it holds as many frames as a pack may.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.entries.len() as u64 >= PACK_ENTRIES_MAX as u64
    }

    /// Enters the frame `stored`, which the caller writes next; returns its offset in the pack.
    pub fn push(&mut self, kind: Kind, digest: Digest, plain_len: u32, stored: &[u8]) -> u64 {
        let offset = self.len;
        self.hasher.update(stored);
        self.len += stored.len() as u64;
        self.entries.push(Entry { kind, digest, plain_len, stored_len: stored.len() as u32 });
        offset
    }

    /// Ends the pack: the bytes that the caller writes last, and the pack's digest.
    ///
    /// # Errors
    /// A lack of memory in zstd.
    pub fn finish(mut self) -> std::io::Result<(Vec<u8>, Digest)> {
        let plain = Catalogue { entries: self.entries }.encode();
        let mut footer = Compressor::new(CATALOGUE_LEVEL)?.encode(&plain)?;
        let trailer =
            Trailer { stored_len: footer.len() as u32, plain_len: plain.len() as u32, digest: Digest::of(&plain) };
        footer.extend(trailer.encode());
        self.hasher.update(&footer);
        Ok((footer, self.hasher.digest()))
    }
}

impl Default for PackBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl Trailer {
    /// Bytes of a trailer.
    pub const BYTES: usize = 48;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.stored_len.to_le_bytes());
        out[4..8].copy_from_slice(&self.plain_len.to_le_bytes());
        out[8..40].copy_from_slice(self.digest.as_bytes());
        out[40..].copy_from_slice(END);
        out
    }

    /// Reads the trailer of a pack of `pack_len` bytes.
    ///
    /// # Errors
    /// [`PackError::Trailer`] when the bytes are none or speak of more than the pack holds.
    pub fn decode(bytes: &[u8; Self::BYTES], pack_len: u64) -> Result<Self, PackError> {
        let trailer = Self::read(bytes).map_err(|_| PackError::Trailer)?;
        let around = (HEADER.len() + Self::BYTES) as u64;
        let fits = u64::from(trailer.stored_len) + around <= pack_len && trailer.stored_len <= trailer.plain_len;
        if fits && trailer.plain_len <= CATALOGUE_BYTES_MAX { Ok(trailer) } else { Err(PackError::Trailer) }
    }

    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let stored_len = u32::from_le_bytes(reader.array()?);
        let plain_len = u32::from_le_bytes(reader.array()?);
        let digest = reader.digest()?;
        reader.tag(END)?;
        reader.end()?;
        Ok(Self { stored_len, plain_len, digest })
    }
}

impl Catalogue {
    /// Says whether the first bytes of a file are a pack's.
    ///
    /// # Errors
    /// [`PackError::Header`] when they are not.
    pub fn check_header(bytes: &[u8]) -> Result<(), PackError> {
        if bytes.starts_with(HEADER) { Ok(()) } else { Err(PackError::Header) }
    }

    /// Reads the stored catalogue to which `trailer` points, in a pack of `pack_len` bytes.
    ///
    /// # Errors
    /// [`PackError`] when it is not that catalogue or does not add up to the pack's length.
    pub fn decode(stored: &[u8], trailer: &Trailer, pack_len: u64) -> Result<Self, PackError> {
        // A catalogue may exceed the limit of frames in general, so it is decompressed under its own, which the trailer
        // was compared with.
        let plain = if stored.len() == trailer.plain_len as usize {
            stored.to_vec()
        } else {
            zstd::bulk::decompress(stored, trailer.plain_len as usize)
                .map_err(|error| FrameError::Zstd(error.to_string()))?
        };
        if Digest::of(&plain) != trailer.digest {
            return Err(PackError::CatalogueDigest);
        }
        let catalogue = Self::read(&plain).map_err(|error| PackError::Catalogue(error.to_string()))?;
        let frames: u64 = catalogue.entries.iter().map(|entry| u64::from(entry.stored_len)).sum();
        let around = (HEADER.len() + Trailer::BYTES) as u64 + u64::from(trailer.stored_len);
        if frames + around != pack_len {
            return Err(PackError::Catalogue("its frames do not add up to the pack".to_owned()));
        }
        Ok(catalogue)
    }

    /// Each frame with its offset in the pack.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().scan(HEADER.len() as u64, |offset, entry| {
            let at = *offset;
            *offset += u64::from(entry.stored_len);
            Some((at, entry))
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 38 + 5);
        put_varint(&mut out, self.entries.len() as u64);
        for entry in &self.entries {
            out.push(entry.kind.tag());
            put_varint(&mut out, entry.plain_len.into());
            put_varint(&mut out, entry.stored_len.into());
        }
        out.extend(self.entries.iter().flat_map(|entry| entry.digest.as_bytes()));
        out
    }

    fn read(plain: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(plain);
        let count = reader.count("the number of frames", PACK_ENTRIES_MAX, 35)?;
        let mut entries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let kind = match reader.array()? {
                [0] => Kind::Chunk,
                [1] => Kind::Content,
                [2] => Kind::Layout,
                [3] => Kind::Copy,
                _ => return Err(WireError::Tag),
            };
            let plain_len = reader.bounded_u32("a frame's plain length", FRAME_PLAIN_BYTES_MAX)?;
            // No frame is empty: else a few bytes could list as many as there may be.
            let stored_len = reader.positive_u32("a frame's stored length", plain_len)?;
            entries.push(Entry { kind, digest: Digest::from_bytes([0; Digest::BYTES]), plain_len, stored_len });
        }
        for entry in &mut entries {
            entry.digest = reader.digest()?;
        }
        reader.end()?;
        Ok(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode_frame;

    fn pack(frames: &[(Kind, Vec<u8>)]) -> (Vec<u8>, Digest) {
        let mut builder = PackBuilder::new();
        let mut file = PackBuilder::HEADER.to_vec();
        for (kind, plain) in frames {
            let stored = Compressor::new(3).unwrap().encode(plain).unwrap();
            assert_eq!(builder.push(*kind, Digest::of(plain), plain.len() as u32, &stored), file.len() as u64);
            file.extend(stored);
        }
        let (footer, digest) = builder.finish().unwrap();
        file.extend(footer);
        (file, digest)
    }

    fn read(file: &[u8]) -> Result<Catalogue, PackError> {
        Catalogue::check_header(file)?;
        let tail = file.last_chunk::<{ Trailer::BYTES }>().ok_or(PackError::Trailer)?;
        let trailer = Trailer::decode(tail, file.len() as u64)?;
        let end = file.len() - Trailer::BYTES;
        Catalogue::decode(&file[end - trailer.stored_len as usize..end], &trailer, file.len() as u64)
    }

    proptest! {
        #[test]
        fn describes_itself(frames in proptest::collection::vec(
            (prop::sample::select(vec![Kind::Chunk, Kind::Content, Kind::Layout, Kind::Copy]),
             proptest::collection::vec(0_u8..9, 1..5000)), 0..20),
        ) {
            let (file, digest) = pack(&frames);
            prop_assert_eq!(Digest::of(&file), digest);
            let catalogue = read(&file).unwrap();
            prop_assert_eq!(catalogue.entries().count(), frames.len());
            for ((offset, entry), (kind, plain)) in catalogue.entries().zip(&frames) {
                let stored = &file[offset as usize..][..entry.stored_len as usize];
                prop_assert_eq!(entry.kind, *kind);
                prop_assert_eq!(&decode_frame(stored, entry.plain_len).unwrap(), plain);
                prop_assert_eq!(entry.digest, Digest::of(plain));
            }
        }

        #[test]
        fn damage_to_the_catalogue_is_seen(at: prop::sample::Index, flip in 1_u8..=255, cut in 0_usize..60) {
            let (mut file, _) = pack(&[(Kind::Chunk, vec![7; 5000]), (Kind::Chunk, (0..=255).collect())]);
            let frames = read(&file).unwrap().entries().map(|(_, e)| e.stored_len as usize).sum::<usize>();
            let first = HEADER.len() + frames;
            let at = first + at.index(file.len() - first);
            file[at] ^= flip;
            // zstd ignores some bits of a frame's header: what decodes all the same must be what was written.
            if let Ok(catalogue) = read(&file) {
                prop_assert_eq!(catalogue.entries().count(), 2);
            }
            file[at] ^= flip;
            file.truncate(file.len() - cut);
            prop_assert_eq!(read(&file).is_ok(), cut == 0);
        }
    }
}
