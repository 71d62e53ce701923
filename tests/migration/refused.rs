//! What QEMU saves with this or that switched on: read, or refused by name.

use vmnetx_format::migration::{StreamError, Unsupported};

use crate::qemu::Qemu;
use crate::saved::Saved;

/// Saves a machine without a disk, whose BIOS has not run yet, and reads what is saved.
fn saved(arguments: &[&str], prepare: impl Fn(&mut Qemu)) -> Result<Saved, StreamError> {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&["-S", "-machine", "pc-i440fx-7.2", "-m", "16"], arguments].concat();
    let mut qemu = Qemu::start(folder.path(), "saved", &arguments);
    prepare(&mut qemu);
    Saved::read(qemu.qmp.migrate(&folder.path().join("target")))
}

fn with_capability(capability: &str, arguments: &[&str]) -> Result<Saved, StreamError> {
    saved(arguments, |qemu| qemu.qmp.enable(&[capability]))
}

fn refusal(result: Result<Saved, StreamError>) -> Unsupported {
    match result {
        Err(StreamError::Unsupported(what)) => what,
        Err(other) => panic!("{other}"),
        Ok(saved) => panic!("it was read: {:?}", saved.configuration),
    }
}

#[test]
fn pages_and_sections_that_cannot_be_packaged_are_refused_by_name() {
    assert_eq!(refusal(with_capability("compress", &[])), Unsupported::Compress);
    let disk = ["-blockdev", "null-co,node-name=disk,size=1048576", "-device", "virtio-blk-pci,drive=disk"];
    for advised in ["postcopy-ram", "dirty-bitmaps"] {
        assert_eq!(refusal(with_capability(advised, &[])), Unsupported::Postcopy, "{advised}");
    }
    assert_eq!(refusal(with_capability("block", &disk)), Unsupported::Section("block".to_owned()));
    let undescribed = saved(&["-machine", "suppress-vmdesc=on"], |_| ());
    assert_eq!(refusal(undescribed), Unsupported::NoDescription);
    assert_eq!(refusal(saved(&["-machine", "pc-i440fx-2.3"], |_| ())), Unsupported::NoConfiguration);
}

#[test]
fn capabilities_that_leave_the_stream_readable_are_told() {
    let uuid = ["-uuid", "11111111-2222-3333-4444-555555555555"];
    let saved = with_capability("validate-uuid", &uuid).unwrap();
    assert_eq!(saved.configuration.uuid.map(|uuid| (uuid[0], uuid[15])), Some((0x11, 0x55)));
    for harmless in ["xbzrle", "release-ram", "auto-converge"] {
        let saved = with_capability(harmless, &[]).unwrap();
        assert_eq!(saved.pages.len(), saved.page_count(), "{harmless}");
    }
}

#[test]
fn shared_ram_is_listed_and_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    // Newer versions leave out only what is a file that has a name.
    let file = folder.path().join("ram");
    let backend = format!("memory-backend-file,id=pc.ram,size=16M,mem-path={},share=on", file.display());
    let shared = ["-machine", "memory-backend=pc.ram", "-object", &backend];
    let saved = with_capability("x-ignore-shared", &shared).unwrap();
    assert!(saved.configuration.ignore_shared);
    assert!(saved.blocks.iter().any(|block| block.name == "pc.bios" && block.guest_address == 0xfffc_0000));
    let ram = saved.main_block();
    assert!(!saved.pages.is_empty() && saved.pages.keys().all(|at| at.block != ram));
}
