//! One stored frame: a chunk or a tree node as zstd compressed it, or as it was where that is not longer.

use crate::limits::FRAME_PLAIN_BYTES_MAX;

/// Compresses frames with one zstd context, which is costly to make.
pub struct Compressor {
    inner: zstd::bulk::Compressor<'static>,
    /// Room for the longest form of a frame; what is given out has just the frame's length.
    room: Vec<u8>,
}

/// A frame that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// zstd refused the bytes.
    #[error("a stored frame does not decompress: {0}")]
    Zstd(String),
    /// It decompressed to another length.
    #[error("a stored frame decompresses to {actual} bytes instead of {expected}")]
    Length {
        /// The plain bytes that the index promises.
        expected: u32,
        /// The plain bytes that came out.
        actual: usize,
    },
    /// The index promises more than any frame may hold.
    #[error("a stored frame promises {0} bytes, more than {FRAME_PLAIN_BYTES_MAX}")]
    TooLarge(u32),
    /// A frame longer than its own plain bytes is never written.
    #[error("a stored frame of {stored} bytes is longer than its {plain} plain bytes")]
    Inflated {
        /// Bytes as stored.
        stored: usize,
        /// Bytes when plain.
        plain: u32,
    },
}

impl Compressor {
    /// Makes a compressor of the zstd level `level` (1 to 22).
    ///
    /// # Errors
    /// Whatever zstd says of the level or of the lack of memory.
    pub fn new(level: i32) -> std::io::Result<Self> {
        let mut inner = zstd::bulk::Compressor::new(level)?;
        // The index knows the plain length and the digest: the frame need not repeat them.
        inner.include_contentsize(false)?;
        inner.include_checksum(false)?;
        inner.include_dictid(false)?;
        Ok(Self { inner, room: Vec::new() })
    }

    /// The frame that is stored for `plain`: compressed, or `plain` itself where compressing gains nothing.
    ///
    /// # Errors
    /// Whatever zstd says, which in practice is a lack of memory.
    pub fn encode(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        self.room.clear();
        self.room.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let length = self.inner.compress_to_buffer(plain, &mut self.room)?;
        Ok(if length < plain.len() { self.room.clone() } else { plain.to_vec() })
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// The plain bytes of a stored frame, `plain_len` of them; the caller compares their digest.
///
/// # Errors
/// [`FrameError`] when the frame is not one of that length.
pub fn decode_frame(stored: &[u8], plain_len: u32) -> Result<Vec<u8>, FrameError> {
    if plain_len > FRAME_PLAIN_BYTES_MAX {
        return Err(FrameError::TooLarge(plain_len));
    }
    if stored.len() > plain_len as usize {
        return Err(FrameError::Inflated { stored: stored.len(), plain: plain_len });
    }
    if stored.len() == plain_len as usize {
        return Ok(stored.to_vec());
    }
    let plain =
        zstd::bulk::decompress(stored, plain_len as usize).map_err(|error| FrameError::Zstd(error.to_string()))?;
    if plain.len() != plain_len as usize {
        return Err(FrameError::Length { expected: plain_len, actual: plain.len() });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bombs_are_cut_short() {
        let bomb = Compressor::new(3).unwrap().encode(&vec![0; 4 << 20]).unwrap();
        assert!(bomb.len() < 1000);
        assert!(matches!(decode_frame(&bomb, 64 << 10), Err(FrameError::Zstd(_))));
        assert!(matches!(decode_frame(&bomb, 5 << 20), Err(FrameError::TooLarge(_))));
        assert!(matches!(decode_frame(&bomb, (4 << 20) - 1), Err(FrameError::Zstd(_))));
    }

    proptest! {
        #[test]
        fn frames_survive(plain in proptest::collection::vec(0_u8..4, 0..20_000), level in 1_i32..13) {
            let stored = Compressor::new(level).unwrap().encode(&plain).unwrap();
            prop_assert!(stored.len() <= plain.len());
            prop_assert_eq!(decode_frame(&stored, plain.len() as u32), Ok(plain));
        }

        #[test]
        fn no_bytes_make_it_panic(stored in proptest::collection::vec(any::<u8>(), 0..300), plain_len: u32) {
            let _ = decode_frame(&stored, plain_len);
        }
    }
}
