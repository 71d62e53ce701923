//! Ed25519 keys, and signatures over links.
//!
//! What is signed is not the link's text alone but a line that says what is signed, and then the text: a signature over a
//! link is never one over anything else that a key may sign one day, nor over the link of another format number.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::limits::KEYS_MAX;

/// What stands before a link's text in the message that is signed. No other kind of message begins so: each has a first
/// line of its own, which ends where the line does. The number is the format's, which the link's text does not hold.
const LINK_CONTEXT: &[u8] = b"vmnetx link 0\n";
/// What a public key's text begins with.
const PUBLIC_PREFIX: &str = "vmnetx-key-";
/// What a key file begins with. The number is that of the key file's own form.
const SECRET_PREFIX: &str = "vmnetx-secret-key-0 ";
/// What every key file begins with, whatever its number.
const SECRET_PREFIXES: &str = "vmnetx-secret-key-";

/// A key that signatures are compared with. Its text is `vmnetx-key-` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A key that signs. It is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

/// An Ed25519 signature over a link's text and the line that says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key, 64 hexadecimal digits.
    pub key: Hex<32>,
    /// The signature, 128 hexadecimal digits.
    pub ed25519: Hex<64>,
}

/// Bytes that JSON spells as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

/// A signature that the key beside it did not make over this text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not one of {key} over this link")]
pub struct SignatureError {
    /// The key that the signature claims to be made with.
    pub key: PublicKey,
}

/// Why text is no key. It never repeats the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the text of a public key.
    #[error("not a public key: expected {PUBLIC_PREFIX} and 64 lower-case hexadecimal digits")]
    Public,
    /// The right text, but no signature could ever be compared with the key.
    #[error("not a public key: no secret key belongs to it")]
    Weak,
    /// A secret key where a public one is wanted.
    #[error("this is a secret key, where the public one is wanted: give the text of its file's neighbour .pub")]
    SecretGiven,
    /// Not the text of a key file.
    #[error("not a secret key: expected one line as `vmnetx-pack keygen` writes it")]
    Secret,
    /// A key file of a later program.
    #[error("the secret key is of a later kind: use a newer vmnetx")]
    LaterSecret,
    /// A key file whose two keys do not belong together.
    #[error("the secret key is damaged: the public key beside it is not its own")]
    Damaged,
    /// A list of public keys with a line that is none.
    #[error("line {line}: {reason}")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A list without a key.
    #[error("there is no public key in it")]
    NoKeys,
    /// A list with too many keys.
    #[error("there are more than {KEYS_MAX} public keys in it")]
    TooManyKeys,
}

impl PublicKey {
    /// Reads a list of public keys, one a line. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`KeyError`] when a line is no key, or there are none or too many.
    pub fn list(text: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys.push(line.parse().map_err(|error| match error {
                KeyError::SecretGiven => error,
                KeyError::Weak => KeyError::Line { line: index + 1, reason: "no secret key belongs to this key" },
                _ => KeyError::Line { line: index + 1, reason: "not a public key" },
            })?);
            if keys.len() > KEYS_MAX {
                return Err(KeyError::TooManyKeys);
            }
        }
        if keys.is_empty() { Err(KeyError::NoKeys) } else { Ok(keys) }
    }
}

impl SecretKey {
    /// Bytes of the random number that a key is made from.
    pub const SEED_BYTES: usize = 32;

