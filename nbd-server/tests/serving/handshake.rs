//! The handshake over a socket: cases 1 to 25.

use crate::raw::number::*;
use crate::raw::{Raw, info, meta};
use crate::rig::Rig;
use crate::support::source::{Source, mixed, prose};

/// The payload of an INFO_EXPORT: its number, the size, the flags.
fn export_info(source: &Source) -> Vec<u8> {
    // HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN, SEND_CACHE; SEND_DF only with structured replies.
    let flags = 1_u16 | 2 | 4 | 1 << 8 | 1 << 10;
    [&[0, 0][..], &source.size_bytes().to_be_bytes(), &flags.to_be_bytes()].concat()
}

async fn greeted(rig: &Rig) -> Raw {
    let mut raw = rig.connect().await;
    raw.greet(FIXED_NEWSTYLE | NO_ZEROES).await;
    raw
}

/// The session goes on: an option is answered, and the export can be entered and read.
async fn expect_alive(rig: &Rig, mut raw: Raw) {
    raw.expect_option(GO, &info("disk0", &[]), ACK).await;
    raw.read(5, 10, 5000).await;
    raw.reply().await.expect_data(&rig.source, 10, 5000);
}

#[tokio::test]
async fn case_1_unknown_client_flags_close() {
    let rig = Rig::new(mixed()).await;
    for flags in [4, 0x8000_0000, 0xffff_ffff] {
        let mut raw = rig.connect().await;
        raw.greet(flags).await;
        raw.send_anyway(b"IHAVEOPT").await;
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn case_2_export_name_is_padded_unless_both_say_no() {
    let rig = Rig::new(mixed()).await;
    for (flags, padding) in [(FIXED_NEWSTYLE, 124), (0, 124), (FIXED_NEWSTYLE | NO_ZEROES, 0), (NO_ZEROES, 0)] {
        for name in ["", "disk0"] {
            let mut raw = rig.connect().await;
            raw.greet(flags).await;
            raw.option(EXPORT_NAME, name.as_bytes()).await;
            assert_eq!(raw.receive(10).await, export_info(&rig.source)[2..]);
            assert_eq!(raw.receive(padding).await, vec![0; padding]);
            raw.read(1, 0, 4096).await;
            raw.reply().await.expect_data(&rig.source, 0, 4096);
        }
    }
    // GO never pads.
    let mut raw = rig.connect().await;
    raw.greet(FIXED_NEWSTYLE).await;
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn case_3_a_wrong_option_magic_closes() {
    let rig = Rig::new(mixed()).await;
    for magic in [b"IHAVEOPU", b"NBDMAGIC", b"GET / HT", &[0; 8]] {
        let mut raw = greeted(&rig).await;
        raw.send_anyway(&[&magic[..], &[0; 8]].concat()).await;
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn cases_4_5_18_options_that_are_not_done_are_consumed_and_refused() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    for (code, payload) in [(4, &b"peek"[..]), (99, &[7; 5000]), (0, b""), (u32::MAX, b"x"), (EXTENDED_HEADERS, b"")] {
        raw.expect_option(code, payload, UNSUP).await;
    }
    raw.option(STARTTLS, b"").await;
    let kind = raw.option_answer().await.kind;
    assert!([UNSUP, POLICY].contains(&kind), "{kind:#x}");
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn case_6_a_huge_option_closes() {
    let rig = Rig::new(mixed()).await;
    for code in [GO, 99, EXPORT_NAME] {
        let mut raw = greeted(&rig).await;
        raw.option_of_length(code, u32::MAX, b"x").await;
        raw.send_anyway(&[0; 100_000]).await;
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn cases_7_8_11_names_that_name_nothing_are_refused() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    let long = "x".repeat(4097);
    for code in [GO, INFO] {
        raw.option(code, &info(&long, &[])).await;
        assert!([INVALID, TOO_BIG].contains(&raw.option_answer().await.kind));
        raw.expect_option(code, &info(&long[1..], &[]), UNKNOWN).await;
        raw.expect_option(code, &info("disk0\0", &[]), INVALID).await;
        raw.expect_option(code, &info("disk1", &[]), UNKNOWN).await;
        raw.expect_option(code, &info("DISK0", &[]), UNKNOWN).await;
        raw.expect_option(code, &info("../disk0", &[]), UNKNOWN).await;
        let not_utf8 = [&[0, 0, 0, 2, 0xff, 0xfe][..], &[0, 0]].concat();
        raw.expect_option(code, &not_utf8, INVALID).await;
    }
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn cases_9_10_lengths_that_disagree_are_refused() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    let good = info("disk0", &[3]);
    let mut longer_name = good.clone();
    longer_name[3] = 100;
    let mut huge_name = good.clone();
    huge_name[..4].fill(0xff);
    let mut more_infos = good.clone();
    more_infos[10] = 200;
    for payload in
        [&longer_name[..], &huge_name, &more_infos, &good[..good.len() - 1], &[&good[..], b"x"].concat(), b""]
    {
        raw.expect_option(GO, payload, INVALID).await;
    }
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn case_12_an_unknown_export_name_closes() {
    let rig = Rig::new(mixed()).await;
    for name in [&b"disk1"[..], b"disk0\0", b"\xff", &[b'x'; 5000]] {
        let mut raw = greeted(&rig).await;
        raw.option(EXPORT_NAME, name).await;
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn cases_13_14_15_info_and_go_agree() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    let mut answers = Vec::new();
    for code in [INFO, GO] {
        // Name, description, block size, and two that nobody knows.
        let mut told = raw.expect_option(code, &info("", &[1, 2, 3, 99, 0xffff]), ACK).await;
        assert!(told.iter().all(|answer| answer.kind == REP_INFO));
        told.iter_mut().for_each(|answer| answer.option = 0);
        answers.push(told);
    }
    assert_eq!(answers[0], answers[1]);
    let payloads: Vec<&[u8]> = answers[0].iter().map(|answer| &answer.payload[..]).collect();
    assert!(payloads.contains(&&export_info(&rig.source)[..]), "{payloads:?}");
    assert!(payloads.contains(&&b"\0\x01disk0"[..]), "the canonical name: {payloads:?}");
    assert!(payloads.contains(&&b"\0\x02a disk"[..]), "the description: {payloads:?}");
    // Minimum 1, preferred 4096, maximum 64 MiB.
    let sizes = [&[0, 3][..], &1_u32.to_be_bytes(), &4096_u32.to_be_bytes(), &(64_u32 << 20).to_be_bytes()].concat();
    assert!(payloads.contains(&&sizes[..]), "{payloads:?}");
    assert_eq!(payloads.len(), 4);
}

#[tokio::test]
async fn case_16_exports_are_listed() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    raw.expect_option(LIST, b"x", INVALID).await;
    let listed = raw.expect_option(LIST, b"", ACK).await;
    let [server] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(server.kind, SERVER);
    assert_eq!(server.payload, b"\0\0\0\x05disk0a disk");
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn case_17_abort_is_acknowledged() {
    let rig = Rig::new(mixed()).await;
    for payload in [&b""[..], b"bye"] {
        let mut raw = greeted(&rig).await;
        raw.expect_option(ABORT, payload, ACK).await;
        raw.expect_closed().await;
    }
    let mut gone = greeted(&rig).await;
    gone.option(ABORT, b"").await;
    drop(gone);
    rig.expect_served(0, 100).await;
}

#[tokio::test]
async fn cases_21_22_structured_replies_come_before_contexts() {
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    raw.expect_option(STRUCTURED_REPLY, b"x", INVALID).await;
    raw.expect_option(SET_META, &meta("", &["base:allocation"]), INVALID).await;
    raw.expect_option(LIST_META, &meta("", &[]), INVALID).await;
    raw.structured().await;
    raw.expect_option(SET_META, &meta("", &["base:allocation"]), ACK).await;
    expect_alive(&rig, raw).await;
}

#[tokio::test]
async fn cases_23_24_contexts_are_selected_by_their_whole_name() {
    /// Ids and names.
    type Selected = &'static [(u32, &'static str)];
    const BASE: &str = "base:allocation";
    const OURS: &str = "vmnetx:residency";
    let rig = Rig::new(mixed()).await;
    let mut raw = greeted(&rig).await;
    raw.structured().await;
    let selections: [(&[&str], Selected); 11] = [
        (&["base:"], &[]),
        (&["vmnetx:"], &[]),
        (&["base:", "vmnetx:"], &[]),
        (&[], &[]),
        (&[BASE], &[(1, BASE)]),
        (&[OURS], &[(2, OURS)]),
        (&[BASE, OURS], &[(1, BASE), (2, OURS)]),
        (&[OURS, BASE, OURS], &[(1, BASE), (2, OURS)]),
        (&["x:y", BASE, "vmnetx:other"], &[(1, BASE)]),
        (&["vmnetx:residency:1", "vmnetx:residenc", "VMNETX:residency", "vmnetx"], &[]),
        (&["vmnetx:", BASE, "qemu:dirty-bitmap:x", OURS], &[(1, BASE), (2, OURS)]),
    ];
    for (queries, expected) in selections {
        let set = raw.expect_option(SET_META, &meta("disk0", queries), ACK).await;
        assert!(set.iter().all(|answer| answer.kind == META_CONTEXT), "{set:?}");
        let expected: Vec<_> =
            expected.iter().map(|(id, name)| [&id.to_be_bytes(), name.as_bytes()].concat()).collect();
        assert_eq!(set.into_iter().map(|answer| answer.payload).collect::<Vec<_>>(), expected, "{queries:?}");
    }
    let lists: [(&[&str], &[&str]); 8] = [
        (&["base:"], &[BASE]),
        (&["vmnetx:"], &[OURS]),
        (&["vmnetx:", "base:"], &[BASE, OURS]),
        (&[], &[BASE, OURS]),
        (&[BASE], &[BASE]),
        (&[OURS], &[OURS]),
        (&["qemu:dirty-bitmap:x", "vmnetx:other"], &[]),
        (&["vmnetx"], &[]),
    ];
    for (queries, expected) in lists {
        let listed = raw.expect_option(LIST_META, &meta("", queries), ACK).await;
        // The id has no meaning here.
        let names: Vec<&[u8]> = listed.iter().map(|answer| &answer.payload[4..]).collect();
        assert_eq!(names, expected.iter().map(|name| name.as_bytes()).collect::<Vec<_>>(), "{queries:?}");
    }
    let good = meta("", &["base:allocation"]);
    let mut overrun = good.clone();
    overrun[11] = 200;
    let mut many = good.clone();
    many[7] = 9;
    for payload in [&overrun[..], &many, &good[..10], &[&good[..], b"x"].concat()] {
        raw.expect_option(SET_META, payload, INVALID).await;
    }
    raw.expect_option(SET_META, &meta("disk1", &["base:allocation"]), UNKNOWN).await;
    expect_alive(&rig, raw).await;
}

/// Case 25: what BLOCK_STATUS says after selections that failed, were replaced, or were for another export.
#[tokio::test]
async fn case_25_the_last_selection_counts() {
    let rig = Rig::new(mixed()).await;
    let good = meta("disk0", &["base:allocation"]);
    let alone = [good.clone()];
    let selections: [(&[Vec<u8>], &str, bool); 6] = [
        (&alone, "disk0", true),
        (&[good.clone(), meta("disk0", &["x:y"])], "disk0", false),
        (&[good.clone(), meta("nobody", &["base:allocation"])], "disk0", false),
        (&[good.clone(), vec![1, 2, 3]], "disk0", false),
        (&[meta("disk0", &[]), good.clone()], "disk0", true),
        // The empty name is not the name that was asked about, though it is the same export.
        (&alone, "", false),
    ];
    for (index, (payloads, export, selected)) in selections.into_iter().enumerate() {
        let mut raw = greeted(&rig).await;
        raw.structured().await;
        for payload in payloads {
            raw.option(SET_META, payload).await;
            while raw.option_answer().await.kind == META_CONTEXT {}
        }
        raw.expect_option(GO, &info(export, &[]), ACK).await;
        if selected {
            raw.request(0, BLOCK_STATUS, 3, 0, 4096).await;
            assert_eq!(raw.reply().await.expect_status(), [(4096, false)], "selection {index}");
        } else {
            raw.expect_error((0, BLOCK_STATUS, 0, 4096), EINVAL).await;
        }
    }
}

/// Every option in one write, its requests behind it.
#[tokio::test]
async fn a_whole_session_may_come_at_once() {
    let rig = Rig::new(Source::of(prose(1, 50_000))).await;
    let mut raw = rig.connect().await;
    let option = |code: u32, payload: &[u8]| {
        [b"IHAVEOPT", &code.to_be_bytes()[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
    };
    let bytes = [
        (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec(),
        option(99, b"x"),
        option(GO, &info("disk0", &[])),
        crate::raw::request(0, FLUSH, 1, 0, 0),
        crate::raw::request(0, DISC, 2, 0, 0),
    ];
    raw.send(&bytes.concat()).await;
    assert_eq!(raw.receive(18).await[..8], *b"NBDMAGIC");
    raw.expect_answers(99, UNSUP).await;
    raw.expect_answers(GO, ACK).await;
    raw.reply().await.expect_nothing();
    raw.expect_closed().await;
}

/// The same, a byte at a time.
#[tokio::test]
async fn a_session_may_come_byte_by_byte() {
    let rig = Rig::on_tcp(mixed()).await;
    let mut raw = rig.connect().await;
    let bytes = [
        FIXED_NEWSTYLE.to_be_bytes().to_vec(),
        [b"IHAVEOPT", &EXPORT_NAME.to_be_bytes()[..], &5_u32.to_be_bytes(), b"disk0"].concat(),
        crate::raw::request(0, FLUSH, 1, 0, 0),
    ];
    for byte in bytes.concat() {
        raw.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    raw.receive(18 + 10 + 124).await;
    raw.reply().await.expect_nothing();
}
