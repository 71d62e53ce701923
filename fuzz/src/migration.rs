//! QEMU's migration stream, what its target sends back, and libvirt's save files.

use std::collections::BTreeMap;
use std::io::Read;

use vmnetx_format::limits::STREAM_BUFFER_BYTES;
use vmnetx_format::migration::{
    Block, DeviceState, PAGE_BYTES, Page, PageAt, Precopy, ReturnMessage, ReturnPath, SaveFile, SaveFileError,
    StreamError, StreamReader, StreamWriter,
};

use crate::format::json_allocation_max;
use crate::{assert_printable, bounded};

type Pages = BTreeMap<PageAt, Option<Vec<u8>>>;

/// A saved VM.
pub fn migration_stream(data: &[u8]) {
    let bytes_max = STREAM_BUFFER_BYTES + json_allocation_max(data.len());
    let result = bounded(bytes_max, || StreamReader::new(data).and_then(StreamReader::finish));
    match result.and_then(|_| read(data)) {
        Ok((stream, pages, device_state)) => {
            let mut out = Vec::new();
            let blocks = stream.blocks().to_vec();
            let mut writer = StreamWriter::<Precopy>::start(stream.configuration(), blocks, &mut out).unwrap();
            for (at, bytes) in &pages {
                match bytes {
                    Some(bytes) => writer.page(*at, bytes.first_chunk().unwrap(), &mut out).unwrap(),
                    None => writer.zero_page(*at, &mut out).unwrap(),
                }
            }
            writer.finish(&device_state, &mut out);
            let (again, again_pages, again_state) = read(&out[..]).unwrap();
            assert_eq!((again.configuration(), again.blocks()), (stream.configuration(), stream.blocks()));
            assert_eq!((again_pages, again_state), (pages, device_state));
        }
        Err(error) => assert_printable(&error),
    }
}

fn read<R: Read + Copy>(source: R) -> Result<(StreamReader<R>, Pages, DeviceState), StreamError> {
    let mut reader = StreamReader::new(source)?;
    let mut pages = Pages::new();
    while let Some(page) = reader.next_page()? {
        let (at, bytes) = match page {
            Page::Zero(at) => (at, None),
            Page::Data(at, bytes) => (at, Some(bytes.to_vec())),
        };
        let size_bytes = reader.blocks()[at.block].size_bytes;
        assert!(at.offset_bytes.is_multiple_of(PAGE_BYTES as u64) && at.offset_bytes < size_bytes);
        pages.insert(at, bytes);
    }
    Ok((StreamReader::new(source)?, pages, reader.finish()?))
}

/// What the target of a postcopy migration says.
pub fn return_path(data: &[u8]) {
    let blocks = vec![Block::new("pc.ram", 64 << 20), Block::new("a", PAGE_BYTES as u64)];
    let mut path = ReturnPath::new(blocks.clone());
    let mut rest = data;
    loop {
        match path.decode(rest) {
            Ok(Some((message, length))) => {
                assert!(length <= rest.len() && length <= ReturnPath::MESSAGE_BYTES_MAX);
                assert_eq!(path.clone().decode(&rest[..length - 1]), Ok(None), "no message is shorter than it is");
                if let ReturnMessage::Pages(range) = message {
                    assert!(range.length_bytes > 0);
                    assert!(range.start_bytes + range.length_bytes <= blocks[range.block].size_bytes);
                }
                rest = &rest[length..];
            }
            Ok(None) => break assert!(rest.len() < ReturnPath::MESSAGE_BYTES_MAX, "the longest message is all there"),
            Err(error) => break assert_printable(&error),
        }
    }
}

/// The head of a libvirt save file, and a file whose data are as long as the bytes are.
pub fn libvirt_save(data: &[u8]) {
    saved_domain(data);
    if let Some((head, rest)) = data.split_at_checked(92) {
        let mut whole = head.to_vec();
        whole[16..20].copy_from_slice(&2_u32.to_le_bytes());
        whole[20..24].copy_from_slice(&(rest.len() as u32).to_le_bytes());
        whole.extend(rest);
        saved_domain(&whole);
    }
}

fn saved_domain(data: &[u8]) {
    match bounded(4 * data.len() + (64 << 10), || SaveFile::read(&mut &data[..])) {
        Ok(file) => {
            assert!(SaveFile::is_head(data));
            let written = file.encode().unwrap();
            assert_eq!(SaveFile::read(&mut &written[..]).unwrap(), file);
        }
        Err(SaveFileError::NotASaveFile) => assert!(!SaveFile::is_head(data)),
        Err(error) => assert_printable(&error),
    }
}
