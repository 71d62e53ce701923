//! The source's side of a postcopy migration, taken apart again.

use super::sample::{PAGE, Vm, at};
use crate::limits::DISCARD_RANGES_MAX;
use crate::migration::{Block, PAGE_BYTES, PageRange, PostcopySetup, StreamWriter, WriteError};

/// A part of what was written: a command with its data, or the bytes of a section.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Command(u16, Vec<u8>),
    Section(Vec<u8>),
}

/// Takes a stream apart behind its configuration, by the lengths of commands and by what is known of the pages in it.
fn parts(mut bytes: &[u8], sections: &[&[u8]]) -> Vec<Part> {
    let mut parts = Vec::new();
    while let Some((8, rest)) = bytes.split_first().map(|(kind, rest)| (*kind, rest)).or(Some((0, bytes))) {
        let (head, rest) = rest.split_at(4);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        parts.push(Part::Command(u16::from_be_bytes([head[0], head[1]]), rest[..length].to_vec()));
        bytes = &rest[length..];
        if let Some(section) = sections.iter().find(|section| bytes.starts_with(section)) {
            parts.push(Part::Section(section.to_vec()));
            bytes = &bytes[section.len()..];
        }
    }
    assert_eq!(bytes, b"", "all of it was taken apart");
    parts
}

fn start(vm: &Vm) -> (StreamWriter<PostcopySetup>, Vec<u8>) {
    let mut out = Vec::new();
    let writer = StreamWriter::<PostcopySetup>::start(&vm.configuration, vm.blocks.clone(), &mut out).unwrap();
    (writer, out)
}

const fn range(block: usize, page: u64, pages: u64) -> PageRange {
    PageRange { block, start_bytes: page * PAGE, length_bytes: pages * PAGE }
}

