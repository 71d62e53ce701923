//! What a target says, whole and broken.

use super::sample::{PAGE, Vm};
use crate::migration::{PageRange, ReturnMessage, ReturnPath, ReturnPathError};

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn request(start_bytes: u64, length_bytes: u32, name: &str) -> Vec<u8> {
    let range = [&start_bytes.to_be_bytes()[..], &length_bytes.to_be_bytes()].concat();
    match name {
        "" => message(4, &range),
        name => message(3, &[&range, &[name.len() as u8][..], name.as_bytes()].concat()),
    }
}

fn path() -> ReturnPath {
    ReturnPath::new(Vm::small().blocks)
}

fn refused(bytes: &[u8]) -> ReturnPathError {
    path().decode(bytes).unwrap_err()
}

#[test]
fn messages_are_read_one_by_one_and_keep_the_block_of_the_last_request() {
    let sent = [
        (message(2, &[0, 0, 0, 1]), ReturnMessage::Pong(1)),
        (
            request(PAGE, 4096, "vga.vram"),
            ReturnMessage::Pages(PageRange { block: 2, start_bytes: PAGE, length_bytes: PAGE }),
        ),
        (request(0, 8192, ""), ReturnMessage::Pages(PageRange { block: 2, start_bytes: 0, length_bytes: 2 * PAGE })),
        (message(1, &[0, 0, 0, 0]), ReturnMessage::Shut(0)),
    ];
    let bytes: Vec<u8> = sent.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    let mut path = path();
    let mut rest = &bytes[..];
    for (bytes, expected) in &sent {
        for length in 0..bytes.len() {
            assert_eq!(path.decode(&rest[..length]), Ok(None), "{length} bytes of {expected:?}");
        }
        assert_eq!(path.decode(rest), Ok(Some((*expected, bytes.len()))));
        rest = &rest[bytes.len()..];
    }
    assert_eq!(path.decode(rest), Ok(None));
}

#[test]
fn requests_for_what_is_not_there_are_refused() {
    assert_eq!(refused(&request(0, 4096, "")), ReturnPathError::NoBlock);
    assert_eq!(refused(&request(0, 4096, "pc.rom")), ReturnPathError::UnknownBlock("pc.rom".to_owned()));
    for (start, length) in [(5 * PAGE, 4096), (4 * PAGE, 8192), (1, 4096), (0, 1), (0, 0), (u64::MAX - 4095, 4096)] {
        let error = refused(&request(start, length, "pc.ram"));
        assert!(matches!(error, ReturnPathError::NoPages { .. }), "{start} {length}: {error:?}");
    }
}

#[test]
fn messages_that_nobody_asked_for_are_refused_by_their_heads() {
    for (kind, name) in [(5, "RECV_BITMAP"), (6, "RESUME_ACK"), (7, "SWITCHOVER_ACK"), (0, "of an unknown kind")] {
        let error = refused(&[0, kind, 0, 4]);
        assert_eq!(error, ReturnPathError::Unexpected { name, number: kind.into() });
    }
    for (kind, length) in [(1, 5_u16), (2, 3), (3, 12), (3, 13), (3, 269), (4, 13), (4, 0xffff)] {
        let error = refused(&[&[0, kind][..], &length.to_be_bytes()].concat());
        assert!(matches!(error, ReturnPathError::Length { .. }), "{kind} {length}: {error:?}");
    }
    let mut longer = request(0, 4096, "pc.ram");
    longer[16] -= 1;
    assert!(matches!(refused(&longer), ReturnPathError::Length { name: "REQ_PAGES_ID", .. }));
}

#[test]
fn no_message_is_longer_than_the_longest() {
    let mut blocks = Vm::small().blocks;
    blocks[0].name = "n".repeat(255);
    let bytes = request(0, 4096, &blocks[0].name);
    assert_eq!(bytes.len(), ReturnPath::MESSAGE_BYTES_MAX);
    assert!(matches!(ReturnPath::new(blocks).decode(&bytes), Ok(Some((ReturnMessage::Pages(_), 272)))));
}
