//! What a publisher reads of others: disk images, libvirt's domains, keys, and notes in a repository.

use std::path::Path;

use vmnetx_format::machine::Machine;
use vmnetx_format::{PublicKey, SecretKey};
use vmnetx_pack::DiskFormat;
use vmnetx_pack::domain::{DiskFiles, describe};
use vmnetx_store::dir::RepositoryDir;
use vmnetx_store::failure;

use crate::assert_printable;

/// The formats whose headers are read, by the first byte of the input.
const FORMATS: [DiskFormat; 5] =
    [DiskFormat::Qcow2, DiskFormat::Qcow, DiskFormat::Qed, DiskFormat::Vmdk, DiskFormat::Vdi];

/// An image file, and the files that its header leads to.
pub fn image_chain(data: &[u8]) {
    let Some((&choice, image)) = data.split_first() else { return };
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    if let Err(error) = vmnetx_pack::fuzzing::walk_chain(&path, FORMATS[choice as usize % FORMATS.len()]) {
        assert_printable(&failure::describe(&error));
    }
}

/// A libvirt domain XML.
pub fn domain(data: &[u8]) {
    let base = Machine::from_toml(include_str!("../../qemu-configs/default.toml")).unwrap();
    match describe(data, base, DiskFiles::FromDomain) {
        Ok(description) => {
            for remark in &description.remarks {
                assert_printable(&remark.to_string());
            }
            // What it becomes is a machine that a package can have.
            let machine = description.machine_with(&[]);
            assert_eq!(Machine::from_toml(&machine.to_toml()).as_ref(), Ok(&machine));
        }
        Err(error) => assert_printable(&failure::describe(&error)),
    }
}

/// Key files, and lists of public keys.
pub fn keys(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match SecretKey::from_text(text) {
        // One spelling only, but for white space at its end.
        Ok(key) => assert_eq!(key.to_text().trim_end(), text.trim_end()),
        Err(error) => assert_printable(&error),
    }
    match PublicKey::list(text) {
        Ok(keys) => assert!(keys.iter().all(|key| key.to_string().parse() == Ok(*key))),
        Err(error) => assert_printable(&error),
    }
}

/// The tombstones of a repository.
pub fn tombstones(data: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir_in("/dev/shm").unwrap();
    }
    FOLDER.with(|folder| {
        let repository = repository(folder.path());
        std::fs::write(repository.root().join(".tombstones"), data).unwrap();
        match repository.tombstones() {
            Ok(tombstones) => assert!(tombstones.iter().all(|(path, _)| tombstones.since_unix_s(path).is_some())),
            Err(error) => assert_printable(&failure::describe(&error)),
        }
    });
}

fn repository(folder: &Path) -> RepositoryDir {
    RepositoryDir::create(folder.join("repository")).unwrap()
}
