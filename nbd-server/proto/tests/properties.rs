//! Properties of the codec: what is encoded is decoded again, and no bytes, however they are split, break it.

use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use vmnetx_nbd_proto::handshake::{
    BlockSize, Config, ExportInfo, Exports, Handshake, Listed, MetaContext, Progress, TlsPolicy,
};
use vmnetx_nbd_proto::limits::MAX_STRING_BYTES;
use vmnetx_nbd_proto::option::{
    Info, InfoRequest, MetaRequest, OPTION_HEADER_BYTES, OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReply,
    OptionReplyHeader,
};
use vmnetx_nbd_proto::reply::{self, Chunk, ChunkHeader, Extent, Header};
use vmnetx_nbd_proto::request::{Checked, Geometry, REQUEST_BYTES, Request, Requests};
use vmnetx_nbd_proto::wire::{
    BASE_ALLOCATION, ChunkFlags, ChunkType, Command, CommandFlags, Cookie, ErrorCode, InfoType, OptionCode,
    OptionReplyType, RESIDENCY, StatusFlags, TransmissionFlags,
};

struct Disks;

impl Exports for Disks {
    type Handle = ();

    fn find(&self, name: &str) -> Option<(ExportInfo, ())> {
        let info = ExportInfo {
            name: "disk0".to_owned(),
            description: "a disk".to_owned(),
            size_bytes: 1 << 30,
            flags: TransmissionFlags::READ_ONLY,
            block_size: BlockSize::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        };
        matches!(name, "" | "disk0").then_some((info, ()))
    }

    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "disk0".to_owned(), description: String::new() }]
    }
}

/// Feeds a handshake piece by piece; all that it sent, how it ended, and the bytes it left.
fn negotiate<'a>(tls: TlsPolicy, pieces: impl IntoIterator<Item = &'a [u8]>) -> (BytesMut, String, BytesMut) {
    let mut handshake = Handshake::new(Config { tls });
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut ended = None;
    for piece in pieces {
        input.put_slice(piece);
        while ended.is_none() {
            let mut sent = BytesMut::new();
            let progress = handshake.advance(&mut input, &Disks, &mut sent);
            output.put_slice(&sent);
            match progress {
                Progress::NeedInput => break,
                Progress::Continue => {}
                progress => ended = Some(format!("{progress:?}")),
            }
        }
    }
    (output, ended.unwrap_or_default(), input)
}

/// Splits bytes at these places.
fn split<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|i| i.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Text that a server may send; a client would replace control characters.
fn text(max_chars: usize) -> impl Strategy<Value = String> {
    let shown = any::<char>().prop_map(|c| if c.is_control() { '.' } else { c });
    vec(shown, 0..max_chars).prop_map(|chars| chars.into_iter().collect())
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("disk0".to_owned()), text(20)]
}

fn option_code() -> impl Strategy<Value = OptionCode> {
    prop_oneof![(0u32..13).prop_map(OptionCode), any::<u32>().prop_map(OptionCode)]
}

/// An option as a client might send it: sensible, or with any payload.
fn client_option() -> impl Strategy<Value = Vec<u8>> {
    let info = (any::<bool>(), name(), vec(0u16..5, 0..6)).prop_map(|(go, export, infos)| {
        let mut bytes = Vec::new();
        let infos = infos.into_iter().map(InfoType).collect();
        let request = InfoRequest { export: &export, infos };
        let code = if go { OptionCode::GO } else { OptionCode::INFO };
        request.encode(code, &mut bytes);
        bytes
    });
    let known = [BASE_ALLOCATION, RESIDENCY, "base:", "vmnetx:"].map(str::to_owned);
    let query = prop_oneof![proptest::sample::select(known.to_vec()), text(9)];
    let meta = (any::<bool>(), name(), vec(query, 0..4)).prop_map(|(set, export, queries)| {
        let mut bytes = Vec::new();
        let queries = queries.iter().map(String::as_str).collect();
        let request = MetaRequest { export: &export, queries };
        let code = match set {
            true => OptionCode::SET_META_CONTEXT,
            false => OptionCode::LIST_META_CONTEXT,
        };
        request.encode(code, &mut bytes);
        bytes
    });
    let structured = Just(any_option(OptionCode::STRUCTURED_REPLY, &[]));
    let other = (option_code(), vec(any::<u8>(), 0..40)).prop_map(|(code, payload)| any_option(code, &payload));
    let long = (option_code(), 60_000usize..80_000).prop_map(|(code, length)| any_option(code, &vec![0; length]));
    prop_oneof![4 => info, 4 => meta, 4 => structured, 4 => other, 1 => long]
}

