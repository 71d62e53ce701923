//! What replies look like, and which are not believed. Case numbers are those of the project's list of NBD test cases.

use super::*;
use crate::wire::Cookie;

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

fn decode(bytes: &[u8]) -> Result<Chunk<'_>, ReplyError> {
    match Header::decode(bytes)?.unwrap() {
        (Header::Chunk(header), taken) => {
            assert_eq!(header.cookie, COOKIE);
            header.parse(&bytes[taken..])
        }
        (header, _) => panic!("{header:?}"),
    }
}

/// A chunk of this type around these bytes.
fn raw(flags: ChunkFlags, kind: ChunkType, payload: &[u8]) -> Vec<u8> {
    let header = chunk_header(flags, kind, COOKIE, payload.len() as u32);
    [&header, payload].concat()
}

#[test]
fn simple_reply_has_the_bytes_of_the_specification() {
    let mut output = Vec::new();
    simple(&mut output, COOKIE, Some(ErrorCode::SHUTDOWN));
    simple(&mut output, COOKIE, None);
    let expected = b"\x67\x44\x66\x98\0\0\0\x6c\x01\x02\x03\x04\x05\x06\x07\x08\
        \x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_eq!(output, expected);
    let header = Header::Simple { cookie: COOKIE, error: Some(ErrorCode::SHUTDOWN) };
    assert_eq!(Header::decode(&output), Ok(Some((header, SIMPLE_BYTES))));
}

#[test]
fn chunks_have_the_bytes_of_the_specification() {
    // Case 38.
    let mut output = Vec::new();
    data_header(&mut output, COOKIE, ChunkFlags::EMPTY, 0x1000, 512);
    assert_eq!(output.len(), DATA_HEADER_BYTES);
    let expected = b"\x66\x8e\x33\xef\0\0\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\
        \0\0\0\0\0\0\x10\0";
    assert_eq!(output, expected);

    let mut output = Vec::new();
    hole(&mut output, COOKIE, ChunkFlags::DONE, 0x1000, 512);
    assert_eq!(output.len(), HOLE_BYTES);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\
        \0\0\0\0\0\0\x10\0\0\0\x02\0";
    assert_eq!(output, expected);

    let mut output = Vec::new();
    done(&mut output, COOKIE);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
    assert_eq!(output, expected);

    let mut output = Vec::new();
    error_at(&mut output, COOKIE, ChunkFlags::EMPTY, ErrorCode::IO, "no", 9);
    let expected = b"\x66\x8e\x33\xef\0\0\x80\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x10\
        \0\0\0\x05\0\x02no\0\0\0\0\0\0\0\x09";
    assert_eq!(output, expected);

    let mut output = Vec::new();
    let extents = [(512, StatusFlags::EMPTY), (1024, StatusFlags::HOLE | StatusFlags::ZERO)]
        .map(|(length, flags)| Extent { length, flags });
    block_status(&mut output, COOKIE, ChunkFlags::DONE, 1, &extents);
    let expected = b"\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\
        \0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03";
    assert_eq!(output, expected);
}

#[test]
fn error_text_of_a_server_steers_no_terminal() {
    let mut output = Vec::new();
    error(&mut output, COOKIE, ChunkFlags::DONE, ErrorCode::IO, "no\x1b[2J\nluck\u{9b}");
    match decode(&output).unwrap() {
        Chunk::Error { text, .. } => assert_eq!(text, "no\u{fffd}[2J\u{fffd}luck\u{fffd}"),
        chunk => panic!("{chunk:?}"),
    }
}

