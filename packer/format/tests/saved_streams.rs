//! Streams of guests that two versions of QEMU saved while they ran (`fixtures/make`): they stay readable, whatever becomes of
//! the codec.

use std::collections::BTreeMap;
use std::io::Read;

use vmnetx_format::migration::{Block, Configuration, DeviceState, Page, PageAt, Precopy, StreamReader, StreamWriter};

/// What is known of a fixture.
struct Fixture {
    compressed: &'static [u8],
    machine: &'static str,
    cpus: usize,
    /// Some of the blocks and the devices, of these the first and the last one.
    blocks: &'static [(&'static str, u64)],
    devices: &'static [&'static str],
    /// Whether it has the command SWITCHOVER_START.
    switchover: bool,
}

const MIB: u64 = 1 << 20;
const PC_BLOCKS: &[(&str, u64)] =
    &[("pc.ram", 128 * MIB), ("0000:00:02.0/vga.vram", 16 * MIB), ("/rom@etc/acpi/rsdp", 4096)];
const PC_DEVICES: &[&str] = &["timer", "0000:00:02.0/vga", "0000:00:01.1/ide", "0000:00:01.2/1/usb-ptr", "globalstate"];
const Q35_BLOCKS: &[(&str, u64)] = &[("pc.ram", 128 * MIB), ("pc.rom", MIB / 8), ("/rom@etc/acpi/rsdp", 4096)];
const Q35_DEVICES: &[&str] = &["timer", "slirp", "0000:00:04.0/virtio-blk", "0000:00:01.0/xhci", "globalstate"];

const FIXTURES: [Fixture; 4] = [
    Fixture {
        compressed: include_bytes!("fixtures/qemu-7.2.22-i440fx.stream.zst"),
        machine: "pc-i440fx-7.2",
        cpus: 1,
        blocks: PC_BLOCKS,
        devices: PC_DEVICES,
        switchover: false,
    },
    Fixture {
        compressed: include_bytes!("fixtures/qemu-7.2.22-q35.stream.zst"),
        machine: "pc-q35-7.2",
        cpus: 4,
        blocks: Q35_BLOCKS,
        devices: Q35_DEVICES,
        switchover: false,
    },
    Fixture {
        compressed: include_bytes!("fixtures/qemu-10.0.2-i440fx.stream.zst"),
        machine: "pc-i440fx-10.0",
        cpus: 1,
        blocks: PC_BLOCKS,
        devices: PC_DEVICES,
        switchover: true,
    },
    Fixture {
        compressed: include_bytes!("fixtures/qemu-10.0.2-q35.stream.zst"),
        machine: "pc-q35-10.0",
        cpus: 4,
        blocks: Q35_BLOCKS,
        devices: Q35_DEVICES,
        switchover: true,
    },
];

/// The command, and the start of RAM's last section.
const SWITCHOVER_START: &[u8] = b"\x08\0\x0b\0\0\x03\0\0\0";

/// A stream taken apart; the fixtures' pages are all zeros, so how often each was sent is all there is to them.
#[derive(Debug, PartialEq)]
struct Parts {
    configuration: Configuration,
    blocks: Vec<Block>,
    pages: BTreeMap<PageAt, usize>,
    device_state: DeviceState,
}

fn read(source: impl Read) -> Parts {
    let mut reader = StreamReader::new(source).unwrap();
    let mut pages = BTreeMap::new();
    while let Some(page) = reader.next_page().unwrap() {
        let Page::Zero(at) = page else { panic!("{page:?}") };
        *pages.entry(at).or_insert(0) += 1;
    }
    let (configuration, blocks) = (reader.configuration().clone(), reader.blocks().to_vec());
    Parts { configuration, blocks, pages, device_state: reader.finish().unwrap() }
}

#[test]
fn streams_of_both_versions_are_read_and_written_alike() {
    for fixture in FIXTURES {
        let stream = zstd::decode_all(fixture.compressed).unwrap();
        let parts = read(&stream[..]);
        assert_eq!(parts.configuration, Configuration::new(fixture.machine));
        let total: u64 = parts.blocks.iter().map(|block| block.size_bytes).sum();
        assert_eq!(parts.pages.len() as u64, total / 4096, "{}: every page was sent", fixture.machine);
        for block in fixture.blocks {
            assert!(parts.blocks.contains(&Block::new(block.0, block.1)), "{block:?}: {:?}", parts.blocks);
        }
        let names: Vec<&str> = parts.device_state.devices().iter().map(|device| device.name.as_str()).collect();
        assert!(fixture.devices.iter().all(|name| names.contains(name)), "{}: {names:?}", fixture.machine);
        assert_eq!((names.first(), names.last()), (fixture.devices.first(), fixture.devices.last()));
        assert_eq!(names.iter().filter(|name| **name == "cpu").count(), fixture.cpus);
        let switchover = stream.windows(SWITCHOVER_START.len()).any(|window| window == SWITCHOVER_START);
        assert_eq!(switchover, fixture.switchover, "{}", fixture.machine);

        let mut again = Vec::new();
        let mut writer =
            StreamWriter::<Precopy>::start(&parts.configuration, parts.blocks.clone(), &mut again).unwrap();
        for (at, times) in &parts.pages {
            (0..*times).for_each(|_| writer.zero_page(*at, &mut again).unwrap());
        }
        writer.finish(&parts.device_state, &mut again);
        assert_eq!(read(&again[..]), parts);
        assert!(again.ends_with(parts.device_state.as_bytes()) && stream.ends_with(parts.device_state.as_bytes()));
    }
}

#[test]
fn a_device_state_of_real_devices_that_is_cut_or_changed_is_refused() {
    for fixture in FIXTURES {
        let state = read(&zstd::decode_all(fixture.compressed).unwrap()[..]).device_state;
        let bytes = state.as_bytes();
        for length in (0..bytes.len()).step_by(9973) {
            assert!(DeviceState::decode(bytes[..length].to_vec()).is_err(), "{}: {length} bytes", fixture.machine);
        }
        // Without its first section, and without the bytes between two others.
        let second = bytes.windows(2).position(|window| window == [0x7e, 0]).unwrap() + 5;
        assert!(DeviceState::decode(bytes[second..].to_vec()).is_err());
        let last_name = state.sections().windows(11).position(|window| window == b"globalstate").unwrap();
        let gap = [&bytes[..last_name - 200], &bytes[last_name..]].concat();
        assert!(DeviceState::decode(gap).is_err());
    }
}