fn any_option(code: OptionCode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = payload.len() as u32;
    OptionHeader { code, length }.encode(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

fn policy() -> impl Strategy<Value = TlsPolicy> {
    prop_oneof![Just(TlsPolicy::Unsupported), Just(TlsPolicy::Offered), Just(TlsPolicy::Required),]
}

fn request() -> impl Strategy<Value = Request> {
    let command = prop_oneof![(0u16..9).prop_map(Command), any::<u16>().prop_map(Command)];
    let flags = prop_oneof![Just(0), 0u16..64, any::<u16>()].prop_map(CommandFlags);
    let offset = prop_oneof![0u64..1 << 20, any::<u64>()];
    let length = prop_oneof![0u32..5000, any::<u32>()];
    (command, flags, any::<u64>(), offset, length).prop_map(|(command, flags, cookie, offset, length)| Request {
        flags,
        command,
        cookie: Cookie(cookie),
        offset,
        length,
    })
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (prop_oneof![0u64..1 << 21, any::<u64>()], any::<u16>(), 0u32..17, any::<u32>(), any::<bool>(), any::<bool>())
        .prop_map(|(size_bytes, flags, block, limit, structured, block_status)| Geometry {
            size_bytes,
            flags: TransmissionFlags(flags),
            minimum_block_bytes: (1 << block) >> 1,
            max_payload_bytes: limit,
            structured,
            block_status,
        })
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    let sizes = any::<(u32, u32, u32)>().prop_map(|(minimum_bytes, preferred_bytes, maximum_bytes)| {
        OptionReply::Info(Info::BlockSize(BlockSize { minimum_bytes, preferred_bytes, maximum_bytes }))
    });
    prop_oneof![
        Just(OptionReply::Ack),
        (text(30), text(30)).prop_map(|(name, description)| OptionReply::Server(Listed { name, description })),
        (any::<u64>(), any::<u16>()).prop_map(|(size_bytes, flags)| {
            let flags = TransmissionFlags(flags);
            OptionReply::Info(Info::Export { size_bytes, flags })
        }),
        text(30).prop_map(|name| OptionReply::Info(Info::Name(name))),
        text(30).prop_map(|text| OptionReply::Info(Info::Description(text))),
        sizes,
        (any::<u32>(), text(30)).prop_map(|(id, name)| OptionReply::MetaContext(MetaContext { id, name })),
        (any::<u32>(), text(30))
            .prop_map(|(kind, text)| OptionReply::Error { kind: OptionReplyType(kind | 1 << 31), text }),
    ]
}

fn decode_chunk(bytes: &[u8]) -> (ChunkHeader, Chunk<'_>) {
    match Header::decode(bytes).unwrap().unwrap() {
        (Header::Chunk(header), taken) => (header, header.parse(&bytes[taken..]).unwrap()),
        (header, _) => panic!("{header:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn request_round_trip(request in request(), behind in vec(any::<u8>(), 0..9)) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), REQUEST_BYTES);
        for end in 0..bytes.len() {
            prop_assert_eq!(Request::decode(&bytes[..end]), Ok(None));
        }
        bytes.extend(behind);
        prop_assert_eq!(Request::decode(&bytes), Ok(Some(request)));
    }

    #[test]
    fn info_request_round_trip(export in text(50), infos in vec(any::<u16>(), 0..20)) {
        let infos = infos.into_iter().map(InfoType).collect();
        let request = InfoRequest { export: &export, infos };
        let mut bytes = Vec::new();
        request.encode(OptionCode::GO, &mut bytes);
        let header = OptionHeader::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(header.code, OptionCode::GO);
        let payload = &bytes[OPTION_HEADER_BYTES..];
        prop_assert_eq!(header.length as usize, payload.len());
        prop_assert_eq!(InfoRequest::decode(payload), Ok(request));
    }

    #[test]
    fn meta_request_round_trip(export in text(50), queries in vec(text(20), 0..10)) {
        let queries = queries.iter().map(String::as_str).collect();
        let request = MetaRequest { export: &export, queries };
        let mut bytes = Vec::new();
        request.encode(OptionCode::SET_META_CONTEXT, &mut bytes);
        let header = OptionHeader::decode(&bytes).unwrap().unwrap();
        let payload = &bytes[OPTION_HEADER_BYTES..];
        prop_assert_eq!(header.length as usize, payload.len());
        prop_assert_eq!(MetaRequest::decode(payload), Ok(request));
    }

    #[test]
    fn option_reply_round_trip(reply in option_reply(), option in option_code()) {
        let mut bytes = Vec::new();
        reply.encode(option, &mut bytes);
        let header = OptionReplyHeader::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(header.option, option);
        let payload = &bytes[OPTION_REPLY_HEADER_BYTES..];
        prop_assert_eq!(header.length as usize, payload.len());
        prop_assert_eq!(OptionReply::decode(&header, payload), Ok(reply));
    }

    #[test]
    fn chunk_round_trip(
        cookie in any::<u64>(),
        last in any::<bool>(),
        offset in any::<u64>(),
        length in 1u32..,
        data in vec(any::<u8>(), 1..100),
        errno in 0i32..200,
        message in text(2000),
        extents in vec((1u32.., any::<u32>()), 1..50),
    ) {
        let cookie = Cookie(cookie);
        let flags = if last { ChunkFlags::DONE } else { ChunkFlags::EMPTY };

        let mut bytes = Vec::new();
        reply::data_header(&mut bytes, cookie, flags, offset, data.len() as u32);
        bytes.extend_from_slice(&data);
        let (header, chunk) = decode_chunk(&bytes);
        prop_assert_eq!((header.cookie, header.is_last()), (cookie, last));
        prop_assert_eq!(chunk, Chunk::Data { offset, data: &data });

        let mut bytes = Vec::new();
        reply::hole(&mut bytes, cookie, flags, offset, length);
        let (header, chunk) = decode_chunk(&bytes);
        prop_assert_eq!((header.cookie, header.is_last()), (cookie, last));
        prop_assert_eq!(chunk, Chunk::Hole { offset, length });

        let error = ErrorCode::from_errno(errno);
        for place in [None, Some(offset)] {
            let mut bytes = Vec::new();
            match place {
                None => reply::error(&mut bytes, cookie, flags, error, &message),
                Some(offset) => reply::error_at(&mut bytes, cookie, flags, error, &message, offset),
            }
            match decode_chunk(&bytes).1 {
                Chunk::Error { error: decoded, text, offset } => {
                    prop_assert_eq!((decoded, offset), (error, place));
                    prop_assert!(message.starts_with(&text));
                    prop_assert!(text == message || text.len() > MAX_STRING_BYTES - 4);
                }
                chunk => panic!("{chunk:?}"),
            }
        }

        let extents: Vec<Extent> = extents
            .into_iter()
            .map(|(length, flags)| Extent { length, flags: StatusFlags(flags) })
            .collect();
        let mut bytes = Vec::new();
        reply::block_status(&mut bytes, cookie, flags, 5, &extents);
        let (header, chunk) = decode_chunk(&bytes);
        prop_assert_eq!((header.cookie, header.is_last()), (cookie, last));
        prop_assert_eq!(chunk, Chunk::BlockStatus { context_id: 5, extents });
    }

    #[test]
    fn contexts_are_selected_as_their_queries_say(
        queries in vec(prop_oneof![Just(BASE_ALLOCATION), Just(RESIDENCY), Just("base:"), Just("vmnetx:"), Just("x:y")], 0..6),
        listing in any::<bool>(),
    ) {
        let code = if listing { OptionCode::LIST_META_CONTEXT } else { OptionCode::SET_META_CONTEXT };
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(any_option(OptionCode::STRUCTURED_REPLY, &[]));
        MetaRequest { export: "disk0", queries: queries.clone() }.encode(code, &mut bytes);
        let (sent, _, left) = negotiate(TlsPolicy::Unsupported, [&bytes[..]]);
        prop_assert!(left.is_empty());
        // Behind the greeting and the answer about structured replies.
        let mut rest = &sent[18 + OPTION_REPLY_HEADER_BYTES..];
        let mut told = Vec::new();
        while let Some(header) = OptionReplyHeader::decode(rest).unwrap() {
            let (payload, behind) = rest[OPTION_REPLY_HEADER_BYTES..].split_at(header.length as usize);
            told.push(OptionReply::decode(&header, payload).unwrap());
            rest = behind;
        }
        let named = |name: &str| {
            let (space, _) = name.split_at(name.find(':').unwrap() + 1);
            queries.contains(&name) || listing && (queries.is_empty() || queries.contains(&space))
        };
        let mut expected: Vec<OptionReply> = [(1, BASE_ALLOCATION), (2, RESIDENCY)]
            .into_iter()
            .filter(|(_, name)| named(name))
            .map(|(id, name)| MetaContext { id: if listing { 0 } else { id }, name: name.to_owned() })
            .map(OptionReply::MetaContext)
            .collect();
        expected.push(OptionReply::Ack);
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn simple_round_trip(cookie in any::<u64>(), errno in proptest::option::of(0i32..200)) {
        let cookie = Cookie(cookie);
        let error = errno.map(ErrorCode::from_errno);
        let mut bytes = Vec::new();
        reply::simple(&mut bytes, cookie, error);
        for end in 0..bytes.len() {
            prop_assert_eq!(Header::decode(&bytes[..end]), Ok(None));
        }
        let expected = (Header::Simple { cookie, error }, bytes.len());
        prop_assert_eq!(Header::decode(&bytes), Ok(Some(expected)));
    }

    #[test]
    fn decoders_survive_any_bytes(
        bytes in vec(any::<u8>(), 0..200),
        kind in any::<u32>(),
        known in 0u16..8,
        error in any::<bool>(),
    ) {
        let _ = Request::decode(&bytes);
        let _ = Header::decode(&bytes);
        let _ = OptionHeader::decode(&bytes);
        let _ = OptionReplyHeader::decode(&bytes);
        let _ = InfoRequest::decode(&bytes);
        let _ = MetaRequest::decode(&bytes);
        let length = bytes.len() as u32;
        for kind in [kind, u32::from(known)] {
            let header = OptionReplyHeader {
                option: OptionCode::GO,
                kind: OptionReplyType(kind),
                length,
            };
            let _ = OptionReply::decode(&header, &bytes);
        }
        let kind = ChunkType(if error { known | 1 << 15 } else { known });
        let flags = ChunkFlags::DONE;
        let header = ChunkHeader { flags, kind, cookie: Cookie(1), length };
        let _ = header.parse(&bytes);
        let shorter = ChunkHeader { length: length.wrapping_sub(1), ..header };
        prop_assert!(shorter.parse(&bytes).is_err());
    }

    #[test]
    fn handshake_survives_any_bytes(
        tls in policy(),
        flags in prop_oneof![Just(3u32), any::<u32>()],
        options in vec(prop_oneof![client_option(), vec(any::<u8>(), 0..64)], 0..5),
        flips in vec((any::<Index>(), any::<u8>()), 0..4),
        places in vec(any::<Index>(), 0..6),
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(options.concat());
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let whole = negotiate(tls, [&bytes[..]]);
        let pieces = negotiate(tls, split(&bytes, &places));
        // However the bytes are split, the server says and does the same. With TLS on offer it does not: bytes that
        // come together with STARTTLS end the session.
        if tls == TlsPolicy::Unsupported {
            prop_assert_eq!(&whole.0, &pieces.0);
            prop_assert_eq!(&whole.1, &pieces.1);
            if whole.1.starts_with("Transmission") || whole.1.is_empty() {
                prop_assert_eq!(whole.2, pieces.2);
            }
        }
    }

    #[test]
    fn requests_are_the_same_however_split(
        requests in vec(request(), 0..20),
        places in vec(any::<Index>(), 0..20),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for mut request in requests {
            if request.command == Command::WRITE {
                request.length %= 5000;
            }
            request.encode(&mut bytes);
            bytes.extend((0..request.payload_bytes()).map(|i| i as u8));
            expected.push(request);
        }
        for pieces in [vec![&bytes[..]], split(&bytes, &places), bytes.chunks(1).collect()] {
            let mut splitter = Requests::new();
            let mut input = BytesMut::new();
            let mut seen = Vec::new();
            for piece in pieces {
                input.put_slice(piece);
                while let Some(request) = splitter.next(&mut input).unwrap() {
                    seen.push(request);
                }
            }
            prop_assert!(input.is_empty());
            prop_assert_eq!(&seen, &expected);
        }
    }

    #[test]
    fn accepted_requests_lie_in_the_export(request in request(), export in geometry()) {
        match request.check(&export) {
            Ok(Checked::Disconnect) => prop_assert_eq!(request.command, Command::DISC),
            Ok(Checked::Flush) => prop_assert_eq!((request.offset, request.length), (0, 0)),
            Ok(checked) => {
                let end = request.offset.checked_add(u64::from(request.length));
                prop_assert!(end.is_some_and(|end| end <= export.size_bytes));
                let reads = matches!(
                    checked,
                    Checked::Read { .. } | Checked::Cache { .. } | Checked::BlockStatus { .. }
                );
                prop_assert!(reads || !export.flags.contains(TransmissionFlags::READ_ONLY));
                if let Checked::Read { length, .. } | Checked::Write { length, .. } = checked {
                    prop_assert!(length <= export.max_payload_bytes);
                }
            }
            Err(refusal) => prop_assert!(refusal.error().number() != 0),
        }
    }
}

#[test]
fn handshake_byte_by_byte_is_the_handshake_at_once() {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(any_option(OptionCode::EXTENDED_HEADERS, &[]));
    bytes.extend(any_option(OptionCode(1000), &[7; 70_000]));
    bytes.extend(any_option(OptionCode::STRUCTURED_REPLY, &[]));
    let meta = MetaRequest { export: "disk0", queries: vec![BASE_ALLOCATION] };
    meta.encode(OptionCode::SET_META_CONTEXT, &mut bytes);
    let info = InfoRequest { export: "disk0", infos: vec![InfoType::BLOCK_SIZE, InfoType::NAME] };
    info.encode(OptionCode::GO, &mut bytes);
    let whole = negotiate(TlsPolicy::Unsupported, [&bytes[..]]);
    assert!(whole.1.starts_with("Transmission"), "{}", whole.1);
    assert_eq!(whole, negotiate(TlsPolicy::Unsupported, bytes.chunks(1)));
}
