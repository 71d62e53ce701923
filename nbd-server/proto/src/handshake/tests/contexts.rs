//! Metadata contexts: what is listed, selected and forgotten.

use super::*;
use crate::limits::MAX_QUERIES;

#[test]
fn contexts_before_structured_replies_are_invalid() {
    // Case 22.
    let mut peer = Peer::new();
    for code in [OptionCode::SET_META_CONTEXT, OptionCode::LIST_META_CONTEXT] {
        let answer = peer.contexts(code, "disk0", &[BASE_ALLOCATION]);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
    }
    peer.structured();
    let expected = [context(1, BASE_ALLOCATION), OptionReply::Ack];
    assert_eq!(peer.set_contexts("disk0", &[BASE_ALLOCATION]), expected);
}

#[test]
fn bare_namespace_lists_but_does_not_select() {
    // Case 23.
    let list = OptionCode::LIST_META_CONTEXT;
    let mut peer = Peer::new();
    peer.structured();
    assert_eq!(peer.set_contexts("disk0", &["base:"]), [OptionReply::Ack]);
    assert_eq!(peer.set_contexts("disk0", &[]), [OptionReply::Ack]);
    let base = [context(0, BASE_ALLOCATION), OptionReply::Ack];
    assert_eq!(peer.contexts(list, "disk0", &["base:"]), base);
    assert_eq!(peer.contexts(list, "disk0", &[BASE_ALLOCATION]), base);
    let ours = [context(0, RESIDENCY), OptionReply::Ack];
    assert_eq!(peer.contexts(list, "disk0", &["x-test:"]), ours);
    let all = [context(0, BASE_ALLOCATION), context(0, RESIDENCY), OptionReply::Ack];
    assert_eq!(peer.contexts(list, "disk0", &[]), all);
    // Listing selects nothing.
    assert!(peer.go("disk0").contexts.is_empty());
}

#[test]
fn unknown_contexts_are_ignored() {
    // Case 24.
    let mut peer = Peer::new();
    peer.structured();
    for code in [OptionCode::SET_META_CONTEXT, OptionCode::LIST_META_CONTEXT] {
        let queries = ["qemu:dirty-bitmap:a", "base:other", "x-test", ":", "", "base:allocation:"];
        assert_eq!(peer.contexts(code, "disk0", &queries), [OptionReply::Ack]);
    }
    let answer = peer.set_contexts("no", &[BASE_ALLOCATION]);
    assert_error(&answer, OptionReplyType::ERR_UNKNOWN);
}

#[test]
fn query_past_the_end_is_invalid() {
    // Case 24.
    let mut peer = Peer::new();
    peer.structured();
    let mut valid = BytesMut::new();
    let request = MetaRequest { export: "disk0", queries: vec![BASE_ALLOCATION] };
    request.encode(OptionCode::SET_META_CONTEXT, &mut valid);
    let valid = &valid[OPTION_HEADER_BYTES..];
    for end in 0..valid.len() {
        let answer = peer.ask(OptionCode::SET_META_CONTEXT, &valid[..end]);
        assert_error(&answer, OptionReplyType::ERR_INVALID);
    }
    let longer = [valid, &[0]].concat();
    let answer = peer.ask(OptionCode::SET_META_CONTEXT, &longer);
    assert_error(&answer, OptionReplyType::ERR_INVALID);
}

#[test]
fn too_many_queries_are_refused() {
    // Case 24: the count is bounded before anything is collected.
    let mut peer = Peer::new();
    peer.structured();
    for count in [MAX_QUERIES + 1, u32::MAX] {
        let mut payload = BytesMut::new();
        payload.put_u32(0);
        payload.put_u32(count);
        let answer = peer.ask(OptionCode::SET_META_CONTEXT, &payload);
        assert_error(&answer, OptionReplyType::ERR_TOO_BIG);
    }
}

#[test]
fn the_last_selection_counts_even_if_it_failed() {
    // Case 25.
    let mut peer = Peer::new();
    peer.structured();
    let both = [context(1, BASE_ALLOCATION), context(2, RESIDENCY), OptionReply::Ack];
    let queries = [RESIDENCY, BASE_ALLOCATION, RESIDENCY];
    assert_eq!(peer.set_contexts("disk0", &queries), both);
    let answer = peer.set_contexts("disk0", &[RESIDENCY]);
    assert_eq!(answer, [context(2, RESIDENCY), OptionReply::Ack]);
    let session = peer.go("disk0");
    assert!(session.geometry().block_status);
    let id = 2;
    let name = RESIDENCY.to_owned();
    assert_eq!(session.contexts, [MetaContext { id, name }]);

    for failing in [&[][..], &[0; 8][..1], &[0; 70_000]] {
        let mut peer = Peer::new();
        peer.structured();
        assert_eq!(peer.set_contexts("disk0", &queries), both);
        let (progress, output) = peer.option(OptionCode::SET_META_CONTEXT, failing);
        assert!(matches!(progress, Progress::NeedInput));
        let answer = replies(OptionCode::SET_META_CONTEXT, &output);
        assert!(matches!(answer[..], [OptionReply::Error { .. }]));
        assert!(!peer.go("disk0").geometry().block_status);
    }
}

#[test]
fn contexts_of_another_export_do_not_count() {
    // Case 25.
    let mut peer = Peer::new();
    peer.structured();
    assert_eq!(peer.set_contexts("disk0", &[BASE_ALLOCATION]).len(), 2);
    let session = peer.go("disk1");
    assert!(session.structured);
    assert!(session.contexts.is_empty() && !session.geometry().block_status);
}
