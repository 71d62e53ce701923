//! What is known of links that were read before, and how a new one is compared with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmnetx_format::{Digest, Envelope, Name, PublicKey};

use super::{Notice, Trust, TrustError};
use crate::limits::{SIGNED_LINKS_MAX, UNSIGNED_LINKS_MAX};

/// The number of the state file's form.
const FORM_NUMBER: u32 = 1;

/// What is known of links. The file is closed: a field that this program does not know is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnownLinks {
    known_links: u32,
    /// The key of each URL where a signed link was read.
    signed: BTreeMap<String, PublicKey>,
    /// What each key has signed last for each package, wherever it was read: a mirror shows no older link than another.
    serials: BTreeMap<PublicKey, BTreeMap<Name, State>>,
    /// What was read last at URLs without a signature, the oldest first.
    unsigned: Vec<Unsigned>,
}

/// A state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The link's serial number.
    serial: u64,
    /// The digest of the link's text.
    link: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unsigned {
    url: String,
    serial: u64,
    link: Digest,
}

/// A link as it was read, its signature verified.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    /// Where, without secrets.
    pub(super) url: String,
    /// The key that signed it.
    pub(super) signer: Option<PublicKey>,
    name: Name,
    state: State,
}

/// What comes of comparing a link with what is known.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// What the user should know.
    pub(super) notices: Vec<Notice>,
    /// Whether something was learned that is to be kept.
    pub(super) learned: bool,
}

/// Why bytes are not a file of known links.
#[derive(Debug, thiserror::Error)]
pub(super) enum KnownLinksError {
    #[error("it has number {0}, and this program reads number {FORM_NUMBER}: use a newer vmnetx")]
    Number(u64),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// There is no room for another signed link.
#[derive(Debug)]
pub(super) struct Full;

impl Default for KnownLinks {
    fn default() -> Self {
        let (signed, serials) = Default::default();
        Self { known_links: FORM_NUMBER, signed, serials, unsigned: Vec::new() }
    }
}

impl Offer {
    pub(super) fn new(url: String, envelope: &Envelope, signer: Option<PublicKey>) -> Self {
        let state = State { serial: envelope.link.serial, link: envelope.digest() };
        Self { url, signer, name: envelope.link.name.clone(), state }
    }
}

impl KnownLinks {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, KnownLinksError> {
        #[derive(Deserialize)]
        struct Number {
            known_links: u64,
        }
        // The number comes first: a later form may have any fields.
        let Number { known_links } = serde_json::from_slice(bytes)?;
        if known_links != u64::from(FORM_NUMBER) {
            return Err(KnownLinksError::Number(known_links));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Only a map with keys that are not text could fail, and there is none.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Whether there are more links than may be remembered. Those without a signature do not count: the oldest of them
    /// are dropped.
    pub(super) fn check_room(&self) -> Result<(), Full> {
        let serials = self.serials.values().map(BTreeMap::len).sum::<usize>();
        if self.signed.len().max(serials) > SIGNED_LINKS_MAX { Err(Full) } else { Ok(()) }
    }

    /// Compares a link with what is known, and learns from it. `pointer` is the link file on this host that led to it: as
    /// long as nothing else is known, it says with which key the link is signed and how old it can be at most.
    ///
    /// # Errors
    /// [`TrustError`] when the link is not to be believed; then nothing is learned.
    pub(super) fn meet(&mut self, trust: &Trust, offer: &Offer, pointer: Option<&Offer>) -> Result<Met, TrustError> {
        let mut met = Met::default();
        let known = self.signed.get(&offer.url).copied();
        met.notices.extend(compare_keys(trust, offer, known, pointer)?);
        match offer.signer {
            Some(key) => {
                let seen = self.serials.get(&key).and_then(|serials| serials.get(&offer.name)).copied();
                let handed_on = pointer.filter(|pointer| pointer.signer == offer.signer && pointer.name == offer.name);
                for seen in seen.into_iter().chain(handed_on.map(|pointer| pointer.state)) {
                    compare_states(offer, seen)?;
                }
                met.learned = known != Some(key) || seen != Some(offer.state);
                self.learn_signed(offer, key);
            }
            None => {
                let seen = self.unsigned.iter().find(|unsigned| unsigned.url == offer.url);
                let seen = seen.map(|unsigned| State { serial: unsigned.serial, link: unsigned.link });
                met.notices.extend(seen.and_then(|seen| changed(offer, seen)));
                met.learned = known.is_some() || seen != Some(offer.state);
                self.learn_unsigned(offer);
            }
        }
        Ok(met)
    }

    fn learn_signed(&mut self, offer: &Offer, key: PublicKey) {
        self.signed.insert(offer.url.clone(), key);
        self.serials.entry(key).or_default().insert(offer.name.clone(), offer.state);
        self.unsigned.retain(|unsigned| unsigned.url != offer.url);
    }

    fn learn_unsigned(&mut self, offer: &Offer) {
        let State { serial, link } = offer.state;
        self.signed.remove(&offer.url);
        self.unsigned.retain(|unsigned| unsigned.url != offer.url);
        let surplus = (self.unsigned.len() + 1).saturating_sub(UNSIGNED_LINKS_MAX);
        self.unsigned.drain(..surplus);
        self.unsigned.push(Unsigned { url: offer.url.clone(), serial, link });
    }
}

fn compare_keys(
    trust: &Trust,
    offer: &Offer,
    known: Option<PublicKey>,
    pointer: Option<&Offer>,
) -> Result<Option<Notice>, TrustError> {
    let object = || offer.url.clone();
    let expected = known.or(pointer.and_then(|pointer| pointer.signer));
    match (expected, offer.signer) {
        (Some(expected), Some(key)) if expected != key => {
            // Keys that the user names on this very run are known better than what was remembered.
            if !trust.keys.contains(&key) {
                return Err(TrustError::OtherKey { object: object(), known: expected, offered: key });
            }
            Ok(Some(Notice::KeyReplaced { object: object(), known: expected, key }))
        }
        (Some(known), None) => {
            if !trust.accept_unsigned {
                return Err(TrustError::SignatureGone { object: object(), known });
            }
            Ok(Some(Notice::SignatureDropped { object: object(), known }))
        }
        (_, Some(key)) if known.is_none() && !trust.keys.contains(&key) => {
            Ok(Some(Notice::FirstUse { object: object(), key }))
        }
        _ => Ok(None),
    }
}

fn compare_states(offer: &Offer, seen: State) -> Result<(), TrustError> {
    let (object, State { serial, link }) = (|| offer.url.clone(), offer.state);
    if serial < seen.serial {
        return Err(TrustError::RolledBack { object: object(), seen: seen.serial, offered: serial });
    }
    if serial == seen.serial && link != seen.link {
        return Err(TrustError::TwoFaced { object: object(), serial });
    }
    Ok(())
}

/// What is worth telling of a link without a signature that was another before. It cannot be refused for it: whoever could
/// show an old one could as well give it a higher number.
fn changed(offer: &Offer, seen: State) -> Option<Notice> {
    compare_states(offer, seen).err().and_then(|error| match error {
        TrustError::RolledBack { object, seen, offered } => Some(Notice::SerialWentBack { object, seen, offered }),
        TrustError::TwoFaced { object, serial } => Some(Notice::OtherText { object, serial }),
        _ => None,
    })
}
