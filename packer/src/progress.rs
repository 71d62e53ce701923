//! What a long piece of work says about how far it is.

use vmnetx_format::Name;

use crate::disk::ChainFile;

/// Takes note of how far a piece of work is. Only the command line shows it.
pub trait Progress: Sync {
    /// The work has so many bytes.
    fn total(&self, bytes: u64);

    /// So many more bytes are done.
    fn advance(&self, bytes: u64);

    /// Something that the user should know, though all is as it should be.
    fn note(&self, text: &str);

    /// Something that the user should know, though it stops nothing.
    fn warn(&self, text: &str);

    /// A disk is about to be read from these files, which its image named. Whoever publishes should see them in any case.
    fn reads(&self, disk: &Name, files: &[ChainFile]);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn total(&self, _bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn note(&self, _text: &str) {}

    fn warn(&self, _text: &str) {}

    fn reads(&self, _disk: &Name, _files: &[ChainFile]) {}
}
