//! The link: the small mutable file that names a package's current and retained versions.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use url::Url;

use crate::limits::{
    LAYOUT_BYTES_MAX, LINK_BYTES_MAX, MANIFEST_BYTES_MAX, ORDERS_MAX, RETAINED_MAX, URL_BYTES_MAX, URLS_MAX,
};
use crate::signature::{SecretKey, Signature, SignatureError};
use crate::{Digest, FORMAT_NUMBER, Name, PublicKey, Title, json};

/// What a link file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The package's name.
    pub name: Name,
    /// The title that people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// Counts publications of the link, from 1: a lower number is an older link.
    pub serial: u64,
    /// Where the repository lies, best first; the first one also holds the canonical link. Empty: where the link was
    /// read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<Url>,
    /// The version that a reader takes unless it asks for another.
    pub current: Version,
    /// Earlier versions that can still be read, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retained: Vec<Version>,
}

/// A version as a link names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The digest of its manifest: its identity.
    pub manifest: Digest,
    /// Bytes of its manifest.
    pub manifest_bytes: u64,
    /// The digest of the layout object by which it is read now.
    pub layout: Digest,
    /// Bytes of that layout object.
    pub layout_bytes: u64,
    /// The digests of its recorded orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Digest>,
    /// When it was published, in seconds since 1970 (UTC).
    pub published_unix_s: u64,
    /// Whether its publisher wants it to stay, however many newer ones there are. Readers take no notice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// A link file: the link's text and an optional signature over just that text.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// What the link says.
    pub link: Link,
    /// Its signature. [`Envelope::signer`] says whether it is good; nothing else looks at it.
    pub signature: Option<Signature>,
    text: Box<RawValue>,
}

/// Why bytes are not a link file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Written by another version of the format.
    #[error("the link has format number {0}; this program reads number {FORMAT_NUMBER}: use a newer vmnetx")]
    FormatNumber(u64),
    /// Not the JSON that it should be, or fields that the format does not know.
    #[error("the link is damaged: {0}")]
    Json(String),
    /// Larger than any link.
    #[error("the link has {0} bytes, more than {LINK_BYTES_MAX}")]
    TooLarge(u64),
    /// The link's text is not what it was when it was written.
    #[error("the link is damaged: its text does not have the digest beside it")]
    Digest,
    /// A field that cannot be.
    #[error("the link's field {field} {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vmnetx: u32,
    link: Box<RawValue>,
    /// Of the link's text. Nobody is kept from changing both; it finds flipped bits.
    blake3: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
}

#[derive(Deserialize)]
struct Number {
    vmnetx: u64,
}

impl Envelope {
    /// Wraps a link that is not signed.
    ///
    /// # Errors
    /// [`LinkError`] when the link has fields that no reader would accept.
    pub fn unsigned(link: Link) -> Result<Self, LinkError> {
        link.check()?;
        let text = serde_json::value::to_raw_value(&link).map_err(|error| LinkError::Json(error.to_string()))?;
        Ok(Self { link, signature: None, text })
    }

    /// Signs the link's text, in place of whoever signed it before.
    #[must_use]
    pub fn signed(self, key: &SecretKey) -> Self {
        let signature = Some(key.sign_link(self.text()));
        Self { signature, ..self }
    }

    /// The same link without a signature.
    #[must_use]
    pub fn without_signature(self) -> Self {
        Self { signature: None, ..self }
    }

    /// The key that signed the link; nothing if it is not signed.
    ///
    /// # Errors
    /// [`SignatureError`] when there is a signature, but not over this text or not with the key that it names.
    pub fn signer(&self) -> Result<Option<PublicKey>, SignatureError> {
        self.signature.as_ref().map(|signature| signature.verify_link(self.text())).transpose()
    }

