//! Any VM survives being written and read; any bytes are read without a panic.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::sample::{Bytes, Slow, Vm, at, tail};
use crate::migration::{Block, Configuration, DeviceState, PAGE_BYTES, PageAt, ReturnPath, SaveFile};

fn configurations() -> impl Strategy<Value = Configuration> {
    let machine = "[!-~]{1,128}";
    (machine, any::<bool>(), any::<Option<[u8; 16]>>()).prop_map(|(machine, ignore_shared, uuid)| Configuration {
        machine,
        ignore_shared,
        uuid,
    })
}

fn blocks(addresses: bool) -> impl Strategy<Value = Vec<Block>> {
    let named = proptest::collection::btree_map("[!-~]{1,255}", (1_u64..9, any::<u64>()), 1..6);
    named.prop_map(move |named| {
        let block = |(name, (pages, address))| Block {
            name,
            size_bytes: pages * PAGE_BYTES as u64,
            guest_address: if addresses { address } else { 0 },
        };
        named.into_iter().map(block).collect()
    })
}

fn device_states() -> impl Strategy<Value = DeviceState> {
    let name = "[!#-\\[\\]-~]{1,255}";
    let body = proptest::collection::vec(prop_oneof![Just(0), Just(4), Just(6), Just(0x7e), any::<u8>()], 0..64);
    let device = (name, any::<u32>(), any::<u32>(), body);
    proptest::collection::vec(device, 0..8).prop_map(|devices| {
        let devices: Vec<_> =
            devices.iter().map(|(name, i, v, body)| (name.as_str(), *i, *v, body.as_slice())).collect();
        DeviceState::decode(tail(&devices)).unwrap()
    })
}

/// Places by any numbers, and a byte that fills the page unless it is of zeros.
type Pages = Vec<(prop::sample::Index, prop::sample::Index, Option<u8>)>;

fn vms() -> impl Strategy<Value = Vm> {
    let pages = || proptest::collection::vec(any::<(prop::sample::Index, prop::sample::Index, Option<u8>)>(), 0..30);
    let parts = configurations().prop_flat_map(move |configuration| {
        let addresses = configuration.ignore_shared;
        (Just(configuration), blocks(addresses), pages(), device_states())
    });
    parts.prop_map(|(configuration, blocks, pages, device_state)| {
        let pages = placed(pages, &blocks);
        Vm { configuration, blocks, pages, device_state }
    })
}

fn placed(pages: Pages, blocks: &[Block]) -> BTreeMap<PageAt, Option<Bytes>> {
    let place = |(block, page, byte): (prop::sample::Index, prop::sample::Index, Option<u8>)| {
        let block = block.index(blocks.len());
        let page = page.index((blocks[block].size_bytes / PAGE_BYTES as u64) as usize);
        (at(block, page as u64), byte.map(Bytes::filled))
    };
    pages.into_iter().map(place).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_vm_that_is_written_is_read_again(vm in vms()) {
        let stream = vm.written();
        prop_assert_eq!(&Vm::read(&stream[..]).unwrap(), &vm);
        prop_assert_eq!(Vm::read(&stream[..]).unwrap().written(), stream);
    }

    #[test]
    fn a_stream_that_is_changed_is_read_without_a_panic(
        vm in vms(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = vm.written();
        for (place, byte) in changes {
            let place = place.index(stream.len());
            stream[place] = byte;
        }
        let whole = Vm::read(&stream[..]).map_err(|error| error.to_string());
        if let Ok(vm) = &whole {
            prop_assert_eq!(&Vm::read(&vm.written()[..]).unwrap(), vm);
        }
        stream.truncate(cut.index(stream.len()));
        let cut = Vm::read(&stream[..]).map_err(|error| error.to_string());
        let slow = Vm::read(Slow(&stream, false)).map_err(|error| error.to_string());
        prop_assert_eq!(cut, slow, "how the bytes come makes no difference");
    }

    #[test]
    fn a_return_path_of_any_bytes_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut path = ReturnPath::new(Vm::small().blocks);
        let mut rest = &bytes[..];
        while let Ok(Some((_, length))) = path.decode(rest) {
            prop_assert!(length <= rest.len() && length <= ReturnPath::MESSAGE_BYTES_MAX);
            rest = &rest[length..];
        }
    }

    #[test]
    fn a_save_file_is_read_as_it_was_written(xml in "[^\0]{1,99}", cookie in proptest::option::of("[^\0]{1,99}")) {
        let mut file = SaveFile::read(&mut &SAVED[..]).unwrap();
        (file.xml, file.cookie) = (xml, cookie);
        prop_assert_eq!(SaveFile::read(&mut &file.encode().unwrap()[..]).unwrap(), file);
    }
}

/// A head with XML of one letter.
const SAVED: [u8; 94] = {
    let mut head = [0; 94];
    let magic = b"LibvirtQemudSave\x02\0\0\0\x02\0\0\0";
    let mut place = 0;
    while place < magic.len() {
        head[place] = magic[place];
        place += 1;
    }
    head[92] = b'x';
    head
};
