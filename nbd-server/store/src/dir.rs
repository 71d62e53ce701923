//! A repository in a directory: objects enter it whole or not at all.
//!
//! Any number of readers look at a [`RepositoryDir`] while one [`Publisher`] at a time adds to it. An object is written
//! under `tmp/` of the same file system, flushed to the disk and only then renamed to the digest that names it; the link,
//! by which readers find everything else, is replaced last and in the same way. So whatever the moment at which a
//! publisher dies, every version that could be read before can be read after.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmnetx_format::limits::{LAYOUT_BYTES_MAX, LINK_BYTES_MAX, MANIFEST_BYTES_MAX, PACK_BYTES_MAX};
use vmnetx_format::{
    Catalogue, Digest, Envelope, LINK_SUFFIX, LinkError, Manifest, ManifestError, Name, PackBuilder, PackError,
    Trailer, Version, layout_path, link_path, manifest_path, order_path, pack_path,
};

use crate::failure::{Class, Told};
use crate::file::open_regular;

mod publisher;
#[cfg(test)]
mod tests;
mod tombstones;

pub use publisher::{Publisher, TemporaryObject, Wait};
pub use tombstones::Tombstones;

/// The folders of a repository that hold objects, and that each has.
const OBJECT_FOLDERS: [&str; 3] = ["manifests", "layouts", "packs"];
/// The folder for orders. A repository may have none, and then perhaps lost the empty folder when it was copied.
const ORDERS_FOLDER: &str = "orders";
/// The folder for objects that are being written.
const TEMPORARY_FOLDER: &str = "tmp";
/// The file whose lock the publisher holds, and which says who that is.
const LOCK_FILE: &str = ".lock";
/// The file with the publisher's tombstones.
const TOMBSTONES_FILE: &str = ".tombstones";
/// Bytes of that file: some 600,000 objects.
const TOMBSTONES_BYTES_MAX: u64 = 64 << 20;

/// A repository in a directory of this host, to be read.
#[derive(Debug, Clone)]
pub struct RepositoryDir {
    root: PathBuf,
}

/// A pack of a repository, opened.
#[derive(Debug)]
pub struct PackFile {
    path: PathBuf,
    file: File,
    len: u64,
}

/// What a folder of objects holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The digests that name its objects, in ascending order.
    pub objects: Vec<Digest>,
    /// Files that are no objects of a repository, or lie where they do not belong.
    pub strangers: Vec<PathBuf>,
}

/// Why a repository's directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The system refuses something.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The directory has not the folders of a repository.
    #[error("{} is not a VMNetX repository: it has no folder {missing}/", path.display())]
    NotARepository {
        /// The directory.
        path: PathBuf,
        /// The folder that it lacks.
        missing: &'static str,
    },
    /// A new repository was to be made in a directory that is in use for something else.
    #[error("create a repository in {}: the directory is not empty, it holds {found:?}", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something that it holds.
        found: String,
    },
    /// Another publisher holds the lock.
    #[error("another publisher works in {}: {holder}", path.display())]
    Locked {
        /// The repository.
        path: PathBuf,
        /// What that publisher wrote about itself.
        holder: String,
    },
    /// A path that leaves the repository or is none of its objects'.
    #[error("{0:?} is not the path of an object in a repository")]
    Path(String),
    /// An object has more bytes than it may.
    #[error("{} has {bytes} bytes, more than the {max_bytes} that it may have", path.display())]
    TooLarge {
        /// The object.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A pack ends before what an index says it holds.
    #[error("{} is damaged: it has {bytes} bytes, and an index names bytes up to {end}", path.display())]
    Short {
        /// The pack.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// Where what the index names would end.
        end: u64,
    },
    /// An object's bytes do not have the digest that names it.
    #[error("{} is damaged: its bytes do not have the digest that names it", path.display())]
    Digest {
        /// The object.
        path: PathBuf,
    },
    /// A link that is damaged.
    #[error("{}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: LinkError,
    },
    /// A link that says another name than its file's.
    #[error("{} says that it is the link of {found}", path.display())]
    LinkName {
        /// The link.
        path: PathBuf,
        /// The name in it.
        found: Name,
    },
    /// A manifest that is damaged.
    #[error("{}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The publisher's notes of what may be removed cannot be read.
    #[error("the tombstones in {} are damaged: {reason}", path.display())]
    Tombstones {
        /// Their file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pack whose catalogue cannot be read.
    #[error("pack {} is damaged", path.display())]
    Pack {
        /// The pack.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PackError,
    },
}