    /// The link's text as it stands in the file: what a signature is about.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        self.text.get().as_bytes()
    }

    /// The digest of the link's text: two links of one serial number must have the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.text())
    }

    /// The file as it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let blake3 = self.digest();
        let file = File { vmnetx: FORMAT_NUMBER, link: self.text.clone(), blake3, signature: self.signature.clone() };
        // Only a map with keys that are not text could fail, and there is none.
        let mut bytes = serde_json::to_vec(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a link file.
    ///
    /// # Errors
    /// [`LinkError`] when the bytes are not one of this format number.
    pub fn decode(bytes: &[u8]) -> Result<Self, LinkError> {
        if bytes.len() as u64 > LINK_BYTES_MAX {
            return Err(LinkError::TooLarge(bytes.len() as u64));
        }
        // The number comes first: a later format may have any fields.
        let Number { vmnetx } = json::from_slice(bytes).map_err(LinkError::Json)?;
        if vmnetx != u64::from(FORMAT_NUMBER) {
            return Err(LinkError::FormatNumber(vmnetx));
        }
        let File { link: text, blake3, signature, .. } = json::from_slice(bytes).map_err(LinkError::Json)?;
        if Digest::of(text.get().as_bytes()) != blake3 {
            return Err(LinkError::Digest);
        }
        let link: Link = json::from_slice(text.get().as_bytes()).map_err(LinkError::Json)?;
        link.check()?;
        Ok(Self { link, signature, text })
    }
}

impl Link {
    /// The versions that the link names, the current one first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = &Version> + Clone {
        std::iter::once(&self.current).chain(&self.retained)
    }

    /// The version of this identity, current or retained.
    #[must_use]
    pub fn version(&self, manifest: &Digest) -> Option<&Version> {
        self.versions().find(|version| version.manifest == *manifest)
    }

    fn check(&self) -> Result<(), LinkError> {
        let field = |field, reason: &str| Err(LinkError::Field { field, reason: reason.to_owned() });
        if self.serial == 0 {
            return field("serial", "is 0; it counts from 1");
        }
        if self.retained.len() > RETAINED_MAX {
            return field("retained", "has too many versions");
        }
        if self.repositories.len() > URLS_MAX {
            return field("repositories", "has too many URLs");
        }
        for url in &self.repositories {
            check_url(url)?;
        }
        for version in self.versions() {
            if version.manifest_bytes > MANIFEST_BYTES_MAX {
                return field("manifest_bytes", "is more than any manifest has");
            }
            if version.layout_bytes > LAYOUT_BYTES_MAX {
                return field("layout_bytes", "is more than any layout object has");
            }
            if version.orders.len() > ORDERS_MAX {
                return field("orders", "has too many orders");
            }
        }
        Ok(())
    }
}

