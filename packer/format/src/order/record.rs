//! Records: what a reader notes of the touches of one run, for a publisher to make an order of.

use serde::{Deserialize, Serialize};

use super::Purpose;
use crate::limits::{IMAGE_BLOCKS_MAX, IMAGE_NAME_BYTES_MAX, ORDER_TOUCHES_MAX, RECORD_BYTES_MAX};
use crate::{Digest, FORMAT_NUMBER, json};

/// The touches of one run of one version. Images have their names here, because what was recorded of one version may
/// become the order of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    vmnetx: u32,
    /// The version that ran.
    pub manifest: Digest,
    /// What it did.
    pub purpose: Purpose,
    /// The touches, in their sequence.
    pub touches: Vec<RecordTouch>,
}

/// One touch of a record; in JSON the array `[after_ms, image, first_block, blocks]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, String, u64, u32)", into = "(u32, String, u64, u32)")]
pub struct RecordTouch {
    /// Milliseconds since the recording began; no less than in the touch before.
    pub after_ms: u32,
    /// The name of the image, as [`ManifestImage`](crate::ManifestImage) has it.
    pub image: String,
    /// The first block touched, counted from the image's start.
    pub first_block: u64,
    /// How many blocks: 1 or more.
    pub blocks: u32,
}

/// Why bytes or parts are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by another version of the format.
    #[error("the record has format number {0}; this program reads number {FORMAT_NUMBER}: use a newer vmnetx")]
    FormatNumber(u64),
    /// Not the JSON that it should be, or fields that the format does not know.
    #[error("the record is damaged: {0}")]
    Json(String),
    /// Larger than any record.
    #[error("the record has {0} bytes, more than {RECORD_BYTES_MAX}")]
    TooLarge(u64),
    /// More touches than an order may have.
    #[error("the record has {0} touches, more than {ORDER_TOUCHES_MAX}")]
    Touches(usize),
    /// A touch that cannot be.
    #[error("touch {index} of the record {reason}")]
    Touch {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

#[derive(Deserialize)]
struct Number {
    vmnetx: u64,
}

impl Record {
    /// Puts a record together.
    ///
    /// # Errors
    /// [`RecordError`] for touches that no publisher would accept.
    pub fn new(manifest: Digest, purpose: Purpose, touches: Vec<RecordTouch>) -> Result<Self, RecordError> {
        let record = Self { vmnetx: FORMAT_NUMBER, manifest, purpose, touches };
        record.check()?;
        Ok(record)
    }

    /// The record as a file.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`] when it would have more than [`RECORD_BYTES_MAX`] bytes.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| RecordError::Json(error.to_string()))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > RECORD_BYTES_MAX { Err(RecordError::TooLarge(bytes.len() as u64)) } else { Ok(bytes) }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] when the bytes are not one of this format number.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge(bytes.len() as u64));
        }
        // The number comes first: a later format may have any fields.
        let Number { vmnetx } = json::from_slice(bytes).map_err(RecordError::Json)?;
        if vmnetx != u64::from(FORMAT_NUMBER) {
            return Err(RecordError::FormatNumber(vmnetx));
        }
        let record: Self = json::from_slice(bytes).map_err(RecordError::Json)?;
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.touches.len() > ORDER_TOUCHES_MAX as usize {
            return Err(RecordError::Touches(self.touches.len()));
        }
        let mut after_ms = 0;
        for (index, touch) in self.touches.iter().enumerate() {
            touch.check(after_ms).map_err(|reason| RecordError::Touch { index, reason })?;
            after_ms = touch.after_ms;
        }
        Ok(())
    }
}

impl RecordTouch {
    /// The block behind the last one touched.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first_block.saturating_add(self.blocks as u64)
    }

    /// Says what is wrong with a touch that comes after one at `after_ms`.
    fn check(&self, after_ms: u32) -> Result<(), &'static str> {
        let name = &self.image;
        let good = (1..=IMAGE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        if !good {
            return Err("is of an image whose name none has");
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

impl From<(u32, String, u64, u32)> for RecordTouch {
    fn from((after_ms, image, first_block, blocks): (u32, String, u64, u32)) -> Self {
        Self { after_ms, image, first_block, blocks }
    }
}

impl From<RecordTouch> for (u32, String, u64, u32) {
    fn from(touch: RecordTouch) -> Self {
        (touch.after_ms, touch.image, touch.first_block, touch.blocks)
    }
}