impl RepositoryDir {
    /// Opens the repository in the directory `root`.
    ///
    /// # Errors
    /// [`DirError::Io`] when there is no such directory, [`DirError::NotARepository`] when it is something else.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DirError> {
        let root = root.into();
        fs::read_dir(&root).map_err(io_error("open repository", &root))?;
        match OBJECT_FOLDERS.into_iter().find(|folder| !root.join(folder).is_dir()) {
            Some(missing) => Err(DirError::NotARepository { path: root, missing }),
            None => Ok(Self { root }),
        }
    }

    /// Opens the repository in `root`, or makes one there if the directory is empty or absent.
    ///
    /// # Errors
    /// [`DirError::NotEmpty`] when the directory is in use for something else; [`DirError::Io`].
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, DirError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io_error("create repository", &root))?;
        let made = || OBJECT_FOLDERS.iter().chain([&ORDERS_FOLDER, &TEMPORARY_FOLDER]);
        if made().any(|folder| !root.join(folder).is_dir()) {
            // A publisher that died here left some of the folders; anything else is not ours.
            let ours =
                |name: &str| name == LOCK_FILE || name == TOMBSTONES_FILE || made().any(|folder| *folder == name);
            if let Some(found) = entries(&root)?.into_iter().find(|(name, _)| !ours(name)) {
                // A repository without tmp/ or orders/ is one that was copied by a tool that leaves out empty folders.
                Self::open(&root).map_err(|_| DirError::NotEmpty { path: root.clone(), found: found.0 })?;
            }
            for folder in made() {
                let path = root.join(folder);
                fs::create_dir_all(&path).map_err(io_error("create", &path))?;
            }
            sync_directory(&root)?;
        }
        Ok(Self { root })
    }

    /// The repository's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Becomes the repository's only publisher; see [`Publisher`].
    ///
    /// # Errors
    /// [`DirError::Locked`] when there is another one and `wait` says not to wait for it; [`DirError::Io`].
    pub fn lock(&self, wait: Wait) -> Result<Publisher, DirError> {
        Publisher::lock(self.clone(), wait)
    }

    /// The packages that have a link, in the order of their names.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn links(&self) -> Result<Vec<Name>, DirError> {
        let files = entries(&self.root)?;
        let name = |file: &str| file.strip_suffix(LINK_SUFFIX)?.parse().ok();
        Ok(files.iter().filter(|(_, kind)| !kind.is_dir()).filter_map(|(file, _)| name(file)).collect())
    }

    /// The link of the package `name`, or nothing if there is none.
    ///
    /// # Errors
    /// [`DirError::Link`] and [`DirError::LinkName`] when it is damaged; [`DirError::Io`].
    pub fn link(&self, name: &Name) -> Result<Option<Envelope>, DirError> {
        let file = link_path(name);
        let bytes = match self.object(&file, LINK_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Ok(None),
            bytes => bytes?,
        };
        let path = self.root.join(file);
        match Envelope::decode(&bytes) {
            Err(source) => Err(DirError::Link { path, source }),
            Ok(envelope) if envelope.link.name != *name => Err(DirError::LinkName { path, found: envelope.link.name }),
            Ok(envelope) => Ok(Some(envelope)),
        }
    }

    /// The manifest of a version, verified.
    ///
    /// # Errors
    /// [`DirError::Digest`] and [`DirError::Manifest`] when it is damaged; [`DirError::Io`].
    pub fn manifest(&self, version: &Version) -> Result<Manifest, DirError> {
        let file = manifest_path(&version.manifest);
        let bytes = self.verified(&file, MANIFEST_BYTES_MAX, &version.manifest)?;
        Manifest::decode(&bytes).map_err(|source| DirError::Manifest { path: self.root.join(file), source })
    }

    /// The bytes of a version's layout object, verified.
    ///
    /// # Errors
    /// [`DirError::Digest`] when it is damaged; [`DirError::Io`].
    pub fn layout(&self, version: &Version) -> Result<Vec<u8>, DirError> {
        self.verified(&layout_path(&version.layout), LAYOUT_BYTES_MAX, &version.layout)
    }

    /// The bytes of the object at `path`, which is relative to the repository, if they are no more than `max_bytes`.
    ///
    /// # Errors
    /// [`DirError::TooLarge`]; [`DirError::Io`].
    pub fn object(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, DirError> {
        read_whole(&self.root.join(checked(path)?), max_bytes)
    }

    /// The bytes of the object at `path`, whose digest they must have.
    ///
    /// # Errors
    /// [`DirError::Digest`] when they have another one, [`DirError::TooLarge`], [`DirError::Io`].
    pub fn verified(&self, path: &str, max_bytes: u64, digest: &Digest) -> Result<Vec<u8>, DirError> {
        let bytes = self.object(path, max_bytes)?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(DirError::Digest { path: self.root.join(path) }) }
    }

    /// Opens the pack `digest`.
    ///
    /// # Errors
    /// [`DirError::TooLarge`]; [`DirError::Io`].
    pub fn pack(&self, digest: &Digest) -> Result<PackFile, DirError> {
        let path = self.root.join(pack_path(digest));
        let file = open_regular(&path).map_err(io_error("open", &path))?;
        let len = file.metadata().map_err(io_error("read", &path))?.len();
        if len > PACK_BYTES_MAX {
            return Err(DirError::TooLarge { path, bytes: len, max_bytes: PACK_BYTES_MAX });
        }
        Ok(PackFile { path, file, len })
    }

    /// Whether the pack `digest` is there and whole: all of it is read.
    ///
    /// # Errors
    /// [`DirError::TooLarge`]; [`DirError::Io`].
    pub fn verified_pack(&self, digest: &Digest) -> Result<bool, DirError> {
        match self.pack(digest) {
            Err(error) if error.is_not_found() => Ok(false),
            Ok(pack) => Ok(publisher::is_good(pack.path(), digest)),
            Err(error) => Err(error),
        }
    }

    /// The manifests that are there.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn manifests(&self) -> Result<Listing, DirError> {
        let mut listing = Listing::default();
        self.list("manifests", ".json", manifest_path, &mut listing)?;
        Ok(listing.sorted())
    }

    /// The layout objects that are there.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn layouts(&self) -> Result<Listing, DirError> {
        let mut listing = Listing::default();
        self.list("layouts", ".layout", layout_path, &mut listing)?;
        Ok(listing.sorted())
    }

    /// The order objects that are there.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn orders(&self) -> Result<Listing, DirError> {
        let mut listing = Listing::default();
        match self.list(ORDERS_FOLDER, ".order", order_path, &mut listing) {
            Err(error) if error.is_not_found() => {}
            listed => listed?,
        }
        Ok(listing.sorted())
    }

    /// The packs that are there.
    ///
    /// # Errors
    /// [`DirError::Io`].
    pub fn packs(&self) -> Result<Listing, DirError> {
        let mut listing = Listing::default();
        for (folder, kind) in entries(&self.root.join("packs"))? {
            let folder = format!("packs/{folder}");
            if kind.is_dir() {
                self.list(&folder, ".pack", pack_path, &mut listing)?;
            } else {
                listing.strangers.push(self.root.join(folder));
            }
        }
        Ok(listing.sorted())
    }

    /// The objects that may be removed.
    ///
    /// # Errors
    /// [`DirError::Tombstones`] when the file is damaged; [`DirError::Io`].
    pub fn tombstones(&self) -> Result<Tombstones, DirError> {
        let path = self.root.join(TOMBSTONES_FILE);
        let bytes = match read_whole(&path, TOMBSTONES_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Ok(Tombstones::default()),
            bytes => bytes?,
        };
        Tombstones::decode(&bytes).map_err(|reason| DirError::Tombstones { path, reason })
    }

    fn list(
        &self,
        folder: &str,
        suffix: &str,
        path_of: fn(&Digest) -> String,
        listing: &mut Listing,
    ) -> Result<(), DirError> {
        for (file, _) in entries(&self.root.join(folder))? {
            let path = format!("{folder}/{file}");
            let digest = file.strip_suffix(suffix).and_then(|stem| stem.parse().ok());
            match digest.filter(|digest| path_of(digest) == path) {
                Some(digest) => listing.objects.push(digest),
                None => listing.strangers.push(self.root.join(path)),
            }
        }
        Ok(())
    }
}

