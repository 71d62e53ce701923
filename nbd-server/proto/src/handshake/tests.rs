//! The handshake's behaviour, case by case. Case numbers are those of the project's list of NBD test cases.

mod contexts;
mod tls;

use bytes::{BufMut, BytesMut};

use super::*;
use crate::limits::MAX_STRING_BYTES;
use crate::option::{Info, InfoRequest, MetaRequest, OPTION_REPLY_HEADER_BYTES, OptionReplyHeader};
use crate::wire::{BASE_ALLOCATION, InfoType, OPTION_REPLY_MAGIC, TransmissionFlags};

const SIZE: u64 = 1_000_001;
const RESIDENCY: &str = "x-test:residency";
const BOTH: u32 = ClientFlags::FIXED_NEWSTYLE.0 | ClientFlags::NO_ZEROES.0;

/// Two exports; the first is the default one too.
struct Disks;

impl Exports for Disks {
    type Handle = &'static str;

    fn find(&self, name: &str) -> Option<(ExportInfo, &'static str)> {
        let (name, handle) = match name {
            "" | "disk0" => ("disk0", "first"),
            "disk1" => ("disk1", "second"),
            _ => return None,
        };
        let info = ExportInfo {
            name: name.to_owned(),
            description: "a disk".to_owned(),
            size_bytes: SIZE,
            flags: TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_DF,
            block_size: BlockSize::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        };
        Some((info, handle))
    }

    fn list(&self) -> Vec<Listed> {
        let listed =
            |name: &str, description: &str| Listed { name: name.to_owned(), description: description.to_owned() };
        vec![listed("disk0", "a disk"), listed(&"n".repeat(MAX_STRING_BYTES + 1), ""), listed("disk1", "")]
    }
}

/// A client that has sent its flags.
struct Peer {
    handshake: Handshake,
    input: BytesMut,
}

type Answer = (Progress<&'static str>, BytesMut);

impl Peer {
    fn new() -> Self {
        Self::with(TlsPolicy::Unsupported, BOTH)
    }

    fn with(tls: TlsPolicy, flags: u32) -> Self {
        let (mut peer, progress) = Self::greeted(tls, flags);
        assert!(matches!(progress, Progress::NeedInput), "{progress:?}");
        assert!(peer.input.is_empty());
        peer.input.reserve(64);
        peer
    }

    fn greeted(tls: TlsPolicy, flags: u32) -> (Self, Progress<&'static str>) {
        let mut peer = Self { handshake: Handshake::new(Config { tls }), input: BytesMut::new() };
        let (progress, output) = peer.send(&[]);
        assert!(matches!(progress, Progress::NeedInput));
        assert_eq!(&output[..], b"NBDMAGICIHAVEOPT\x00\x03");
        let (progress, output) = peer.send(&flags.to_be_bytes());
        assert!(output.is_empty());
        (peer, progress)
    }

    fn send(&mut self, bytes: &[u8]) -> Answer {
        self.input.put_slice(bytes);
        let mut output = BytesMut::new();
        let progress = self.handshake.advance(&mut self.input, &Disks, &mut output);
        (progress, output)
    }

    fn option(&mut self, code: OptionCode, payload: &[u8]) -> Answer {
        self.send(&option(code, payload))
    }

    /// Sends an option that leaves the handshake open, and returns the replies to it.
    fn ask(&mut self, code: OptionCode, payload: &[u8]) -> Vec<OptionReply> {
        self.exchange(code, &option(code, payload))
    }

    fn exchange(&mut self, code: OptionCode, bytes: &[u8]) -> Vec<OptionReply> {
        let (progress, output) = self.send(bytes);
        assert!(matches!(progress, Progress::NeedInput), "{progress:?}");
        assert!(self.input.is_empty());
        replies(code, &output)
    }

    fn structured(&mut self) {
        let answer = self.ask(OptionCode::STRUCTURED_REPLY, &[]);
        assert_eq!(answer, [OptionReply::Ack]);
    }

    fn set_contexts(&mut self, export: &str, queries: &[&str]) -> Vec<OptionReply> {
        self.contexts(OptionCode::SET_META_CONTEXT, export, queries)
    }

    fn contexts(&mut self, code: OptionCode, export: &str, queries: &[&str]) -> Vec<OptionReply> {
        let mut bytes = BytesMut::new();
        let queries = queries.to_vec();
        MetaRequest { export, queries }.encode(code, &mut bytes);
        self.exchange(code, &bytes)
    }

    fn go(mut self, export: &str) -> Session<&'static str> {
        let (progress, _) = self.send(&info_option(OptionCode::GO, export, &[]));
        session(progress)
    }

    /// The session still answers; otherwise this fails.
    fn assert_alive(&mut self) {
        let answer = self.ask(OptionCode::LIST, &[]);
        assert_eq!(answer.last(), Some(&OptionReply::Ack));
    }
}

