//! A repository in a local directory as an origin.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Body, Origin, Promise};
use crate::Error;
use crate::file::open_regular;

/// Bytes that are read at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// Reads a repository from a directory.
#[derive(Debug)]
pub struct DirOrigin {
    root: PathBuf,
}

impl DirOrigin {
    /// The repository whose root is the directory `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Origin for DirOrigin {
    fn locate(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }

    fn object<'a>(&'a self, path: &'a str, max_bytes: u64) -> Promise<'a, Result<Bytes, Error>> {
        let file = self.root.join(path);
        Box::pin(blocking(move || read_whole(&file, max_bytes)))
    }

    fn range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Promise<'a, Result<Body, Error>> {
        let file = self.root.join(path);
        Box::pin(async move {
            let (sender, body) = Body::channel();
            let opened = blocking({
                let file = file.clone();
                move || open_at(&file, range.start).map_err(|error| Error::local(file.display(), error).of_object())
            });
            let mut source = opened.await?.take(range.end - range.start);
            tokio::task::spawn_blocking(move || {
                loop {
                    let mut piece = Vec::new();
                    let result = source.by_ref().take(PIECE_BYTES).read_to_end(&mut piece);
                    let item = match result {
                        Ok(0) if source.limit() == 0 => return,
                        Ok(0) => Err(Error::Short { object: file.display().to_string() }),
                        Ok(_) => Ok(piece.into()),
                        Err(error) => Err(Error::local(file.display(), error)),
                    };
                    let last = item.is_err();
                    if sender.blocking_send(item).is_err() || last {
                        return;
                    }
                }
            });
            Ok(body)
        })
    }
}

fn open_at(file: &Path, offset: u64) -> std::io::Result<std::fs::File> {
    let mut opened = open_regular(file)?;
    opened.seek(SeekFrom::Start(offset))?;
    Ok(opened)
}

fn read_whole(file: &Path, max_bytes: u64) -> Result<Bytes, Error> {
    let local = |error| Error::local(file.display(), error);
    let mut bytes = Vec::new();
    let source = open_regular(file).map_err(local)?;
    source.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(local)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::TooLarge { object: file.display().to_string(), max_bytes });
    }
    Ok(bytes.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Closing))
}
