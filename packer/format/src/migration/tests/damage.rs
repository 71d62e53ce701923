//! Streams that are cut off or changed: no panic, and never more memory than what is there.

use std::io;

use super::sample::{Slow, Vm};
use crate::limits::{DEVICE_STATE_BYTES_MAX, STREAM_BUFFER_BYTES};
use crate::migration::{StreamError, StreamReader};

#[test]
fn a_stream_that_is_cut_off_anywhere_says_so() {
    let stream = Vm::small().written();
    let ram_ends = stream.len() - Vm::small().device_state.as_bytes().len();
    for length in 0..stream.len() {
        let error = Vm::refused(&stream[..length]);
        match error {
            StreamError::Truncated { at_bytes, .. } => {
                assert_eq!(at_bytes, length as u64, "all that was there was read")
            }
            _ => assert!(length >= ram_ends, "{length}: {error:?}"),
        }
    }
}

#[test]
fn changed_bits_are_errors_or_other_values() {
    let vm = Vm::small();
    let stream = vm.written();
    let mut changed = stream.clone();
    let mut refused = 0;
    // Not the bytes of pages: whatever they are, they are good.
    let meta = |place: usize| {
        stream[place.saturating_sub(32)..(place + 32).min(stream.len())].windows(9).any(|w| w[0] != w[8])
    };
    for place in (0..stream.len()).filter(|place| meta(*place)) {
        for bit in 0..8 {
            changed[place] ^= 1 << bit;
            match Vm::read(&changed[..]) {
                Ok(other) => assert_ne!(other, vm, "bit {bit} of byte {place} means something"),
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().chars().any(char::is_control), "{error}");
                }
            }
            changed[place] = stream[place];
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn a_source_may_answer_byte_by_byte() {
    let vm = Vm::small();
    assert_eq!(Vm::read(Slow(&vm.written(), false)).unwrap(), vm);
}

#[test]
fn a_source_that_fails_is_told_from_one_that_ends() {
    struct Failing;
    impl io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let stream = Vm::small().written();
    let error = Vm::read(io::Read::chain(&stream[..100], Failing)).unwrap_err();
    assert!(matches!(&error, StreamError::Read(error) if error.kind() == io::ErrorKind::BrokenPipe), "{error:?}");
}

#[test]
fn a_device_state_without_end_is_not_gathered() {
    struct Endless(u64);
    impl io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }
    let vm = Vm::small();
    let stream = vm.written();
    let ram = &stream[..stream.len() - vm.device_state.as_bytes().len()];
    let mut endless = Endless(0);
    let error = StreamReader::new(io::Read::chain(ram, &mut endless)).unwrap().finish().unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { .. }), "{error:?}");
    assert!(endless.0 <= DEVICE_STATE_BYTES_MAX + 2 * STREAM_BUFFER_BYTES as u64, "{}", endless.0);
}

#[test]
fn lists_of_blocks_that_no_vm_has_are_refused() {
    let list = |total: u64, blocks: &[(&str, u64)]| {
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        stream.extend((total | 4).to_be_bytes());
        for (name, size_bytes) in blocks {
            stream.push(name.len() as u8);
            stream.extend(name.as_bytes());
            stream.extend(size_bytes.to_be_bytes());
        }
        Vm::refused(&stream)
    };
    let damaged = [
        list(0, &[]),
        list(0x1000, &[("a", 0x2000)]),
        list(0x2000, &[("a", 0x1000), ("a", 0x1000)]),
        list(0x2000, &[("a", 0), ("b", 0x2000)]),
        list(0x2000, &[("a", 0x800), ("b", 0x1800)]),
        list(0x1000, &[("", 0x1000)]),
        list(0x1000, &[("a b", 0x1000)]),
        list(1 << 60, &[("a", 1 << 60)]),
    ];
    for error in damaged {
        assert!(matches!(error, StreamError::Damaged { .. }), "{error:?}");
    }
    let many: Vec<String> = (0..257).map(|number| format!("b{number}")).collect();
    let many: Vec<(&str, u64)> = many.iter().map(|name| (name.as_str(), 0x1000)).collect();
    assert!(matches!(list(257 << 12, &many), StreamError::TooLarge { .. }));
}
