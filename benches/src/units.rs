//! Quantities as they are typed on a command line.

use std::time::Duration;

/// A text that is no quantity of the expected kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is no {kind}; write it like {example}")]
pub struct ParseError {
    text: String,
    kind: &'static str,
    example: &'static str,
}

/// A size in bytes; the suffixes K, M, G and T are powers of 1024.
///
/// # Errors
///
/// When the text is not a whole number with at most one of the suffixes, or exceeds 64 bits.
pub fn parse_size_bytes(text: &str) -> Result<u64, ParseError> {
    parse_scaled(text, 1024).ok_or_else(|| error(text, "size", "64K"))
}

/// A rate in bit/s; the suffixes K, M, G and T are powers of 1000, as network links count.
///
/// # Errors
///
/// When the text is not a whole number with at most one of the suffixes, exceeds 64 bits, or is zero.
pub fn parse_rate_bits_per_s(text: &str) -> Result<u64, ParseError> {
    parse_scaled(text, 1000).filter(|rate| *rate > 0).ok_or_else(|| error(text, "rate in bit/s", "100M"))
}

/// A time: a whole number followed by `us`, `ms` or `s`.
///
/// # Errors
///
/// When the text is of another form.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let count: Option<u64> = digits.parse().ok();
    match (count, &text[digits.len()..]) {
        (Some(count), "us") => Ok(Duration::from_micros(count)),
        (Some(count), "ms") => Ok(Duration::from_millis(count)),
        (Some(count), "s") => Ok(Duration::from_secs(count)),
        _ => Err(error(text, "time", "20ms")),
    }
}

fn parse_scaled(text: &str, step: u64) -> Option<u64> {
    let (digits, power) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1),
        (at, 'M' | 'm') => (&text[..at], 2),
        (at, 'G' | 'g') => (&text[..at], 3),
        (at, 'T' | 't') => (&text[..at], 4),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(step.pow(power))
}

fn error(text: &str, kind: &'static str, example: &'static str) -> ParseError {
    ParseError { text: text.to_owned(), kind, example }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_scale() {
        assert_eq!(parse_size_bytes("64K"), Ok(65_536));
        assert_eq!(parse_size_bytes("512"), Ok(512));
        assert_eq!(parse_rate_bits_per_s("100M"), Ok(100_000_000));
        assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "K", "1.5M", "-1", "1KK", "99999999999999999999", "20000000T", "1é"] {
            assert!(parse_size_bytes(text).is_err(), "{text}");
        }
        assert!(parse_rate_bits_per_s("0").is_err());
        for text in ["", "20", "ms", "1.5s", "20 ms", "1h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
