//! The qcow2 files that take what a guest writes: temporary ones, and persistent ones bound to a version.
//!
//! An overlay says in its header, as the name of its backing file, what it lies over: `vmnetx:DIGEST:DISK`. No QEMU
//! opens that: at run time the backing node is given explicitly. Before a persistent overlay is used, the name is read back.
//!
//! Clusters of 128 KiB with subclusters (`extended_l2`): a guest's write of 4 KiB then reads nothing of the pristine
//! data around it. 200 scattered writes read 11.7 MiB over the link without subclusters.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vmnetx_format::Binding;

use super::error::Error;
use super::process::{Programs, run_tool};

/// Bytes of a disk sector: QEMU rounds the sizes of images up to them, and reads zeros past the true end.
const SECTOR_BYTES: u64 = 512;

/// Creates an overlay in a file that holds nothing worth keeping.
pub(super) async fn create(programs: &Programs, file: &Path, binding: &Binding, size_bytes: u64) -> Result<(), Error> {
    let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
    let mut arguments: Vec<OsString> =
        ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"].map(Into::into).into();
    // -u: the backing file is not looked for.
    arguments.extend(["-u", "-b", &binding.to_string(), "-F", "raw"].map(Into::into));
    arguments.extend([file.into(), size_bytes.to_string().into()]);
    run_tool(&format!("create overlay {}", file.display()), &programs.qemu_img, &arguments).await.map(drop)
}

/// Creates an image that a disk is copied into, from which it is packed and which is then thrown away. With a binding it is
/// to get what an overlay bound so holds: in clusters of 4 KiB, so that nothing is copied that the guest did not write.
pub(crate) async fn create_copy(
    programs: &Programs,
    file: &Path,
    binding: Option<&Binding>,
    size_bytes: u64,
) -> Result<(), Error> {
    let mut arguments: Vec<OsString> = ["create", "-q", "-f", "qcow2"].map(Into::into).into();
    if let Some(binding) = binding {
        arguments.extend(["-o", "cluster_size=4k", "-u", "-b", &binding.to_string(), "-F", "raw"].map(Into::into));
    }
    arguments.extend([file.into(), size_bytes.to_string().into()]);
    run_tool(&format!("create {}", file.display()), &programs.qemu_img, &arguments).await.map(drop)
}

/// Makes a persistent overlay ready: creates it when `file` is absent, else checks that it is bound to `binding`.
/// Returns its absolute path.
pub(super) async fn persist(
    programs: &Programs,
    file: &Path,
    binding: &Binding,
    size_bytes: u64,
) -> Result<PathBuf, Error> {
    let failed = |source| Error::io(format!("open overlay {}", file.display()), source);
    // QEMU takes what stands before a colon for a protocol, unless a slash comes first.
    let file = std::path::absolute(file).map_err(failed)?;
    if file.try_exists().map_err(failed)? {
        check(programs, &file, binding, size_bytes).await?;
    } else {
        // Aside, then under its name: nobody ever sees half an overlay.
        let folder = file.parent().unwrap_or(Path::new("/"));
        let aside = tempfile::Builder::new().prefix(".vmnetx-").tempfile_in(folder).map_err(failed)?;
        create(programs, aside.path(), binding, size_bytes).await?;
        fs::File::open(aside.path()).and_then(|file| file.sync_all()).map_err(failed)?;
        aside.persist_noclobber(&file).map_err(|error| failed(error.error))?;
        tracing::info!(file = %file.display(), "created the overlay that keeps what the guest writes");
    }
    Ok(file)
}

/// What `qemu-img info --output=json` says of an image, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

#[derive(Debug, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
    #[serde(default)]
    corrupt: bool,
}

