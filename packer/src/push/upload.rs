//! Uploads objects: several at a time, the large ones in parts, each compared with its digest as it is sent.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::MultipartUpload;
use rayon::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmnetx_format::{Digest, Hasher, layout_path, manifest_path, order_path, pack_path};
use vmnetx_store::dir::{DirError, RepositoryDir};

use super::PushError;
use super::bucket::{Bucket, payload};
use crate::limits::{PUSH_ABORT, PUSH_OBJECTS, PUSH_PART_BYTES, PUSH_PARTS};
use crate::media::Media;
use crate::reach::Reach;
use crate::{Damage, Error, Progress};

/// Bytes that are read at a time to be compared with a digest.
const PIECE_BYTES: u64 = 1 << 20;

/// An object of the repository that the bucket is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) path: String,
    pub(super) bytes: u64,
    media: Media,
    digest: Digest,
}

/// Uploads to one bucket.
pub(super) struct Uploads<'a> {
    bucket: &'a Bucket,
    root: PathBuf,
    progress: &'a dyn Progress,
    /// Places in memory and on the line.
    parts: Arc<Semaphore>,
    /// Ends what is under way.
    stop: CancellationToken,
}

/// The objects that versions need.
pub(super) fn needed(repository: &RepositoryDir, reach: &Reach) -> Result<Vec<Object>, Error> {
    let packs = reach.packs.iter().map(|digest| (pack_path(digest), Media::Binary, *digest));
    let layouts = reach.layouts().into_iter().map(|digest| (layout_path(&digest), Media::Binary, digest));
    let orders = reach.orders().into_iter().map(|digest| (order_path(&digest), Media::Binary, digest));
    let manifests = reach.manifests().into_iter().map(|digest| (manifest_path(&digest), Media::Manifest, digest));
    let objects = packs.chain(orders).chain(layouts).chain(manifests).map(|(path, media, digest)| {
        let file = repository.root().join(&path);
        match std::fs::metadata(&file) {
            Ok(metadata) => Ok(Object { path, bytes: metadata.len(), media, digest }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::Object { object: path, source: Box::new(Damage::Missing) })
            }
            Err(error) => Err(Error::file("read", &file)(error)),
        }
    });
    objects.collect()
}

/// Compares objects with their digests before any of them is uploaded.
pub(super) fn check(repository: &RepositoryDir, objects: &[Object]) -> Result<(), Error> {
    objects.par_iter().try_for_each(|object| {
        let path = repository.root().join(&object.path);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let (mut hasher, mut at) = (Hasher::new(), 0);
        while at < object.bytes {
            let length = (object.bytes - at).min(PIECE_BYTES);
            hasher.update(&read_part(&file, &path, at, length)?);
            at += length;
        }
        object.compare(&path, &hasher)
    })
}

impl Object {
    /// Whether it needs no other object.
    pub(super) fn is_pack(&self) -> bool {
        self.path == pack_path(&self.digest)
    }

    fn compare(&self, path: &Path, hasher: &Hasher) -> Result<(), Error> {
        if hasher.digest() == self.digest {
            return Ok(());
        }
        Err(DirError::Digest { path: path.to_owned() }.into())
    }
}

impl<'a> Uploads<'a> {
    pub(super) fn new(
        bucket: &'a Bucket,
        repository: &RepositoryDir,
        progress: &'a dyn Progress,
        stop: &CancellationToken,
    ) -> Self {
        let parts = Arc::new(Semaphore::new(PUSH_PARTS));
        Self { bucket, root: repository.root().to_owned(), progress, parts, stop: stop.child_token() }
    }

