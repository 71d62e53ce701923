//! The few primitives of which the binary objects are made: bytes, digests and variable-length integers.

use crate::Digest;

/// Bytes of the longest variable-length integer.
const VARINT_BYTES_MAX: u32 = 10;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("it ends too early")]
    Short,
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    #[error("an integer is longer than it need be or than 64 bits")]
    Varint,
    #[error("{what} is {value}, more than {max}")]
    TooLarge { what: &'static str, value: u64, max: u64 },
    #[error("it starts with the wrong tag")]
    Tag,
    #[error("{0} is 0")]
    Zero(&'static str),
}

/// Reads primitives from the front of a slice.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(WireError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(WireError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, WireError> {
        self.array().map(Digest::from_bytes)
    }

    pub(crate) fn tag(&mut self, expected: &[u8]) -> Result<(), WireError> {
        if self.bytes(expected.len())? == expected { Ok(()) } else { Err(WireError::Tag) }
    }

    /// An unsigned LEB128 integer in its shortest form.
    pub(crate) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for index in 0..VARINT_BYTES_MAX {
            let [byte] = self.array::<1>()?;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits.checked_shl(index * 7).filter(|v| v >> (index * 7) == bits).ok_or(WireError::Varint)?;
            value |= shifted;
            if byte & 0x80 == 0 {
                let padded = index > 0 && byte == 0;
                return if padded { Err(WireError::Varint) } else { Ok(value) };
            }
        }
        Err(WireError::Varint)
    }

    /// A [`Self::varint`] that must not exceed `max`.
    pub(crate) fn bounded(&mut self, what: &'static str, max: u64) -> Result<u64, WireError> {
        match self.varint()? {
            value if value <= max => Ok(value),
            value => Err(WireError::TooLarge { what, value, max }),
        }
    }

    /// A [`Self::bounded`] integer of 32 bits.
    pub(crate) fn bounded_u32(&mut self, what: &'static str, max: u32) -> Result<u32, WireError> {
        self.bounded(what, max.into()).map(|value| value as u32)
    }

    /// A [`Self::bounded_u32`] that is not 0.
    pub(crate) fn positive_u32(&mut self, what: &'static str, max: u32) -> Result<u32, WireError> {
        match self.bounded_u32(what, max)? {
            0 => Err(WireError::Zero(what)),
            value => Ok(value),
        }
    }

    /// The [`Self::bounded_u32`] number of entries that follow, each of `entry_bytes_min` bytes or more: one that the
    /// bytes left cannot hold is refused before it is allocated.
    pub(crate) fn count(&mut self, what: &'static str, max: u32, entry_bytes_min: usize) -> Result<u32, WireError> {
        let count = self.bounded_u32(what, max)?;
        if count as usize > self.0.len() / entry_bytes_min { Err(WireError::Short) } else { Ok(count) }
    }

    /// A signed integer in zigzag form.
    pub(crate) fn zigzag(&mut self) -> Result<i64, WireError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Says that nothing may follow.
    pub(crate) const fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.0.len())) }
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1) as u64 ^ (value >> 63) as u64);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_integers_that_have_a_shorter_form() {
        for bytes in [&[0x80, 0x00][..], &[0xff, 0x80, 0x00]] {
            assert_eq!(Reader::new(bytes).varint(), Err(WireError::Varint));
        }
        assert_eq!(Reader::new(&[0xff; 10]).varint(), Err(WireError::Varint));
        assert_eq!(Reader::new(&[0x80; 3]).varint(), Err(WireError::Short));
    }

    proptest! {
        #[test]
        fn integers_survive(unsigned: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, unsigned);
            put_zigzag(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(unsigned));
            prop_assert_eq!(reader.zigzag(), Ok(signed));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_accepted_integer_is_written_back_alike(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..out.len()]);
            }
        }
    }
}