async fn check(programs: &Programs, file: &Path, binding: &Binding, size_bytes: u64) -> Result<(), Error> {
    let not_ours = |why: String| Error::NotOurs { file: file.to_owned(), why };
    let metadata =
        fs::metadata(file).map_err(|source| Error::io(format!("open overlay {}", file.display()), source))?;
    if !metadata.is_file() {
        return Err(not_ours("it is not a regular file".to_owned()));
    }
    // The format is said, never guessed: the bytes of the file are the guest's.
    let arguments = ["info".into(), "--output=json".into(), "-f".into(), "qcow2".into(), file.into()];
    let output = match run_tool("read its header", &programs.qemu_img, &arguments).await {
        Ok(output) => output,
        Err(Error::Tool { words, .. }) if words.contains("lock") => return Err(Error::OverlayBusy(file.to_owned())),
        Err(Error::Tool { words, .. }) => return Err(not_ours(words)),
        Err(error) => return Err(error),
    };
    let info: Info = serde_json::from_slice(&output).map_err(|error| not_ours(error.to_string()))?;
    let Some(bound) = info.backing_filename.as_deref().and_then(|name| name.parse::<Binding>().ok()) else {
        return Err(not_ours("its header names no version of a package".to_owned()));
    };
    if bound.disk != binding.disk {
        return Err(Error::OtherDisk { file: file.to_owned(), bound: bound.disk, wanted: binding.disk.clone() });
    }
    if bound.version != binding.version {
        return Err(Error::OtherVersion { file: file.to_owned(), bound: bound.version, wanted: binding.version });
    }
    let FormatData { data_file, corrupt } = info.format_specific.data;
    // Through a data file a prepared overlay could have the guest write to any file of this user.
    if data_file.is_some() {
        return Err(not_ours("it keeps its data in another file".to_owned()));
    }
    if corrupt {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is marked corrupt; `qemu-img check` tells more");
        return Err(Error::io(format!("open overlay {}", file.display()), source));
    }
    let wanted_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
    if info.virtual_size != wanted_bytes {
        return Err(not_ours(format!("it has {} bytes, the disk {wanted_bytes}", info.virtual_size)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmnetx_format::Digest;
    use vmnetx_store::failure::Told;

    use super::*;

    fn programs() -> Programs {
        Programs::find(Path::new("qemu-system-x86_64")).unwrap()
    }

    fn binding(version: &str, disk: &str) -> Binding {
        Binding { version: Digest::of(version.as_bytes()), disk: disk.parse().unwrap() }
    }

    #[tokio::test]
    async fn a_persistent_overlay_is_created_once_and_bound_to_its_version() {
        let folder = tempfile::tempdir().unwrap();
        // Characters that QEMU gives a meaning.
        let file = folder.path().join("nbd:my, disk%20\".qcow2");
        let ours = binding("one", "disk0");
        let size_bytes = (64 << 20) + 100;
        assert_eq!(persist(&programs(), &file, &ours, size_bytes).await.unwrap(), file);
        let before = fs::read(&file).unwrap();
        persist(&programs(), &file, &ours, size_bytes).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let error = persist(&programs(), &file, &binding("two", "disk0"), size_bytes).await.unwrap_err();
        assert!(matches!(error, Error::OtherVersion { .. }), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains(&Digest::of(b"one").to_string())));
        let error = persist(&programs(), &file, &binding("one", "data"), size_bytes).await.unwrap_err();
        assert!(matches!(error, Error::OtherDisk { .. }), "{error}");
        let error = persist(&programs(), &file, &ours, size_bytes + 4096).await.unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_we_did_not_make_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let ours = binding("one", "disk0");
        let refused = async |file: &Path| {
            let before = fs::metadata(file).unwrap().len();
            let error = persist(&programs(), file, &ours, 1 << 20).await.unwrap_err();
            assert!(matches!(error, Error::NotOurs { .. }), "{error}");
            assert_eq!(fs::metadata(file).unwrap().len(), before);
            error.to_string()
        };
        let file = folder.path().join("text");
        fs::write(&file, "a letter home").unwrap();
        refused(&file).await;
        fs::write(&file, "").unwrap();
        refused(&file).await;
        refused(folder.path()).await;
        refused(Path::new("/dev/null")).await;

        let file = folder.path().join("foreign.qcow2");
        let qemu_img = programs().qemu_img;
        let create = |options: &[&str]| {
            let mut command = std::process::Command::new(&qemu_img);
            command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&file).arg("1M");
            assert!(command.status().unwrap().success());
        };
        create(&[]);
        assert!(refused(&file).await.contains("names no version"));
        let data_file = format!("data_file={}", folder.path().join("data").display());
        create(&["-u", "-b", &ours.to_string(), "-F", "raw", "-o", &data_file]);
        refused(&file).await;
    }
}
