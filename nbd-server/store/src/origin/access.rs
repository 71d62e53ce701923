//! Who readers are to a host, a login from netrc or a token, and who else than the system vouches for hosts. No secret of it
//! is ever shown.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::HeaderValue;
use rustls::pki_types::CertificateDer;
use url::Url;

use super::reach::is_this_host;
use super::tls;
use crate::limits::ACCESS_FILE_BYTES_MAX;

/// Which credentials go to which host, and which authorities may vouch for hosts beside the system's. A host gets its own
/// credentials and no other's, over https or to this host itself.
#[derive(Clone, Default)]
pub struct Access {
    credentials: Vec<Credentials>,
    authorities: Vec<CertificateDer<'static>>,
}

#[derive(Clone)]
struct Credentials {
    /// Nothing for every host that no other entry names.
    host: Option<String>,
    header: HeaderValue,
}

/// Why credentials or authorities cannot be used. Tells no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("read {}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Others may read the file.
    #[error("{} may be read by other users: run `chmod 600` on it", file.display())]
    Open {
        /// The file.
        file: PathBuf,
    },
    /// The text is no netrc, no token or no certificate.
    #[error("{}: {reason}", file.display())]
    Text {
        /// The file.
        file: PathBuf,
        /// What is wrong, without the text.
        reason: &'static str,
    },
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hosts, authorities) = (self.credentials.len(), self.authorities.len());
        write!(f, "Access({hosts} hosts, {authorities} authorities)")
    }
}

impl Access {
    /// What the user's netrc says: the file that `NETRC` names, or `.netrc` in the home directory; nothing without one.
    ///
    /// # Errors
    /// [`AccessError`] when the file is there and cannot be used.
    pub fn from_user() -> Result<Self, AccessError> {
        let named = std::env::var_os("NETRC").filter(|name| !name.is_empty()).map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".netrc"));
        match named.or_else(home) {
            Some(file) if file.exists() => Self::from_netrc(&file),
            _ => Ok(Self::default()),
        }
    }

    /// What a netrc file says.
    ///
    /// # Errors
    /// [`AccessError`] when it cannot be read, others may read it, or it is no netrc.
    pub fn from_netrc(file: &Path) -> Result<Self, AccessError> {
        let text = read_secret(file)?;
        let credentials = parse(&text).map_err(|reason| AccessError::Text { file: file.to_owned(), reason })?;
        Ok(Self { credentials, ..Self::default() })
    }

    /// Gives `host` the bearer token that is in `file`, before all that is known of it.
    ///
    /// # Errors
    /// [`AccessError`] when the file cannot be read, others may read it, or it has no token.
    pub fn add_token(&mut self, host: &str, file: &Path) -> Result<(), AccessError> {
        let text = read_secret(file)?;
        let wrong = AccessError::Text { file: file.to_owned(), reason: "it is no token" };
        let token = text.trim();
        if token.is_empty() {
            return Err(wrong);
        }
        let header = secret(format!("Bearer {token}")).ok_or(wrong)?;
        self.credentials.insert(0, Credentials { host: Some(host.to_ascii_lowercase()), header });
        Ok(())
    }

    /// Believes hosts whose certificates are signed by an authority in `file`, in PEM.
    ///
    /// # Errors
    /// [`AccessError`] when the file cannot be read, or has no certificate that can be used.
    pub fn add_authorities(&mut self, file: &Path) -> Result<(), AccessError> {
        let pem = File::open(file).map_err(|error| error.to_string()).and_then(read_bounded);
        let pem = pem.map_err(|reason| AccessError::File { file: file.to_owned(), reason })?;
        let wrong = |reason| AccessError::Text { file: file.to_owned(), reason };
        self.authorities.extend(tls::parse_authorities(&pem).map_err(wrong)?);
        Ok(())
    }

    /// Whom to believe beside the system's authorities.
    pub(super) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// The Authorization of a request to `url`.
    pub(crate) fn header(&self, url: &Url) -> Option<HeaderValue> {
        let host = url.host_str()?;
        if url.scheme() != "https" && !is_this_host(host) {
            return None;
        }
        let named = self.credentials.iter().find(|credentials| credentials.host.as_deref() == Some(host));
        let found = named.or_else(|| self.credentials.iter().find(|credentials| credentials.host.is_none()));
        found.map(|credentials| credentials.header.clone())
    }
}

/// A header whose value HTTP code does not print either.
fn secret(text: String) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Reads a file that nobody but its owner may read.
fn read_secret(file: &Path) -> Result<String, AccessError> {
    let wrong = |reason: String| AccessError::File { file: file.to_owned(), reason };
    let opened = File::open(file).map_err(|error| wrong(error.to_string()))?;
    let metadata = opened.metadata().map_err(|error| wrong(error.to_string()))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(AccessError::Open { file: file.to_owned() });
    }
    let bytes = read_bounded(opened).map_err(wrong)?;
    String::from_utf8(bytes).map_err(|_| wrong("it is no UTF-8 text".to_owned()))
}

