//! TLS: when it is started, and what is refused without it.

use super::*;

#[test]
fn starttls_without_tls_is_unsupported() {
    // Case 18.
    let mut peer = Peer::new();
    let answer = peer.ask(OptionCode::STARTTLS, &[]);
    assert_error(&answer, OptionReplyType::ERR_UNSUP);
    peer.assert_alive();
}

#[test]
fn forced_tls_refuses_everything_else() {
    // Case 19.
    let mut peer = Peer::with(TlsPolicy::Required, BOTH);
    for option in [
        OptionCode::LIST,
        OptionCode::GO,
        OptionCode::INFO,
        OptionCode::STRUCTURED_REPLY,
        OptionCode::LIST_META_CONTEXT,
        OptionCode::SET_META_CONTEXT,
        OptionCode::EXTENDED_HEADERS,
        OptionCode(12345),
    ] {
        let answer = peer.ask(option, &[]);
        assert_error(&answer, OptionReplyType::ERR_TLS_REQD);
    }
    let (progress, output) = peer.option(OptionCode::EXPORT_NAME, b"disk0");
    assert!(output.is_empty());
    assert_refused(&progress, &HandshakeError::TlsRequired);

    let mut peer = Peer::with(TlsPolicy::Required, BOTH);
    let (progress, _) = peer.option(OptionCode::ABORT, &[]);
    assert!(matches!(progress, Progress::Aborted));
}

#[test]
fn forced_tls_serves_inside_tls() {
    // Cases 19 and 20.
    let mut peer = Peer::with(TlsPolicy::Required, BOTH);
    let answer = peer.ask(OptionCode::STARTTLS, b"data");
    assert_error(&answer, OptionReplyType::ERR_INVALID);
    let (progress, output) = peer.option(OptionCode::STARTTLS, &[]);
    assert!(matches!(progress, Progress::StartTls));
    assert_eq!(replies(OptionCode::STARTTLS, &output), [OptionReply::Ack]);
    let answer = peer.ask(OptionCode::STARTTLS, &[]);
    assert_error(&answer, OptionReplyType::ERR_INVALID);
    assert!(peer.go("disk0").tls);
}

#[test]
fn starttls_forgets_what_was_negotiated_in_the_open() {
    // Case 20.
    let mut peer = Peer::with(TlsPolicy::Offered, BOTH);
    peer.structured();
    let answer = peer.set_contexts("disk0", &[BASE_ALLOCATION]);
    assert_eq!(answer.len(), 2);
    let (progress, _) = peer.option(OptionCode::STARTTLS, &[]);
    assert!(matches!(progress, Progress::StartTls));
    let answer = peer.set_contexts("disk0", &[BASE_ALLOCATION]);
    assert_error(&answer, OptionReplyType::ERR_INVALID);
    let session = peer.go("disk0");
    assert!(!session.structured && session.contexts.is_empty());
}

#[test]
fn plain_bytes_behind_starttls_are_never_processed() {
    // Case 20.
    let mut peer = Peer::with(TlsPolicy::Offered, BOTH);
    let mut bytes = option(OptionCode::STARTTLS, &[]);
    bytes.put_slice(&info_option(OptionCode::GO, "disk0", &[]));
    let (progress, output) = peer.send(&bytes);
    assert!(output.is_empty());
    assert_refused(&progress, &HandshakeError::PlainBytesAfterStartTls);
}