impl Listing {
    fn sorted(mut self) -> Self {
        self.objects.sort_unstable();
        self.strangers.sort_unstable();
        self
    }
}

impl PackFile {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes, which no good pack has.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it holds, read from its end.
    ///
    /// # Errors
    /// [`DirError::Pack`] when head, trailer or catalogue are not a pack's; [`DirError::Io`].
    pub fn catalogue(&self) -> Result<Catalogue, DirError> {
        let damaged = |source| DirError::Pack { path: self.path.clone(), source };
        let end = self.len.checked_sub(Trailer::BYTES as u64).ok_or_else(|| damaged(PackError::Trailer))?;
        let mut head = [0; PackBuilder::HEADER.len()];
        self.read_exact_at(&mut head, 0)?;
        Catalogue::check_header(&head).map_err(damaged)?;
        let mut trailer = [0; Trailer::BYTES];
        self.read_exact_at(&mut trailer, end)?;
        let trailer = Trailer::decode(&trailer, self.len).map_err(damaged)?;
        // The trailer's decoder has made sure that the catalogue fits into the pack.
        let mut stored = vec![0; trailer.stored_len as usize];
        self.read_exact_at(&mut stored, end.saturating_sub(trailer.stored_len.into()))?;
        Catalogue::decode(&stored, &trailer, self.len).map_err(damaged)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`DirError::Short`] when the pack ends before that; [`DirError::Io`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DirError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.len {
            return Err(DirError::Short { path: self.path.clone(), bytes: self.len, end });
        }
        self.file.read_exact_at(buffer, offset).map_err(io_error("read", &self.path))
    }
}

