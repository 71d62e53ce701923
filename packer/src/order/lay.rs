//! Lays an order out: copies its frames, in sequence and at a high level, into packs of their own, and writes the object.

use std::collections::HashSet;
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;
use vmnetx_format::{Digest, Kind, Order, OrderFrame, Place, order_path, pack_path};
use vmnetx_store::dir::Publisher;

use super::plan::{Plan, Planned};
use super::reuse::reuse;
use super::{LaidOrder, OrderInfo, Wanted};
use crate::build::{Compressors, PackTable, PackWriter, seal_all};
use crate::catalogue::Stored;
use crate::limits::{ORDER_BATCH_BYTES, SEALS_WAITING};
use crate::local::{LocalImage, Packs};
use crate::{Error, Progress};

/// How orders are laid out.
pub(crate) struct Laying<'a> {
    pub(crate) publisher: &'a Publisher,
    /// zstd level of the frames that are written.
    pub(crate) level: i32,
    /// Packs to which no order shall lead any more.
    pub(crate) without: &'a HashSet<Digest>,
    pub(crate) progress: &'a dyn Progress,
}

impl Laying<'_> {
    /// Lays out the orders that a version of these images is to have. Everything is on its way to the disk then, for the
    /// link to name it.
    ///
    /// # Errors
    /// [`Error`] when something cannot be read or written, or an order is larger than orders may be.
    pub(crate) fn all(&self, images: &[LocalImage], wanted: &[Wanted]) -> Result<Vec<LaidOrder>, Error> {
        wanted.iter().map(|order| self.one(images, order)).collect()
    }

    fn one(&self, images: &[LocalImage], wanted: &Wanted) -> Result<LaidOrder, Error> {
        let repository = self.publisher.repository();
        let packs = Packs::new(repository.clone());
        let Plan { touches, frames, .. } = Plan::make(&packs, images, &wanted.touches)?;
        let reused = reuse(repository, &frames, wanted.earlier.as_ref(), self.without)?;
        let reused_bytes = reused.iter().flatten().map(|place| u64::from(place.stored_len)).sum();
        let (places, pack_bytes) = self.write(&packs, &frames, reused)?;
        let frame =
            |(frame, place): (Planned, Place)| OrderFrame { digest: frame.digest, plain_len: frame.plain_len, place };
        let order = Order::new(wanted.purpose, touches, frames.into_iter().zip(places).map(frame).collect())?;
        let object = order.encode();
        let digest = Digest::of(&object);
        let is_new = wanted.earlier.as_ref() != Some(&order);
        self.publisher.put(&order_path(&digest), &digest, &object)?;
        Ok(LaidOrder {
            info: OrderInfo::new(digest, &order),
            reused_bytes,
            written_bytes: pack_bytes + if is_new { object.len() as u64 } else { 0 },
        })
    }

    /// Writes the frames that have no place; gives the places of all, and the bytes of the packs.
    fn write(&self, packs: &Packs, frames: &[Planned], reused: Vec<Option<Place>>) -> Result<(Vec<Place>, u64), Error> {
        let new: Vec<&Planned> =
            frames.iter().zip(&reused).filter(|(_, place)| place.is_none()).map(|(frame, _)| frame).collect();
        let (mut stored, table, bytes) = if new.is_empty() {
            (Vec::new().into_iter(), PackTable::new(&[]), 0)
        } else {
            let (stored, table, bytes) = self.write_new(packs, &new)?;
            (stored.into_iter(), table, bytes)
        };
        let place = |place: Option<Place>| match place {
            Some(place) => Ok(place),
            None => {
                let Stored { pack, offset, stored_len } = stored.next().ok_or(Error::Stopped)?;
                let pack = table.digest(pack).ok_or(Error::Stopped)?;
                Ok(Place { pack, offset: offset.into(), stored_len })
            }
        };
        Ok((reused.into_iter().map(place).collect::<Result<_, Error>>()?, bytes))
    }

    fn write_new(&self, packs: &Packs, frames: &[&Planned]) -> Result<(Vec<Stored>, PackTable, u64), Error> {
        self.progress.total(frames.iter().map(|frame| u64::from(frame.plain_len)).sum());
        let (sealer, sealed) = sync_channel(SEALS_WAITING);
        std::thread::scope(|scope| {
            let sealing = scope.spawn(|| seal_all(sealed));
            let mut writer = PackWriter::new(self.publisher, sealer);
            let written = self.append_all(packs, frames, &mut writer);
            let bytes = writer.written_bytes();
            // The sealer ends when nobody can give it packs any more.
            drop(writer);
            let sealed = sealing.join().unwrap_or(Err(Error::Stopped));
            // The first cause counts: a writer that found the sealer gone says no more than that.
            sealed?;
            let (stored, table) = written?;
            Ok((stored, table, bytes))
        })
    }

    /// Compresses one batch after the other, each on all processors, so that memory is bounded.
    fn append_all(
        &self,
        packs: &Packs,
        frames: &[&Planned],
        writer: &mut PackWriter<'_>,
    ) -> Result<(Vec<Stored>, PackTable), Error> {
        let mut table = PackTable::new(&[]);
        let compressors = Compressors::new(self.level);
        let mut stored = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(batch_len(rest));
            rest = behind;
            let encode = |frame: &&Planned| {
                let plain = packs.frame(&frame.place, frame.plain_len, &frame.digest).map_err(|damage| {
                    Error::Object { object: pack_path(&frame.place.pack), source: Box::new(damage) }
                })?;
                compressors.encode(&plain)
            };
            let encoded = batch.par_iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
            for (frame, bytes) in batch.iter().zip(encoded) {
                writer.keep_together(&mut table, bytes.len() as u64)?;
                stored.push(writer.append(&mut table, Kind::Copy, frame.digest, frame.plain_len, &bytes)?);
                self.progress.advance(frame.plain_len.into());
            }
        }
        writer.finish(&mut table)?;
        Ok((stored, table))
    }
}

/// How many of the frames make a batch: one at least.
fn batch_len(frames: &[&Planned]) -> usize {
    let mut bytes = 0;
    let fits = |frame: &&&Planned| {
        bytes += u64::from(frame.plain_len);
        bytes <= ORDER_BATCH_BYTES
    };
    frames.iter().take_while(fits).count().max(1)
}
