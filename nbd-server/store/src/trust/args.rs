//! The options that every command which reads links has.

use std::fs::File;
use std::io::Read;

use vmnetx_format::limits::KEY_FILE_BYTES_MAX;
use vmnetx_format::{KeyError, PublicKey};

use super::Trust;

/// Which links a command believes.
#[derive(Debug, Clone, clap::Args)]
pub struct TrustArgs {
    /// Take only links that are signed with this key, `vmnetx-key-...`, or with one of those in FILE, one a line. Can be
    /// given several times. Without it each link must be signed as it was when it was first read, if it was.
    #[arg(long, value_name = "KEY|FILE", value_parser = parse_keys)]
    trust_key: Vec<Keys>,
    /// Take a link that is not signed where a signed one was read before.
    #[arg(long, conflicts_with = "trust_key")]
    accept_unsigned: bool,
}

/// The keys of one option.
#[derive(Debug, Clone)]
struct Keys(Vec<PublicKey>);

impl TrustArgs {
    /// What the options say, with the state directory of the user.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust {
            state_dir: Trust::user_state_dir(),
            keys: self.trust_key.iter().flat_map(|keys| keys.0.iter().copied()).collect(),
            accept_unsigned: self.accept_unsigned,
        }
    }
}

/// A key, or else the path of a file with keys.
fn parse_keys(text: &str) -> Result<Keys, String> {
    match text.parse() {
        Ok(key) => return Ok(Keys(vec![key])),
        Err(error @ (KeyError::SecretGiven | KeyError::Weak)) => return Err(error.to_string()),
        Err(_) => {}
    }
    let mut bytes = Vec::new();
    // One byte more than may be shows that there is more.
    let read = File::open(text).and_then(|file| file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("it is neither a key nor a file with keys: {error}"))?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(format!("the file has more than {KEY_FILE_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    PublicKey::list(&text).map(Keys).map_err(|error| error.to_string())
}