#[test]
fn error_text_is_cut_at_whole_characters() {
    // Case 50: 4096 is no multiple of the three bytes of this character.
    let text = "€".repeat(2000);
    let mut output = Vec::new();
    error(&mut output, COOKIE, ChunkFlags::DONE, ErrorCode::IO, &text);
    match decode(&output) {
        Ok(Chunk::Error { error, text, offset: None }) => {
            assert_eq!(error, ErrorCode::IO);
            assert_eq!(text, "€".repeat(4096 / 3));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_errors_of_the_protocol_are_sent() {
    // Case 49.
    let allowed = [1, 5, 12, 22, 28, 75, 95, 108];
    for errno in -1..4096 {
        assert!(allowed.contains(&ErrorCode::from_errno(errno).number()));
    }
    let (edquot, efbig, erofs, enoent) = (122, 27, 30, 2);
    assert_eq!(ErrorCode::from_errno(edquot), ErrorCode::NOSPC);
    assert_eq!(ErrorCode::from_errno(efbig), ErrorCode::NOSPC);
    assert_eq!(ErrorCode::from_errno(erofs), ErrorCode::PERM);
    assert_eq!(ErrorCode::from_errno(enoent), ErrorCode::IO);
    let error = std::io::Error::from_raw_os_error(28);
    assert_eq!(ErrorCode::from(&error), ErrorCode::NOSPC);
    let error = std::io::Error::other("a chunk does not match its digest");
    assert_eq!(ErrorCode::from(&error), ErrorCode::IO);
}

#[test]
fn unknown_error_number_is_kept() {
    // Case 49, seen by the client.
    let bytes = raw(ChunkFlags::DONE, ChunkType::ERROR, b"\0\0\x03\xe7\0\0");
    match decode(&bytes) {
        Ok(Chunk::Error { error, .. }) => assert_eq!(error.number(), 999),
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_error_chunk_is_an_error_and_nothing_worse() {
    let kind = ChunkType(0x8123);
    let bytes = raw(ChunkFlags::DONE, kind, b"\0\0\0\x05\0\x02nofuture");
    let expected = Chunk::Error { error: ErrorCode::IO, text: "no".to_owned(), offset: None };
    assert_eq!(decode(&bytes), Ok(expected));
}

#[test]
fn chunks_that_cannot_be_are_refused() {
    // Cases 38 and 41, seen by the client.
    let done = ChunkFlags::DONE;
    let bad: [(ChunkFlags, ChunkType, &[u8]); 14] = [
        (ChunkFlags::EMPTY, ChunkType::NONE, b""),
        (done, ChunkType::NONE, b"x"),
        (done, ChunkType::OFFSET_DATA, b""),
        (done, ChunkType::OFFSET_DATA, &[0; 8]),
        (done, ChunkType::OFFSET_HOLE, &[1; 11]),
        (done, ChunkType::OFFSET_HOLE, &[1; 13]),
        (done, ChunkType::OFFSET_HOLE, &[0; 12]),
        (done, ChunkType::BLOCK_STATUS, &[1; 4]),
        (done, ChunkType::BLOCK_STATUS, &[1; 13]),
        (done, ChunkType::BLOCK_STATUS, &[0; 12]),
        (done, ChunkType::ERROR, &[0; 6]),
        (done, ChunkType::ERROR, &[1; 6]),
        (done, ChunkType::ERROR_OFFSET, b"\0\0\0\x05\0\0"),
        (done, ChunkType(3), b""),
    ];
    for (flags, kind, payload) in bad {
        let result = decode(&raw(flags, kind, payload)).map(|chunk| format!("{chunk:?}"));
        assert!(result.is_err(), "{kind} {payload:?} {result:?}");
    }
}

#[test]
fn error_text_over_the_limit_is_refused() {
    let mut payload = b"\0\0\0\x05\x10\x01".to_vec();
    payload.extend([b'x'; 4097]);
    assert!(decode(&raw(ChunkFlags::DONE, ChunkType::ERROR, &payload)).is_err());
}

#[test]
fn huge_chunk_is_refused_at_its_header() {
    for kind in [ChunkType::BLOCK_STATUS, ChunkType::ERROR, ChunkType::ERROR_OFFSET] {
        let header = chunk_header(ChunkFlags::DONE, kind, COOKIE, u32::MAX - 3);
        assert!(Header::decode(&header).is_err());
    }
}

#[test]
fn wrong_magic_is_refused() {
    assert_eq!(Header::decode(b"\x66\x8e\x33\xee"), Err(ReplyError::BadMagic(0x668e_33ee)));
}
