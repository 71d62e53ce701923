//! The keys to a bucket: from the environment, else from the shared credentials file. They are never shown.

use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use object_store::aws::AwsCredential;

use super::PushError;
use crate::Error;
use crate::limits::CREDENTIALS_BYTES_MAX;

/// The profile that is used unless `AWS_PROFILE` names another.
const DEFAULT_PROFILE: &str = "default";

/// Keys as far as they are known.
#[derive(Default)]
struct Keys {
    key_id: Option<String>,
    secret_key: Option<String>,
    token: Option<String>,
}

/// Finds the credentials where other programs look for them too.
pub(super) fn find() -> Result<AwsCredential, Error> {
    let keys = Keys {
        key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_key: variable("AWS_SECRET_ACCESS_KEY"),
        token: variable("AWS_SESSION_TOKEN"),
    };
    if let Some(credential) = keys.complete("the environment")? {
        return Ok(credential);
    }
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    let home = || PathBuf::from(variable("HOME").unwrap_or_default()).join(".aws/credentials");
    let path = variable("AWS_SHARED_CREDENTIALS_FILE").map_or_else(home, PathBuf::from);
    let place = format!("profile {profile:?} in {}", path.display());
    let credential = parse(&read(&path)?, &profile).complete(&place)?;
    credential.ok_or_else(|| PushError::NoCredentials { profile, path }.into())
}

/// A variable of the environment that says something.
pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

impl Keys {
    /// The credential, or nothing if `place` has no key at all.
    fn complete(self, place: &str) -> Result<Option<AwsCredential>, PushError> {
        let wrong = |reason| PushError::Credentials { place: place.to_owned(), reason };
        let (key_id, secret_key) = match (self.key_id, self.secret_key) {
            (Some(key_id), Some(secret_key)) => (key_id, secret_key),
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(wrong("the access key's id is missing")),
            (Some(_), None) => return Err(wrong("the secret access key is missing")),
        };
        // They go into HTTP headers.
        let plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
        if ![Some(&key_id), Some(&secret_key), self.token.as_ref()].into_iter().flatten().all(plain) {
            return Err(wrong("they have characters that no credentials have"));
        }
        Ok(Some(AwsCredential { key_id, secret_key, token: self.token }))
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file("read credentials file", path)(error)),
    }
}

/// What a credentials file says of a profile: sections in brackets, and `key = value` in them.
fn parse(text: &str, profile: &str) -> Keys {
    let mut keys = Keys::default();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim() == profile;
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';'])) else {
            continue;
        };
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match key.trim() {
            "aws_access_key_id" => keys.key_id = value,
            "aws_secret_access_key" => keys.secret_key = value,
            "aws_session_token" => keys.token = value,
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n[default]\naws_access_key_id = A\naws_secret_access_key=B==\n\n[ ci ]\n\
                        aws_access_key_id=C\n;aws_secret_access_key=X\naws_session_token = T\nregion = eu\n";

    #[test]
    fn a_profile_has_its_own_keys() {
        let keys = parse(FILE, "default").complete("here").unwrap().unwrap();
        assert_eq!((keys.key_id.as_str(), keys.secret_key.as_str(), keys.token), ("A", "B==", None));
        assert!(parse(FILE, "other").complete("here").unwrap().is_none());
    }

    #[test]
    fn half_a_credential_is_an_error_that_does_not_show_the_other_half() {
        let error = parse(FILE, "ci").complete("here").unwrap_err().to_string();
        assert_eq!(error, "the credentials of here cannot be used: the secret access key is missing");
        let keys = Keys { key_id: Some("A".into()), secret_key: Some("hush\nhush".into()), token: None };
        let error = keys.complete("here").unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }
}
