//! Packs: frames that are bombs, forged or torn, and catalogues that lie.

use vmnetx_format::{Digest, Trailer};

use super::evil::{CHUNK_BLOCKS, Evil, Stage, chunks, varint};
use super::readers::{Reader, Scratch, Serving, says};
use super::refused_by;

const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// A zstd block of 128 KiB that is one byte, repeated (RFC 8878, 3.1.1.2).
fn repeated_block(last: bool) -> [u8; 4] {
    let header = (128 << 10 << 3 | 1 << 1 | u32::from(last)).to_le_bytes();
    [header[0], header[1], header[2], b'!']
}

/// A zstd frame of this header, with as many blocks of 128 KiB.
fn frame(header: &[u8], blocks: usize) -> Vec<u8> {
    let mut frame = [&ZSTD_MAGIC, header].concat();
    (1..=blocks).for_each(|number| frame.extend(repeated_block(number == blocks)));
    frame
}

#[test]
fn frames_that_are_bombs_or_forged_fail_one_chunk_and_take_no_memory() {
    let plain_len = chunks()[0].len();
    let bomb = frame(&[0, 0x70], 16_000);
    assert!(bomb.len() < plain_len, "a frame that is longer than the chunk is refused for that alone");
    let cases: [(&str, Vec<u8>); 10] = [
        ("2 GiB in 64 KiB", bomb),
        ("one block too many", frame(&[0, 0x70], 1)),
        // The window descriptor's largest: 2^41 * 15/8 bytes.
        ("a window of 4 TiB", frame(&[0, 0xff], 1)),
        ("a content of 2^64 bytes", frame(&[[0xe0].as_slice(), &[0xff; 8]].concat(), 1)),
        ("a content of 4 GiB", frame(&[[0xa0].as_slice(), &[0xff; 4]].concat(), 1)),
        ("a dictionary", frame(&[3, 0x70, 1, 2, 3, 4], 1)),
        ("a reserved bit", frame(&[8, 0x70], 1)),
        ("a frame to be skipped, of 4 GiB", [&0x184d_2a50_u32.to_le_bytes()[..], &[0xff; 4]].concat()),
        ("an end in the middle", frame(&[0, 0x70], 1)[..7].to_vec()),
        ("no frame", b"nothing of the kind".to_vec()),
    ];
    for (case, bytes) in cases {
        let evil = Evil::at(Stage::Frame, |frame, _| *frame = bytes.clone());
        let words = ["disk0", "decompress"];
        refused_by(&[Reader::Verify, Reader::Export], &evil, case, &words);
        let serving = Serving::start(&evil);
        assert!(serving.read(0, 512).is_err(), "{case}");
        // The chunk beside it is none the worse.
        assert_eq!(serving.read(32 * 4096, CHUNK_BLOCKS[1] * 4096).as_ref(), Ok(&chunks()[1]), "{case}");
        let told = serving.stop();
        assert!(says(&told.text, &["packs/", "decompress"]), "{case}: {}", told.text);
    }
}

/// A pack with another catalogue, stored as zstd makes it, and a trailer that tells the truth about it but for `edit`.
fn recatalogued(pack: &mut Vec<u8>, plain: &[u8], edit: impl FnOnce(&mut Trailer)) {
    let end = pack.len() - Trailer::BYTES;
    let trailer = Trailer::decode(pack[end..].first_chunk().unwrap(), pack.len() as u64).unwrap();
    pack.truncate(end - trailer.stored_len as usize);
    let stored = vmnetx_format::Compressor::new(3).unwrap().encode(plain).unwrap();
    let mut trailer =
        Trailer { stored_len: stored.len() as u32, plain_len: plain.len() as u32, digest: Digest::of(plain) };
    edit(&mut trailer);
    pack.extend(stored);
    pack.extend(trailer.stored_len.to_le_bytes());
    pack.extend(trailer.plain_len.to_le_bytes());
    pack.extend(trailer.digest.as_bytes());
    pack.extend(b"VMNXEND0");
}

/// A catalogue of entries of one kind and length.
fn catalogue(count: u64, entries: usize, kind: u8, lengths: [u64; 2]) -> Vec<u8> {
    let entry = [vec![kind], varint(lengths[0]), varint(lengths[1])].concat();
    [varint(count), entry.repeat(entries), vec![0; 32 * entries]].concat()
}

#[test]
fn catalogues_that_lie_are_found_by_verify() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, Change, &str); 13] = [
        ("another head", |pack| pack[3] ^= 1, "begin"),
        ("no end", |pack| pack.truncate(pack.len() - 1), "end in a pack's trailer"),
        ("less than a trailer", |pack| pack.truncate(40), "end in a pack's trailer"),
        ("nothing", Vec::clear, "end in a pack's trailer"),
        ("more frames than there may be", |pack| recatalogued(pack, &varint(u64::MAX), |_| ()), "number of frames"),
        (
            "frames that are not there",
            |pack| recatalogued(pack, &catalogue(1 << 18, 2, 0, [4096, 100]), |_| ()),
            "too early",
        ),
        (
            // A few hundred bytes that would be 2^18 entries in memory.
            "frames of no bytes",
            |pack| recatalogued(pack, &catalogue(1 << 18, 1 << 18, 0, [0, 0]), |_| ()),
            "stored length is 0",
        ),
        ("an unknown kind", |pack| recatalogued(pack, &catalogue(1, 1, 4, [4096, 1]), |_| ()), "tag"),
        ("a frame of 4 GiB", |pack| recatalogued(pack, &catalogue(1, 1, 0, [1 << 32, 1]), |_| ()), "plain length"),
        ("frames that do not add up", |pack| recatalogued(pack, &catalogue(2, 2, 0, [4096, 100]), |_| ()), "add up"),
        (
            "a catalogue of 4 GiB",
            |pack| recatalogued(pack, &catalogue(2, 2, 0, [4096, 100]), |trailer| trailer.plain_len = u32::MAX),
            "trailer",
        ),
        (
            "a catalogue larger than its pack",
            |pack| recatalogued(pack, &catalogue(2, 2, 0, [4096, 100]), |trailer| trailer.stored_len = u32::MAX),
            "trailer",
        ),
        (
            "a catalogue that is a bomb",
            |pack| {
                let plain = catalogue(1 << 18, 1 << 18, 0, [4096, 1]);
                recatalogued(pack, &plain, |trailer| trailer.plain_len = 4096);
            },
            "decompress",
        ),
    ];
    for (case, change, words) in cases {
        let evil = Evil::at(Stage::Pack, |pack, _| change(pack));
        refused_by(&[Reader::Verify], &evil, case, &["packs/", words]);
    }
}

#[test]
fn readers_of_data_do_not_depend_on_catalogues() {
    let evil = Evil::at(Stage::Pack, |pack, _| recatalogued(pack, &catalogue(1, 1, 0, [0, 0]), |_| ()));
    let scratch = Scratch::new();
    assert_eq!(scratch.run(Reader::Export, evil.link().to_str().unwrap()).code, Some(0));
    let exported = std::fs::read(scratch.path().join("out")).unwrap();
    assert!(exported.starts_with(&chunks()[0]) && exported[32 * 4096..].starts_with(&chunks()[1]));
}
