//! Who signs a link, and that no signature is lost or changed hands unless the publisher says so.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmnetx_format::{Envelope, Link, Name, PublicKey, SecretKey, link_path};
use vmnetx_store::dir::{RepositoryDir, Wait};

use crate::Error;

/// Who signs the links that are published.
#[derive(Debug, Clone, Default)]
pub struct Signing {
    /// The key that signs them; nothing if nobody does.
    pub key: Option<SecretKey>,
    /// Whether it does not matter who has signed them before. If not, it must have been the same key, or nobody.
    pub replace: bool,
}

/// What became of a link that was to be signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignReport {
    /// The package's name.
    pub name: Name,
    /// The link file.
    pub link: PathBuf,
    /// The link's serial number, which is as it was.
    pub serial: u64,
    /// The key with which the link is signed now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// Whether the link file was replaced; if not, it was signed so already.
    pub changed: bool,
}

impl Signing {
    /// The key by which readers know who signs.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.key.as_ref().map(SecretKey::public)
    }

    /// Whether a link may follow `before` and be signed so: worth asking before long work.
    ///
    /// # Errors
    /// [`Error::Signed`], [`Error::OtherKey`], [`Error::BadSignature`].
    pub fn check(&self, before: Option<&Envelope>) -> Result<(), Error> {
        let Some(before) = before.filter(|_| !self.replace) else { return Ok(()) };
        let name = || before.link.name.clone();
        match (before.signer(), self.public_key()) {
            // Publishing on top of it would make good what somebody has forged.
            (Err(source), _) => Err(Error::BadSignature { name: name(), source }),
            (Ok(Some(_)), None) => Err(Error::Signed(name())),
            (Ok(Some(known)), Some(offered)) if known != offered => {
                Err(Error::OtherKey { name: name(), known, offered })
            }
            (Ok(_), _) => Ok(()),
        }
    }

    /// The file of `link`, which takes the place of `before`: the only way in which a link that is published gets or keeps
    /// its signature. A link that says the same keeps its text to the byte, and with it its serial number.
    ///
    /// # Errors
    /// As [`Self::check`]; [`Error::Serial`] when the link says something else but counts no further; [`Error::Link`].
    pub fn successor(&self, before: Option<&Envelope>, link: Link) -> Result<Envelope, Error> {
        self.check(before)?;
        let envelope = match before {
            Some(before) if before.link == link => before.clone(),
            Some(before) if before.link.serial >= link.serial => return Err(Error::Serial(link.name)),
            _ => Envelope::unsigned(link)?,
        };
        Ok(match &self.key {
            Some(key) => envelope.signed(key),
            None => envelope.without_signature(),
        })
    }
}

/// Signs the link of a package as it is, or takes its signature off where `signing` has no key.
///
/// What the link says does not change, so neither does its serial number: readers compare the link's text, and that is
/// the same.
///
/// # Errors
/// [`Error::NoSuchPackage`]; as [`Signing::check`]; [`Error::Repository`].
pub fn sign(repository: &Path, name: &Name, signing: &Signing, wait: Wait) -> Result<SignReport, Error> {
    let publisher = RepositoryDir::open(repository)?.lock(wait)?;
    let before = publisher.repository().link(name)?;
    let before =
        before.ok_or_else(|| Error::NoSuchPackage { repository: repository.to_owned(), name: name.clone() })?;
    let after = signing.successor(Some(&before), before.link.clone())?;
    let changed = after.signature != before.signature;
    if changed {
        publisher.replace_link(&after)?;
    }
    Ok(SignReport {
        name: name.clone(),
        link: repository.join(link_path(name)),
        serial: after.link.serial,
        key: signing.public_key(),
        changed,
    })
}
