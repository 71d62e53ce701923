//! Stores the frames of an order one after the other in packs of their own, and writes the order.

use std::collections::HashMap;
use std::io::Write;

use rayon::prelude::*;
use vmnetx_format::limits::PACK_BYTES_TARGET;
use vmnetx_format::{Digest, Kind, Order, OrderFrame, PackBuilder, Place, Purpose, Touch, order_path, pack_path};
use vmnetx_store::dir::{Publisher, TemporaryObject};

use super::plan::{Needed, needed};
use super::{ORDER_LEVEL_DEFAULT, OrderReport};
use crate::build::Compressors;
use crate::limits::{ORDER_BATCH_BYTES, ORDER_REUSE_PARTS};
use crate::local::{LocalImage, Packs};
use crate::{Error, Progress};

/// What it takes to lay an order out.
#[derive(Clone, Copy)]
pub(crate) struct Lay<'a> {
    pub(crate) publisher: &'a Publisher,
    /// The images of the version that gets the order.
    pub(crate) images: &'a [LocalImage],
    /// zstd level; nothing for the usual one, and for frames that were stored before.
    pub(crate) level: Option<i32>,
    /// Orders of the same package whose frames can be used again.
    pub(crate) earlier: &'a [Order],
    pub(crate) progress: &'a dyn Progress,
}

/// Writes an order of boots with these touches.
pub(crate) fn lay(job: &Lay<'_>, touches: Vec<Touch>) -> Result<OrderReport, Error> {
    let packs = Packs::new(job.publisher.repository().clone());
    let needed = needed(&packs, job.images, &touches)?;
    if needed.is_empty() {
        return Err(Error::EmptyOrder);
    }
    let earlier = earlier(job, &packs);
    let is_there = |frame: &&Needed| earlier.contains_key(&(frame.digest, frame.plain_len));
    let bytes = |frames: &mut dyn Iterator<Item = &Needed>| frames.map(|frame| u64::from(frame.plain_len)).sum::<u64>();
    let (all, there) = (bytes(&mut needed.iter()), bytes(&mut needed.iter().filter(is_there)));
    // A few frames elsewhere cost a boot less than publishing all of it again costs everybody else; many would break the
    // sequence up.
    let in_place = there >= all - all / ORDER_REUSE_PARTS;
    let mut writer = Writer::new(job, &packs, earlier, in_place);
    job.progress.total(all);
    for batch in batches(&needed) {
        writer.write(batch)?;
    }
    let (frames, reused_frames, mut written_bytes) = writer.end()?;
    let stored_bytes = frames.iter().map(|frame| u64::from(frame.place.stored_len)).sum();
    let order = Order { purpose: Purpose::Boot, touches, frames };
    let encoded = order.encode();
    let digest = Digest::of(&encoded);
    let path = order_path(&digest);
    if !job.publisher.repository().root().join(&path).is_file() {
        written_bytes += encoded.len() as u64;
    }
    job.publisher.put(&path, &digest, &encoded)?;
    Ok(OrderReport {
        order: digest,
        touches: order.touches.len() as u64,
        frames: order.frames.len() as u64,
        plain_bytes: all,
        stored_bytes,
        reused_frames,
        written_bytes,
    })
}

/// Frames that lie in the packs of earlier orders, by digest and plain length.
type Earlier = HashMap<(Digest, u32), Place>;

/// What earlier orders have stored, unless the publisher asks for a level. Packs that may be removed soon do not count.
fn earlier(job: &Lay<'_>, packs: &Packs) -> Earlier {
    if job.level.is_some() {
        return Earlier::new();
    }
    let Ok(tombstones) = job.publisher.repository().tombstones() else { return Earlier::new() };
    let frames = job.earlier.iter().flat_map(|order| &order.frames);
    let stays = |frame: &&OrderFrame| {
        let pack = &frame.place.pack;
        tombstones.since_unix_s(&pack_path(pack)).is_none() && packs.has(pack)
    };
    frames.filter(stays).map(|frame| ((frame.digest, frame.plain_len), frame.place.clone())).collect()
}

