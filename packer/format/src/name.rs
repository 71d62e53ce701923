//! Names and titles that are safe to show, to use in a file name and in a URL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_BYTES_MAX, TITLE_BYTES_MAX};

/// The name of a package or of a disk: ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The title that people see: one line of text without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Title(String);

/// Text that cannot be a name or a title.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a [`Name`]. The text is shown with its special characters escaped.
    #[error(
        "{0:?} is not a name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-', beginning with a letter or digit"
    )]
    Name(String),
    /// Not a [`Title`].
    #[error("{0:?} is not a title: use one line of at most {TITLE_BYTES_MAX} bytes without control characters")]
    Title(String),
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Title {
    /// The title as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Characters that turn the direction of text, break its line or hide in it: a title with them can pass for another.
const fn is_deceptive(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A message that repeats bytes of others, such as the name of an unknown field, made fit to be shown: cut to a line's
/// length and without characters that steer a terminal.
pub(crate) fn printable(message: &impl fmt::Display) -> String {
    const CHARS_MAX: usize = 300;
    message.to_string().chars().take(CHARS_MAX).map(shown).collect()
}

/// The same for a message of several lines, which stay lines.
pub(crate) fn printable_lines(message: &impl fmt::Display) -> String {
    let text = message.to_string();
    text.trim_end().lines().map(|line| printable(&line)).collect::<Vec<_>>().join("\n")
}

fn shown(c: char) -> char {
    if c.is_control() || is_deceptive(c) { char::REPLACEMENT_CHARACTER } else { c }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let good = text.len() <= NAME_BYTES_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if good { Ok(Self(text)) } else { Err(NameError::Name(clip(&text))) }
    }
}

impl TryFrom<String> for Title {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let good = text.len() <= TITLE_BYTES_MAX && !text.chars().any(|c| c.is_control() || is_deceptive(c));
        if good { Ok(Self(text)) } else { Err(NameError::Title(clip(&text))) }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl FromStr for Title {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl From<Title> for String {
    fn from(title: Title) -> Self {
        title.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder_or_look_like_options() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", ".x", "a b", "é", "a\nb", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "debian-12.1_x", "0", &"x".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn titles_cannot_steer_a_terminal() {
        for bad in
            ["a\x1b[31m", "two\nlines", "a\u{9b}31m", "abc\u{202e}fed", "a\u{ad}b", "a\u{e0041}", &"x".repeat(257)]
        {
            let error = bad.parse::<Title>().unwrap_err().to_string();
            assert!(error.chars().all(|c| !c.is_control()), "{error:?}");
        }
        assert!("Ein schönes System, 1994".parse::<Title>().is_ok());
    }
}
