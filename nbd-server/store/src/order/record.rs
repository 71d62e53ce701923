//! Records which blocks of a package's images are touched first, in which sequence, and when.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmnetx_format::limits::{LEAF_BLOCKS, ORDER_TOUCHES_MAX};
use vmnetx_format::{BLOCK_BYTES, Digest, Purpose, Record, RecordError, RecordTouch};

/// Words with a bit for each block of a leaf.
const LEAF_WORDS: usize = (LEAF_BLOCKS / u64::BITS) as usize;

/// Takes note of the first touch of each block while a package is read.
#[derive(Debug)]
pub struct Recorder {
    manifest: Digest,
    purpose: Purpose,
    /// The names of the images, by their number.
    images: Vec<String>,
    start: Instant,
    touched: Mutex<Touched>,
}

#[derive(Debug, Default)]
struct Touched {
    /// One bit for each block of the leaves that were touched, by image and leaf.
    seen: HashMap<(usize, u64), Box<[u64; LEAF_WORDS]>>,
    touches: Vec<Touch>,
}

#[derive(Debug, Clone, Copy)]
struct Touch {
    after_ms: u32,
    image: usize,
    first_block: u64,
    blocks: u32,
}

impl Recorder {
    /// Begins to record a run of the version `manifest`, whose images have these names.
    pub(crate) fn new(manifest: Digest, purpose: Purpose, images: Vec<String>) -> Self {
        Self { manifest, purpose, images, start: Instant::now(), touched: Mutex::default() }
    }

    /// What was touched until now. A run that touches more than a record can hold is recorded as far as it can.
    ///
    /// # Errors
    /// [`RecordError`] when no record can hold it, which says that an image has an impossible name.
    pub fn record(&self) -> Result<Record, RecordError> {
        let name = |touch: &Touch| self.images.get(touch.image).cloned();
        let row = |touch: &Touch| {
            let Touch { after_ms, first_block, blocks, .. } = *touch;
            Some(RecordTouch { after_ms, image: name(touch)?, first_block, blocks })
        };
        let touches = self.lock().touches.iter().filter_map(row).collect();
        Record::new(self.manifest, self.purpose, touches)
    }

    /// How many first touches there were until now.
    #[must_use]
    pub fn touches(&self) -> usize {
        self.lock().touches.len()
    }

    /// Takes note of a read of image number `image`; blocks that were read before are left out.
    pub(crate) fn touch(&self, image: usize, offset: u64, length: u64) {
        let block_bytes = BLOCK_BYTES as u64;
        let mut touched = self.lock();
        // Under the lock, so that times do not go back.
        let after_ms = u32::try_from(self.start.elapsed().as_millis()).unwrap_or(u32::MAX);
        let mut new: Option<Touch> = None;
        for block in offset / block_bytes..(offset + length).div_ceil(block_bytes) {
            if touched.mark(image, block) {
                new.get_or_insert(Touch { after_ms, image, first_block: block, blocks: 0 }).blocks += 1;
            } else {
                touched.push(new.take());
            }
        }
        touched.push(new);
    }

    fn lock(&self) -> MutexGuard<'_, Touched> {
        // It is whole after every statement: a panic elsewhere cannot have left it half-changed.
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Touched {
    /// Whether nobody has touched this block before.
    fn mark(&mut self, image: usize, block: u64) -> bool {
        let leaf = block / u64::from(LEAF_BLOCKS);
        let bit = block % u64::from(LEAF_BLOCKS);
        let words = self.seen.entry((image, leaf)).or_insert_with(|| Box::new([0; LEAF_WORDS]));
        let word = &mut words[(bit / u64::from(u64::BITS)) as usize];
        let mask = 1 << (bit % u64::from(u64::BITS));
        let is_new = *word & mask == 0;
        *word |= mask;
        is_new
    }

    fn push(&mut self, touch: Option<Touch>) {
        if self.touches.len() < ORDER_TOUCHES_MAX as usize {
            self.touches.extend(touch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_touches_are_recorded() {
        let recorder = Recorder::new(Digest::of(b"manifest"), Purpose::Boot, vec!["disk0".into(), "data".into()]);
        recorder.touch(0, 8192, 4096);
        recorder.touch(0, 0, 20_000);
        recorder.touch(1, 5, 1);
        recorder.touch(1, 4095, 2);
        recorder.touch(1, 4096, 0);
        // Across the end of a leaf.
        recorder.touch(0, u64::from(LEAF_BLOCKS) * 4096 - 1, 2);
        let record = recorder.record().unwrap();
        let touches: Vec<_> =
            record.touches.iter().map(|touch| (touch.image.as_str(), touch.first_block, touch.blocks)).collect();
        let expected =
            [("disk0", 2, 1), ("disk0", 0, 2), ("disk0", 3, 2), ("data", 0, 1), ("data", 1, 1), ("disk0", 4095, 2)];
        assert_eq!(touches, expected);
        assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
    }
}
