//! Heads of libvirt's save files.

use crate::limits::SAVE_FILE_DATA_BYTES_MAX;
use crate::migration::{Compression, SaveFile, SaveFileError};

fn sample() -> SaveFile {
    SaveFile {
        xml: "<domain type='kvm'><name>vm</name></domain>\n".to_owned(),
        cookie: Some("<qemusave/>".to_owned()),
        was_running: true,
        compression: Compression::Zstd,
    }
}

fn words(words: &[u32], data: &[u8]) -> Vec<u8> {
    let mut head = b"LibvirtQemudSave".to_vec();
    head.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    head.resize(92, 0);
    [&head, data].concat()
}

fn refused(bytes: &[u8]) -> SaveFileError {
    SaveFile::read(&mut &bytes[..]).unwrap_err()
}

#[test]
fn a_head_is_read_as_it_was_written_and_the_stream_follows() {
    for cookie in [sample().cookie, None] {
        for (number, compression) in [
            Compression::Raw,
            Compression::Gzip,
            Compression::Bzip2,
            Compression::Xz,
            Compression::Lzop,
            Compression::Zstd,
        ]
        .into_iter()
        .enumerate()
        {
            let file = SaveFile { cookie: cookie.clone(), compression, ..sample() };
            let mut bytes = file.encode().unwrap();
            assert!(SaveFile::is_head(&bytes));
            assert_eq!(bytes[28..32], (number as u32).to_ne_bytes());
            bytes.extend(b"QEVM");
            let mut rest = &bytes[..];
            assert_eq!(SaveFile::read(&mut rest).unwrap(), file);
            assert_eq!(rest, b"QEVM");
        }
    }
}

#[test]
fn a_head_has_the_lengths_that_libvirt_9_gives_it() {
    let SaveFile { xml, cookie, .. } = sample();
    let (xml_bytes, cookie_bytes) = (xml.len() as u32 + 1, cookie.unwrap().len() as u32 + 1);
    let expected = [2, xml_bytes + cookie_bytes + 65536, 1, 5, xml_bytes];
    let bytes = sample().encode().unwrap();
    let words: Vec<u32> = bytes[16..36].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, expected);
    assert_eq!(bytes.len() as u32, 92 + expected[1]);
}

#[test]
fn other_byte_orders_and_the_first_version_are_read() {
    let xml = b"<domain/>\0\0\0";
    let file = SaveFile::read(&mut &words(&[2, 12, 0, 4, 0], xml)[..]).unwrap();
    assert_eq!((file.xml.as_str(), file.was_running, file.compression), ("<domain/>", false, Compression::Lzop));
    let swapped: Vec<u32> = [2, 12, 1, 3, 0_u32].iter().map(|word| word.swap_bytes()).collect();
    let file = SaveFile::read(&mut &words(&swapped, xml)[..]).unwrap();
    assert_eq!((file.was_running, file.compression), (true, Compression::Xz));
    // What version 1 had in these places was not set.
    let file = SaveFile::read(&mut &words(&[1, 12, 1, 77, 99], xml)[..]).unwrap();
    assert_eq!((file.compression, file.cookie), (Compression::Raw, None));
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let xml = b"<domain/>\0";
    assert!(matches!(refused(&words(&[2, 10, 1, 6, 0], xml)), SaveFileError::Sparse));
    assert!(refused(&words(&[2, 10, 1, 6, 0], xml)).hint().is_some());
    assert!(matches!(refused(&words(&[2, 10, 1, 7, 0], xml)), SaveFileError::Compression(7)));
    assert!(matches!(refused(&words(&[3, 10, 1, 0, 0], xml)), SaveFileError::Version(3)));
    assert!(matches!(refused(&words(&[2, 0, 1, 0, 0], xml)), SaveFileError::DataBytes(0)));
    let huge = SAVE_FILE_DATA_BYTES_MAX + 1;
    assert!(matches!(refused(&words(&[2, huge, 1, 0, 0], xml)), SaveFileError::DataBytes(_)));
    let partial = [b"LibvirtQemudPart", &words(&[2, 10, 1, 0, 0], xml)[16..]].concat();
    assert!(matches!(refused(&partial), SaveFileError::Partial));
    assert!(matches!(refused(&[0; 92]), SaveFileError::NotASaveFile));
    assert!(!SaveFile::is_head(b"QEVM"));
}

#[test]
fn heads_that_lie_are_refused() {
    let xml = b"<domain/>\0";
    for cookie_at in [10, 11, u32::MAX] {
        assert!(
            matches!(refused(&words(&[2, 10, 1, 0, cookie_at], xml)), SaveFileError::Cookie(at) if at == cookie_at)
        );
    }
    for data in [&b"\0\0\0\0"[..], b"abcd", b"a\0b\0", b"\xff\xff\0\0"] {
        assert!(matches!(refused(&words(&[2, 4, 1, 0, 0], data)), SaveFileError::Text("XML")), "{data:?}");
    }
    assert!(matches!(refused(&words(&[2, 4, 1, 0, 2], b"a\0bc")), SaveFileError::Text("cookie")));
    let whole = sample().encode().unwrap();
    for length in (0..200).chain([whole.len() - 1]) {
        assert!(matches!(refused(&whole[..length]), SaveFileError::Truncated(_)), "{length} bytes");
    }
}

#[test]
fn texts_that_cannot_be_written_are_refused() {
    let xml = |xml: &str| SaveFile { xml: xml.to_owned(), ..sample() }.encode();
    assert!(matches!(xml(""), Err(SaveFileError::Text("XML"))));
    assert!(matches!(xml("a\0b"), Err(SaveFileError::Text("XML"))));
    assert!(matches!(xml(&"a".repeat(SAVE_FILE_DATA_BYTES_MAX as usize)), Err(SaveFileError::DataBytes(_))));
    let cookie = SaveFile { cookie: Some(String::new()), ..sample() };
    assert!(matches!(cookie.encode(), Err(SaveFileError::Text("cookie"))));
}
