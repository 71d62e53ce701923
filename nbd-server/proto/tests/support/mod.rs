//! A small server on the codec, for tests: one image in memory, one task per connection, replies in the order of the
//! requests.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vmnetx_nbd_proto::handshake::{BlockSize, Config, ExportInfo, Exports, Handshake, Listed, Progress, Session};
use vmnetx_nbd_proto::reply::{self, Extent};
use vmnetx_nbd_proto::request::{Checked, Geometry, Request, Requests};
use vmnetx_nbd_proto::wire::{BASE_ALLOCATION, ChunkFlags, Cookie, RESIDENCY, StatusFlags, TransmissionFlags};

const BLOCK: u64 = 4096;

/// An image, and its runs of zero blocks as holes.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
}

impl Image {
    /// Some megabytes with data, holes, and an end off the blocks.
    pub(crate) fn sample() -> Self {
        let mut bytes: Vec<u8> = (0..6 << 20).map(|i: u32| (i ^ (i >> 9)) as u8 | 1).collect();
        bytes[1 << 20..3 << 20].fill(0);
        bytes[0x40_0000..0x40_1000].fill(0);
        bytes.extend(b"end");
        Self { bytes }
    }

    /// Runs of data (`false`) and holes (`true`) in a range.
    pub(crate) fn runs(&self, offset: u64, length: u32) -> Vec<(u64, u32, bool)> {
        let mut runs: Vec<(u64, u32, bool)> = Vec::new();
        let (mut at, end) = (offset, offset + u64::from(length));
        while at < end {
            let next = end.min((at / BLOCK + 1) * BLOCK);
            let hole = self.slice(at, (next - at) as u32).iter().all(|b| *b == 0);
            match runs.last_mut() {
                Some((_, length, last)) if *last == hole => *length += (next - at) as u32,
                _ => runs.push((at, (next - at) as u32, hole)),
            }
            at = next;
        }
        runs
    }

    pub(crate) fn slice(&self, offset: u64, length: u32) -> &[u8] {
        &self.bytes[offset as usize..][..length as usize]
    }
}

impl Exports for Image {
    type Handle = ();

    fn find(&self, name: &str) -> Option<(ExportInfo, ())> {
        let info = ExportInfo {
            name: "disk0".to_owned(),
            description: "a sample".to_owned(),
            size_bytes: self.bytes.len() as u64,
            flags: TransmissionFlags::READ_ONLY
                | TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF
                | TransmissionFlags::SEND_CACHE
                | TransmissionFlags::CAN_MULTI_CONN,
            block_size: BlockSize::default(),
            contexts: vec![BASE_ALLOCATION.to_owned(), RESIDENCY.to_owned()],
        };
        matches!(name, "" | "disk0").then_some((info, ()))
    }

    fn list(&self) -> Vec<Listed> {
        let (info, ()) = self.find("").into_iter().next().unwrap();
        vec![Listed { name: info.name, description: info.description }]
    }
}

/// Negotiates; `None` if the client left.
pub(crate) async fn negotiate<S>(stream: &mut S, input: &mut BytesMut, image: &Image) -> io::Result<Option<Session<()>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut output = BytesMut::new();
    let mut handshake = Handshake::new(Config::default());
    loop {
        let progress = handshake.advance(input, image, &mut output);
        stream.write_all_buf(&mut output).await?;
        match progress {
            Progress::NeedInput if stream.read_buf(input).await? == 0 => return Ok(None),
            Progress::NeedInput | Progress::Continue => {}
            Progress::Transmission(session) => return Ok(Some(session)),
            Progress::Aborted => return Ok(None),
            Progress::Refused(error) => return Err(io::Error::other(error)),
            Progress::StartTls => unreachable!("TLS is not on offer"),
        }
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve<S>(mut stream: S, image: &Image) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let Some(session) = negotiate(&mut stream, &mut input, image).await? else {
        return Ok(());
    };
    let geometry = session.geometry();
    let mut requests = Requests::new();
    let mut output = BytesMut::new();
    loop {
        while let Some(request) = requests.next(&mut input).map_err(io::Error::other)? {
            if !answer(image, &session, &geometry, &request, &mut output) {
                return stream.write_all_buf(&mut output).await;
            }
        }
        stream.write_all_buf(&mut output).await?;
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

/// Appends the reply; `false` to close.
fn answer(image: &Image, session: &Session<()>, geometry: &Geometry, request: &Request, output: &mut BytesMut) -> bool {
    let cookie = request.cookie;
    let structured = session.structured;
    match request.check(geometry) {
        Err(refusal) if structured => {
            let text = refusal.to_string();
            reply::error(output, cookie, ChunkFlags::DONE, refusal.error(), &text);
        }
        Err(refusal) => reply::simple(output, cookie, Some(refusal.error())),
        Ok(Checked::Disconnect) => return false,
        Ok(Checked::Read { offset, length, whole }) => read(image, structured, cookie, (offset, length), whole, output),
        Ok(Checked::BlockStatus { offset, length, one_extent }) => {
            for context in &session.contexts {
                // All data is remote.
                let flags = |hole: bool| match (&context.name[..], hole) {
                    (BASE_ALLOCATION, true) => StatusFlags::HOLE | StatusFlags::ZERO,
                    (RESIDENCY, false) => StatusFlags::REMOTE,
                    _ => StatusFlags::EMPTY,
                };
                let runs = image.runs(offset, length).into_iter();
                let mut extents: Vec<_> = runs.map(|(_, length, hole)| Extent { length, flags: flags(hole) }).collect();
                if one_extent {
                    extents.truncate(1);
                }
                reply::block_status(output, cookie, ChunkFlags::EMPTY, context.id, &extents);
            }
            reply::done(output, cookie);
        }
        Ok(Checked::Flush | Checked::Cache { .. }) if structured => reply::done(output, cookie),
        Ok(Checked::Flush | Checked::Cache { .. }) => reply::simple(output, cookie, None),
        Ok(checked) => {
            unreachable!("a read-only export lets {checked:?} through");
        }
    }
    true
}

fn read(
    image: &Image,
    structured: bool,
    cookie: Cookie,
    (offset, length): (u64, u32),
    whole: bool,
    output: &mut BytesMut,
) {
    if !structured {
        reply::simple(output, cookie, None);
        output.extend_from_slice(image.slice(offset, length));
        return;
    }
    let runs = match whole && length > 0 {
        true => vec![(offset, length, false)],
        false => image.runs(offset, length),
    };
    for (offset, length, hole) in runs {
        if hole {
            reply::hole(output, cookie, ChunkFlags::EMPTY, offset, length);
        } else {
            reply::data_header(output, cookie, ChunkFlags::EMPTY, offset, length);
            output.extend_from_slice(image.slice(offset, length));
        }
    }
    reply::done(output, cookie);
}
