//! The backing chain of an image: every file of it, walked here before QEMU sees any, and the node tree that names them.
//!
//! What a header names is the guest's or a stranger's word. So nothing is probed, nothing but plain local files is
//! followed, files outside the folder of the image on top are read only if the user says so, and QEMU is given a tree
//! that names each file with its driver: it opens what was walked, and nothing else.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use vmnetx_format::Binding;

use super::error::DiskError;
use super::header::{self, Backing, Image};
use super::raw::unchanged;
use super::{DiskFormat, vmdk};
use crate::Error;
use crate::limits::CHAIN_DEPTH_MAX;

/// A file that a disk is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainFile {
    /// Its path; what is not UTF-8 in it is replaced.
    pub file: String,
    /// The format of the image that it is, or is a part of.
    pub format: DiskFormat,
    /// What it is.
    pub part: FilePart,
}

/// What a file of a chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FilePart {
    /// An image, with all of its data or the head of it.
    Image,
    /// The clusters of the qcow2 image before it.
    Data,
    /// One of the files of the vmdk image before it.
    Extent,
}

/// An image with the images below it.
#[derive(Debug)]
pub(super) struct Chain {
    /// The image on top first.
    layers: Vec<Layer>,
    under: Under,
}

/// What the last image of a chain lies over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Under {
    /// Nothing: it is whole.
    Nothing,
    /// A disk of a published version.
    Version(Binding),
    /// Something that was not followed.
    Other,
}

#[derive(Debug)]
struct Layer {
    format: DiskFormat,
    file: Member,
    data_file: Option<Member>,
    extents: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    /// Absolute, as it is named: QEMU finds relative names from there.
    path: PathBuf,
    before: Metadata,
}

/// How far a chain is walked down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// To its end.
    Whole,
    /// As long as there are files.
    Files,
    /// The image on top alone.
    Top,
}

/// Which files may be in a chain.
struct Rule {
    /// The folder that they must lie in, symbolic links resolved; nothing if all may be read.
    folder: Option<PathBuf>,
}

impl ChainFile {
    pub(super) fn raw(file: &Path) -> Self {
        Self::new(file, DiskFormat::Raw, FilePart::Image)
    }

    fn new(file: &Path, format: DiskFormat, part: FilePart) -> Self {
        Self { file: file.to_string_lossy().into_owned(), format, part }
    }
}

impl Chain {
    /// Walks the chain of the image `top`.
    ///
    /// # Errors
    /// [`DiskError`] for a chain that is not to be read; [`Error::File`], [`Error::NoDisk`].
    pub(super) fn walk(top: &Path, format: DiskFormat, allow_outside: bool) -> Result<Self, Error> {
        Self::walk_down(top, format, allow_outside, Depth::Whole)
    }

