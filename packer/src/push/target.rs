//! Which bucket on which server, as the user names it.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

use super::PushError;
use super::credentials::variable;

/// The scheme of buckets.
const SCHEME: &str = "s3://";

/// The region that servers without regions expect to be named.
const DEFAULT_REGION: &str = "us-east-1";

/// A bucket, or a folder in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The bucket's name.
    pub bucket: String,
    /// The folder in it, without slashes at its ends; empty for the bucket itself.
    pub prefix: String,
}

/// How the server of a bucket is reached.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// Its URL; nothing for that in the environment, else Amazon's.
    pub url: Option<Url>,
    /// Its region; nothing for that in the environment.
    pub region: Option<String>,
    /// Whether it may be reached unencrypted, even over a network.
    pub allow_http: bool,
}

/// A server that was looked up and may be used.
#[derive(Debug)]
pub(super) struct Server {
    /// Its URL without a slash at the end; nothing for Amazon's.
    pub(super) url: Option<String>,
    pub(super) region: String,
}

impl FromStr for Target {
    type Err = PushError;

    fn from_str(text: &str) -> Result<Self, PushError> {
        let wrong = |reason: &str| PushError::Target { text: text.to_owned(), reason: reason.to_owned() };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if bucket.is_empty() || !plain(bucket) {
            return Err(wrong("a bucket's name has letters, digits, '.', '_' and '-'"));
        }
        let prefix = prefix.trim_end_matches('/');
        let good = |part: &str| !part.is_empty() && plain(part) && part != "." && part != "..";
        if !prefix.is_empty() && !prefix.split('/').all(good) {
            return Err(wrong("each part of a prefix has letters, digits, '.', '_' and '-'"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl Endpoint {
    /// Looks up what the user did not say, and refuses to send anything unencrypted over a network.
    pub(super) fn server(&self) -> Result<Server, PushError> {
        let region = || variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let region = self.region.clone().or_else(region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            let reason = "is not one: regions have letters, digits and '-'".to_owned();
            return Err(PushError::Endpoint { endpoint: format!("the region {region:?}"), reason });
        }
        let named = || variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
        let url = match &self.url {
            Some(url) => Some(url.clone()),
            None => named().map(|text| parse(&text)).transpose()?,
        };
        let url = url.map(|url| self.check(&url)).transpose()?;
        Ok(Server { url, region })
    }

    fn check(&self, url: &Url) -> Result<String, PushError> {
        let shown = shown(url);
        let wrong = |reason: &str| {
            Err(PushError::Endpoint { endpoint: format!("the endpoint {shown}"), reason: reason.to_owned() })
        };
        if !matches!(url.scheme(), "http" | "https") {
            return wrong("is neither http nor https");
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return wrong("has more than a host and a path: credentials come from the environment");
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if url.scheme() == "http" && !loopback && !self.allow_http {
            return Err(PushError::PlainHttp(shown));
        }
        Ok(shown)
    }
}

impl Server {
    /// Its name, to be shown.
    pub(super) fn name(&self) -> String {
        self.url.clone().unwrap_or_else(|| format!("Amazon S3 in {}", self.region))
    }
}

/// A URL without anything that could be secret, and without a slash at its end.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{host}{port}{}", url.scheme(), url.path().trim_end_matches('/'))
}

fn parse(text: &str) -> Result<Url, PushError> {
    // The text is not repeated: it may hold secrets.
    text.parse().map_err(|error: url::ParseError| PushError::Endpoint {
        endpoint: "the endpoint in the environment".to_owned(),
        reason: format!("is not a URL: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_prefixes_are_told_apart() {
        let target = |text: &str| text.parse::<Target>().map(|target| (target.bucket, target.prefix));
        let pair = |bucket: &str, prefix: &str| (bucket.to_owned(), prefix.to_owned());
        assert_eq!(target("s3://vms").unwrap(), pair("vms", ""));
        assert_eq!(target("s3://vms/").unwrap(), pair("vms", ""));
        assert_eq!(target("s3://my.vms/a/b-1/").unwrap(), pair("my.vms", "a/b-1"));
        for text in ["vms", "s3:/vms", "s3://", "s3:///a", "s3://a b", "s3://a//b", "s3://a/../b", "s3://k:s@h/a"] {
            assert!(target(text).is_err(), "{text}");
        }
        assert_eq!("s3://vms/a/".parse::<Target>().unwrap().to_string(), "s3://vms/a");
    }

    fn check(url: &str, allow_http: bool) -> Result<String, PushError> {
        Endpoint { allow_http, ..Endpoint::default() }.check(&url.parse().unwrap())
    }

    #[test]
    fn nothing_is_sent_unencrypted_over_a_network() {
        assert_eq!(check("https://s3.example.org/", false).unwrap(), "https://s3.example.org");
        for local in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:9000"] {
            assert_eq!(check(local, false).unwrap(), local);
        }
        for remote in ["http://s3.example.org", "http://10.0.0.1:9000", "http://localhost.example.org"] {
            assert!(matches!(check(remote, false), Err(PushError::PlainHttp(_))), "{remote}");
            assert_eq!(check(remote, true).unwrap(), remote);
        }
        assert!(check("ftp://s3.example.org", true).is_err());
    }

    #[test]
    fn secrets_in_an_endpoint_are_refused_and_not_shown() {
        for url in ["https://me:hush@h", "https://h/?X-Amz-Signature=hush", "https://h/#hush"] {
            let error = check(url, false).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
