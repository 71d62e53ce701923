//! Every pack read once: its digest, its catalogue, and each frame against the catalogue; or only a part of its frames.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use vmnetx_format::{Catalogue, Digest, Entry, Hasher, Kind, Place, decode_frame, pack_path};
use vmnetx_store::dir::{DirError, PackFile, RepositoryDir};

use super::{Depth, Findings, told, told_of};
use crate::Progress;

/// Bytes that are read at a time where no catalogue says where frames begin.
const PIECE_BYTES: usize = 1 << 20;

/// What is known of each pack after it was read.
pub(super) struct CheckedPacks(HashMap<Digest, CheckedPack>);

/// One pack.
#[derive(Default)]
struct CheckedPack {
    bytes: u64,
    /// Plain bytes of the frames that were read.
    read_bytes: u64,
    /// Offset and description of each frame, in order; empty if the catalogue cannot be read.
    frames: Vec<(u64, Entry)>,
    /// Offsets of frames that are not what the catalogue says.
    bad: HashSet<u64>,
    has_catalogue: bool,
}

/// What the packs say of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A good frame of just that kind, digest and length lies there.
    Good,
    /// The catalogue says that something else lies there.
    Elsewhere,
    /// It is damaged, or nothing is known of it: it has to be read.
    Unknown,
}

impl CheckedPacks {
    pub(super) fn read(
        repository: &RepositoryDir,
        packs: &HashSet<Digest>,
        depth: Depth,
        findings: &Findings,
        progress: &dyn Progress,
    ) -> Self {
        let opened: Vec<(Digest, Result<PackFile, DirError>)> =
            packs.iter().map(|digest| (*digest, repository.pack(digest))).collect();
        progress.total(opened.iter().filter_map(|(_, pack)| Some(pack.as_ref().ok()?.len())).sum());
        let check = |(digest, pack): (Digest, Result<PackFile, DirError>)| {
            let checked = pack.and_then(|pack| check_pack(&pack, &digest, depth, findings, progress));
            let checked = checked.unwrap_or_else(|error| {
                findings.add(pack_path(&digest), told_of(&error), None);
                CheckedPack::default()
            });
            (digest, checked)
        };
        Self(opened.into_par_iter().map(check).collect())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.values().map(|pack| pack.bytes).sum()
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.0.values().map(|pack| pack.read_bytes).sum()
    }

    /// Says whether a frame of this digest and plain length lies at `place`, whatever its kind.
    pub(super) fn verdict_of_any(&self, place: &Place, plain_len: u32, digest: &Digest) -> Verdict {
        self.compare(place, |entry| entry.digest == *digest && entry.plain_len == plain_len)
    }

    /// Says whether the frame of this kind, digest and plain length lies at `place`.
    pub(super) fn verdict(&self, kind: Kind, place: &Place, plain_len: u32, digest: &Digest) -> Verdict {
        self.compare(place, |entry| entry.kind == kind && entry.digest == *digest && entry.plain_len == plain_len)
    }

    fn compare(&self, place: &Place, is_it: impl Fn(&Entry) -> bool) -> Verdict {
        let Some(pack) = self.0.get(&place.pack).filter(|pack| pack.has_catalogue) else { return Verdict::Unknown };
        let Ok(at) = pack.frames.binary_search_by_key(&place.offset, |(offset, _)| *offset) else {
            return Verdict::Elsewhere;
        };
        match pack.frames.get(at).filter(|(_, entry)| entry.stored_len == place.stored_len && is_it(entry)) {
            Some((offset, _)) if !pack.bad.contains(offset) => Verdict::Good,
            Some(_) => Verdict::Unknown,
            None => Verdict::Elsewhere,
        }
    }
}

fn check_pack(
    pack: &PackFile,
    digest: &Digest,
    depth: Depth,
    findings: &Findings,
    progress: &dyn Progress,
) -> Result<CheckedPack, DirError> {
    let object = pack_path(digest);
    let catalogue = match pack.catalogue() {
        Ok(catalogue) => Some(catalogue),
        Err(error) => {
            findings.add(&object, told_of(&error), None);
            None
        }
    };
    let mut checked = CheckedPack { bytes: pack.len(), has_catalogue: catalogue.is_some(), ..CheckedPack::default() };
    // Only who reads every byte can compare the digest of them all.
    let mut whole = depth.is_deep().then(|| (Hasher::new(), 0));
    for (offset, entry) in catalogue.iter().flat_map(Catalogue::entries) {
        if let Some((hasher, at)) = &mut whole {
            hash_to(pack, hasher, at, offset, progress)?;
        }
        if depth.takes() {
            // The catalogue's decoder has bounded the length.
            let mut stored = vec![0; entry.stored_len as usize];
            pack.read_exact_at(&mut stored, offset)?;
            if let Some((hasher, at)) = &mut whole {
                hasher.update(&stored);
                *at += u64::from(entry.stored_len);
            }
            checked.read_bytes += u64::from(entry.plain_len);
            if let Err(what) = check_frame(&stored, entry) {
                findings.add(&object, format!("frame at {offset}: {what}"), None);
                checked.bad.insert(offset);
            }
        }
        progress.advance(entry.stored_len.into());
        checked.frames.push((offset, *entry));
    }
    if let Some((mut hasher, mut at)) = whole {
        hash_to(pack, &mut hasher, &mut at, pack.len(), progress)?;
        if hasher.digest() != *digest {
            findings.add(&object, "its bytes do not have the digest that names it", None);
        }
    }
    Ok(checked)
}

/// Hashes what lies between frames: head, catalogue and trailer, or all where nothing is known of frames.
fn hash_to(
    pack: &PackFile,
    hasher: &mut Hasher,
    at: &mut u64,
    end: u64,
    progress: &dyn Progress,
) -> Result<(), DirError> {
    let mut piece = Vec::new();
    while *at < end {
        piece.resize((end - *at).min(PIECE_BYTES as u64) as usize, 0);
        pack.read_exact_at(&mut piece, *at)?;
        hasher.update(&piece);
        *at += piece.len() as u64;
        progress.advance(piece.len() as u64);
    }
    Ok(())
}

fn check_frame(stored: &[u8], entry: &Entry) -> Result<(), String> {
    let plain = decode_frame(stored, entry.plain_len).map_err(|error| told(&error))?;
    if Digest::of(&plain) == entry.digest { Ok(()) } else { Err("its bytes do not have its digest".to_owned()) }
}
