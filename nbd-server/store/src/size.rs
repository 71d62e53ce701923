//! Sizes as command lines take them: bytes, or with one of the letters K, M, G and T for powers of 1024.

/// Reads a size; `64K` and `64KiB` are 65536.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size_bytes(text: &str) -> Result<u64, parse_size::Error> {
    parse_size::Config::new().with_binary().parse_size(text)
}

/// Reads a rate in bytes a second, as a size; 0 would be for ever.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_rate_bytes_per_s(text: &str) -> Result<u64, String> {
    match parse_size_bytes(text).map_err(|error| error.to_string())? {
        0 => Err("nothing would ever come at that rate".to_owned()),
        rate => Ok(rate),
    }
}
