//! The running VMs of this user: a small file for each, so that other commands find a VM by its name.
//!
//! A file is locked (flock) for as long as its VM's launcher lives. One that nobody holds belongs to a VM that is no more: it
//! is not listed, and whoever wants its name removes it. Files come under their names whole, and the directory is this
//! user's alone: who reads an entry believes it.

mod limits;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use vmnetx_format::machine::Machine;
use vmnetx_format::{Accelerator, Digest, Name};
use vmnetx_store::failure::{Class, Told};
use vmnetx_store::trust::Trust;

use self::limits::{CLAIM_ATTEMPTS, CLAIM_PAUSE, ENTRY_BYTES_MAX, HELD_LOOKS, SUFFIXES_MAX};

/// What the names of entries end in.
const SUFFIX: &str = ".json";

/// Where the running VMs of a user are entered.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// A VM that runs, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the VM is called; no other has the name as long as it runs.
    pub name: Name,
    /// The process that has launched it and ends it in order on SIGTERM.
    pub pid: u32,
    /// What it is; nothing as long as it is being prepared.
    pub vm: Option<RunningVm>,
}

/// What a VM is that was launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningVm {
    /// The Unix socket of a QMP monitor for whoever comes; it serves one at a time.
    pub control: PathBuf,
    /// The version that the VM runs: the digest of its manifest.
    pub version: Digest,
    /// Its hardware.
    pub machine: Machine,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Its disks, in the package's order.
    pub disks: Vec<RunningDisk>,
}

/// A disk of a VM that was launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningDisk {
    /// Its name in the package.
    pub name: Name,
    /// QEMU's block node that takes what the guest writes.
    pub node: String,
    /// The file of that node.
    pub overlay: PathBuf,
    /// Whether that file outlives the VM.
    pub persistent: bool,
    /// The Unix socket of the NBD server that has the pristine data.
    pub nbd_socket: PathBuf,
    /// The export to ask it for.
    pub export: String,
}

/// A name that is ours until this is dropped.
#[derive(Debug)]
pub struct Claim {
    entry: Entry,
    path: PathBuf,
    /// The file under that path, locked.
    file: File,
}

/// Why a VM cannot be entered or found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Neither a runtime directory nor a home.
    #[error("there is no directory for the list of running VMs")]
    NoDirectory,
    /// The directory cannot be used.
    #[error("use {} for the list of running VMs", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another VM has the name.
    #[error("a VM called {0} runs already")]
    Taken(Name),
    /// No VM has the name.
    #[error("no VM called {name} runs here{}", known(.running))]
    NoVm {
        /// The name.
        name: Name,
        /// The VMs that run.
        running: Vec<Name>,
    },
}

fn known(running: &[Name]) -> String {
    let names = running.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    if names.is_empty() { "; none does".to_owned() } else { format!("; there are {names}") }
}

impl Told for RegistryError {
    fn class(&self) -> Class {
        match self {
            Self::NoDirectory | Self::Directory { .. } => Class::Host,
            Self::Taken(_) | Self::NoVm { .. } => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDirectory | Self::Directory { .. } => {
                "XDG_RUNTIME_DIR or VMNETX_STATE_DIR can name a directory that is yours alone".to_owned()
            }
            Self::Taken(_) => "end it, or choose another --name".to_owned(),
            Self::NoVm { .. } => "VMs of other users are theirs; unix:PATH takes any QEMU by its QMP socket".to_owned(),
        })
    }
}

impl Registry {
    /// The registry of this user: in `VMNETX_STATE_DIR` if that is set, else in `XDG_RUNTIME_DIR`, else where state is kept.
    ///
    /// # Errors
    /// [`RegistryError::NoDirectory`]; as [`Self::at`].
    pub fn of_user() -> Result<Self, RegistryError> {
        let given = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = match (given("VMNETX_STATE_DIR"), given("XDG_RUNTIME_DIR")) {
            (Some(state), _) => Some(state),
            (None, Some(runtime)) if runtime.is_absolute() => Some(runtime.join("vmnetx")),
            _ => Trust::user_state_dir(),
        };
        Self::at(&base.ok_or(RegistryError::NoDirectory)?.join("vms"))
    }

