//! Orders: the recorded sequence in which a boot or a resume first touches its images, and where its chunks lie in it.
//!
//! An order never says what stands where in an image: a reader warms its caches with the frames that it names, each
//! under the digest of its bytes, and reads the image as ever. So a wrong or hostile order can only waste bytes.

mod covered;
mod merge;
mod record;
#[cfg(test)]
mod tests;

pub use covered::Covered;
pub use merge::{MergeError, merge};
pub use record::{Record, RecordError, RecordTouch};
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::limits::{
    FRAME_PLAIN_BYTES_MAX, IMAGE_BLOCKS_MAX, IMAGES_MAX, NODE_PACKS_MAX, ORDER_BYTES_MAX, ORDER_FRAMES_MAX,
    ORDER_TOUCHES_MAX, PACK_BYTES_MAX,
};
use crate::tree::{Packs, Place};
use crate::wire::{Reader, WireError, put_varint, put_zigzag};

const TAG: &[u8] = b"VMNXORD0";
/// Bytes of the shortest touch and of the shortest frame, its digest included.
const TOUCH_BYTES_MIN: usize = 4;
const FRAME_BYTES_MIN: usize = 4 + Digest::BYTES;
/// Bytes of the longest ones: every number in them is bounded.
const TOUCH_BYTES_MAX: u64 = 2 + 5 + 5 + 5;
const FRAME_BYTES_MAX: u64 = 2 + 5 + 4 + 4 + Digest::BYTES as u64;

// Whatever `Order::new` accepts can be stored.
const _: () = assert!(
    ORDER_TOUCHES_MAX as u64 * TOUCH_BYTES_MAX
        + ORDER_FRAMES_MAX as u64 * FRAME_BYTES_MAX
        + NODE_PACKS_MAX as u64 * Digest::BYTES as u64
        + 64
        <= ORDER_BYTES_MAX
);

/// What a VM does while an order is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It boots from its disks.
    Boot,
    /// It goes on from its saved memory.
    Resume,
}

/// Blocks that are touched for the first time, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The position among the manifest's images: disks first, then RAM blocks.
    pub image: u32,
    /// The first block touched, counted from the image's start.
    pub first_block: u64,
    /// How many blocks: 1 or more.
    pub blocks: u32,
    /// Milliseconds since the recording began; no less than in the touch before.
    pub after_ms: u32,
}

/// A chunk, or a node of the index that leads to one, which a reader is to have before the guest asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderFrame {
    /// The digest of its plain bytes, by which it is kept.
    pub digest: Digest,
    /// Bytes when plain.
    pub plain_len: u32,
    /// Where it is stored.
    pub place: Place,
}

/// A recorded order of one version, as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    purpose: Purpose,
    touches: Vec<Touch>,
    frames: Vec<OrderFrame>,
}

/// Why parts or bytes are not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Larger than any order.
    #[error("the order has {0} bytes, more than {ORDER_BYTES_MAX}")]
    TooLarge(u64),
    /// More of something than an order may have.
    #[error("the order has {count} {what}, more than {max}")]
    Count {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: u32,
    },
    /// The bytes end too early, go on too long or are not in their one form.
    #[error("the order is damaged: {0}")]
    Damaged(String),
    /// A touch that cannot be.
    #[error("touch {index} of the order {reason}")]
    Touch {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A frame that cannot be.
    #[error("frame {index} of the order {reason}")]
    Frame {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl From<WireError> for OrderError {
    fn from(error: WireError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl Order {
    /// Puts an order together: `touches` in their sequence, `frames` in the sequence in which they are to be fetched.
    ///
    /// # Errors
    /// [`OrderError`] for parts that no reader would accept.
    pub fn new(purpose: Purpose, touches: Vec<Touch>, frames: Vec<OrderFrame>) -> Result<Self, OrderError> {
        count("touches", touches.len(), ORDER_TOUCHES_MAX)?;
        count("frames", frames.len(), ORDER_FRAMES_MAX)?;
        let mut after_ms = 0;
        for (index, touch) in touches.iter().enumerate() {
            touch.check(after_ms).map_err(|reason| OrderError::Touch { index, reason })?;
            after_ms = touch.after_ms;
        }
        for (index, frame) in frames.iter().enumerate() {
            frame.check().map_err(|reason| OrderError::Frame { index, reason })?;
        }
        let table = Packs::collect(frames.iter().map(|frame| frame.place.pack), &mut Vec::new());
        count("packs", table.len(), NODE_PACKS_MAX)?;
        Ok(Self { purpose, touches, frames })
    }

    /// What was recorded.
    #[must_use]
    pub const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The touches, in their sequence. A later version inherits them.
    #[must_use]
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }

    /// The frames to be fetched, in their sequence: chunks, and before them the nodes of an index that is not fetched
    /// whole ([`Roots::is_small_index`](crate::Roots::is_small_index)).
    #[must_use]
    pub fn frames(&self) -> &[OrderFrame] {
        &self.frames
    }

    /// The object as it is stored, its only encoding; its digest is its name.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = TAG.to_vec();
        put_varint(&mut out, self.purpose.number());
        put_varint(&mut out, self.touches.len() as u64);
        let mut last = Last::default();
        for touch in &self.touches {
            let end = last.end(touch.image);
            put_varint(&mut out, touch.image.into());
            put_zigzag(&mut out, touch.first_block.wrapping_sub(*end) as i64);
            put_varint(&mut out, touch.blocks.into());
            *end = touch.end();
            put_varint(&mut out, touch.after_ms.saturating_sub(last.after_ms).into());
            last.after_ms = touch.after_ms;
        }
        let mut packs = Packs::collect(self.frames.iter().map(|frame| frame.place.pack), &mut out);
        put_varint(&mut out, self.frames.len() as u64);
        for OrderFrame { plain_len, place, .. } in &self.frames {
            packs.put(&mut out, place.pack, place.offset, place.stored_len.into());
            put_varint(&mut out, place.stored_len.into());
            put_varint(&mut out, (*plain_len).into());
        }
        out.extend(self.frames.iter().flat_map(|frame| frame.digest.as_bytes()));
        out
    }

    /// Reads an order object whose digest the caller has compared.
    ///
    /// # Errors
    /// [`OrderError`] for anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, OrderError> {
        if bytes.len() as u64 > ORDER_BYTES_MAX {
            return Err(OrderError::TooLarge(bytes.len() as u64));
        }
        let mut reader = Reader::new(bytes);
        reader.tag(TAG)?;
        let purpose = match reader.varint()? {
            0 => Purpose::Boot,
            1 => Purpose::Resume,
            number => return Err(OrderError::Damaged(format!("its purpose has the number {number}"))),
        };
        let touches = read_touches(&mut reader)?;
        let frames = read_frames(&mut reader)?;
        reader.end()?;
        Self::new(purpose, touches, frames)
    }
}

impl Purpose {
    const fn number(self) -> u64 {
        match self {
            Self::Boot => 0,
            Self::Resume => 1,
        }
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Resume => "resume",
        })
    }
}