    /// Walks the chain of an overlay down to the image that lies over something else than a file. With `trust`, only that of
    /// `top`: whatever it lies over is the base.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub(super) fn walk_overlay(top: &Path, allow_outside: bool, trust: bool) -> Result<Self, Error> {
        let depth = if trust { Depth::Top } else { Depth::Files };
        Self::walk_down(top, DiskFormat::Qcow2, allow_outside, depth)
    }

    fn walk_down(top: &Path, format: DiskFormat, allow_outside: bool, depth: Depth) -> Result<Self, Error> {
        let mut path = std::path::absolute(top).map_err(Error::file("open disk image", top))?;
        let real = path.canonicalize().map_err(Error::file("open disk image", top))?;
        let folder = (!allow_outside).then(|| real.parent().unwrap_or(Path::new("/")).to_owned());
        let (rule, mut format) = (Rule { folder }, format);
        let mut layers: Vec<Layer> = Vec::new();
        loop {
            if layers.len() > CHAIN_DEPTH_MAX {
                return Err(DiskError::TooDeep(top.to_owned()).into());
            }
            let named_by = layers.last().map(|layer| layer.file.path.as_path());
            let (layer, backing) = Layer::open(path, format, &rule, named_by)?;
            if layers.iter().any(|above| above.file.is(&layer.file)) {
                return Err(DiskError::Cycle { file: top.to_owned(), again: layer.file.path }.into());
            }
            layers.push(layer);
            let above = &layers[layers.len() - 1].file.path;
            let Some(backing) = backing else { return Ok(Self { layers, under: Under::Nothing }) };
            if let Some(binding) = binding(&backing) {
                return Ok(Self { layers, under: Under::Version(binding) });
            }
            let next = plain_path(above, &backing.name);
            if depth == Depth::Top || (depth == Depth::Files && next.is_err()) {
                return Ok(Self { layers, under: Under::Other });
            }
            let next = next?;
            format = backing_format(above, &backing)?;
            path = next;
        }
    }

    /// The image on top.
    pub(super) fn top(&self) -> &Path {
        self.layers.first().map_or(Path::new(""), |layer| &layer.file.path)
    }

    pub(super) const fn under(&self) -> &Under {
        &self.under
    }

    /// All files, from top to bottom.
    pub(super) fn files(&self) -> Vec<ChainFile> {
        let parts = |layer: &Layer| {
            let image = ChainFile::new(&layer.file.path, layer.format, FilePart::Image);
            let data = layer.data_file.iter().map(|member| ChainFile::new(&member.path, layer.format, FilePart::Data));
            let extents =
                layer.extents.iter().map(|member| ChainFile::new(&member.path, layer.format, FilePart::Extent));
            std::iter::once(image).chain(data).chain(extents).collect::<Vec<_>>()
        };
        self.layers.iter().flat_map(parts).collect()
    }

    /// The node tree of the chain as QEMU takes it behind `json:`.
    ///
    /// # Errors
    /// [`DiskError::Path`].
    pub(super) fn node(&self) -> Result<Value, Error> {
        let mut node = Value::Null;
        for layer in self.layers.iter().rev() {
            node = layer.node(node)?;
        }
        Ok(node)
    }

    /// The node tree of each image alone that QEMU can check, with the image's path.
    ///
    /// # Errors
    /// [`DiskError::Path`].
    pub(super) fn checkable(&self) -> Result<Vec<(&Path, Value)>, Error> {
        let layers = self.layers.iter().filter(|layer| layer.format.has_check());
        layers.map(|layer| Ok((layer.file.path.as_path(), layer.node(Value::Null)?))).collect()
    }

    /// Says whether all files are as they were when they were walked.
    ///
    /// # Errors
    /// [`Error::DiskChanged`]; [`Error::File`].
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let members = self
            .layers
            .iter()
            .flat_map(|layer| std::iter::once(&layer.file).chain(&layer.data_file).chain(&layer.extents));
        for member in members {
            let after = std::fs::metadata(&member.path).map_err(Error::file("read disk image", &member.path))?;
            let same = unchanged(&member.before, &after);
            let same = same.and(if member.is_at(&after) { Ok(()) } else { Err("another file has taken its place") });
            same.map_err(|change| Error::DiskChanged { path: member.path.clone(), change })?;
        }
        Ok(())
    }
}

impl Layer {
    /// Opens an image and what it consists of; gives what it says of the image below.
    fn open(
        path: PathBuf,
        format: DiskFormat,
        rule: &Rule,
        named_by: Option<&Path>,
    ) -> Result<(Self, Option<Backing>), Error> {
        let (member, file) = Member::open(path, rule, named_by)?;
        let image = Image { file: &file, path: &member.path, format };
        let found = header::read(&image)?;
        let mut layer = Self { format, file: member, data_file: None, extents: Vec::new() };
        let above = &layer.file.path;
        if let Some(name) = &found.data_file {
            layer.data_file = Some(Member::open(plain_path(above, name)?, rule, Some(above))?.0);
        }
        for extent in &found.extents {
            let (member, file) = Member::open(plain_path(above, &extent.name)?, rule, Some(above))?;
            let part = Image { file: &file, path: &member.path, format };
            match extent.flat_end {
                Some(end) if member.before.is_file() && member.before.len() < end => {
                    let why = format!("it has {} bytes, and {} says {end}", member.before.len(), above.display());
                    return Err(DiskError::Damaged { file: member.path, why }.into());
                }
                None if vmdk::kind(&part)? == vmdk::Kind::Nested => {
                    return Err(part.bad("as a part of another image it must hold data"));
                }
                _ => {}
            }
            layer.extents.push(member);
        }
        Ok((layer, found.backing))
    }

