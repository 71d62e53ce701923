//! A LINK as users give it: a URL or a path, with an optional version.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;
use vmnetx_format::Digest;

use crate::Error;
use crate::origin::shown;

/// The scheme prefix of links that a desktop hands to this program.
const SCHEME_PREFIX: &str = "vmnetx+";
/// What a URL's fragment begins with when it asks for one version.
const PIN: &str = "b3=";

/// Where a link file is, and which of its versions is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Where the link file is.
    pub place: Place,
    /// The digest of the manifest that is asked for; nothing for the current version.
    pub version: Option<Digest>,
}

/// Where a link file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a web server.
    Url(Url),
    /// On this host.
    Path(PathBuf),
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Location { text: text.to_owned(), reason };
        let (address, fragment) = match text.rsplit_once('#') {
            Some((address, fragment)) if fragment.starts_with(PIN) => (address, Some(fragment)),
            _ => (text, None),
        };
        let version = fragment.map(|fragment| fragment[PIN.len()..].parse::<Digest>());
        let version = version.transpose().map_err(|error| wrong(format!("after #{PIN}: {error}")))?;
        let bare = address.strip_prefix(SCHEME_PREFIX).unwrap_or(address);
        if !bare.contains("://") {
            if address.is_empty() || bare != address {
                return Err(wrong("give an http or https URL, or a path to a link file".to_owned()));
            }
            return Ok(Self { place: Place::Path(address.into()), version });
        }
        let url: Url = bare.parse().map_err(|error: url::ParseError| wrong(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("the scheme {}: is neither http nor https", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "credentials in a URL are not supported yet, and would show in the process list".to_owned();
            return Err(Error::Location { text: shown(&url), reason });
        }
        if url.fragment().is_some() {
            return Err(wrong(format!("after '#' only {PIN}DIGEST can stand")));
        }
        Ok(Self { place: Place::Url(url), version })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Url(url) => f.write_str(&shown(url)),
            Place::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        match text.parse::<Location>().unwrap().place {
            Place::Url(url) => url,
            Place::Path(path) => panic!("{text} is the path {path:?}"),
        }
    }

    #[test]
    fn urls_and_paths_are_told_apart() {
        assert_eq!(url("https://h/a.vmnetx").as_str(), "https://h/a.vmnetx");
        assert_eq!(url("vmnetx+https://h/a.vmnetx").as_str(), "https://h/a.vmnetx");
        let path = "repo/a#1.vmnetx".parse::<Location>().unwrap();
        assert_eq!(path, Location { place: Place::Path("repo/a#1.vmnetx".into()), version: None });
    }

    #[test]
    fn a_fragment_asks_for_a_version() {
        let digest = Digest::of(b"x");
        for address in ["https://h/a.vmnetx", "a.vmnetx"] {
            let pinned: Location = format!("{address}#b3={digest}").parse().unwrap();
            assert_eq!(pinned.version, Some(digest));
            assert!(format!("{address}#b3=12").parse::<Location>().is_err());
        }
    }

    #[test]
    fn what_is_no_link_is_refused_without_showing_secrets() {
        for text in ["", "ftp://h/a", "file:///etc/passwd", "https://", "https://h/a#v=1", "vmnetx+a.vmnetx"] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
        let error = "https://user:secret@h/a.vmnetx".parse::<Location>().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