#[test]
fn commands_and_sections_come_in_the_order_that_a_target_wants() {
    let vm = Vm::small();
    let (writer, out) = start(&vm);
    let head_bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x0dpc-i440fx-7.2".len();
    let list = vm.written()[head_bytes..][..RAM_START_BYTES].to_vec();
    let sizes = [PAGE.to_be_bytes(), PAGE.to_be_bytes()].concat();
    let expected = [
        Part::Command(1, Vec::new()),
        Part::Command(2, vec![0, 0, 0, 1]),
        Part::Command(3, sizes),
        Part::Section(list.clone()),
    ];
    assert_eq!(parts(&out[head_bytes..], &[&list]), expected);

    let mut out = Vec::new();
    let active = writer.run([range(0, 0, 4), range(2, 0, 2), range(2, 1, 1)], &vm.device_state, &mut out).unwrap();
    let discards = [
        [&b"\0\x06pc.ram\0"[..], &[0; 8], &(4 * PAGE).to_be_bytes()].concat(),
        [&b"\0\x08vga.vram\0"[..], &[0; 8], &(2 * PAGE).to_be_bytes(), &PAGE.to_be_bytes(), &PAGE.to_be_bytes()]
            .concat(),
    ];
    let package =
        [&b"\x08\0\x04\0\0"[..], vm.device_state.sections(), b"\x08\0\x02\0\x04\0\0\0\x03\x08\0\x05\0\0"].concat();
    let expected = [
        Part::Command(6, discards[0].clone()),
        Part::Command(6, discards[1].clone()),
        Part::Command(7, (package.len() as u32).to_be_bytes().to_vec()),
        Part::Section(package.clone()),
    ];
    assert_eq!(parts(&out, &[&package]), expected);

    let mut out = Vec::new();
    active.finish(&mut out);
    assert_eq!(out, b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\0");
}

/// Head, total, three blocks, EOS and footer of [`Vm::small`]'s list.
const RAM_START_BYTES: usize = 17 + 8 + (1 + 6 + 8) + (1 + 7 + 8) + (1 + 8 + 8) + 8 + 5;

#[test]
fn pages_are_records_that_name_their_block_where_a_section_begins() {
    let (mut writer, mut out) = start(&Vm::small());
    out.clear();
    writer.page(at(0, 1), &[7; PAGE_BYTES], &mut out).unwrap();
    writer.zero_page(at(0, 2), &mut out).unwrap();
    writer.end_section(&mut out);
    writer.end_section(&mut out);
    writer.zero_page(at(0, 3), &mut out).unwrap();
    writer.zero_page(at(1, 0), &mut out).unwrap();
    let expected: [&[u8]; 6] = [
        b"\x02\0\0\0\x02\0\0\0\0\0\0\x10\x08\x06pc.ram",
        &[7; PAGE_BYTES],
        b"\0\0\0\0\0\0\x20\x22\0",
        b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
        b"\x02\0\0\0\x02\0\0\0\0\0\0\x30\x02\x06pc.ram\0",
        b"\0\0\0\0\0\0\0\x02\x07pc.bios\0",
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn the_second_connection_has_records_alone() {
    let vm = Vm::small();
    let active = start(&vm).0.run([range(0, 0, 1)], &vm.device_state, &mut Vec::new()).unwrap();
    let mut urgent = active.urgent();
    let mut out = Vec::new();
    urgent.page(at(2, 1), &[7; PAGE_BYTES], &mut out).unwrap();
    urgent.zero_page(at(2, 0), &mut out).unwrap();
    urgent.zero_page(at(0, 0), &mut out).unwrap();
    assert!(matches!(urgent.zero_page(at(1, 1), &mut out), Err(WriteError::NoPages { .. })));
    urgent.finish(&mut out);
    let expected: [&[u8]; 4] = [
        b"\0\0\0\0\0\0\x10\x08\x08vga.vram",
        &[7; PAGE_BYTES],
        b"\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\0\x02\x06pc.ram\0",
        b"\0\0\0\0\0\0\0\x10",
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn more_ranges_than_one_command_tells_are_told_by_several() {
    let mut vm = Vm::small();
    let pages = 2 * DISCARD_RANGES_MAX as u64 + 1;
    vm.blocks = vec![Block::new("n".repeat(255), 2 * pages * PAGE)];
    let (writer, _) = start(&vm);
    let mut out = Vec::new();
    writer.run((0..pages).map(|page| range(0, 2 * page, 1)), &vm.device_state, &mut out).unwrap();
    let mut told = Vec::new();
    let mut commands = 0;
    let mut rest = &out[..];
    while let [8, 0, 6, high, low, behind @ ..] = rest {
        let (data, behind) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        told.extend(data[1 + 1 + 255 + 1..].chunks(16).map(|range| u64::from_be_bytes(range[..8].try_into().unwrap())));
        rest = behind;
        commands += 1;
    }
    assert_eq!(commands, 3);
    assert_eq!(told, (0..pages).map(|page| 2 * page * PAGE).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_is_refused_and_nothing_written() {
    let vm = Vm::small();
    let (mut writer, mut out) = start(&vm);
    out.clear();
    for place in [at(0, 5), at(3, 0), crate::migration::PageAt { block: 0, offset_bytes: 1 }] {
        assert!(matches!(writer.zero_page(place, &mut out), Err(WriteError::NoPages { .. })), "{place:?}");
    }
    assert_eq!(out, b"");
    for bad in [range(0, 4, 2), range(0, 0, 0), range(3, 0, 1), range(0, u64::MAX / PAGE, 1)] {
        let error = start(&vm).0.run([bad], &vm.device_state, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, WriteError::NoPages { .. }), "{bad:?}: {error:?}");
    }
    let error = writer.run([], &vm.device_state, &mut Vec::new()).unwrap_err();
    assert_eq!(error, WriteError::NothingMissing);
    let mut shared = vm.configuration;
    shared.ignore_shared = true;
    let error = StreamWriter::<PostcopySetup>::start(&shared, vm.blocks, &mut Vec::new()).unwrap_err();
    assert_eq!(error, WriteError::IgnoreShared);
}
