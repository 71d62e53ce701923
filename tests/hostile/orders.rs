//! Orders that lie: they are told of by those who look after repositories, and keep nobody from reading a version.

use std::fs;

use vmnetx_format::limits::ORDER_FRAMES_MAX;
use vmnetx_format::{Digest, Order, OrderFrame, Place, Purpose, Touch, order_path};

use super::evil::{CHUNK_BLOCKS, Evil, chunks, varint};
use super::readers::{Reader, Scratch, says};
use super::refused_by;

fn order(frames: Vec<OrderFrame>) -> Vec<u8> {
    let touch = Touch { image: 0, first_block: 32, blocks: CHUNK_BLOCKS[1], after_ms: 5 };
    Order::new(Purpose::Boot, vec![touch], frames).unwrap().encode()
}

/// `verify` says so; `info` and `export` do what they are there for.
fn told_and_read(evil: &Evil, case: &str, words: &[&str]) {
    refused_by(&[Reader::Verify], evil, case, words);
    let scratch = Scratch::new();
    for reader in [Reader::Info, Reader::Export] {
        let told = scratch.run(reader, evil.link().to_str().unwrap());
        assert_eq!(told.code, Some(0), "{reader:?} of {case}: {}", told.text);
    }
    let exported = fs::read(scratch.path().join("out")).unwrap();
    assert!(exported[32 * 4096..].starts_with(&chunks()[1]), "{case}");
}

#[test]
fn an_order_in_which_nothing_is_wrong_is_none_of_these() {
    let evil = Evil::ordered(|frame| order(vec![frame.clone()]));
    let told = Scratch::new().run(Reader::Verify, evil.link().to_str().unwrap());
    assert_eq!(told.code, Some(0), "{}", told.text);
    let told = Scratch::new().run(Reader::Info, evil.link().to_str().unwrap());
    assert!(says(&told.text, &["order", "of a boot", "1 touches"]), "{}", told.text);
}

#[test]
fn objects_that_are_no_orders_are_told() {
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Change, &str); 8] = [
        ("nothing", |_| Vec::new(), "too early"),
        ("another head", |bytes| [b"VMNXORD7", &bytes[8..]].concat(), "tag"),
        ("an unknown purpose", |bytes| [&bytes[..8], &[9], &bytes[9..]].concat(), "purpose"),
        ("more behind it", |bytes| [&bytes[..], &[0]].concat(), "follow its end"),
        // A few bytes that would be 2^17 touches or 2^18 frames in memory.
        ("touches that are not there", |_| [b"VMNXORD0\0", &varint(1 << 17)[..]].concat(), "too early"),
        ("frames that are not there", |_| [b"VMNXORD0\0\0\0", &varint(1 << 18)[..]].concat(), "too early"),
        ("more touches than there may be", |_| [b"VMNXORD0\0", &varint(u64::MAX)[..]].concat(), "touches"),
        (
            "a touch behind every image",
            |_| [b"VMNXORD0\0\x01\0", &varint(u64::MAX - 1)[..], &[1, 0, 0, 0]].concat(),
            "touch 0",
        ),
    ];
    for (case, change, words) in cases {
        let evil = Evil::ordered(|frame| change(order(vec![frame.clone()])));
        told_and_read(&evil, case, &["orders/", words]);
    }
    let evil = Evil::ordered(|frame| order(vec![frame.clone()]));
    let object = fs::read_dir(evil.root().join("orders")).unwrap().next().unwrap().unwrap().path();
    fs::write(&object, "VMNXORD0").unwrap();
    told_and_read(&evil, "another object", &["orders/", "digest"]);
    fs::remove_file(&object).unwrap();
    told_and_read(&evil, "no object", &["orders/", "missing"]);
}

#[test]
fn frames_that_lie_elsewhere_are_told() {
    let other = Digest::of(b"elsewhere");
    type Change<'a> = &'a dyn Fn(&OrderFrame) -> OrderFrame;
    let placed = |frame: &OrderFrame, place| OrderFrame { place, ..frame.clone() };
    let cases: [(&str, Change<'_>, &[&str]); 5] = [
        ("another digest", &|frame| OrderFrame { digest: other, ..frame.clone() }, &["orders/", "disagree"]),
        (
            "another length",
            &|frame| OrderFrame { plain_len: frame.plain_len + 1, ..frame.clone() },
            &["orders/", "disagree"],
        ),
        ("another place", &|frame| placed(frame, Place { offset: 9, ..frame.place }), &["orders/", "disagree"]),
        (
            "a place behind the pack",
            &|frame| placed(frame, Place { offset: 1 << 29, ..frame.place }),
            &["orders/", "disagree"],
        ),
        ("no such pack", &|frame| placed(frame, Place { pack: other, ..frame.place }), &["packs/", "missing"]),
    ];
    for (case, change, words) in cases {
        let evil = Evil::ordered(|frame| order(vec![change(frame)]));
        told_and_read(&evil, case, words);
    }
}

#[test]
fn as_many_frames_as_there_may_be_are_looked_at_within_bounds() {
    let lie = |number: u32, frame: &OrderFrame| OrderFrame {
        digest: Digest::of(&number.to_le_bytes()),
        plain_len: 4 << 20,
        place: Place { stored_len: 1, ..frame.place },
    };
    let evil = Evil::ordered(|frame| order((0..ORDER_FRAMES_MAX).map(|number| lie(number, frame)).collect()));
    told_and_read(&evil, "frames without end", &["orders/", "disagree"]);
    let link = fs::read(evil.link()).unwrap();
    let digest = vmnetx_format::Envelope::decode(&link).unwrap().link.current.orders[0];
    assert!(fs::metadata(evil.root().join(order_path(&digest))).unwrap().len() > 9 << 20);
}