    /// Makes a key from a random number, which the caller takes from the system.
    #[must_use]
    pub fn from_seed(seed: &[u8; Self::SEED_BYTES]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The key that others compare its signatures with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The text of a key file: one line with the secret and the public key. Each is the other's check.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it: text that moves as it grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + 130));
        text.push_str(SECRET_PREFIX);
        push_hex(&mut text, self.0.as_bytes());
        text.push(' ');
        push_hex(&mut text, &self.public().0);
        text.push('\n');
        text
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`KeyError`] when it is not what [`Self::to_text`] writes.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let Some(keys) = text.strip_prefix(SECRET_PREFIX) else {
            let later = text.starts_with(SECRET_PREFIXES);
            return Err(if later { KeyError::LaterSecret } else { KeyError::Secret });
        };
        let keys = keys.strip_suffix('\n').unwrap_or(keys);
        let (secret, public) = keys.split_once(' ').ok_or(KeyError::Secret)?;
        let seed = Zeroizing::new(from_hex(secret).ok_or(KeyError::Secret)?);
        let key = Self::from_seed(&seed);
        let public = PublicKey(from_hex(public).ok_or(KeyError::Secret)?);
        if key.public() == public { Ok(key) } else { Err(KeyError::Damaged) }
    }

    /// Signs a link's text.
    pub(crate) fn sign_link(&self, text: &[u8]) -> Signature {
        let signature = self.0.sign(&link_message(text));
        Signature { key: Hex(self.public().0), ed25519: Hex(signature.to_bytes()) }
    }
}

impl Signature {
    /// The key that the signature claims to be made with.
    #[must_use]
    pub const fn claimed_key(&self) -> PublicKey {
        PublicKey(self.key.0)
    }

    /// Compares the signature with a link's text; gives the key that has made it.
    pub(crate) fn verify_link(&self, text: &[u8]) -> Result<PublicKey, SignatureError> {
        let key = self.claimed_key();
        let wrong = |_| SignatureError { key };
        let verifying = VerifyingKey::from_bytes(&key.0).map_err(wrong)?;
        // Strict: keys and signatures that hold for more than one text, or have a second form, are refused.
        verifying.verify_strict(&link_message(text), &Ed25519::from_bytes(&self.ed25519.0)).map_err(wrong)?;
        Ok(key)
    }
}

