//! How users name a version of a package.

use std::fmt;
use std::str::FromStr;

use vmnetx_format::{Digest, Link, Version};

use crate::Error;

/// A version as users name it: `current`, its digest, or the first digits of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionName {
    /// The link's current version.
    Current,
    /// The version whose digest begins so.
    Starts(String),
}

/// Text that names no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version: give `current`, or at least {DIGITS_MIN} of the digits that `log` shows")]
pub struct VersionNameError(String);

/// Digits that are enough to name a version among those of one link.
const DIGITS_MIN: usize = 6;

impl VersionName {
    /// The version that is meant among those of `link`.
    pub(crate) fn find<'a>(&self, link: &'a Link) -> Result<&'a Version, Error> {
        let Self::Starts(digits) = self else { return Ok(&link.current) };
        let mut found = link.versions().filter(|version| version.manifest.to_string().starts_with(digits));
        let wrong = |reason: &'static str| Error::VersionName { link: link.name.clone(), name: digits.clone(), reason };
        let version = found.next().ok_or_else(|| wrong("no version of the link begins so"))?;
        // The same version may be there twice only in a foreign link.
        if found.any(|other| other.manifest != version.manifest) {
            return Err(wrong("several versions of the link begin so"));
        }
        Ok(version)
    }
}

impl FromStr for VersionName {
    type Err = VersionNameError;

    fn from_str(text: &str) -> Result<Self, VersionNameError> {
        if text == "current" {
            return Ok(Self::Current);
        }
        let good = (DIGITS_MIN..=2 * Digest::BYTES).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self::Starts(text.to_owned())) } else { Err(VersionNameError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("current"),
            Self::Starts(digits) => f.write_str(digits),
        }
    }
}
