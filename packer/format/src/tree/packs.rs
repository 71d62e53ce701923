//! The table of packs at the head of what says where frames are stored.

use std::collections::HashMap;

use crate::Digest;
use crate::limits::{NODE_PACKS_MAX, PACK_BYTES_MAX};
use crate::wire::{Reader, WireError, put_varint, put_zigzag};

/// The packs that a layout node or an order names, with the end of what was last placed in each: frames mostly follow one
/// another, so an offset is stored as its distance from there.
pub(crate) struct Packs {
    packs: Vec<(Digest, u64)>,
    numbers: HashMap<Digest, usize>,
}

impl Packs {
    pub(crate) const fn len(&self) -> usize {
        self.packs.len()
    }

    pub(crate) fn collect(packs: impl Iterator<Item = Digest>, out: &mut Vec<u8>) -> Self {
        let mut table = Self { packs: Vec::new(), numbers: HashMap::new() };
        for pack in packs {
            table.numbers.entry(pack).or_insert_with(|| {
                table.packs.push((pack, 0));
                table.packs.len() - 1
            });
        }
        put_varint(out, table.packs.len() as u64);
        out.extend(table.packs.iter().flat_map(|(pack, _)| pack.as_bytes()));
        table
    }

    /// Whether these are the packs that [`Self::collect`] would list for frames in `places`: each once, by first use.
    pub(crate) fn lists_just(&self, places: impl Iterator<Item = Digest>) -> bool {
        let just = Self::collect(places, &mut Vec::new());
        just.packs.iter().map(|(pack, _)| pack).eq(self.packs.iter().map(|(pack, _)| pack))
    }

    pub(crate) fn put(&mut self, out: &mut Vec<u8>, pack: Digest, offset: u64, stored_len: u64) {
        let number = self.numbers[&pack];
        let end = &mut self.packs[number].1;
        put_varint(out, number as u64);
        put_zigzag(out, offset.wrapping_sub(*end) as i64);
        *end = offset + stored_len;
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let count = reader.bounded_u32("the number of packs", NODE_PACKS_MAX)?;
        let packs = (0..count).map(|_| Ok((reader.digest()?, 0))).collect::<Result<_, WireError>>()?;
        Ok(Self { packs, numbers: HashMap::new() })
    }

    pub(crate) fn take(&self, reader: &mut Reader<'_>) -> Result<(usize, u64), WireError> {
        let last = (self.packs.len() as u64).checked_sub(1).ok_or(WireError::Short)?;
        let index = reader.bounded("a pack's number", last)? as usize;
        let offset = self.packs[index].1.wrapping_add(reader.zigzag()? as u64);
        Ok((index, offset))
    }

    pub(crate) fn advance(&mut self, index: usize, offset: u64, stored_len: u64) -> Result<Digest, WireError> {
        let end = offset.saturating_add(stored_len);
        if end > PACK_BYTES_MAX {
            return Err(WireError::TooLarge { what: "the end of a frame", value: end, max: PACK_BYTES_MAX });
        }
        let entry = &mut self.packs[index];
        entry.1 = end;
        Ok(entry.0)
    }
}