    /// The node of this image over `below`.
    fn node(&self, below: Value) -> Result<Value, Error> {
        let mut node = json!({ "driver": self.format.name(), "read-only": true, "file": self.file.node()? });
        if self.format.has_backing() {
            // Null says that there is none, whatever the header says.
            node["backing"] = below;
        }
        if let Some(data_file) = &self.data_file {
            node["data-file"] = data_file.node()?;
        }
        if !self.extents.is_empty() {
            // The names are in the descriptor, where they were read; this keeps QEMU from taking one for anything but a file.
            let drivers = self.extents.iter().map(|member| json!({ "driver": member.driver() }));
            node["extents"] = drivers.collect();
        }
        Ok(node)
    }
}

impl Member {
    fn open(path: PathBuf, rule: &Rule, named_by: Option<&Path>) -> Result<(Self, File), Error> {
        let failed = || Error::file("open disk image", &path);
        let real = path.canonicalize().map_err(failed())?;
        // Looked at before it is opened: opening a pipe or a terminal would wait.
        let kind = std::fs::metadata(&real).map_err(failed())?.file_type();
        if let Some(file) = named_by {
            rule.check(file, &real, kind.is_block_device())?;
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NoDisk { path });
        }
        let file = File::open(&real).map_err(failed())?;
        let before = file.metadata().map_err(failed())?;
        Ok((Self { path, before }, file))
    }

    fn is(&self, other: &Self) -> bool {
        self.is_at(&other.before)
    }

    fn is_at(&self, metadata: &Metadata) -> bool {
        (self.before.dev(), self.before.ino()) == (metadata.dev(), metadata.ino())
    }

    fn driver(&self) -> &'static str {
        if self.before.file_type().is_block_device() { "host_device" } else { "file" }
    }

    fn node(&self) -> Result<Value, Error> {
        let path = self.path.to_str().ok_or_else(|| DiskError::Path(self.path.clone()))?;
        Ok(json!({ "driver": self.driver(), "filename": path, "read-only": true }))
    }
}

impl Rule {
    /// Refuses the file `real`, which `file` names, if it lies elsewhere. Devices lie in one folder, and are not one disk's.
    fn check(&self, file: &Path, real: &Path, is_device: bool) -> Result<(), DiskError> {
        match &self.folder {
            Some(folder) if is_device || !real.starts_with(folder) => {
                Err(DiskError::Outside { file: file.to_owned(), named: real.to_owned(), folder: folder.clone() })
            }
            _ => Ok(()),
        }
    }
}

fn binding(backing: &Backing) -> Option<Binding> {
    std::str::from_utf8(&backing.name).ok()?.parse().ok()
}

/// The file that the image `above` names, found as QEMU finds it. What stands before a colon is a protocol to QEMU,
/// unless a slash comes first.
fn plain_path(above: &Path, name: &[u8]) -> Result<PathBuf, DiskError> {
    let text = std::str::from_utf8(name).ok();
    let plain = text.filter(|text| {
        let head = text.split('/').next().unwrap_or_default();
        !text.is_empty() && !head.contains(':') && !text.contains(char::is_control)
    });
    let not_local = || DiskError::NotLocal { file: above.to_owned(), name: String::from_utf8_lossy(name).into_owned() };
    let folder = above.parent().unwrap_or(Path::new("/"));
    plain.map(|plain| folder.join(plain)).ok_or_else(not_local)
}

fn backing_format(above: &Path, backing: &Backing) -> Result<DiskFormat, DiskError> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(format) = &backing.format else {
        return Err(DiskError::NoBackingFormat { file: above.to_owned(), backing: shown(&backing.name) });
    };
    let known = std::str::from_utf8(format).ok().and_then(DiskFormat::from_name);
    known.ok_or_else(|| DiskError::BackingFormat { file: above.to_owned(), format: shown(format) })
}
