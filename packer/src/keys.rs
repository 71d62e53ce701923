//! Key files: made once, never replaced, and read only where nobody else can read them.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vmnetx_format::limits::KEY_FILE_BYTES_MAX;
use vmnetx_format::{KeyError, PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::Error;

/// What the name of a file with a public key ends with.
const PUBLIC_SUFFIX: &str = ".pub";
/// The mode of a key file.
const SECRET_MODE: u32 = 0o600;
/// The mode of a file with a public key, as far as the user's mask allows.
const PUBLIC_MODE: u32 = 0o644;
/// Who must have no part in a key file: group and others.
const FOREIGN_MODES: u32 = 0o077;

/// A key that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyReport {
    /// The public key.
    pub key: PublicKey,
    /// The key file, which only its owner can read.
    pub file: PathBuf,
    /// The file with the public key.
    pub public_file: PathBuf,
}

/// Makes a key from the system's random numbers and writes it to `file`, and the public key beside it.
///
/// # Errors
/// [`Error::KeyExists`] when there is one of the files already; [`Error::File`]; [`Error::Random`].
pub fn generate_key(file: &Path) -> Result<KeyReport, Error> {
    let mut public_file = OsString::from(file);
    public_file.push(PUBLIC_SUFFIX);
    let public_file = PathBuf::from(public_file);
    if let Some(there) = [file, &public_file].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::KeyExists(there.to_owned()));
    }
    let mut seed = Zeroizing::new([0; SecretKey::SEED_BYTES]);
    getrandom::fill(&mut *seed).map_err(|error| Error::Random(io::Error::from(error)))?;
    let secret = SecretKey::from_seed(&seed);
    write_new(file, secret.to_text().as_bytes(), SECRET_MODE)?;
    let key = secret.public();
    if let Err(error) = write_new(&public_file, format!("{key}\n").as_bytes(), PUBLIC_MODE) {
        // Nothing is signed with it yet.
        let _ = fs::remove_file(file);
        return Err(error);
    }
    Ok(KeyReport { key, file: file.to_owned(), public_file })
}

/// Reads a key file.
///
/// # Errors
/// [`Error::KeyExposed`] when others than its owner may read or write it; [`Error::Key`]; [`Error::File`].
pub fn read_key(path: &Path) -> Result<SecretKey, Error> {
    let failed = |error| Error::file("read key", path)(error);
    let file = File::open(path).map_err(failed)?;
    // Of what was opened, not of what the name stands for a moment later.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & FOREIGN_MODES != 0 {
        return Err(Error::KeyExposed { path: path.to_owned(), mode });
    }
    // Room for all of it: text that moves as it grows leaves copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let key = std::str::from_utf8(&bytes).map_err(|_| KeyError::Secret).and_then(SecretKey::from_text);
    key.map_err(|source| Error::Key { path: path.to_owned(), source })
}

/// Writes a file that is not there yet, whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |error| Error::file("write key", path)(error);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder);
    let mut temporary = temporary.map_err(failed)?;
    temporary.write_all(bytes).and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
    temporary.persist_noclobber(path).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => Error::KeyExists(path.to_owned()),
        _ => failed(error.error),
    })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