fn link_message(text: &[u8]) -> Vec<u8> {
    [LINK_CONTEXT, text].concat()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PUBLIC_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.starts_with(SECRET_PREFIXES) {
            return Err(KeyError::SecretGiven);
        }
        let bytes = text.strip_prefix(PUBLIC_PREFIX).and_then(from_hex).ok_or(KeyError::Public)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Weak)?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * N);
        push_hex(&mut text, &self.0);
        serializer.serialize_str(&text)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let wrong = || de::Error::custom(format_args!("expected {} lower-case hexadecimal digits", 2 * N));
        from_hex(&text).map(Self).ok_or_else(wrong)
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            // Below 16 every number is a digit.
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(digit);
        *byte = high? << 4 | low?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; SecretKey::SEED_BYTES])
    }

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        from_hex(text).unwrap()
    }

    #[test]
    fn is_the_ed25519_of_rfc_8032() {
        // Section 7.1, test 2; the message is one byte, so what is compared is the algorithm below our message.
        let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        let key = SecretKey::from_seed(&seed);
        assert_eq!(key.public().to_string(), format!("vmnetx-key-{public}"));
        assert_eq!(key.0.sign(&[0x72]).to_bytes(), hex::<64>(signature));
    }

    #[test]
    fn a_signature_over_the_text_alone_is_none_over_the_link() {
        let (text, key) = (b"{}", key(1));
        let bare = Signature { key: Hex(key.public().0), ed25519: Hex(key.0.sign(text).to_bytes()) };
        assert_eq!(bare.verify_link(text), Err(SignatureError { key: key.public() }));
        let whole = Signature { ed25519: Hex(key.0.sign(b"vmnetx link 0\n{}").to_bytes()), ..bare };
        assert_eq!(whole.verify_link(text), Ok(key.public()));
        assert_eq!(key.sign_link(text), whole);
    }

    #[test]
    fn keys_that_fit_any_signature_are_refused() {
        // Points of small order, with which a signature of zeros verifies where nobody looks closely.
        for point in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            let text = format!("vmnetx-key-{point}");
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Weak), "{point}");
            let mut zeros = [0; 64];
            zeros[..32].copy_from_slice(&hex::<32>(point));
            let signature = Signature { key: Hex(hex(point)), ed25519: Hex(zeros) };
            assert!(signature.verify_link(b"{}").is_err(), "{point}");
        }
    }

    #[test]
    fn a_secret_is_shown_only_where_it_is_asked_for() {
        let key = key(0xab);
        assert_eq!(format!("{key:?}"), "SecretKey");
        let text = key.to_text();
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains(&"ab".repeat(32)));
        let error = text.parse::<PublicKey>().unwrap_err();
        assert_eq!(error, KeyError::SecretGiven);
        assert!(!error.to_string().contains("abab"));
        assert_eq!(PublicKey::list(&text), Err(KeyError::SecretGiven));
    }

    #[test]
    fn every_flipped_bit_of_a_key_file_is_found() {
        let text = key(7).to_text();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.as_bytes().to_vec();
                damaged[at] ^= 1 << bit;
                let read = std::str::from_utf8(&damaged).map(SecretKey::from_text);
                assert!(!matches!(read, Ok(Ok(_))), "bit {bit} of byte {at}");
            }
        }
        assert_eq!(SecretKey::from_text("vmnetx-secret-key-1 xyz").unwrap_err(), KeyError::LaterSecret);
        assert_eq!(SecretKey::from_text(&key(7).public().to_string()).unwrap_err(), KeyError::Secret);
        // An editor that leaves out the end of the line does no harm.
        assert_eq!(SecretKey::from_text(text.trim_end()).unwrap().public(), key(7).public());
    }

    #[test]
    fn lists_of_keys_have_remarks_and_an_end() {
        let [one, two] = [key(1), key(2)].map(|key| key.public());
        assert_eq!(PublicKey::list(&format!("# ours\n{one}\n\n  {two}  \r\n")), Ok(vec![one, two]));
        assert_eq!(PublicKey::list("# none\n"), Err(KeyError::NoKeys));
        let error = PublicKey::list(&format!("{one}\nvmnetx-key-12\n")).unwrap_err();
        assert_eq!(error, KeyError::Line { line: 2, reason: "not a public key" });
        let many = format!("{one}\n").repeat(KEYS_MAX + 1);
        assert_eq!(PublicKey::list(&many), Err(KeyError::TooManyKeys));
        assert!(PublicKey::list(&format!("{one}\n").repeat(KEYS_MAX)).is_ok());
    }

    proptest! {
        #[test]
        fn keys_survive_as_text(seed: [u8; 32]) {
            let key = SecretKey::from_seed(&seed);
            prop_assert_eq!(SecretKey::from_text(&key.to_text()).unwrap().0.to_bytes(), seed);
            prop_assert_eq!(key.public().to_string().parse(), Ok(key.public()));
            let json = serde_json::to_string(&key.public()).unwrap();
            prop_assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key.public());
        }

        #[test]
        fn a_signature_holds_for_one_text_and_one_key(
            seed: [u8; 32],
            text in proptest::collection::vec(any::<u8>(), 1..200),
            (at, bit) in (any::<prop::sample::Index>(), 0..8_u8),
        ) {
            let key = SecretKey::from_seed(&seed);
            let good = key.sign_link(&text);
            prop_assert_eq!(good.verify_link(&text), Ok(key.public()));
            let flip = |bytes: &mut [u8]| bytes[at.index(bytes.len())] ^= 1 << bit;
            let mut other = text.clone();
            flip(&mut other);
            prop_assert!(good.verify_link(&other).is_err());
            let mut signature = good.clone();
            flip(&mut signature.ed25519.0);
            prop_assert!(signature.verify_link(&text).is_err());
            let mut signature = good;
            flip(&mut signature.key.0);
            prop_assert!(signature.verify_link(&text).is_err());
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "(vmnetx-key-|vmnetx-secret-key-0 )?[0-9a-f é\n]{0,140}") {
            let _ = text.parse::<PublicKey>();
            let _ = PublicKey::list(&text);
            let _ = SecretKey::from_text(&text);
        }

        #[test]
        fn no_signature_makes_verification_panic(key: [u8; 32], half: [u8; 32], other: [u8; 32]) {
            let mut ed25519 = [0; 64];
            ed25519[..32].copy_from_slice(&half);
            ed25519[32..].copy_from_slice(&other);
            let signature = Signature { key: Hex(key), ed25519: Hex(ed25519) };
            prop_assert!(signature.verify_link(b"text").is_err());
        }
    }
}
