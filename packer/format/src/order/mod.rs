//! Orders: in which sequence a boot or a resume first touches its images, and what is to be fetched ahead of the next one.

mod merge;
mod record;

use crate::limits::{
    FRAME_PLAIN_BYTES_MAX, IMAGE_BYTES_MAX, ORDER_BLOCKS_MAX, ORDER_BYTES_MAX, ORDER_FRAMES_MAX, ORDER_TOUCHES_MAX,
    RAM_BLOCKS_MAX,
};
use crate::tree::Packs;
use crate::wire::{Reader, WireError, put_varint, put_zigzag};
use crate::{BLOCK_BYTES, Digest, Place};

pub use record::{Record, RecordError, RecordTouch};

const MAGIC: &[u8; 8] = b"VMNXORD0";

/// Blocks of the largest image.
const BLOCKS_MAX: u64 = IMAGE_BYTES_MAX / BLOCK_BYTES as u64;

/// Images of a package: disks and blocks of RAM.
const IMAGES_MAX: u32 = (crate::limits::DISKS_MAX + RAM_BLOCKS_MAX) as u32;

/// An order as it is published.
///
/// It never says what stands where in an image: readers take frames by their digests to warm their caches, and look every
/// block up in the trees. So a wrong order can waste bytes and do nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What it is an order of.
    pub purpose: Purpose,
    /// The first touches, in their sequence: what a later version lays its own order out by.
    pub touches: Vec<Touch>,
    /// What to fetch, in this sequence.
    pub frames: Vec<OrderFrame>,
}

/// What an order was recorded of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A boot from the disks.
    Boot,
    /// A resume of saved memory.
    Resume,
}

/// Blocks of an image that were touched for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Milliseconds since the recording began; never less than that of the touch before.
    pub after_ms: u64,
    /// Which image, counted as in the manifest: disks first, then blocks of RAM.
    pub image: u32,
    /// The first block.
    pub first_block: u64,
    /// The number of blocks, not 0.
    pub blocks: u32,
}

/// A frame that is to be fetched: a chunk, or a node of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderFrame {
    /// The digest of its plain bytes.
    pub digest: Digest,
    /// Their number.
    pub plain_len: u32,
    /// Where it is stored.
    pub place: Place,
}

/// Why bytes are not an order, or an order cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the order is damaged: {0}")]
pub struct OrderError(WireError);

impl Purpose {
    const fn number(self) -> u64 {
        match self {
            Self::Boot => 0,
            Self::Resume => 1,
        }
    }

    const fn of_number(number: u64) -> Self {
        if number == 0 { Self::Boot } else { Self::Resume }
    }
}

impl Order {
    /// The order as it is stored. Readers refuse it when its touches go back in time or are too many, or its frames.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.purpose.number());
        put_varint(&mut out, self.touches.len() as u64);
        let mut ends = Ends::default();
        let mut before_ms = 0;
        for touch in &self.touches {
            put_varint(&mut out, touch.image.into());
            let end = ends.of(touch.image);
            put_zigzag(&mut out, touch.first_block.wrapping_sub(*end) as i64);
            put_varint(&mut out, touch.blocks.into());
            put_varint(&mut out, touch.after_ms.wrapping_sub(before_ms));
            *end = touch.first_block + u64::from(touch.blocks);
            before_ms = touch.after_ms;
        }
        let mut packs = Packs::collect(self.frames.iter().map(|frame| frame.place.pack), &mut out);
        put_varint(&mut out, self.frames.len() as u64);
        for OrderFrame { plain_len, place, .. } in &self.frames {
            packs.put(&mut out, place.pack, place.offset, place.stored_len.into());
            put_varint(&mut out, place.stored_len.into());
            put_varint(&mut out, u64::from(*plain_len));
        }
        out.extend(self.frames.iter().flat_map(|frame| frame.digest.as_bytes()));
        out
    }

    /// Reads an order.
    ///
    /// # Errors
    /// [`OrderError`] when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, OrderError> {
        Self::read(bytes).map_err(OrderError)
    }

    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() as u64 > ORDER_BYTES_MAX {
            let value = bytes.len() as u64;
            return Err(WireError::TooLarge { what: "the order's size", value, max: ORDER_BYTES_MAX });
        }
        let mut reader = Reader::new(bytes);
        reader.tag(MAGIC)?;
        let purpose = Purpose::of_number(reader.bounded("the purpose", Purpose::Resume.number())?);
        let touches = read_touches(&mut reader)?;
        let frames = read_frames(&mut reader)?;
        reader.end()?;
        Ok(Self { purpose, touches, frames })
    }
}

