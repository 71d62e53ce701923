//! Opens a saved VM: finds libvirt's head and undoes its compression.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, stdin};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use vmnetx_format::migration::{Compression, SaveFile};

use super::MemoryError;

/// Bytes by which a save file is known.
const HEAD_BYTES: usize = 16;

/// A migration stream, and the program that it comes from if it is compressed.
pub(super) struct Input {
    pub(super) stream: Box<dyn Read>,
    pub(super) decompressor: Option<Decompressor>,
    /// What libvirt has written before it, if libvirt has saved it.
    pub(super) libvirt: Option<SaveFile>,
}

/// A program that decompresses a stream. Those that libvirt compresses with are run rather than linked: a host that has such a
/// file has them, and what they make of hostile bytes stays theirs.
pub(super) struct Decompressor {
    program: &'static str,
    child: Child,
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self, MemoryError> {
        let file = if path == Path::new("-") {
            stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        };
        let mut file = file.map_err(MemoryError::Open)?;
        let mut head = Vec::new();
        (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(MemoryError::Open)?;
        if !SaveFile::is_head(&head) {
            let stream = Box::new(Cursor::new(head).chain(file));
            return Ok(Self { stream, decompressor: None, libvirt: None });
        }
        // Not buffered: what follows is another program's to read.
        let save = SaveFile::read(&mut Cursor::new(head).chain(&mut file))?;
        if save.compression == Compression::Raw {
            return Ok(Self { stream: Box::new(file), decompressor: None, libvirt: Some(save) });
        }
        let (decompressor, stream) = Decompressor::start(save.compression.name(), file)?;
        Ok(Self { stream, decompressor: Some(decompressor), libvirt: Some(save) })
    }
}

impl Decompressor {
    fn start(program: &'static str, file: File) -> Result<(Self, Box<dyn Read>), MemoryError> {
        let spawned = Command::new(program).arg("-dc").stdin(file).stdout(Stdio::piped()).spawn();
        let cannot = |source| MemoryError::NoDecompressor { program, source };
        let mut child = spawned.map_err(cannot)?;
        let stdout = child.stdout.take().ok_or_else(|| cannot(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok((Self { program, child }, Box::new(BufReader::new(stdout))))
    }

    /// Waits for its end, once nobody reads from it any more.
    pub(super) fn wait(mut self) -> Result<(), MemoryError> {
        let program = self.program;
        match self.child.wait() {
            // Killed because its reader had enough, which that one has told.
            Ok(status) if status.success() || status.signal() == Some(Signal::PIPE.as_raw()) => Ok(()),
            Ok(status) => Err(MemoryError::Decompressor { program, status }),
            Err(source) => Err(MemoryError::NoDecompressor { program, source }),
        }
    }
}