fn option(code: OptionCode, payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    let length = payload.len() as u32;
    OptionHeader { code, length }.encode(&mut bytes);
    bytes.put_slice(payload);
    bytes
}

fn info_option(code: OptionCode, export: &str, infos: &[InfoType]) -> BytesMut {
    let mut bytes = BytesMut::new();
    let infos = infos.to_vec();
    InfoRequest { export, infos }.encode(code, &mut bytes);
    bytes
}

fn replies(code: OptionCode, mut output: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while let Some(header) = OptionReplyHeader::decode(output).unwrap() {
        assert_eq!(header.option, code);
        let (payload, rest) = output[OPTION_REPLY_HEADER_BYTES..].split_at(header.length as usize);
        replies.push(OptionReply::decode(&header, payload).unwrap());
        output = rest;
    }
    assert!(output.is_empty(), "{output:?}");
    replies
}

fn session(progress: Progress<&'static str>) -> Session<&'static str> {
    match progress {
        Progress::Transmission(session) => session,
        progress => panic!("{progress:?}"),
    }
}

#[track_caller]
fn assert_refused(progress: &Progress<&'static str>, expected: &HandshakeError) {
    match progress {
        Progress::Refused(error) => assert_eq!(error, expected),
        progress => panic!("{progress:?}"),
    }
}

/// One error of this kind, with a text.
#[track_caller]
fn assert_error(replies: &[OptionReply], expected: OptionReplyType) {
    match replies {
        [OptionReply::Error { kind, text }] => {
            assert_eq!(*kind, expected, "{text}");
            assert!(!text.is_empty());
        }
        replies => panic!("{replies:?}"),
    }
}

fn context(id: u32, name: &str) -> OptionReply {
    let name = name.to_owned();
    OptionReply::MetaContext(MetaContext { id, name })
}

#[test]
fn unknown_client_flag_closes() {
    // Case 1.
    let (mut peer, progress) = Peer::greeted(TlsPolicy::Unsupported, BOTH | 1 << 2);
    let error = HandshakeError::UnknownClientFlags(ClientFlags(BOTH | 1 << 2));
    assert_refused(&progress, &error);
    let (progress, output) = peer.option(OptionCode::LIST, &[]);
    assert_refused(&progress, &HandshakeError::Finished);
    assert!(output.is_empty());
}

#[test]
fn export_name_is_padded_unless_no_zeroes_was_agreed() {
    // Case 2.
    for (flags, padding_bytes) in
        [(0, 124), (ClientFlags::FIXED_NEWSTYLE.0, 124), (ClientFlags::NO_ZEROES.0, 0), (BOTH, 0)]
    {
        let mut peer = Peer::with(TlsPolicy::Unsupported, flags);
        let (progress, output) = peer.option(OptionCode::EXPORT_NAME, b"disk1");
        let session = session(progress);
        assert_eq!(session.handle, "second");
        assert!(!session.structured);
        let told = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        assert_eq!(session.export.flags, told);
        let mut expected = BytesMut::new();
        expected.put_u64(SIZE);
        expected.put_u16(told.0);
        expected.put_bytes(0, padding_bytes);
        assert_eq!(output, expected);
    }
}

#[test]
fn go_is_never_padded() {
    // Case 2.
    let mut peer = Peer::with(TlsPolicy::Unsupported, ClientFlags::FIXED_NEWSTYLE.0);
    let (progress, output) = peer.send(&info_option(OptionCode::GO, "disk0", &[]));
    session(progress);
    assert_eq!(replies(OptionCode::GO, &output).len(), 2);
}

#[test]
fn wrong_option_magic_closes() {
    // Case 3.
    let mut peer = Peer::new();
    let (progress, output) = peer.send(b"GET / HT");
    assert!(output.is_empty());
    let magic = u64::from_be_bytes(*b"GET / HT");
    assert_refused(&progress, &HandshakeError::BadOptionMagic(magic));
}

#[test]
fn unknown_option_is_consumed_and_unsupported() {
    // Case 4.
    let mut peer = Peer::new();
    let answer = peer.ask(OptionCode(0x7fff_0000), &[0x49; 333]);
    assert_error(&answer, OptionReplyType::ERR_UNSUP);
    let answer = peer.ask(OptionCode::PEEK_EXPORT, b"disk0");
    assert_error(&answer, OptionReplyType::ERR_UNSUP);
    peer.assert_alive();
}

#[test]
fn extended_headers_are_unsupported() {
    // Case 5: QEMU 10 asks for them first.
    let mut peer = Peer::new();
    let answer = peer.ask(OptionCode::EXTENDED_HEADERS, &[]);
    assert_error(&answer, OptionReplyType::ERR_UNSUP);
    peer.assert_alive();
}

#[test]
fn absurd_option_length_closes_at_the_header() {
    // Case 6.
    for option in [OptionCode::GO, OptionCode(99), OptionCode::EXPORT_NAME] {
        let mut peer = Peer::new();
        let capacity = peer.input.capacity();
        let mut bytes = BytesMut::new();
        let length = u32::MAX;
        OptionHeader { code: option, length }.encode(&mut bytes);
        let (progress, output) = peer.send(&bytes);
        assert!(output.is_empty());
        let error = HandshakeError::OptionTooLong { option, length };
        assert_refused(&progress, &error);
        assert!(peer.input.capacity() <= capacity);
    }
}

#[test]
fn long_option_is_dropped_as_it_arrives() {
    // Cases 4 and 6: longer than what is kept, short enough to be answered.
    let mut peer = Peer::new();
    let length = MAX_DROPPED_OPTION_BYTES;
    let mut bytes = BytesMut::new();
    let code = OptionCode::GO;
    OptionHeader { code, length }.encode(&mut bytes);
    let (progress, output) = peer.send(&bytes);
    assert!(matches!(progress, Progress::NeedInput) && output.is_empty());
    for _ in 0..length / 1024 - 1 {
        let (progress, output) = peer.send(&[0x49; 1024]);
        assert!(matches!(progress, Progress::NeedInput) && output.is_empty());
        assert!(peer.input.is_empty());
    }
    let answer = peer.exchange(code, &[0x49; 1024]);
    assert_error(&answer, OptionReplyType::ERR_TOO_BIG);
    peer.assert_alive();
}

#[test]
fn name_over_the_string_limit_is_an_error() {
    // Case 7.
    let name = "n".repeat(MAX_STRING_BYTES + 1);
    let mut peer = Peer::new();
    for code in [OptionCode::GO, OptionCode::INFO] {
        let answer = peer.exchange(code, &info_option(code, &name, &[]));
        assert_error(&answer, OptionReplyType::ERR_TOO_BIG);
    }
    peer.structured();
    let answer = peer.set_contexts(&name, &[]);
    assert_error(&answer, OptionReplyType::ERR_TOO_BIG);
    let answer = peer.set_contexts("disk0", &[&name]);
    assert_error(&answer, OptionReplyType::ERR_TOO_BIG);
    let (progress, _) = peer.option(OptionCode::EXPORT_NAME, name.as_bytes());
    let error = HandshakeError::BadExportName(BadString::TooLong(MAX_STRING_BYTES + 1));
    assert_refused(&progress, &error);
}

#[test]
fn longest_name_is_looked_up() {
    // Case 7, the other side of the limit.
    let name = "n".repeat(MAX_STRING_BYTES);
    let mut peer = Peer::new();
    let answer = peer.exchange(OptionCode::GO, &info_option(OptionCode::GO, &name, &[]));
    assert_error(&answer, OptionReplyType::ERR_UNKNOWN);
}

#[test]
fn name_with_nul_or_bad_utf8_is_an_error() {
    // Case 8.
    for (name, error) in [(&b"disk0\0"[..], BadString::Nul), (b"disk\xff", BadString::NotUtf8)] {
        let mut peer = Peer::new();
        let mut payload = BytesMut::new();
        payload.put_u32(name.len() as u32);
        payload.put_slice(name);
        payload.put_u16(0);
        let answer = peer.ask(OptionCode::GO, &payload);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
        let (progress, output) = peer.option(OptionCode::EXPORT_NAME, name);
        assert!(output.is_empty());
        assert_refused(&progress, &HandshakeError::BadExportName(error));
    }
}

#[test]
fn go_with_a_name_longer_than_its_data_is_invalid() {
    // Case 9.
    let mut peer = Peer::new();
    for length in [6, 7, 1000, u32::MAX] {
        let mut payload = BytesMut::new();
        payload.put_u32(length);
        payload.put_slice(b"disk0");
        payload.put_u16(0);
        let answer = peer.ask(OptionCode::GO, &payload);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
    }
    for short in [&[][..], &[0; 3], &[0; 4], &[0; 5]] {
        let answer = peer.ask(OptionCode::GO, short);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
    }
    peer.assert_alive();
}

#[test]
fn go_with_a_wrong_count_of_infos_is_invalid() {
    // Case 10.
    let mut peer = Peer::new();
    for (count, sent) in [(1, 0), (0, 1), (3, 2), (u16::MAX, 1)] {
        let mut payload = BytesMut::new();
        payload.put_u32(5);
        payload.put_slice(b"disk0");
        payload.put_u16(count);
        payload.put_bytes(0, 2 * sent);
        let answer = peer.ask(OptionCode::GO, &payload);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
    }
    peer.assert_alive();
}

#[test]
fn go_to_an_unknown_export_may_be_retried() {
    // Case 11.
    let mut peer = Peer::new();
    let answer = peer.exchange(OptionCode::GO, &info_option(OptionCode::GO, "no", &[]));
    assert_error(&answer, OptionReplyType::ERR_UNKNOWN);
    assert_eq!(peer.go("disk1").handle, "second");
}

#[test]
fn export_name_of_an_unknown_export_closes() {
    // Case 12.
    let (progress, output) = Peer::new().option(OptionCode::EXPORT_NAME, b"no");
    assert!(output.is_empty());
    let error = HandshakeError::UnknownExport("no".to_owned());
    assert_refused(&progress, &error);
}

#[test]
fn go_tells_the_export_and_what_was_asked_for() {
    // Cases 13 and 15.
    let mut peer = Peer::new();
    peer.structured();
    let infos =
        [InfoType::BLOCK_SIZE, InfoType(77), InfoType::DESCRIPTION, InfoType::NAME, InfoType::NAME, InfoType::EXPORT];
    let mut bytes = info_option(OptionCode::GO, "", &infos);
    bytes.put_slice(b"first request");
    let (progress, output) = peer.send(&bytes);
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_DF;
    let size_bytes = SIZE;
    let expected = [
        OptionReply::Info(Info::Export { size_bytes, flags }),
        OptionReply::Info(Info::Name("disk0".to_owned())),
        OptionReply::Info(Info::Description("a disk".to_owned())),
        OptionReply::Info(Info::BlockSize(BlockSize::default())),
        OptionReply::Ack,
    ];
    assert_eq!(replies(OptionCode::GO, &output), expected);
    let session = session(progress);
    assert_eq!(session.handle, "first");
    assert_eq!(session.requested_name, "");
    assert_eq!(session.export.name, "disk0");
    assert!(session.structured && !session.tls);
    assert_eq!(&peer.input[..], b"first request");
}

#[test]
fn go_without_wishes_tells_size_and_flags_alone() {
    // Case 13.
    let mut peer = Peer::new();
    let (_, output) = peer.send(&info_option(OptionCode::GO, "disk0", &[]));
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    let size_bytes = SIZE;
    let expected = [OptionReply::Info(Info::Export { size_bytes, flags }), OptionReply::Ack];
    assert_eq!(replies(OptionCode::GO, &output), expected);
}

#[test]
fn info_and_go_agree() {
    // Case 14.
    let mut peer = Peer::new();
    peer.structured();
    let infos = [InfoType::BLOCK_SIZE, InfoType::NAME];
    let info = peer.exchange(OptionCode::INFO, &info_option(OptionCode::INFO, "disk1", &infos));
    let (_, output) = peer.send(&info_option(OptionCode::GO, "disk1", &infos));
    assert_eq!(replies(OptionCode::GO, &output), info);
    assert_eq!(info.len(), 4);
}

#[test]
fn list_names_the_exports_and_takes_no_data() {
    // Case 16. An export whose name nobody could ask for is left out.
    let mut peer = Peer::new();
    let answer = peer.ask(OptionCode::LIST, &[0]);
    assert_error(&answer, OptionReplyType::ERR_INVALID);
    let mut expected: Vec<_> = Disks.list().into_iter().map(OptionReply::Server).collect();
    expected.remove(1);
    expected.push(OptionReply::Ack);
    assert_eq!(peer.ask(OptionCode::LIST, &[]), expected);
}

#[test]
fn abort_is_acknowledged_with_and_without_data() {
    // Case 17.
    for payload in [&b""[..], b"bye"] {
        let (progress, output) = Peer::new().option(OptionCode::ABORT, payload);
        assert!(matches!(progress, Progress::Aborted));
        assert_eq!(replies(OptionCode::ABORT, &output), [OptionReply::Ack]);
    }
}

#[test]
fn structured_reply_with_data_is_invalid() {
    // Case 21.
    let mut peer = Peer::new();
    let answer = peer.ask(OptionCode::STRUCTURED_REPLY, &[1]);
    assert_error(&answer, OptionReplyType::ERR_INVALID);
    assert!(!peer.go("disk0").structured);
}

#[test]
fn options_are_counted() {
    // Case 26, as far as it is the codec's: nobody negotiates for ever.
    let mut peer = Peer::new();
    for _ in 0..MAX_OPTIONS {
        peer.ask(OptionCode(77), &[]);
    }
    let (progress, _) = peer.option(OptionCode::GO, &[]);
    assert_refused(&progress, &HandshakeError::TooManyOptions);
}

#[test]
fn pipelined_options_do_not_pile_up_output() {
    let mut peer = Peer::new();
    let mut bytes = BytesMut::new();
    let text = "t".repeat(MAX_STRING_BYTES);
    let code = OptionCode::INFO;
    for _ in 0..MAX_OPTIONS {
        bytes.put_slice(&info_option(code, "disk0", &[InfoType::DESCRIPTION]));
    }
    struct Verbose(String);
    impl Exports for Verbose {
        type Handle = ();
        fn find(&self, name: &str) -> Option<(ExportInfo, ())> {
            let (mut info, _) = Disks.find(name)?;
            info.description = self.0.clone();
            Some((info, ()))
        }
        fn list(&self) -> Vec<Listed> {
            Vec::new()
        }
    }
    peer.input.put_slice(&bytes);
    let exports = Verbose(text);
    let mut rounds = 0;
    loop {
        let mut output = BytesMut::new();
        let progress = peer.handshake.advance(&mut peer.input, &exports, &mut output);
        assert!(output.len() < MAX_PENDING_OUTPUT_BYTES + 2 * MAX_STRING_BYTES);
        match progress {
            Progress::Continue => rounds += 1,
            Progress::NeedInput => break,
            progress => panic!("{progress:?}"),
        }
    }
    assert!(rounds >= 3 && peer.input.is_empty());
}

#[test]
fn client_without_fixed_newstyle_gets_export_name_only() {
    let mut peer = Peer::with(TlsPolicy::Unsupported, 0);
    let (progress, _) = peer.option(OptionCode::LIST, &[]);
    assert_refused(&progress, &HandshakeError::NotFixedNewstyle(OptionCode::LIST));
}

#[test]
fn replies_have_the_bytes_of_the_specification() {
    let (progress, output) = Peer::new().option(OptionCode::EXTENDED_HEADERS, &[]);
    assert!(matches!(progress, Progress::NeedInput));
    let mut expected = BytesMut::new();
    expected.put_u64(OPTION_REPLY_MAGIC);
    expected.put_slice(&[0, 0, 0, 11, 0x80, 0, 0, 1]);
    assert_eq!(output[..16], expected[..]);
}