    /// Uploads objects in any order; at the first failure the others are given up too.
    pub(super) async fn run(&self, objects: &[&Object]) -> Result<(), Error> {
        let mut uploads = stream::iter(objects).map(|object| self.object(object)).buffer_unordered(PUSH_OBJECTS);
        let mut first = None;
        while let Some(uploaded) = uploads.next().await {
            if let Err(error) = uploaded {
                self.stop.cancel();
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn object(&self, object: &Object) -> Result<(), Error> {
        if object.bytes > PUSH_PART_BYTES {
            return self.large(object).await;
        }
        tokio::select! {
            sent = self.small(object) => sent,
            () = self.stop.cancelled() => Err(PushError::Interrupted.into()),
        }
    }

    async fn small(&self, object: &Object) -> Result<(), Error> {
        let _permit = self.permit().await?;
        let path = self.root.join(&object.path);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let (bytes, hasher) = next_part(Arc::new(file), &path, Hasher::new(), 0, object.bytes).await?;
        object.compare(&path, &hasher)?;
        self.bucket.put(&object.path, object.media, bytes).await?;
        self.progress.advance(object.bytes);
        Ok(())
    }

    async fn large(&self, object: &Object) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Err(PushError::Interrupted.into());
        }
        let mut upload = self.bucket.put_parts(&object.path, object.media).await?;
        let sent = tokio::select! {
            sent = self.send_parts(object, upload.as_mut()) => sent,
            () = self.stop.cancelled() => Err(PushError::Interrupted.into()),
        };
        if sent.is_err() {
            // What was sent would lie in the bucket unseen. It may be too late; the server's own rules sweep it then.
            let _ = timeout(PUSH_ABORT, upload.abort()).await;
        }
        sent
    }

    async fn send_parts(&self, object: &Object, upload: &mut dyn MultipartUpload) -> Result<(), Error> {
        let path = self.root.join(&object.path);
        let file = Arc::new(File::open(&path).map_err(Error::file("open", &path))?);
        let (mut hasher, mut at) = (Hasher::new(), 0);
        let mut sending = JoinSet::new();
        while at < object.bytes {
            let permit = self.permit().await?;
            let length = (object.bytes - at).min(PUSH_PART_BYTES);
            let (part, next) = next_part(Arc::clone(&file), &path, hasher, at, length).await?;
            (hasher, at) = (next, at + length);
            let part = upload.put_part(payload(&part));
            sending.spawn(async move {
                let sent = part.await;
                drop(permit);
                sent.map(|()| length)
            });
            while let Some(sent) = sending.try_join_next() {
                self.sent(object, sent)?;
            }
        }
        // The parts become an object only if they are what its name promises.
        object.compare(&path, &hasher)?;
        while let Some(sent) = sending.join_next().await {
            self.sent(object, sent)?;
        }
        let Err(error) = upload.complete().await else { return Ok(()) };
        // The answer to an earlier try may have been lost, after which there is no such upload any more.
        let there = self.bucket.bytes(&object.path).await;
        if there.is_ok_and(|bytes| bytes == Some(object.bytes)) {
            return Ok(());
        }
        Err(self.bucket.failed(&object.path)(error).into())
    }

    fn sent(
        &self,
        object: &Object,
        sent: Result<object_store::Result<u64>, tokio::task::JoinError>,
    ) -> Result<(), Error> {
        let sent = sent.map_err(|_| Error::Stopped)?;
        self.progress.advance(sent.map_err(self.bucket.failed(&object.path))?);
        Ok(())
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        // Nobody closes the semaphore.
        Arc::clone(&self.parts).acquire_owned().await.map_err(|_| Error::Stopped)
    }
}

/// Reads a part away from the threads that serve the network, and hashes it.
async fn next_part(
    file: Arc<File>,
    path: &Path,
    mut hasher: Hasher,
    at: u64,
    length: u64,
) -> Result<(Bytes, Hasher), Error> {
    let path = path.to_owned();
    let read = spawn_blocking(move || {
        let part = read_part(&file, &path, at, length)?;
        hasher.update(&part);
        Ok((Bytes::from(part), hasher))
    });
    read.await.map_err(|_| Error::Stopped)?
}

/// Reads a part of at most [`PUSH_PART_BYTES`].
fn read_part(file: &File, path: &Path, at: u64, length: u64) -> Result<Vec<u8>, Error> {
    let mut part = vec![0; length as usize];
    file.read_exact_at(&mut part, at).map_err(Error::file("read", path))?;
    Ok(part)
}
