//! Copies objects that are damaged or missing here. Their digests say whether they are right.

use std::collections::HashSet;

use vmnetx_format::limits::{LAYOUT_BYTES_MAX, LINK_BYTES_MAX, MANIFEST_BYTES_MAX, ORDER_BYTES_MAX};
use vmnetx_format::{Digest, Envelope, Hasher, Name, layout_path, link_path, manifest_path, order_path, pack_path};
use vmnetx_store::dir::{DirError, PackFile, Publisher, RepositoryDir};
use vmnetx_store::failure::{Class, Told, describe};

use super::elsewhere::Mirror;
use super::{Left, RepairReport};
use crate::limits::COPIED_PACK_BYTES_MAX;
use crate::reach::Reach;
use crate::{Error, Progress, Silent};

/// Bytes of a pack that are hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What was copied so far, and what cannot be.
pub(super) struct Copies<'a> {
    publisher: &'a Publisher,
    mirror: &'a Mirror,
    /// Objects that were looked at: none is read twice.
    seen: HashSet<String>,
    /// Packs that are damaged here and not to be had there.
    lost: HashSet<Digest>,
}

impl<'a> Copies<'a> {
    pub(super) fn new(publisher: &'a Publisher, mirror: &'a Mirror) -> Self {
        Self { publisher, mirror, seen: HashSet::new(), lost: HashSet::new() }
    }

    pub(super) fn into_lost(self) -> HashSet<Digest> {
        self.lost
    }

    /// Brings the link of a package back, if it cannot be read.
    pub(super) fn link(&self, name: &Name, report: &mut RepairReport) -> Result<(), Error> {
        let path = link_path(name);
        match self.publisher.repository().link(name) {
            Err(error) if error.class() == Class::Integrity => {}
            link => {
                link?;
                return Ok(());
            }
        }
        report.damaged.push(path.clone());
        let copied = self.mirror.object(&path, LINK_BYTES_MAX).map_err(|error| describe(&error)).and_then(|bytes| {
            let envelope = Envelope::decode(&bytes).map_err(|error| describe(&error))?;
            let signer = envelope.signer().map_err(|error| describe(&error));
            signer?;
            if envelope.link.name == *name { Ok(envelope) } else { Err("it is another package's there".to_owned()) }
        });
        match copied {
            Ok(envelope) => {
                self.publisher.replace_link(&envelope)?;
                report.copied.push(path);
            }
            Err(why) => report.left.push(Left { link: path, version: None, why }),
        }
        Ok(())
    }

    /// Copies what is damaged of what links lead to; whether anything was, so that there may be more to be seen now.
    pub(super) fn objects(
        &mut self,
        reach: &Reach,
        report: &mut RepairReport,
        progress: &dyn Progress,
    ) -> Result<bool, Error> {
        let before = report.copied.len();
        let repository = self.publisher.repository();
        for reached in &reach.versions {
            let version = &reached.version;
            let manifest =
                repository.verified(&manifest_path(&version.manifest), MANIFEST_BYTES_MAX, &version.manifest);
            self.copy(&manifest_path(&version.manifest), &version.manifest, MANIFEST_BYTES_MAX, manifest, report)?;
            self.copy(
                &layout_path(&version.layout),
                &version.layout,
                LAYOUT_BYTES_MAX,
                repository.layout(version),
                report,
            )?;
            for order in &version.orders {
                let path = order_path(order);
                let here = repository.verified(&path, ORDER_BYTES_MAX, order);
                self.copy(&path, order, ORDER_BYTES_MAX, here, report)?;
            }
        }
        // Also those that nothing leads to, as far as can be seen now: what is packed again counts on what they hold.
        let all: HashSet<Digest> = reach.packs.iter().copied().chain(repository.packs()?.objects).collect();
        let tombstones = repository.tombstones()?;
        let is_wanted = |pack: &Digest| {
            let path = pack_path(pack);
            let stays = reach.packs.contains(pack) || tombstones.since_unix_s(&path).is_none();
            stays && !self.seen.contains(&path)
        };
        let wanted: Vec<Digest> = all.into_iter().filter(is_wanted).collect();
        progress.total(wanted.iter().filter_map(|pack| Some(repository.pack(pack).ok()?.len())).sum());
        for pack in wanted {
            let whole = repository.pack(&pack).and_then(|file| hash(&file, progress)).and_then(|digest| {
                let path = repository.root().join(pack_path(&pack));
                if digest == pack { Ok(()) } else { Err(DirError::Digest { path }) }
            });
            if !self.copy(&pack_path(&pack), &pack, COPIED_PACK_BYTES_MAX, whole, report)? {
                self.lost.insert(pack);
            }
        }
        Ok(report.copied.len() > before)
    }

    /// Copies an object that cannot be read here; whether it is whole now.
    fn copy<T>(
        &mut self,
        path: &str,
        digest: &Digest,
        max_bytes: u64,
        here: Result<T, DirError>,
        report: &mut RepairReport,
    ) -> Result<bool, Error> {
        match here {
            Ok(_) => {
                self.seen.insert(path.to_owned());
                return Ok(true);
            }
            // A disk that fails is no damage that a copy could mend.
            Err(error) if error.class() != Class::Integrity && !error.is_not_found() => return Err(error.into()),
            Err(_) if !self.seen.insert(path.to_owned()) => return Ok(false),
            Err(_) => report.damaged.push(path.to_owned()),
        }
        match self.mirror.object(path, max_bytes) {
            Ok(bytes) if Digest::of(&bytes) == *digest => {
                self.publisher.put(path, digest, &bytes)?;
                report.copied.push(path.to_owned());
                report.copied_bytes += bytes.len() as u64;
                Ok(true)
            }
            Ok(_) => Ok(false),
            // A server that cannot be reached has none of the objects; one that says no may have the others.
            Err(Error::Read(error @ vmnetx_store::Error::Network { .. })) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }
}

/// Whether a pack is there with just the bytes that its digest names.
pub(super) fn is_whole(repository: &RepositoryDir, pack: &Digest) -> bool {
    repository.pack(pack).and_then(|file| hash(&file, &Silent)).is_ok_and(|digest| digest == *pack)
}

fn hash(pack: &PackFile, progress: &dyn Progress) -> Result<Digest, DirError> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < pack.len() {
        let length = (pack.len() - at).min(PIECE_BYTES as u64) as usize;
        pack.read_exact_at(&mut piece[..length], at)?;
        hasher.update(&piece[..length]);
        at += length as u64;
        progress.advance(length as u64);
    }
    Ok(hasher.digest())
}