fn read_bounded(file: File) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // One byte more than may be shows that there is more.
    let read = file.take(ACCESS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    if read.map_err(|error| error.to_string())? as u64 > ACCESS_FILE_BYTES_MAX {
        return Err(format!("it has more than {ACCESS_FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// The entries of a netrc: `machine NAME login NAME password TEXT`, `default` for all others. Macros are passed over: they go on
/// until an empty line.
fn parse(text: &str) -> Result<Vec<Credentials>, &'static str> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        match line.split_once("macdef") {
            Some((before, _)) if before.is_empty() || before.ends_with(char::is_whitespace) => {
                kept.extend(before.split_whitespace());
                lines.by_ref().find(|line| line.trim().is_empty());
            }
            _ => kept.extend(line.split_whitespace()),
        }
    }
    let mut entries = Vec::new();
    let mut words = kept.into_iter();
    let mut entry: Option<(Option<String>, &str, &str)> = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or("a word is missing at its end");
        match word {
            "machine" => {
                let host = value()?.to_ascii_lowercase();
                entries.extend(entry.replace((Some(host), "", "")));
            }
            "default" => entries.extend(entry.replace((None, "", ""))),
            "login" => entry.as_mut().ok_or("a login without a machine")?.1 = value()?,
            "password" => entry.as_mut().ok_or("a password without a machine")?.2 = value()?,
            "account" => drop(value()?),
            _ => return Err("it is no netrc file"),
        }
    }
    entries.extend(entry);
    let credentials = |(host, login, password)| {
        let header = secret(format!("Basic {}", BASE64_STANDARD.encode(format!("{login}:{password}"))));
        Ok(Credentials { host, header: header.ok_or("a login that cannot be sent")? })
    };
    entries.into_iter().map(credentials).collect()
}

/// The options of commands that read links by which they show themselves to hosts and know them.
#[cfg(feature = "clap")]
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AccessArgs {
    /// Send the bearer token in FILE to HOST, over https. Can be given several times. Logins for other hosts are taken from
    /// the netrc file that NETRC names, or from ~/.netrc.
    #[arg(long, value_name = "HOST=FILE", value_parser = parse_token_file)]
    token_file: Vec<(String, PathBuf)>,
    /// Believe https servers whose certificates are signed by an authority in FILE (PEM) too, beside the system's authorities.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[cfg(feature = "clap")]
impl AccessArgs {
    /// The hosts and the files with their tokens.
    #[must_use]
    pub fn token_files(&self) -> &[(String, PathBuf)] {
        &self.token_file
    }

    /// The file with authorities, if one is named.
    #[must_use]
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// What the options and the user's netrc say.
    ///
    /// # Errors
    /// [`AccessError`] when one of the files cannot be used.
    pub fn access(&self) -> Result<Access, AccessError> {
        let mut access = Access::from_user()?;
        self.token_file.iter().try_for_each(|(host, file)| access.add_token(host, file))?;
        self.ca_file.iter().try_for_each(|file| access.add_authorities(file))?;
        Ok(access)
    }
}

#[cfg(feature = "clap")]
fn parse_token_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((host, file)) if !host.is_empty() && !file.is_empty() => Ok((host.to_owned(), file.into())),
        _ => Err("write HOST=FILE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn sent(access: &Access, url: &str) -> Option<String> {
        let header = access.header(&url.parse().unwrap())?;
        assert!(header.is_sensitive());
        Some(header.to_str().unwrap().to_owned())
    }

    const NETRC: &str = "# mine\nmachine vms.example.org login ann password secret\nmacdef init\nmachine no login no\n\n\
                         machine 127.0.0.1\n  login bob\n  account x\n  password pa:ss\n";

    #[test]
    fn each_host_gets_its_own_login_and_only_in_secret() {
        let access = Access::from_netrc(file(NETRC, 0o600).path()).unwrap();
        let ann = sent(&access, "https://VMS.example.org:8443/a/b").unwrap();
        assert_eq!(ann, format!("Basic {}", BASE64_STANDARD.encode("ann:secret")));
        assert_eq!(
            sent(&access, "http://127.0.0.1:80/").unwrap(),
            format!("Basic {}", BASE64_STANDARD.encode("bob:pa:ss"))
        );
        for none in [
            "http://vms.example.org/",
            "https://example.org/",
            "https://evil.vms.example.org/",
            "https://vms.example.org.evil.org/",
            "https://no/",
            "https://vms.example.org@evil.org/",
        ] {
            assert_eq!(sent(&access, none), None, "{none}");
        }
        assert!(!format!("{access:?}").contains("secret"));
        let all = Access::from_netrc(file("default login anonymous password x", 0o400).path()).unwrap();
        assert!(sent(&all, "https://anywhere.org/").is_some() && sent(&all, "http://anywhere.org/").is_none());
    }

    #[test]
    fn a_token_goes_before_a_login() {
        let mut access = Access::from_netrc(file(NETRC, 0o600).path()).unwrap();
        access.add_token("VMS.example.org", file("tok\n", 0o600).path()).unwrap();
        assert_eq!(sent(&access, "https://vms.example.org/").unwrap(), "Bearer tok");
        assert_eq!(sent(&access, "https://example.org/"), None);
        for wrong in ["", "\n", "a\nb"] {
            assert!(access.add_token("h", file(wrong, 0o600).path()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn files_that_others_may_read_or_that_are_no_netrc_are_refused() {
        for mode in [0o644, 0o640, 0o604] {
            let error = Access::from_netrc(file(NETRC, mode).path()).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for text in ["login ann", "machine", "machine h login", "<html>secret</html>", "password secret"] {
            let error = Access::from_netrc(file(text, 0o600).path()).unwrap_err();
            assert!(matches!(error, AccessError::Text { .. }) && !error.to_string().contains("secret"), "{error}");
        }
        let long = " ".repeat(ACCESS_FILE_BYTES_MAX as usize + 1);
        assert!(Access::from_netrc(file(&long, 0o600).path()).is_err());
    }
}
