//! Which requests are answered and how. Case numbers are those of the project's list of NBD test cases.

use super::*;
use crate::limits::MAX_READ_BYTES;

const SIZE: u64 = 1 << 40;

/// A read-only export of a server that only reads.
fn read_only() -> Geometry {
    Geometry {
        size_bytes: SIZE,
        flags: TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::READ_ONLY
            | TransmissionFlags::SEND_DF
            | TransmissionFlags::SEND_CACHE,
        minimum_block_bytes: 1,
        max_payload_bytes: MAX_READ_BYTES,
        structured: true,
        block_status: true,
    }
}

/// An export that can do everything but FAST_ZERO.
fn writable() -> Geometry {
    Geometry { flags: TransmissionFlags(0x5ff).without(TransmissionFlags::READ_ONLY), ..read_only() }
}

fn request(command: Command, offset: u64, length: u32) -> Request {
    flagged(command, CommandFlags::EMPTY, offset, length)
}

fn flagged(command: Command, flags: CommandFlags, offset: u64, length: u32) -> Request {
    Request { flags, command, cookie: Cookie(7), offset, length }
}

fn read(offset: u64, length: u32) -> Checked {
    Checked::Read { offset, length, whole: false }
}

#[track_caller]
fn assert_refused(request: Request, export: &Geometry, expected: ErrorCode) {
    let refusal = request.check(export).unwrap_err();
    assert_eq!(refusal.error(), expected, "{refusal}");
    // Case 50.
    let text = refusal.to_string();
    assert!(!text.is_empty() && text.len() <= crate::limits::MAX_STRING_BYTES);
}

const RANGED: [Command; 6] =
    [Command::READ, Command::WRITE, Command::TRIM, Command::CACHE, Command::WRITE_ZEROES, Command::BLOCK_STATUS];

#[test]
fn wrong_magic_is_an_error() {
    // Case 27: known at the fourth byte already.
    assert_eq!(Request::decode(b"GET / HTTP"), Err(BadRequestMagic(u32::from_be_bytes(*b"GET "))));
    assert!(Request::decode(b"GET ").is_err());
    assert_eq!(Request::decode(b"GET"), Ok(None));
}

#[test]
fn request_has_the_bytes_of_the_specification() {
    let bytes = b"\x25\x60\x95\x13\x00\x08\x00\x07\x01\x02\x03\x04\x05\x06\x07\x08\
        \x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x02\x00";
    let expected = Request {
        flags: CommandFlags::REQ_ONE,
        command: Command::BLOCK_STATUS,
        cookie: Cookie(0x0102_0304_0506_0708),
        offset: 65536,
        length: 512,
    };
    assert_eq!(Request::decode(bytes), Ok(Some(expected)));
    for end in 0..bytes.len() {
        assert_eq!(Request::decode(&bytes[..end]), Ok(None));
    }
}

#[test]
fn unknown_command_is_invalid() {
    // Case 28. Its length is no payload.
    for number in [8, 9, 100, u16::MAX] {
        let request = request(Command(number), 0, 512);
        assert_refused(request, &read_only(), ErrorCode::INVAL);
        assert_refused(request, &writable(), ErrorCode::INVAL);
        assert_eq!(request.payload_bytes(), 0);
    }
}

#[test]
fn unknown_or_foreign_flags_are_invalid() {
    // Case 29.
    let foreign = [
        (Command::READ, CommandFlags::NO_HOLE),
        (Command::READ, CommandFlags::REQ_ONE),
        (Command::READ, CommandFlags::FAST_ZERO),
        (Command::WRITE, CommandFlags::DF),
        (Command::WRITE, CommandFlags::NO_HOLE),
        (Command::WRITE, CommandFlags::PAYLOAD_LEN),
        (Command::TRIM, CommandFlags::NO_HOLE),
        (Command::WRITE_ZEROES, CommandFlags::DF),
        (Command::CACHE, CommandFlags::REQ_ONE),
        (Command::BLOCK_STATUS, CommandFlags::DF),
        (Command::FLUSH, CommandFlags::REQ_ONE),
    ];
    for (command, flags) in foreign {
        for export in [read_only(), writable()] {
            assert_refused(flagged(command, flags, 0, 0), &export, ErrorCode::INVAL);
        }
    }
    for command in RANGED {
        for bit in 6..16 {
            let request = flagged(command, CommandFlags(1 << bit), 0, 0);
            assert_refused(request, &writable(), ErrorCode::INVAL);
        }
    }
}

