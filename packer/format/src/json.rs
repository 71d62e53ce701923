//! Reading the JSON of others: an error says which field it is about, and is fit to be shown.

use serde::de::DeserializeOwned;

use crate::name::printable;

/// Characters of a field's path that are shown.
const PATH_CHARS_MAX: usize = 100;

/// Reads one value, behind which nothing may follow.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // It may end in an unknown field of any length, which must not push the rest out of sight.
        let path: String = error.path().to_string().chars().take(PATH_CHARS_MAX).collect();
        // The whole value has the path ".".
        if path == "." { printable(error.inner()) } else { printable(&format_args!("{path}: {}", error.inner())) }
    })?;
    reader.end().map_err(|error| printable(&error))?;
    Ok(value)
}
