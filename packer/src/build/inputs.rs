//! Opens the disks of a version that is to be built: whole ones, overlays over a base, and those that are taken over from it.

use std::sync::Arc;

use serde::Serialize;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Chunker, Digest, Envelope, Name, link_path};
use vmnetx_store::dir::RepositoryDir;

use super::BuildOptions;
use crate::disk::{Base, ChainFile, DiskFile, DiskFormat, KeptDisk, OverlayDisk, Source, open, warn_of_format};
use crate::{Error, Progress, VersionName};

/// What overlays lie over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseOptions {
    /// The version, of the same package.
    pub version: VersionName,
    /// Whether a qcow2 image that does not say what it lies over is taken for an overlay of the version.
    pub trust: bool,
}

/// What a disk was read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// Its name in the package.
    pub name: Name,
    /// The files, from top to bottom; none for a disk that was taken over from the base.
    pub files: Vec<ChainFile>,
    /// The version under them.
    pub base: Option<Digest>,
}

/// The machine and the disks of a version that is to be built, these in its order.
pub(super) struct Inputs {
    pub(super) machine: Machine,
    pub(super) disks: Vec<Opened>,
    pub(super) reports: Vec<DiskReport>,
}

/// A disk that can be read.
pub(super) struct Opened {
    pub(super) name: Name,
    pub(super) source: Box<dyn Source>,
    /// How it has to be cut: as the base was.
    pub(super) chunker: Option<Chunker>,
}

impl Inputs {
    /// Opens whole disks.
    pub(super) fn whole(options: &BuildOptions, progress: &dyn Progress) -> Result<Self, Error> {
        let machine = options.machine.clone().ok_or(Error::Stopped)?;
        let mut inputs = Self { machine, disks: Vec::new(), reports: Vec::new() };
        for disk in &options.disks {
            inputs.open(options, disk, progress)?;
        }
        Ok(inputs)
    }

    /// Opens disks of which the qcow2 ones are overlays over a version that `before` names; takes over what is not given.
    pub(super) fn over(
        options: &BuildOptions,
        base: &BaseOptions,
        repository: &RepositoryDir,
        before: Option<&Envelope>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let link = repository.root().join(link_path(&options.name)).display().to_string();
        let Some(envelope) = before else {
            let (repository, name) = (options.repository.clone(), options.name.clone());
            return Err(Error::NoSuchPackage { repository, name });
        };
        let version = base.version.find(&envelope.link)?;
        if options.chunker.is_some() {
            return Err(Error::Usage("--base: the new version is cut as the old one was".to_owned()));
        }
        let published = Base::disks(&link, repository, version)?;
        let is_new = |disk: &&DiskFile| !published.iter().any(|base| base.name == disk.name);
        let added = options.disks.iter().filter(is_new);
        let names: Vec<Name> =
            published.iter().map(|base| &base.name).chain(added.clone().map(|disk| &disk.name)).cloned().collect();
        let machine = match &options.machine {
            Some(machine) => machine.clone(),
            None => repository.manifest(version)?.machine,
        };
        machine.validate(&names)?;
        let mut inputs = Self { machine, disks: Vec::new(), reports: Vec::new() };
        for under in &published {
            match options.disks.iter().find(|disk| disk.name == under.name) {
                Some(disk) if disk.format == DiskFormat::Qcow2 => {
                    inputs.open_overlay(options, disk, under, base.trust, progress)?;
                }
                Some(disk) => inputs.open(options, disk, progress)?,
                None => inputs.keep(under),
            }
        }
        for disk in added {
            if disk.format == DiskFormat::Qcow2 {
                let disks = published.iter().map(|base| base.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::NoSuchDisk { link, disk: disk.name.to_string(), disks });
            }
            inputs.open(options, disk, progress)?;
        }
        Ok(inputs)
    }

    fn open(&mut self, options: &BuildOptions, disk: &DiskFile, progress: &dyn Progress) -> Result<(), Error> {
        let (source, files) = open(disk, options.allow_backing, |files| progress.reads(&disk.name, files))?;
        warn_of_format(disk, progress)?;
        self.disks.push(Opened { name: disk.name.clone(), source, chunker: None });
        self.reports.push(DiskReport { name: disk.name.clone(), files, base: None });
        Ok(())
    }

    fn open_overlay(
        &mut self,
        options: &BuildOptions,
        disk: &DiskFile,
        under: &Arc<Base>,
        trust: bool,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let reads = |files: &[ChainFile]| progress.reads(&disk.name, files);
        let (source, files) = OverlayDisk::open(&disk.file, Arc::clone(under), options.allow_backing, trust, reads)?;
        self.disks.push(Opened { name: disk.name.clone(), source: Box::new(source), chunker: Some(under.chunker) });
        self.reports.push(DiskReport { name: disk.name.clone(), files, base: Some(under.version) });
        Ok(())
    }

    fn keep(&mut self, under: &Arc<Base>) {
        let source = Box::new(KeptDisk::new(Arc::clone(under)));
        self.disks.push(Opened { name: under.name.clone(), source, chunker: Some(under.chunker) });
        self.reports.push(DiskReport { name: under.name.clone(), files: Vec::new(), base: Some(under.version) });
    }
}