#[test]
fn write_payload_is_dropped_before_its_answer() {
    // Cases 29 and 34.
    let write = flagged(Command::WRITE, CommandFlags(0x8000), 0, 100_000);
    let next = request(Command::READ, 3, 4);
    let mut stream = BytesMut::new();
    write.encode(&mut stream);
    // The payload looks like requests.
    let mut payload = BytesMut::new();
    while payload.len() < 100_000 {
        next.encode(&mut payload);
    }
    stream.put_slice(&payload[..100_000]);
    next.encode(&mut stream);

    let mut requests = Requests::new();
    let mut input = BytesMut::new();
    let mut seen = Vec::new();
    for piece in stream.chunks(1000) {
        input.put_slice(piece);
        while let Some(request) = requests.next(&mut input).unwrap() {
            seen.push(request);
        }
        assert!(input.len() < REQUEST_BYTES);
    }
    assert_eq!(seen, [write, next]);
}

#[test]
fn past_the_end_is_invalid_or_no_space() {
    // Case 30.
    for command in RANGED {
        let expected = match command {
            Command::WRITE | Command::WRITE_ZEROES => ErrorCode::NOSPC,
            _ => ErrorCode::INVAL,
        };
        for (offset, length) in [(SIZE - 511, 512), (SIZE, 1), (SIZE + 1, 0), (1 << 62, 4096)] {
            assert_refused(request(command, offset, length), &writable(), expected);
        }
        assert!(request(command, SIZE - 512, 512).check(&writable()).is_ok());
    }
}

#[test]
fn offset_and_length_that_wrap_are_invalid() {
    // Case 31.
    for command in RANGED {
        let request = request(command, u64::MAX - 100, 512);
        assert_refused(request, &writable(), ErrorCode::INVAL);
    }
}

#[test]
fn length_zero_is_answered() {
    // Case 32.
    for command in RANGED {
        for offset in [0, 1, SIZE] {
            assert!(request(command, offset, 0).check(&writable()).is_ok());
        }
    }
    assert_eq!(request(Command::READ, 9, 0).check(&read_only()), Ok(read(9, 0)));
    let flush = request(Command::FLUSH, 0, 0);
    assert_eq!(flush.check(&read_only()), Ok(Checked::Flush));
}

#[test]
fn unaligned_reads_are_right_when_the_minimum_is_one() {
    // Case 33.
    for (length, offset) in [(1, 1), (513, 511), (3, 5)] {
        let request = request(Command::READ, offset, length);
        assert_eq!(request.check(&read_only()), Ok(read(offset, length)));
    }
    let blocks = Geometry { minimum_block_bytes: 512, ..writable() };
    for (length, offset) in [(512, 1), (513, 512), (1, 0)] {
        for command in RANGED {
            assert_refused(request(command, offset, length), &blocks, ErrorCode::INVAL);
        }
    }
    assert!(request(Command::READ, 1024, 512).check(&blocks).is_ok());
}

#[test]
fn read_only_export_refuses_writes() {
    // Case 34.
    for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
        for (offset, length) in [(0, 512), (0, 0), (SIZE, 512), (u64::MAX, 512), (0, u32::MAX)] {
            assert_refused(request(command, offset, length), &read_only(), ErrorCode::PERM);
            let with_fua = flagged(command, CommandFlags::FUA, offset, length);
            assert_refused(with_fua, &read_only(), ErrorCode::PERM);
        }
    }
}