/// Frames that are read and compressed together.
fn batches(needed: &[Needed]) -> impl Iterator<Item = &[Needed]> {
    let mut rest = needed;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take_while(|frame| {
            let fits = bytes < ORDER_BATCH_BYTES;
            bytes += u64::from(frame.plain_len);
            fits
        });
        let (batch, left) = rest.split_at(count.count());
        rest = left;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Where the bytes of a frame come from.
enum Found {
    /// They were compressed.
    New(Vec<u8>),
    /// An earlier order has them, in a pack that is left.
    Copied(Vec<u8>),
    /// They stay in the pack of an earlier order.
    InPlace(Place),
}

struct Writer<'a> {
    publisher: &'a Publisher,
    packs: &'a Packs,
    progress: &'a dyn Progress,
    compressors: Compressors,
    earlier: Earlier,
    in_place: bool,
    open: Option<(PackBuilder, TemporaryObject<'a>)>,
    /// The frames so far, and whether each lies in the open pack, whose digest is not known yet.
    frames: Vec<(OrderFrame, bool)>,
    reused_frames: u64,
    written_bytes: u64,
}

impl<'a> Writer<'a> {
    /// `in_place`: whether frames of earlier orders stay where they are.
    fn new(job: &Lay<'a>, packs: &'a Packs, earlier: Earlier, in_place: bool) -> Self {
        Self {
            publisher: job.publisher,
            packs,
            progress: job.progress,
            compressors: Compressors::new(job.level.unwrap_or(ORDER_LEVEL_DEFAULT)),
            earlier,
            in_place,
            open: None,
            frames: Vec::new(),
            reused_frames: 0,
            written_bytes: 0,
        }
    }

    fn write(&mut self, batch: &[Needed]) -> Result<(), Error> {
        let found = batch.par_iter().map(|frame| self.find(frame)).collect::<Result<Vec<_>, _>>()?;
        for (frame, found) in batch.iter().zip(found) {
            self.progress.advance(frame.plain_len.into());
            self.reused_frames += u64::from(!matches!(found, Found::New(_)));
            match found {
                Found::New(stored) | Found::Copied(stored) => self.push(frame, &stored)?,
                Found::InPlace(place) => {
                    let Needed { digest, plain_len, .. } = *frame;
                    self.frames.push((OrderFrame { digest, plain_len, place }, false));
                }
            }
        }
        Ok(())
    }

    /// Takes a frame from an earlier order, or compresses it.
    fn find(&self, frame: &Needed) -> Result<Found, Error> {
        let unreadable = |damage| Error::Object { object: pack_path(&frame.place.pack), source: Box::new(damage) };
        if let Some(place) = self.earlier.get(&(frame.digest, frame.plain_len)) {
            // A damaged one is made anew.
            match self.packs.stored_frame(place, frame.plain_len, &frame.digest) {
                Ok(_) if self.in_place => return Ok(Found::InPlace(place.clone())),
                Ok((stored, _)) => return Ok(Found::Copied(stored)),
                Err(_) => {}
            }
        }
        let (_, plain) = self.packs.stored_frame(&frame.place, frame.plain_len, &frame.digest).map_err(unreadable)?;
        self.compressors.encode(&plain).map(Found::New)
    }

    fn push(&mut self, frame: &Needed, stored: &[u8]) -> Result<(), Error> {
        let full = |builder: &PackBuilder| builder.is_full() || builder.len() + stored.len() as u64 > PACK_BYTES_TARGET;
        if self.open.as_ref().is_some_and(|(builder, _)| full(builder)) {
            self.finish()?;
        }
        let (builder, out) = match &mut self.open {
            Some(open) => open,
            None => {
                let mut out = self.publisher.temporary()?;
                out.write_all(PackBuilder::HEADER).map_err(written)?;
                self.open.insert((PackBuilder::new(), out))
            }
        };
        let Needed { digest, plain_len, .. } = *frame;
        let offset = builder.push(Kind::Copy, digest, plain_len, stored);
        out.write_all(stored).map_err(written)?;
        let place = Place { pack: digest, offset, stored_len: stored.len() as u32 };
        self.frames.push((OrderFrame { digest, plain_len, place }, true));
        Ok(())
    }

    /// Ends the open pack, if there is one, and enters its digest where it is missing.
    fn finish(&mut self) -> Result<(), Error> {
        let Some((builder, mut out)) = self.open.take() else { return Ok(()) };
        let frames_bytes = builder.len();
        let (footer, digest) = builder.finish().map_err(Error::Compress)?;
        out.write_all(&footer).map_err(written)?;
        let path = pack_path(&digest);
        if !self.publisher.repository().root().join(&path).is_file() {
            self.written_bytes += frames_bytes + footer.len() as u64;
        }
        out.commit(&path, &digest)?;
        for (frame, is_open) in self.frames.iter_mut().rev().filter(|(_, is_open)| *is_open) {
            frame.place.pack = digest;
            *is_open = false;
        }
        Ok(())
    }

    /// The frames with their places, how many were there before, and the bytes that were written.
    fn end(mut self) -> Result<(Vec<OrderFrame>, u64, u64), Error> {
        self.finish()?;
        let frames = self.frames.into_iter().map(|(frame, _)| frame).collect();
        Ok((frames, self.reused_frames, self.written_bytes))
    }
}

fn written(source: std::io::Error) -> Error {
    Error::File { action: "write", path: "a pack of the repository".into(), source }
}
