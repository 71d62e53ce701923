//! Streams that are good and cannot be packaged: each is refused by name, with what the user can do.

use super::sample::{DEVICES, PAGE, Vm, ended, sections};
use crate::migration::{DeviceState, StreamError, Unsupported};

/// The head of [`Vm::small`]'s stream up to the first section.
fn configuration() -> Vec<u8> {
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x0dpc-i440fx-7.2".to_vec();
    assert!(Vm::small().written().starts_with(&head));
    head.shrink_to_fit();
    head
}

/// The same with more behind it.
fn then(more: &[&[u8]]) -> Vec<u8> {
    [configuration(), more.concat()].concat()
}

const RAM: &[u8] = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04";
/// The list of blocks: one page of `r`.
const LIST: &[u8] = b"\0\0\0\0\0\0\x10\x04\x01r\0\0\0\0\0\0\x10\0";
const EOS: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

fn unsupported(stream: &[u8]) -> Unsupported {
    match Vm::refused(stream) {
        StreamError::Unsupported(what) => {
            assert!(!what.hint().is_empty());
            what
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn capabilities_that_change_the_stream() {
    let listed = |name: &str| {
        let count = [&[0, 0, 0, 1, name.len() as u8][..], name.as_bytes()].concat();
        then(&[b"\x05\x1aconfiguration/capabilities\0\0\0\x01", &count])
    };
    assert_eq!(unsupported(&listed("mapped-ram")), Unsupported::MappedRam);
    assert_eq!(unsupported(&listed("later")), Unsupported::Capability("later".to_owned()));
    let shared = Vm::refused(&listed("x-ignore-shared"));
    assert!(matches!(shared, StreamError::Truncated { .. }), "{shared:?}");
}

#[test]
fn other_configurations() {
    let bits = |bits: u8| then(&[b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0", &[bits], RAM, LIST, EOS]);
    assert_eq!(unsupported(&bits(16)), Unsupported::PageBits(16));
    assert!(matches!(Vm::refused(&bits(12)), StreamError::Truncated { .. }));
    let part = then(&[b"\x05\x03new\0\0\0\x02"]);
    assert_eq!(unsupported(&part), Unsupported::ConfigurationPart("new of version 2".to_owned()));
    assert_eq!(unsupported(&[b"QEVM\0\0\0\x03", RAM].concat()), Unsupported::NoConfiguration);
}

#[test]
fn pages_in_forms_that_are_not_read() {
    let record = |flags: u16| then(&[RAM, LIST, &[0; 6], &flags.to_be_bytes()]);
    assert_eq!(unsupported(&record(0x200)), Unsupported::Multifd);
    assert_eq!(unsupported(&record(0x100)), Unsupported::Compress);
    assert_eq!(unsupported(&record(0x40)), Unsupported::Xbzrle);
    assert_eq!(unsupported(&record(0x60)), Unsupported::Xbzrle);
    assert_eq!(unsupported(&record(0x80)), Unsupported::Rdma);
    for damaged in [0x00, 0x01, 0x04, 0x0a, 0x30, 0x400, 0x800] {
        let error = Vm::refused(&record(damaged));
        assert!(matches!(error, StreamError::Damaged { .. }), "{damaged:#x}: {error:?}");
    }
}

#[test]
fn sections_beside_ram() {
    let block = b"\x01\0\0\0\x01\x05block\0\0\0\0\0\0\0\x01";
    assert_eq!(unsupported(&then(&[block])), Unsupported::Section("block".to_owned()));
    assert_eq!(unsupported(&then(&[RAM, LIST, EOS, block])), Unsupported::Section("block".to_owned()));
    let early = b"\x04\0\0\0\x01\x0avirtio-mem\0\0\0\0\0\0\0\x01";
    assert_eq!(unsupported(&then(&[early])), Unsupported::Section("virtio-mem".to_owned()));
    let newer = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x05";
    assert_eq!(unsupported(&then(&[newer])), Unsupported::RamVersion(5));
}

#[test]
fn commands() {
    for command in 1..=7 {
        let stream = then(&[&[8, 0, command, 0, 0]]);
        assert_eq!(unsupported(&stream), Unsupported::Postcopy, "{command}");
    }
    assert_eq!(unsupported(&then(&[RAM, LIST, EOS, &[8, 0, 12, 0, 0]])), Unsupported::Command(12));
}

#[test]
fn the_command_of_newer_machines_is_passed_over() {
    let zero = b"\0\0\0\0\0\0\0\x02\x01r\0";
    let switchover = b"\x08\0\x0b\0\0";
    let end = b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    let tail = super::sample::tail(&DEVICES);
    let part = [b"\x02\0\0\0\x02", &zero[..], EOS].concat();
    let vm = Vm::read(&then(&[RAM, LIST, EOS, &part, switchover, end, &tail])[..]).unwrap();
    assert_eq!(vm.blocks[0].size_bytes, PAGE);
    assert_eq!(vm.pages.len(), 1);
}

#[test]
fn a_device_state_without_a_description() {
    let bare = [sections(&DEVICES), vec![0]].concat();
    let error = DeviceState::decode(bare).unwrap_err();
    assert!(matches!(error, StreamError::Unsupported(Unsupported::NoDescription)), "{error:?}");
    let other_pages = ended(Vec::new(), r#"{"page_size":65536,"devices":[]}"#);
    assert!(matches!(DeviceState::decode(other_pages), Err(StreamError::DeviceState(_))));
}

#[test]
fn what_is_no_stream() {
    assert!(matches!(Vm::refused(b"LibvirtQemudSave"), StreamError::NotAStream(_)));
    assert!(matches!(Vm::refused(b"QEVM\0\0\0\x02"), StreamError::Version(2)));
    assert!(matches!(Vm::refused(b""), StreamError::Truncated { at_bytes: 0, .. }));
}