#[test]
fn payload_limit_holds_for_read_and_write() {
    // Case 35.
    for length in [32 << 20, 64 << 20] {
        let request = request(Command::READ, 0, length);
        assert_eq!(request.check(&read_only()), Ok(read(0, length)));
    }
    for length in [(64 << 20) + 1, u32::MAX] {
        for command in [Command::READ, Command::WRITE] {
            assert_refused(request(command, 0, length), &writable(), ErrorCode::INVAL);
        }
    }
}

#[test]
fn requests_without_payload_have_no_payload_limit() {
    // Case 36.
    for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE, Command::BLOCK_STATUS] {
        assert!(request(command, 0, u32::MAX).check(&writable()).is_ok());
    }
}

#[test]
fn df_needs_structured_replies() {
    // Case 40.
    let request = flagged(Command::READ, CommandFlags::DF, 0, 65536);
    let expected = Checked::Read { offset: 0, length: 65536, whole: true };
    assert_eq!(request.check(&read_only()), Ok(expected));
    let simple = Geometry { structured: false, ..read_only() };
    assert_refused(request, &simple, ErrorCode::INVAL);
    let unadvertised = Geometry { flags: TransmissionFlags::HAS_FLAGS, ..read_only() };
    assert_refused(request, &unadvertised, ErrorCode::INVAL);
}

#[test]
fn block_status_needs_a_context() {
    // Cases 25 and 41.
    let request = flagged(Command::BLOCK_STATUS, CommandFlags::REQ_ONE, 0, 512);
    let expected = Checked::BlockStatus { offset: 0, length: 512, one_extent: true };
    assert_eq!(request.check(&read_only()), Ok(expected));
    let none = Geometry { block_status: false, ..read_only() };
    assert_refused(request, &none, ErrorCode::INVAL);
}

#[test]
fn fua_on_a_read_is_accepted() {
    // Case 42.
    let request = flagged(Command::READ, CommandFlags::FUA, 0, 512);
    for export in [read_only(), writable()] {
        assert_eq!(request.check(&export), Ok(read(0, 512)));
    }
    // A promise that was not made is not kept.
    let no_fua = Geometry { flags: writable().flags.without(TransmissionFlags::SEND_FUA), ..writable() };
    assert_eq!(request.check(&no_fua), Ok(read(0, 512)));
    let write = flagged(Command::WRITE, CommandFlags::FUA, 0, 512);
    assert_refused(write, &no_fua, ErrorCode::INVAL);
    let expected = Checked::Write { offset: 0, length: 512, fua: true };
    assert_eq!(write.check(&writable()), Ok(expected));
}

#[test]
fn fast_zero_must_be_advertised() {
    // Case 43.
    let flags = CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE;
    let request = flagged(Command::WRITE_ZEROES, flags, 0, 512);
    assert_refused(request, &writable(), ErrorCode::INVAL);
    let fast = Geometry { flags: writable().flags | TransmissionFlags::SEND_FAST_ZERO, ..writable() };
    let expected = Checked::WriteZeroes { offset: 0, length: 512, fua: false, no_hole: true, fast: true };
    assert_eq!(request.check(&fast), Ok(expected));
}

#[test]
fn commands_that_were_not_offered_are_invalid() {
    let bare = Geometry { flags: TransmissionFlags::HAS_FLAGS, ..writable() };
    for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE, Command::FLUSH] {
        assert_refused(request(command, 0, 0), &bare, ErrorCode::INVAL);
    }
}

#[test]
fn flush_takes_no_range() {
    assert_refused(request(Command::FLUSH, 0, 1), &read_only(), ErrorCode::INVAL);
    assert_refused(request(Command::FLUSH, 1, 0), &read_only(), ErrorCode::INVAL);
}

#[test]
fn disconnect_is_never_refused() {
    // Case 48: nothing could carry the refusal.
    let request = flagged(Command::DISC, CommandFlags(u16::MAX), 1, 2);
    assert_eq!(request.check(&read_only()), Ok(Checked::Disconnect));
}
