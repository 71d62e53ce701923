use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::limits::RECORDS_MAX;

fn digest(seed: u32) -> Digest {
    Digest::of(&seed.to_le_bytes())
}

fn touches() -> impl Strategy<Value = Vec<Touch>> {
    let touch = (0..IMAGES_MAX, 0..IMAGE_BLOCKS_MAX - 5000, 1_u32..5000, 0_u32..100_000);
    proptest::collection::vec(touch, 0..60).prop_map(|parts| {
        let mut after_ms = 0;
        let touch = |(image, first_block, blocks, pause_ms)| {
            after_ms += pause_ms;
            Touch { image, first_block, blocks, after_ms }
        };
        parts.into_iter().map(touch).collect()
    })
}

fn frames() -> impl Strategy<Value = Vec<OrderFrame>> {
    let frame = (any::<u32>(), 0_u32..5, 0_u64..100_000_000, 1_u32..5000, 0_u32..100_000);
    proptest::collection::vec(frame, 0..60).prop_map(|parts| {
        let frame = |(seed, pack, offset, stored_len, saved)| OrderFrame {
            digest: digest(seed),
            plain_len: stored_len + saved,
            place: Place { pack: digest(pack), offset, stored_len },
        };
        parts.into_iter().map(frame).collect()
    })
}

fn order() -> impl Strategy<Value = Order> {
    (prop::sample::select(vec![Purpose::Boot, Purpose::Resume]), touches(), frames())
        .prop_map(|(purpose, touches, frames)| Order::new(purpose, touches, frames).unwrap())
}

fn small() -> (Touch, OrderFrame) {
    let touch = Touch { image: 0, first_block: 7, blocks: 3, after_ms: 20 };
    let place = Place { pack: digest(1), offset: 8, stored_len: 90 };
    (touch, OrderFrame { digest: digest(2), plain_len: 100, place })
}

#[test]
fn has_the_bytes_that_the_documentation_gives() {
    let (touch, frame) = small();
    let second = OrderFrame { place: Place { offset: 98, ..frame.place.clone() }, ..frame.clone() };
    let order = Order::new(Purpose::Resume, vec![touch, Touch { first_block: 5, ..touch }], vec![frame, second]);
    let pack = digest(1);
    let expected = [
        &b"VMNXORD0\x01"[..],
        // Two touches: the second begins five blocks before the first one's end.
        &[2, 0, 14, 3, 20, 0, 9, 3, 0],
        // One pack, two frames: the second right behind the first.
        &[1],
        pack.as_bytes(),
        &[2, 0, 16, 90, 100, 0, 0, 90, 100],
        digest(2).as_bytes(),
        digest(2).as_bytes(),
    ]
    .concat();
    assert_eq!(order.unwrap().encode(), expected);
}

#[test]
fn parts_that_cannot_be_are_refused_before_they_are_written() {
    let (touch, frame) = small();
    let with = |touches: &[Touch], frames: &[OrderFrame]| Order::new(Purpose::Boot, touches.to_vec(), frames.to_vec());
    let bad_touches = [
        Touch { image: IMAGES_MAX, ..touch },
        Touch { blocks: 0, ..touch },
        Touch { first_block: IMAGE_BLOCKS_MAX - 2, ..touch },
        Touch { first_block: u64::MAX, ..touch },
        Touch { after_ms: 19, ..touch },
    ];
    for bad in bad_touches {
        assert!(matches!(with(&[touch, bad], &[]), Err(OrderError::Touch { index: 1, .. })), "{bad:?}");
    }
    let placed = |place| OrderFrame { place, ..frame.clone() };
    let bad_frames = [
        placed(Place { stored_len: 0, ..frame.place }),
        placed(Place { stored_len: 101, ..frame.place }),
        placed(Place { offset: PACK_BYTES_MAX - 89, ..frame.place }),
        placed(Place { offset: u64::MAX, ..frame.place }),
        OrderFrame { plain_len: FRAME_PLAIN_BYTES_MAX + 1, ..frame.clone() },
    ];
    for bad in bad_frames {
        assert!(matches!(with(&[], &[frame.clone(), bad]), Err(OrderError::Frame { index: 1, .. })));
    }
    let many = vec![touch; ORDER_TOUCHES_MAX as usize + 1];
    assert!(matches!(with(&many, &[]), Err(OrderError::Count { what: "touches", .. })));
    let scattered = |pack| OrderFrame { place: Place { pack: digest(pack), ..frame.place }, ..frame.clone() };
    let many: Vec<OrderFrame> = (0..=NODE_PACKS_MAX).map(scattered).collect();
    assert!(matches!(with(&[], &many), Err(OrderError::Count { what: "packs", .. })));
    assert!(with(&[touch], &[frame]).is_ok());
}

