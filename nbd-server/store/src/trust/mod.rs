//! Which links a reader believes: signatures, and what it knows of links that it has read before.
//!
//! A link is the one mutable object of a package, so it is where a reader can be deceived: everything else is named by its
//! digest. The first signed link that is read at a URL sets the key for that URL. From then on another key, no signature,
//! or a serial number lower than one that the key has signed for the package before is refused. `docs/trust.md` says what
//! that is worth and what it is not.
//!
//! A link that names its version by digest needs none of that, and one in a directory of this host is the word of whoever
//! may write there: for both, a signature that is there must hold, and keys that the user demands are demanded.

#[cfg(feature = "clap")]
mod args;
mod error;
mod file;
mod known;
mod notice;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use url::Url;
use vmnetx_format::{Envelope, LINK_SUFFIX, Name, PublicKey, link_path};

#[cfg(feature = "clap")]
pub use args::TrustArgs;
pub use error::TrustError;
pub use notice::Notice;

use self::known::{KnownLinks, Offer};
use crate::origin::shown;

/// The variable that says where state is kept, in place of the user's state directory.
const STATE_DIR_VARIABLE: &str = "VMNETX_STATE_DIR";

/// Which links are believed.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The directory where it is kept what is known of links; without one nothing is remembered.
    pub state_dir: Option<PathBuf>,
    /// The only keys whose links are taken, whatever was known before. Empty: for each URL the key that it was first read
    /// with.
    pub keys: Vec<PublicKey>,
    /// Whether a link without a signature is taken where a signed one is known.
    pub accept_unsigned: bool,
}

/// A link that was read at a URL.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// The URL that was asked for, before any redirection.
    pub(crate) url: &'a Url,
    /// Whether the version is asked for by its digest.
    pub(crate) pinned: bool,
    /// The link file on this host that led to the URL.
    pub(crate) pointer: Option<&'a Envelope>,
}

/// What is known of a link once it is believed.
#[derive(Debug, Default)]
pub(crate) struct Believed {
    /// The key that signed it.
    pub(crate) signer: Option<PublicKey>,
    /// What the user should know.
    pub(crate) notices: Vec<Notice>,
}

impl Trust {
    /// The directory that the environment names for state: `VMNETX_STATE_DIR`, or `vmnetx` where the XDG base directory
    /// specification has state. Nothing if the user has no home either.
    #[must_use]
    pub fn user_state_dir() -> Option<PathBuf> {
        let given = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |variable| given(variable).filter(|path| path.is_absolute());
        given(STATE_DIR_VARIABLE).or_else(|| {
            let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
            Some(base?.join("vmnetx"))
        })
    }

    /// Judges a link file of a repository on this host: its name, its signature if there is one, and the keys that are
    /// demanded. Gives the key that signed it.
    ///
    /// # Errors
    /// [`TrustError::Name`], [`TrustError::BadSignature`], [`TrustError::Untrusted`].
    pub fn check_file(&self, path: &Path, envelope: &Envelope) -> Result<Option<PublicKey>, TrustError> {
        let signer = check_pointer(path, envelope)?;
        self.demand(&path.display().to_string(), signer)?;
        Ok(signer)
    }

    /// Judges a link that was read at a URL, and remembers it.
    ///
    /// # Errors
    /// [`TrustError`] when it is not to be believed, or when it cannot be remembered.
    pub(crate) async fn check(&self, asked: &Asked<'_>, envelope: &Envelope) -> Result<Believed, TrustError> {
        let object = shown(asked.url);
        let name = &envelope.link.name;
        if asked.url.path_segments().and_then(|mut segments| segments.next_back()) != Some(&link_path(name)) {
            return Err(TrustError::Name { object, found: name.clone() });
        }
        let signer = signer(&object, envelope)?;
        self.demand(&object, signer)?;
        if asked.pinned {
            return Ok(Believed { signer, notices: Vec::new() });
        }
        let offer = Offer::new(object, envelope, signer);
        let pointer = match asked.pointer {
            Some(pointer) => Some(Offer::new(offer.url.clone(), pointer, self::signer(&offer.url, pointer)?)),
            None => None,
        };
        let notices = match &self.state_dir {
            None => self.meet_a_stranger(&offer, pointer.as_ref())?,
            Some(dir) => {
                let (dir, trust) = (dir.clone(), self.clone());
                let met = tokio::task::spawn_blocking(move || file::meet(&dir, &trust, &offer, pointer.as_ref())).await;
                met.map_err(|error| TrustError::state("use", Path::new("known links"), std::io::Error::other(error)))??
            }
        };
        Ok(Believed { signer, notices })
    }

    /// Judges a link where nothing is remembered.
    fn meet_a_stranger(&self, offer: &Offer, pointer: Option<&Offer>) -> Result<Vec<Notice>, TrustError> {
        let met = KnownLinks::default().meet(self, offer, pointer)?;
        let reason = format!("there is no home directory, and {STATE_DIR_VARIABLE} names no other");
        let forgets = |notice: Notice| match notice {
            Notice::FirstUse { object, .. } => Notice::NotRemembered { object, reason: reason.clone() },
            other => other,
        };
        Ok(met.notices.into_iter().map(forgets).collect())
    }

    fn demand(&self, object: &str, signer: Option<PublicKey>) -> Result<(), TrustError> {
        if self.keys.is_empty() || signer.is_some_and(|key| self.keys.contains(&key)) {
            return Ok(());
        }
        Err(TrustError::Untrusted { object: object.to_owned(), signer })
    }
}

/// Judges a link file by itself: its name, and its signature if there is one. Gives the key that signed it.
pub(crate) fn check_pointer(path: &Path, envelope: &Envelope) -> Result<Option<PublicKey>, TrustError> {
    let object = path.display().to_string();
    let file = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(LINK_SUFFIX));
    // A browser calls a second copy `debian(1).vmnetx`, which names no package.
    let asked = file.and_then(|name| name.parse::<Name>().ok());
    if asked.is_some_and(|asked| asked != envelope.link.name) {
        return Err(TrustError::Name { object, found: envelope.link.name.clone() });
    }
    signer(&object, envelope)
}

fn signer(object: &str, envelope: &Envelope) -> Result<Option<PublicKey>, TrustError> {
    envelope.signer().map_err(|source| TrustError::BadSignature { object: object.to_owned(), source })
}