impl Touch {
    /// The block behind the last one touched.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first_block.saturating_add(self.blocks as u64)
    }

    /// Says what is wrong with a touch that comes after one at `after_ms`.
    const fn check(&self, after_ms: u32) -> Result<(), &'static str> {
        if self.image >= IMAGES_MAX {
            return Err("is of an image that no package has");
        }
        if self.blocks == 0 {
            return Err("has no blocks");
        }
        if self.end() > IMAGE_BLOCKS_MAX {
            return Err("goes beyond the largest image");
        }
        if self.after_ms < after_ms { Err("is earlier than the one before it") } else { Ok(()) }
    }
}

impl OrderFrame {
    const fn check(&self) -> Result<(), &'static str> {
        let stored_len = self.place.stored_len;
        if stored_len == 0 {
            return Err("has no bytes");
        }
        if self.plain_len > FRAME_PLAIN_BYTES_MAX || stored_len > self.plain_len {
            return Err("has impossible lengths");
        }
        let end = self.place.offset.saturating_add(stored_len as u64);
        if end > PACK_BYTES_MAX { Err("ends behind the largest pack") } else { Ok(()) }
    }
}

/// What touches are stored as a distance from: the end of the last one in each image, and the time of the last one.
#[derive(Default)]
struct Last {
    ends: Vec<u64>,
    after_ms: u32,
}

impl Last {
    /// `image` is below [`IMAGES_MAX`].
    fn end(&mut self, image: u32) -> &mut u64 {
        let image = image as usize;
        if self.ends.len() <= image {
            self.ends.resize(image + 1, 0);
        }
        &mut self.ends[image]
    }
}

fn read_touches(reader: &mut Reader<'_>) -> Result<Vec<Touch>, OrderError> {
    let count = reader.count("the number of touches", ORDER_TOUCHES_MAX, TOUCH_BYTES_MIN)?;
    let mut touches = Vec::with_capacity(count as usize);
    let mut last = Last::default();
    for index in 0..count as usize {
        let out_of_range = |reason| OrderError::Touch { index, reason };
        let image = reader.bounded_u32("an image's number", IMAGES_MAX - 1)?;
        let distance = reader.zigzag()?;
        let first_block = last
            .end(image)
            .checked_add_signed(distance)
            .ok_or(out_of_range("begins before the image or behind every image"))?;
        let blocks = reader.positive_u32("a touch's length", u32::MAX)?;
        let pause_ms = reader.bounded_u32("a pause", u32::MAX)?;
        let after_ms = last.after_ms.checked_add(pause_ms).ok_or(out_of_range("is too late"))?;
        let touch = Touch { image, first_block, blocks, after_ms };
        *last.end(image) = touch.end();
        last.after_ms = after_ms;
        touches.push(touch);
    }
    Ok(touches)
}

fn read_frames(reader: &mut Reader<'_>) -> Result<Vec<OrderFrame>, OrderError> {
    let mut packs = Packs::read(reader)?;
    let count = reader.count("the number of frames", ORDER_FRAMES_MAX, FRAME_BYTES_MIN)?;
    let mut frames = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (index, offset) = packs.take(reader)?;
        let stored_len = reader.positive_u32("a stored length", FRAME_PLAIN_BYTES_MAX)?;
        let plain_len = reader.bounded_u32("a plain length", FRAME_PLAIN_BYTES_MAX)?;
        let place = Place { pack: packs.advance(index, offset, stored_len.into())?, offset, stored_len };
        frames.push(OrderFrame { digest: Digest::from_bytes([0; Digest::BYTES]), plain_len, place });
    }
    for frame in &mut frames {
        frame.digest = reader.digest()?;
    }
    if !packs.lists_just(frames.iter().map(|frame| frame.place.pack)) {
        return Err(OrderError::Damaged("its packs are not listed once each, by their first use".to_owned()));
    }
    Ok(frames)
}

const fn count(what: &'static str, count: usize, max: u32) -> Result<(), OrderError> {
    if count > max as usize { Err(OrderError::Count { what, count, max }) } else { Ok(()) }
}