#[test]
fn packs_are_listed_once_each_by_first_use() {
    let digests = |packs: &[u32]| packs.iter().flat_map(|&pack| *digest(pack).as_bytes()).collect::<Vec<u8>>();
    let object = |packs: &[u32], uses: [u8; 2]| {
        let head = [&b"VMNXORD0\0\0"[..], &[packs.len() as u8], &digests(packs), &[2]].concat();
        let frames = uses.map(|number| [number, 16, 5, 5]).concat();
        Order::decode(&[head, frames, digests(&[8, 9])].concat())
    };
    assert!(object(&[1, 2], [0, 1]).is_ok());
    for (packs, uses) in [(&[1, 2][..], [1, 0]), (&[1, 1], [0, 1]), (&[1, 2], [0, 0]), (&[1, 2, 3], [0, 1])] {
        assert!(matches!(object(packs, uses), Err(OrderError::Damaged(_))), "{packs:?} {uses:?}");
    }
}

#[test]
fn counts_beyond_the_bytes_are_refused() {
    for tail in [&b"\0\xff\xff\x03"[..], b"\0\0\0\xff\xff\x03", b"\0\0\xff\x3f", b"\x02\0\0\0", b"\0\0\0\0\0"] {
        let bytes = [TAG, tail].concat();
        assert!(matches!(Order::decode(&bytes), Err(OrderError::Damaged(_))), "{tail:?}");
    }
    assert!(Order::decode(b"VMNXORD0\0\0\0\0").unwrap().frames().is_empty());
    assert_eq!(Order::decode(&vec![0; ORDER_BYTES_MAX as usize + 1]), Err(OrderError::TooLarge(ORDER_BYTES_MAX + 1)));
}

fn recorded(touches: &[(u32, &str, u64, u32)]) -> Record {
    let touch = |&(after_ms, image, first_block, blocks): &(u32, &str, u64, u32)| RecordTouch {
        after_ms,
        image: image.to_owned(),
        first_block,
        blocks,
    };
    Record::new(digest(1), Purpose::Boot, touches.iter().map(touch).collect()).unwrap()
}

fn merged(records: &[Record]) -> Vec<(u32, String, u64, u32)> {
    merge(records).unwrap().into_iter().map(Into::into).collect()
}

fn sequence(records: &[Record]) -> Vec<(u64, u32)> {
    merged(records).into_iter().map(|(_, _, first_block, blocks)| (first_block, blocks)).collect()
}

#[test]
fn a_record_is_closed_json() {
    let record = recorded(&[(0, "disk0", 0, 8), (12, "pc.ram", 5, 1)]);
    let text = String::from_utf8(record.encode().unwrap()).unwrap();
    let expected = format!(
        "{{\"vmnetx\":0,\"manifest\":\"{}\",\"purpose\":\"boot\",\"touches\":[[0,\"disk0\",0,8],[12,\"pc.ram\",5,1]]}}\n",
        digest(1)
    );
    assert_eq!(text, expected);
    assert_eq!(Record::decode(text.as_bytes()), Ok(record));
    let refused = |from: &str, to: &str| Record::decode(text.replacen(from, to, 1).as_bytes()).unwrap_err();
    assert_eq!(refused("\"vmnetx\":0", "\"vmnetx\":7"), RecordError::FormatNumber(7));
    for (from, to) in [
        ("\"boot\"", "\"shutdown\""),
        ("\"purpose\"", "\"path\":\"/etc\",\"purpose\""),
        ("[12,\"pc.ram\",5,1]", "[12,\"pc.ram\",5,1,0]"),
        ("[12,\"pc.ram\",5,1]", "[12,\"pc.ram\",-5,1]"),
        ("[12,\"pc.ram\",5,1]", "{\"after_ms\":12,\"image\":\"pc.ram\",\"first_block\":5,\"blocks\":1}"),
    ] {
        assert!(matches!(refused(from, to), RecordError::Json(_)), "{to}");
    }
    for (from, to) in [("[0,", "[13,"), ("5,1]", "5,0]"), ("pc.ram", ""), ("pc.ram", "a b"), ("5,1]", "99999999999,1]")]
    {
        assert!(matches!(refused(from, to), RecordError::Touch { index: 1, .. }), "{to}");
    }
}

#[test]
fn one_record_keeps_its_sequence_and_loses_repetitions() {
    let touches = [(0, "disk0", 100, 8), (3, "disk1", 0, 4), (9, "disk0", 96, 20), (9, "disk0", 104, 4)];
    let expected = [(0, "disk0", 100, 8), (3, "disk1", 0, 4), (9, "disk0", 96, 4), (9, "disk0", 108, 8)]
        .map(|(after_ms, image, first_block, blocks)| (after_ms, image.to_owned(), first_block, blocks));
    assert_eq!(merged(&[recorded(&touches)]), expected);
}