impl DirError {
    /// Whether something is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Told for DirError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => Class::of_io(source),
            Self::NotARepository { .. } | Self::NotEmpty { .. } | Self::Path(_) => Class::Usage,
            Self::Locked { .. } => Class::Failure,
            Self::TooLarge { .. } | Self::Short { .. } | Self::Digest { .. } | Self::Link { .. } => Class::Integrity,
            Self::Tombstones { .. } => Class::Integrity,
            Self::LinkName { .. } | Self::Manifest { .. } | Self::Pack { .. } => Class::Integrity,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotARepository { .. } => "give the directory that holds the link files".into(),
            Self::NotEmpty { .. } => "give an empty directory, or one that does not exist yet".into(),
            Self::Locked { .. } => "wait until it ends, or say --wait".into(),
            Self::Tombstones { .. } => "remove the file: `prune` marks anew what nothing leads to".into(),
            Self::LinkName { .. } => "rename the link file to the name that it says".into(),
            Self::TooLarge { .. }
            | Self::Short { .. }
            | Self::Digest { .. }
            | Self::Link { .. }
            | Self::Manifest { .. }
            | Self::Pack { .. } => {
                "`vmnetx-pack verify` finds all damage; bring the object back from a mirror or a backup".into()
            }
            Self::Io { .. } | Self::Path(_) => return None,
        })
    }
}

fn read_whole(path: &Path, max_bytes: u64) -> Result<Vec<u8>, DirError> {
    let file = open_regular(path).map_err(io_error("open", path))?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > max_bytes {
        let bytes = fs::metadata(path).map_or(bytes.len() as u64, |metadata| metadata.len());
        return Err(DirError::TooLarge { path: path.to_owned(), bytes, max_bytes });
    }
    Ok(bytes)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirError {
    move |source| DirError::Io { action, path: path.to_owned(), source }
}

/// Names and types of what a directory holds, in the order of the names. Names that are not UTF-8 are shown as well as
/// they can be: they belong to no object.
fn entries(directory: &Path) -> Result<Vec<(String, fs::FileType)>, DirError> {
    let listed = fs::read_dir(directory).map_err(io_error("list", directory))?;
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?))
    };
    let found: io::Result<Vec<_>> = listed.map(entry).collect();
    let mut found = found.map_err(io_error("list", directory))?;
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The path of an object: relative, plain names only, none of them hidden.
fn checked(path: &str) -> Result<&Path, DirError> {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\0');
    if path.split('/').all(plain) { Ok(Path::new(path)) } else { Err(DirError::Path(path.to_owned())) }
}

/// Makes names that were entered into a directory survive a loss of power.
fn sync_directory(directory: &Path) -> Result<(), DirError> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(io_error("flush directory", directory))
}