    /// The registry in this directory, which is made if it does not exist.
    ///
    /// # Errors
    /// [`RegistryError::Directory`], also when others may write there.
    pub fn at(dir: &Path) -> Result<Self, RegistryError> {
        let usable = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let metadata = fs::metadata(dir)?;
            let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
            if is_ours { Ok(()) } else { Err(io::Error::other("others may write there")) }
        };
        usable().map_err(|source| RegistryError::Directory { dir: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes a name for a VM that is to be launched by this process.
    ///
    /// # Errors
    /// [`RegistryError::Taken`], [`RegistryError::Directory`].
    pub fn claim(&self, name: &Name) -> Result<Claim, RegistryError> {
        let entry = Entry { name: name.clone(), pid: std::process::id(), vm: None };
        let path = self.path(name);
        let mut looks = 0;
        for _ in 0..CLAIM_ATTEMPTS {
            let file = self.write(&entry)?;
            match file.persist_noclobber(&path) {
                Ok(file) => return Ok(Claim { entry, path, file }),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.failed(error.error)),
            }
            if sweep(&path) {
                continue;
            }
            // Whoever sweeps holds the file for a moment, too; a launcher does so for longer.
            looks += u32::from(is_held(&path));
            if looks >= HELD_LOOKS {
                break;
            }
            std::thread::sleep(CLAIM_PAUSE);
        }
        Err(RegistryError::Taken(name.clone()))
    }

    /// Takes a name, or the first that is free with a number behind it: `vm`, `vm-2`, `vm-3`.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_like(&self, name: &Name) -> Result<Claim, RegistryError> {
        let numbered = (2..SUFFIXES_MAX).map_while(|number| format!("{name}-{number}").parse().ok());
        let mut last = RegistryError::Taken(name.clone());
        for name in std::iter::once(name.clone()).chain(numbered) {
            match self.claim(&name) {
                Err(error @ RegistryError::Taken(_)) => last = error,
                claim => return claim,
            }
        }
        Err(last)
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// [`RegistryError::NoVm`], [`RegistryError::Directory`].
    pub fn find(&self, name: &Name) -> Result<Entry, RegistryError> {
        if let Some(entry) = read(&self.path(name)) {
            return Ok(entry);
        }
        let running = self.list()?.into_iter().map(|entry| entry.name).collect();
        Err(RegistryError::NoVm { name: name.clone(), running })
    }

    /// The VMs that run, by their names.
    ///
    /// # Errors
    /// [`RegistryError::Directory`].
    pub fn list(&self) -> Result<Vec<Entry>, RegistryError> {
        let files = fs::read_dir(&self.dir).map_err(|source| self.failed(source))?;
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        let is_entry = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let mut entries: Vec<_> = paths.filter(is_entry).filter_map(|path| read(&path)).collect();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }

    fn write(&self, entry: &Entry) -> Result<NamedTempFile, RegistryError> {
        write(&self.dir, entry).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> RegistryError {
        RegistryError::Directory { dir: self.dir.clone(), source }
    }
}

/// Writes an entry aside, locked.
fn write(dir: &Path, entry: &Entry) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix(".vmnetx-").tempfile_in(dir)?;
    // Nobody else knows it yet.
    file.as_file().try_lock()?;
    serde_json::to_writer(file.as_file(), entry)?;
    Ok(file)
}

/// The entry in a file, if it is one and its VM's launcher lives.
fn read(path: &Path) -> Option<Entry> {
    if !is_held(path) {
        return None;
    }
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    file.take(ENTRY_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether somebody holds the file at `path` for itself.
fn is_held(path: &Path) -> bool {
    // Shared, so that two who look do not take each other for the launcher.
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// Removes the file at `path` if nobody holds it; says whether there is none any more.
fn sweep(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return !path.exists() };
    file.try_lock().is_ok() && is_at(&file, path) && fs::remove_file(path).is_ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    let key = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(there)) => key(held) == key(there),
        _ => false,
    }
}

impl Claim {
    /// The name that was taken.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.entry.name
    }

    /// Tells what the VM is.
    ///
    /// # Errors
    /// [`RegistryError::Directory`].
    pub fn publish(&mut self, vm: RunningVm) -> Result<(), RegistryError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let failed = |source| RegistryError::Directory { dir: dir.to_owned(), source };
        self.entry.vm = Some(vm);
        let file = write(dir, &self.entry).map_err(failed)?;
        // The name is never free, nor the file under it unlocked.
        self.file = file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn vm() -> RunningVm {
        let machine = "machine = 'pc-i440fx-7.2'\nmemory_mib = 64\ncpu.model = 'qemu64'";
        RunningVm {
            control: "/run/control".into(),
            version: Digest::of(b"one"),
            machine: Machine::from_toml(machine).unwrap(),
            accelerator: Accelerator::Tcg,
            disks: Vec::new(),
        }
    }

    #[test]
    fn a_name_is_one_vm_s_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::at(&folder.path().join("vms")).unwrap();
        let mut first = registry.claim(&name("vm")).unwrap();
        assert_eq!(registry.find(&name("vm")).unwrap().vm, None);
        assert!(matches!(registry.claim(&name("vm")), Err(RegistryError::Taken(_))));
        let second = registry.claim_like(&name("vm")).unwrap();
        assert_eq!(second.name().as_str(), "vm-2");
        first.publish(vm()).unwrap();
        assert_eq!(registry.find(&name("vm")).unwrap().vm, Some(vm()));
        assert!(matches!(registry.claim(&name("vm")), Err(RegistryError::Taken(_))), "still, after it was replaced");
        drop(first);
        let error = registry.find(&name("vm")).unwrap_err();
        assert_eq!(error.to_string(), "no VM called vm runs here; there are vm-2");
        drop(second);
        assert_eq!(fs::read_dir(folder.path().join("vms")).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn forty_seats_have_a_name_each_and_none_waits_long() {
        let folder = tempfile::tempdir().unwrap();
        let start = std::time::Instant::now();
        let claim = || Registry::at(folder.path()).unwrap().claim_like(&name("seat")).unwrap();
        let claims: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..40).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut names: Vec<_> = claims.iter().map(Claim::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 40);
        assert_eq!(Registry::at(folder.path()).unwrap().list().unwrap().len(), 40);
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn what_a_dead_launcher_left_is_not_there_and_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::at(folder.path()).unwrap();
        let dead = Entry { name: name("vm"), pid: 1, vm: Some(vm()) };
        fs::write(registry.path(&dead.name), serde_json::to_vec(&dead).unwrap()).unwrap();
        assert_eq!(registry.list().unwrap(), []);
        let claim = registry.claim(&name("vm")).unwrap();
        let found: Vec<_> = registry.list().unwrap().into_iter().map(|entry| (entry.name, entry.pid)).collect();
        assert_eq!(found, [(claim.name().clone(), std::process::id())]);
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Registry::at(folder.path()).unwrap_err();
        assert!(matches!(error, RegistryError::Directory { .. }), "{error}");
    }
}