fn read_touches(reader: &mut Reader<'_>) -> Result<Vec<Touch>, WireError> {
    let count = reader.bounded_u32("the number of touches", ORDER_TOUCHES_MAX)?;
    let mut touches = Vec::new();
    let mut ends = Ends::default();
    let (mut after_ms, mut all_blocks) = (0_u64, 0_u64);
    for _ in 0..count {
        let image = reader.bounded_u32("an image's number", IMAGES_MAX - 1)?;
        let end = ends.of(image);
        let first_block = end.wrapping_add(reader.zigzag()? as u64);
        let blocks = reader.positive_u32("a number of blocks", u32::MAX)?;
        *end = first_block.saturating_add(blocks.into());
        if *end > BLOCKS_MAX {
            return Err(WireError::TooLarge { what: "the end of a touch", value: *end, max: BLOCKS_MAX });
        }
        all_blocks += u64::from(blocks);
        if all_blocks > ORDER_BLOCKS_MAX {
            return Err(WireError::TooLarge { what: "the number of blocks", value: all_blocks, max: ORDER_BLOCKS_MAX });
        }
        let later_ms = reader.bounded("a time", u64::MAX - after_ms)?;
        after_ms += later_ms;
        touches.push(Touch { after_ms, image, first_block, blocks });
    }
    Ok(touches)
}

fn read_frames(reader: &mut Reader<'_>) -> Result<Vec<OrderFrame>, WireError> {
    let mut packs = Packs::read(reader)?;
    let count = reader.bounded_u32("the number of frames", ORDER_FRAMES_MAX)?;
    let mut frames = Vec::new();
    for _ in 0..count {
        let (index, offset) = packs.take(reader)?;
        let stored_len = reader.positive_u32("a stored length", FRAME_PLAIN_BYTES_MAX)?;
        let plain_len = reader.positive_u32("a plain length", FRAME_PLAIN_BYTES_MAX)?;
        let place = Place { pack: packs.advance(index, offset, stored_len.into())?, offset, stored_len };
        frames.push(OrderFrame { digest: Digest::from_bytes([0; Digest::BYTES]), plain_len, place });
    }
    for frame in &mut frames {
        frame.digest = reader.digest()?;
    }
    Ok(frames)
}

/// Where the last touch of each image ended: touches mostly follow one another.
#[derive(Default)]
struct Ends(Vec<u64>);

impl Ends {
    fn of(&mut self, image: u32) -> &mut u64 {
        let number = image as usize;
        if self.0.len() <= number {
            self.0.resize(number + 1, 0);
        }
        &mut self.0[number]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touches() -> impl Strategy<Value = Vec<Touch>> {
        let touch = (0..1000_u64, 0..4_u32, 0..BLOCKS_MAX - 4096, 1..4096_u32);
        proptest::collection::vec(touch, 0..40).prop_map(|list| {
            let mut before_ms = 0;
            let touch = |(later_ms, image, first_block, blocks)| {
                before_ms += later_ms;
                Touch { after_ms: before_ms, image, first_block, blocks }
            };
            list.into_iter().map(touch).collect()
        })
    }

    fn frames() -> impl Strategy<Value = Vec<OrderFrame>> {
        let frame = (any::<u8>(), 0..3_u8, 0..1_u64 << 29, 1..FRAME_PLAIN_BYTES_MAX, 1..FRAME_PLAIN_BYTES_MAX);
        let frame = frame.prop_map(|(digest, pack, offset, stored_len, plain_len)| OrderFrame {
            digest: Digest::of(&[digest]),
            plain_len,
            place: Place { pack: Digest::of(&[pack]), offset, stored_len },
        });
        proptest::collection::vec(frame, 0..40)
    }

    proptest! {
        #[test]
        fn orders_survive(touches in touches(), frames in frames(), resume: bool, cut: usize) {
            let purpose = if resume { Purpose::Resume } else { Purpose::Boot };
            let order = Order { purpose, touches, frames };
            let bytes = order.encode();
            prop_assert_eq!(Order::decode(&bytes), Ok(order));
            prop_assert!(Order::decode(&bytes[..cut % bytes.len()]).is_err());
        }

        #[test]
        fn damaged_orders_are_refused_or_written_back_alike(frames in frames(), touches in touches(), at: usize, bit in 0..8) {
            let mut bytes = Order { purpose: Purpose::Boot, touches, frames }.encode();
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            if let Ok(order) = Order::decode(&bytes) {
                let again = order.encode();
                prop_assert_eq!(Order::decode(&again), Ok(order));
            }
        }
    }

    #[test]
    fn what_no_image_has_is_refused() {
        let order = |touch| Order { purpose: Purpose::Boot, touches: vec![touch], frames: Vec::new() }.encode();
        let touch = Touch { after_ms: 1, image: 0, first_block: 0, blocks: 1 };
        assert!(Order::decode(&order(touch)).is_ok());
        assert!(Order::decode(&order(Touch { blocks: 0, ..touch })).is_err());
        assert!(Order::decode(&order(Touch { image: IMAGES_MAX, ..touch })).is_err());
        assert!(Order::decode(&order(Touch { first_block: BLOCKS_MAX, ..touch })).is_err());
        let mut trailing = order(touch);
        trailing.push(0);
        assert!(Order::decode(&trailing).is_err());
    }
}
