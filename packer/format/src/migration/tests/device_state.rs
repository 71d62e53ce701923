//! Where the device state ends, and whether it is what its description says.

use super::sample::{DEVICES, Section, description, ended, sections, tail};
use crate::limits::DEVICE_STATE_BYTES_MAX;
use crate::migration::{Device, DeviceState, StreamError};

fn refused(bytes: Vec<u8>) -> String {
    match DeviceState::decode(bytes) {
        Err(StreamError::DeviceState(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sections_are_kept_as_they_are_and_named_by_the_description() {
    let state = DeviceState::decode(tail(&DEVICES)).unwrap();
    assert_eq!(state.sections(), sections(&DEVICES));
    assert_eq!(state.description(), description(&DEVICES).as_bytes());
    assert_eq!(state.as_bytes(), tail(&DEVICES));
    let vga = Device { name: "0000:00:02.0/vga".to_owned(), instance: 0, version: 2 };
    assert_eq!(state.devices().last(), Some(&vga));
    assert_eq!(state.devices().len(), 3);
}

#[test]
fn bodies_may_hold_what_looks_like_an_end() {
    // A footer and a head that are another device's, and an end with a whole description that does not fill the rest.
    let inner = tail(&[("cpu", 1, 1, b"")]);
    let body = [&b"\x7e\0\0\0\x07\x7e\0\0\0\x08"[..], &inner, &inner].concat();
    let devices: [Section<'_>; 2] = [("timer", 0, 2, &body), ("cpu", 0, 12, &body)];
    let state = DeviceState::decode(tail(&devices)).unwrap();
    assert_eq!(state.sections(), sections(&devices));
}

#[test]
fn a_description_of_other_sections_is_refused() {
    let [timer, cpu, vga] = DEVICES;
    let of = |listed: &[Section<'_>]| refused(ended(sections(&DEVICES), &description(listed)));
    assert!(of(&[timer, vga, cpu]).contains("/vga\""), "another order");
    assert!(of(&[cpu, vga]).contains("\"cpu\""), "the first one is where the sections begin");
    assert!(of(&[timer, cpu, vga, ("late", 0, 1, b"")]).contains("\"late\""));
    assert!(of(&[timer, ("cpu", 1, 12, b"")]).contains("\"cpu\""), "another instance");
    assert!(of(&[timer, cpu]).contains("last section"));
    assert!(of(&[]).contains("last section"));
    assert!(of(&[("", 0, 0, b"")]).contains("\"\""));
}

#[test]
fn a_section_of_ram_is_refused() {
    let ram: Section<'_> = ("ram", 0, 4, b"\0\0\0\0\0\0\0\x10");
    for devices in [vec![ram], [&DEVICES[..], &[ram]].concat()] {
        assert!(refused(tail(&devices)).contains("a section of RAM"));
    }
}

#[test]
fn what_ends_otherwise_is_refused() {
    let whole = tail(&DEVICES);
    for length in 0..whole.len() {
        assert!(DeviceState::decode(whole[..length].to_vec()).is_err(), "{length} bytes");
    }
    assert!(refused([&whole[..], b" "].concat()).contains("does not end"));
    assert!(refused(ended(sections(&DEVICES), "[]")).contains("description"));
    assert!(refused(Vec::new()).contains("none"));
}

#[test]
fn a_device_state_larger_than_any_is_refused() {
    let error = DeviceState::decode(vec![0; DEVICE_STATE_BYTES_MAX as usize + 1]).unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { .. }), "{error:?}");
}