#[test]
fn one_odd_run_does_not_move_what_the_others_agree_on() {
    let usual = recorded(&[(0, "disk0", 10, 1), (5, "disk0", 20, 1), (9, "disk0", 30, 1)]);
    // This one is slow, and checks its file system first.
    let odd = recorded(&[(0, "disk0", 500, 90), (70, "disk0", 30, 1), (80, "disk0", 20, 1), (90, "disk0", 10, 1)]);
    let runs = [usual.clone(), odd.clone(), usual];
    assert_eq!(sequence(&runs), [(10, 1), (20, 1), (30, 1), (500, 90)]);
    assert_eq!(merged(&runs).iter().map(|touch| touch.0).collect::<Vec<_>>(), [0, 5, 9, 9]);
    // Of two runs none is the odd one: the mean of both ranks decides.
    let other = recorded(&[(0, "disk0", 30, 1), (2, "disk0", 10, 1)]);
    let first = recorded(&[(0, "disk0", 10, 1), (2, "disk0", 20, 1), (3, "disk0", 30, 1)]);
    assert_eq!(sequence(&[first, other]), [(10, 1), (20, 1), (30, 1)]);
}

#[test]
fn what_less_than_half_of_the_runs_touched_comes_last() {
    let rare = recorded(&[(0, "disk0", 900, 2), (1, "disk0", 10, 4)]);
    let usual = recorded(&[(0, "disk0", 10, 4), (1, "disk0", 50, 4)]);
    assert_eq!(sequence(&[rare.clone(), usual.clone(), usual.clone()]), [(10, 4), (50, 4), (900, 2)]);
    assert_eq!(sequence(&[rare, usual]), [(900, 2), (10, 4), (50, 4)]);
}

#[test]
fn boots_and_resumes_are_not_merged() {
    let boot = recorded(&[(0, "disk0", 0, 1)]);
    let resume = Record::new(boot.manifest, Purpose::Resume, boot.touches.clone()).unwrap();
    assert_eq!(merge(&[boot.clone(), resume]), Err(MergeError::Purposes));
    assert_eq!(merge(&[]), Err(MergeError::Records(0)));
    assert_eq!(merge(&vec![boot; RECORDS_MAX + 1]), Err(MergeError::Records(RECORDS_MAX + 1)));
}

fn runs() -> impl Strategy<Value = Vec<Record>> {
    let touch = (0_u32..20, prop::sample::select(vec!["disk0", "disk1"]), 0_u64..50, 1_u32..9);
    let run = proptest::collection::vec(touch, 0..12).prop_map(|mut parts| {
        parts.sort_by_key(|part| part.0);
        recorded(&parts)
    });
    proptest::collection::vec(run, 1..6)
}

/// What decides where each block comes in the sequence: whether it is rare, and twice the median of its ranks.
fn model(records: &[Record]) -> BTreeMap<(String, u64), (bool, u64)> {
    let mut ranks: BTreeMap<(String, u64), Vec<u64>> = BTreeMap::new();
    for record in records {
        let mut run: Vec<(String, u64)> = Vec::new();
        for touch in &record.touches {
            for block in touch.first_block..touch.end() {
                let block = (touch.image.clone(), block);
                if !run.contains(&block) {
                    run.push(block);
                }
            }
        }
        for (rank, block) in run.into_iter().enumerate() {
            ranks.entry(block).or_default().push(rank as u64);
        }
    }
    let decide = |mut ranks: Vec<u64>| {
        ranks.sort_unstable();
        let median_doubled = ranks[ranks.len() / 2] + ranks[(ranks.len() - 1) / 2];
        (records.len() >= 3 && ranks.len() * 2 < records.len(), median_doubled)
    };
    ranks.into_iter().map(|(block, ranks)| (block, decide(ranks))).collect()
}

proptest! {
    #[test]
    fn orders_survive(order in order()) {
        let bytes = order.encode();
        prop_assert!(bytes.len() as u64 <= ORDER_BYTES_MAX);
        prop_assert_eq!(Order::decode(&bytes), Ok(order));
    }

    #[test]
    fn an_order_has_one_encoding(order in order(), at: prop::sample::Index, flip in 1_u8..=255, cut in 0_usize..4) {
        let mut bytes = order.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = Order::decode(&bytes) {
            prop_assert_eq!(other.encode(), &bytes[..]);
        }
        bytes[at] ^= flip;
        bytes.truncate(bytes.len() - cut);
        prop_assert_eq!(Order::decode(&bytes).is_ok(), cut == 0);
    }

    #[test]
    fn no_bytes_make_decoders_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let _ = Order::decode(&tail);
        let _ = Order::decode(&[TAG, &tail].concat());
        let _ = Record::decode(text.as_bytes());
    }

    #[test]
    fn merging_is_what_it_is_block_by_block(records in runs()) {
        let touches = merge(&records).unwrap();
        prop_assert!(touches.is_sorted_by_key(|touch| touch.after_ms));
        let model = model(&records);
        let decides = |touch: &RecordTouch| model[&(touch.image.clone(), touch.first_block)];
        prop_assert!(touches.is_sorted_by_key(decides));
        let blocks = |touch: &RecordTouch| {
            let image = touch.image.clone();
            (touch.first_block..touch.end()).map(move |block| (image.clone(), block))
        };
        let mut blocks: Vec<(String, u64)> = touches.iter().flat_map(blocks).collect();
        blocks.sort();
        prop_assert_eq!(blocks, model.into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn records_survive(records in runs()) {
        for record in records {
            prop_assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
        }
    }
}
