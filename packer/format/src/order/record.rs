//! The file in which a recording of first touches is handed to the publisher.

use serde::{Deserialize, Serialize};

use super::{BLOCKS_MAX, Purpose};
use crate::limits::{ORDER_BLOCKS_MAX, ORDER_TOUCHES_MAX, RAM_BLOCK_NAME_BYTES_MAX, RECORD_BYTES_MAX};
use crate::{Digest, FORMAT_NUMBER, json};

/// Which blocks one run of a version touched first, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The version that ran: the digest of its manifest.
    pub manifest: Digest,
    /// What was recorded.
    pub purpose: Purpose,
    /// The touches in their sequence; no block is touched twice.
    pub touches: Vec<RecordTouch>,
}

/// Blocks of an image that were touched for the first time. In the file it is an array of four.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct RecordTouch {
    /// Milliseconds since the recording began; never less than that of the touch before.
    pub after_ms: u64,
    /// The name of the image, by which another version has it too.
    pub image: String,
    /// The first block.
    pub first_block: u64,
    /// The number of blocks, not 0.
    pub blocks: u32,
}

/// Why a file is not a record.
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
    /// A touch that cannot be.
    #[error("touch {number} of the record {problem}")]
    Touch {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

type Row = (u64, String, u64, u32);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vmnetx: u32,
    manifest: Digest,
    purpose: Purpose,
    touches: Vec<RecordTouch>,
}

#[derive(Deserialize)]
struct Number {
    vmnetx: u64,
}

impl From<Row> for RecordTouch {
    fn from((after_ms, image, first_block, blocks): Row) -> Self {
        Self { after_ms, image, first_block, blocks }
    }
}

impl From<RecordTouch> for Row {
    fn from(touch: RecordTouch) -> Self {
        (touch.after_ms, touch.image, touch.first_block, touch.blocks)
    }
}

impl Record {
    /// The record as it stands in a file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { manifest, purpose, touches } = self.clone();
        let file = File { vmnetx: FORMAT_NUMBER, manifest, purpose, touches };
        // Numbers and text always serialise.
        let mut bytes = serde_json::to_vec(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge(bytes.len() as u64));
        }
        // The number first: what another version has beside it is not known here.
        let number: Number = json::from_slice(bytes).map_err(RecordError::Json)?;
        if number.vmnetx != u64::from(FORMAT_NUMBER) {
            return Err(RecordError::FormatNumber(number.vmnetx));
        }
        let File { manifest, purpose, touches, .. } = json::from_slice(bytes).map_err(RecordError::Json)?;
        let record = Self { manifest, purpose, touches };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), RecordError> {
        let (mut before_ms, mut blocks) = (0, 0);
        for (index, touch) in self.touches.iter().enumerate() {
            let wrong = |problem| RecordError::Touch { number: index + 1, problem };
            let name = touch.image.as_bytes();
            if name.is_empty() || name.len() > RAM_BLOCK_NAME_BYTES_MAX {
                return Err(wrong("names no image"));
            }
            if touch.blocks == 0 || touch.first_block.saturating_add(touch.blocks.into()) > BLOCKS_MAX {
                return Err(wrong("has no blocks, or more than an image has"));
            }
            if touch.after_ms < before_ms {
                return Err(wrong("goes back in time"));
            }
            before_ms = touch.after_ms;
            blocks += u64::from(touch.blocks);
            if blocks > ORDER_BLOCKS_MAX {
                return Err(wrong("is of one block too many"));
            }
        }
        if self.touches.len() > ORDER_TOUCHES_MAX as usize {
            return Err(RecordError::Touch { number: self.touches.len(), problem: "is one too many" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let touch =
            |after_ms, image: &str, first_block| RecordTouch { after_ms, image: image.into(), first_block, blocks: 8 };
        let touches = vec![touch(0, "disk0", 16), touch(30, "pc.ram", 0), touch(30, "disk0", 3)];
        Record { manifest: Digest::of(b"manifest"), purpose: Purpose::Boot, touches }
    }

    #[test]
    fn records_survive() {
        let bytes = record().encode();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(r#""purpose":"boot","touches":[[0,"disk0",16,8],"#), "{text}");
        assert_eq!(Record::decode(&bytes), Ok(record()));
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Record)| {
            let mut record = record();
            change(&mut record);
            Record::decode(&record.encode()).unwrap_err().to_string()
        };
        assert!(refused(&|record| record.touches[1].blocks = 0).contains("touch 2"));
        assert!(refused(&|record| record.touches[2].after_ms = 1).contains("goes back"));
        assert!(refused(&|record| record.touches[0].first_block = u64::MAX).contains("touch 1"));
        assert!(refused(&|record| record.touches[0].image.clear()).contains("names no image"));
        let text = String::from_utf8(record().encode()).unwrap();
        let other = text.replace("\"vmnetx\":0", "\"vmnetx\":7");
        assert_eq!(Record::decode(other.as_bytes()), Err(RecordError::FormatNumber(7)));
        let unknown = text.replace("\"purpose\"", "\"x\":1,\"purpose\"");
        assert!(matches!(Record::decode(unknown.as_bytes()), Err(RecordError::Json(_))));
    }
}