/// A repository URL names a remote folder and no secret: a link is public, and must not point into its reader's disk.
fn check_url(url: &Url) -> Result<(), LinkError> {
    let field = |reason: &str| Err(LinkError::Field { field: "repositories", reason: reason.to_owned() });
    if !matches!(url.scheme(), "http" | "https") {
        return field("has a URL that is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return field("has a URL with credentials; give them to the reader, not to the link");
    }
    if url.query().is_some() || url.fragment().is_some() || !url.path().ends_with('/') {
        return field("has a URL that is not a folder: it must end in '/' and have neither '?' nor '#'");
    }
    if url.as_str().len() > URL_BYTES_MAX { field("has a URL that is too long") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version() -> Version {
        Version {
            manifest: Digest::of(b"manifest"),
            manifest_bytes: 500,
            layout: Digest::of(b"layout"),
            layout_bytes: 9000,
            orders: Vec::new(),
            published_unix_s: 1_700_000_000,
            pinned: false,
        }
    }

    fn link() -> Link {
        Link {
            name: "debian".parse().unwrap(),
            title: Some("Debian 12".parse().unwrap()),
            serial: 3,
            repositories: vec!["https://example.org/vms/".parse().unwrap()],
            current: version(),
            retained: Vec::new(),
        }
    }

    fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Envelope, LinkError> {
        let mut json: serde_json::Value =
            serde_json::from_slice(&Envelope::unsigned(link()).unwrap().encode()).unwrap();
        edit(&mut json);
        json["blake3"] = Digest::of(json["link"].to_string().as_bytes()).to_string().into();
        Envelope::decode(json.to_string().as_bytes())
    }

    #[test]
    fn survives_with_the_text_that_was_signed() {
        let key = SecretKey::from_seed(&[1; 32]);
        let envelope = Envelope::unsigned(link()).unwrap();
        assert_eq!(envelope.signer(), Ok(None));
        let envelope = envelope.signed(&key);
        let read = Envelope::decode(&envelope.encode()).unwrap();
        assert_eq!(read.link, envelope.link);
        assert_eq!(read.signer(), Ok(Some(key.public())));
        assert_eq!((read.text(), read.digest()), (envelope.text(), envelope.digest()));
        assert!(read.link.version(&Digest::of(b"manifest")).is_some());
        assert!(read.link.version(&Digest::of(b"other")).is_none());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = Envelope::unsigned(link()).unwrap().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Envelope::decode(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_signed_link_is_bound_to_its_text() {
        let signed = Envelope::unsigned(link()).unwrap().signed(&SecretKey::from_seed(&[1; 32]));
        let other = Envelope::unsigned(Link { serial: 4, ..link() }).unwrap();
        let moved = Envelope { signature: signed.signature.clone(), ..other };
        // The file is whole; only the signature tells.
        let read = Envelope::decode(&moved.encode()).unwrap();
        assert_eq!(read.signer(), Err(SignatureError { key: SecretKey::from_seed(&[1; 32]).public() }));
        let resigned = read.signed(&SecretKey::from_seed(&[2; 32]));
        assert_eq!(resigned.signer(), Ok(Some(SecretKey::from_seed(&[2; 32]).public())));
        assert_eq!(resigned.text(), moved.text());
    }

    #[test]
    fn what_surrounds_the_text_is_not_signed_and_cannot_change_it() {
        // A file that is laid out otherwise around the same text is the same link.
        let signed = Envelope::unsigned(link()).unwrap().signed(&SecretKey::from_seed(&[1; 32]));
        let text = String::from_utf8(signed.encode()).unwrap();
        let spaced = text.replacen("{\"vmnetx\"", "{ \"vmnetx\"", 1);
        assert_eq!(Envelope::decode(spaced.as_bytes()).unwrap().signer(), signed.signer());
        // Within the text even a space counts.
        let inside = text.replacen("\"serial\":3", "\"serial\": 3", 1);
        assert_eq!(Envelope::decode(inside.as_bytes()).unwrap_err(), LinkError::Digest);
    }

    #[test]
    fn later_formats_are_refused_by_their_number() {
        let error = edited(|json| {
            json["vmnetx"] = 7.into();
            json["new"] = true.into();
        });
        assert_eq!(error.unwrap_err(), LinkError::FormatNumber(7));
    }

    #[test]
    fn unknown_and_impossible_fields_are_refused_by_name() {
        let refused = |edit: fn(&mut serde_json::Value)| edited(edit).unwrap_err().to_string();
        assert!(refused(|json| json["new"] = true.into()).contains("new"));
        assert!(refused(|json| json["link"]["qemu"] = "-enable-kvm".into()).contains("qemu"));
        assert!(refused(|json| json["link"]["current"]["path"] = "/etc".into()).contains("path"));
        assert!(refused(|json| json["link"]["a\u{1b}]0;b"] = 0.into()).contains("a\u{fffd}]0;b"));
        assert!(refused(|json| json["link"]["serial"] = 0.into()).contains("serial"));
        assert!(refused(|json| json["link"]["name"] = "../x".into()).contains("name"));
        for url in ["file:///etc/", "/etc/", "https://user:pw@host/", "https://host/x", "https://host/?q=/"] {
            let error = edited(|json| json["link"]["repositories"][0] = url.into()).unwrap_err().to_string();
            assert!(error.contains("URL"), "{url}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            let _ = Envelope::decode(&bytes);
            let _ = Envelope::decode(text.as_bytes());
        }
    }
}
