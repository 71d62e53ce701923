//! The strings of the protocol: UTF-8 without NUL, at most 4096 bytes (NBD spec, "Conventions").

use crate::limits::MAX_STRING_BYTES;

/// Why bytes are no string of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadString {
    /// Over the protocol's limit.
    #[error("is {0} bytes long; the protocol allows {MAX_STRING_BYTES}")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Holds a NUL.
    #[error("holds a NUL character")]
    Nul,
}

/// Reads a string as received.
pub(crate) fn parse(bytes: &[u8]) -> Result<&str, BadString> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(BadString::TooLong(bytes.len()));
    }
    let text = str::from_utf8(bytes).map_err(|_| BadString::NotUtf8)?;
    if text.contains('\0') {
        return Err(BadString::Nul);
    }
    Ok(text)
}

/// Reads a text for people as received: what is wrong in it, and what would steer a terminal, is replaced; what is too
/// much is cut.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_STRING_BYTES).unwrap_or(bytes);
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(bytes).chars().filter(|c| *c != '\0').map(shown).collect()
}

/// The start of a text that may be sent: up to the limit or the first NUL, whole characters.
pub(crate) fn clip(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(MAX_STRING_BYTES)]
}
