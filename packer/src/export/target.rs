//! Where an exported image is written: a file that appears when it is complete, or standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Output;
use crate::Error;

/// How standard output is called in messages.
const STDOUT: &str = "standard output";

/// Zeros that are written at a time where there are no holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where an image is written.
pub(super) enum Target {
    File(FileTarget),
    Stdout(Stdout),
}

/// Standard output without the line buffer of [`io::stdout`].
pub(super) struct Stdout(File);

/// A file that is written beside the one that it becomes.
pub(super) struct FileTarget {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    force: bool,
}

impl Target {
    pub(super) fn open(output: &Output) -> Result<Self, Error> {
        let Output::File { path, force } = output else {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            return Ok(Self::Stdout(Stdout(stdout.map_err(Error::file("write", Path::new(STDOUT)))?.into())));
        };
        // Said before hours of work, and once more when the file is put in place.
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_file() => return Err(Error::NoExportFile(path.clone())),
            Ok(_) if !force => return Err(Error::Exists(path.clone())),
            _ => {}
        }
        let name = path.file_name().ok_or_else(|| Error::NoExportFile(path.clone()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let created = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = created.map_err(Error::file("create", &temporary))?;
        Ok(Self::File(FileTarget { file, temporary, path: path.clone(), force: *force }))
    }
}

impl FileTarget {
    /// Gives the file its size; what is not written is a hole.
    pub(super) fn set_size(&self, bytes: u64) -> Result<(), Error> {
        self.file.set_len(bytes).map_err(Error::file("write", &self.temporary))
    }

    pub(super) fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(data, offset).map_err(Error::file("write", &self.temporary))
    }

    /// Flushes the file to the disk and gives it its name.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::file("flush", &self.temporary))?;
        if self.force {
            return std::fs::rename(&self.temporary, &self.path).map_err(Error::file("write", &self.path));
        }
        match rename_new(&self.temporary, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists(self.path.clone())),
            result => result.map_err(Error::file("write", &self.path)),
        }
    }
}

impl Stdout {
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        self.0.write_all(data).map_err(Error::file("write", Path::new(STDOUT)))
    }

    pub(super) fn write_zeros(&mut self, mut bytes: u64) -> Result<(), Error> {
        while bytes > 0 {
            let length = bytes.min(ZEROS.len() as u64);
            self.write(&ZEROS[..length as usize])?;
            bytes -= length;
        }
        Ok(())
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Renames without ever replacing a file, also where the file system lacks the flag for it.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::hard_link(from, to),
        result => Ok(result?),
    }
}
