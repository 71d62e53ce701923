//! Where a repository is repaired from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

/// Another repository: a directory on this host, or the URL of its folder on a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairSource {
    /// A directory.
    Dir(PathBuf),
    /// A folder; the URL ends in `/`.
    Url(Url),
}

/// Text that names no repository.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0:?} is no repository: give a directory, or an http(s) URL of a folder without credentials")]
pub struct RepairSourceError(String);

impl FromStr for RepairSource {
    type Err = RepairSourceError;

    fn from_str(text: &str) -> Result<Self, RepairSourceError> {
        let wrong = || RepairSourceError(text.chars().take(200).collect());
        if text.is_empty() {
            return Err(wrong());
        }
        if !text.contains("://") {
            return Ok(Self::Dir(text.into()));
        }
        let mut url: Url = text.parse().map_err(|_| wrong())?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        if !matches!(url.scheme(), "http" | "https") || !plain || url.fragment().is_some() {
            // What was given may hold a password.
            return Err(RepairSourceError(format!("{}:...", url.scheme())));
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(Self::Url(url))
    }
}

impl fmt::Display for RepairSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_folders_are_told_apart() {
        assert_eq!("/srv/vms".parse::<RepairSource>().unwrap(), RepairSource::Dir("/srv/vms".into()));
        let url = "https://example.org/vms".parse::<RepairSource>().unwrap();
        assert_eq!(url.to_string(), "https://example.org/vms/");
        for text in ["", "ftp://h/", "https://user:secret@h/", "https://h/?q", "https://h/#x", "http://"] {
            let error = text.parse::<RepairSource>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
