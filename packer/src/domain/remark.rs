//! Remarks on a domain: which element is not in the machine as it stands in the text, and why.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// What became of an element or attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RemarkKind {
    /// The guest might not start, not reach its data, or need other drivers without it: the domain is not published.
    Refused,
    /// The machine has something else in its place.
    Changed,
    /// The domain leaves it open, and the machine has this.
    Assumed,
    /// The machine does not have it: it concerns the host, or guests do without.
    Dropped,
}

/// A remark on one element or attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// What became of it.
    pub kind: RemarkKind,
    /// Where it stands, as an XPath: `/domain/devices/disk[2]/driver/@cache`.
    pub path: String,
    /// Why.
    pub why: Cow<'static, str>,
}

/// A path of an element or attribute that a publisher wants left out: a remark's path, or one above it. A step without
/// `[N]` stands for all elements of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropPath(String);

/// Text that is not the path of something in a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no path below /domain, such as /domain/devices/hostdev[1]")]
pub struct DropPathError(String);

impl DropPath {
    /// Whether the remark's element lies at or below this path.
    #[must_use]
    pub fn covers(&self, remark: &Remark) -> bool {
        let mut steps = remark.path.split('/');
        self.0.split('/').all(|wanted| steps.next().is_some_and(|step| step_matches(wanted, step)))
    }
}

/// `disk` matches every `disk[N]`; `disk[1]` also matches a `disk` that has no namesake beside it.
fn step_matches(wanted: &str, step: &str) -> bool {
    let name = |step: &str| step.split_once('[').map_or(step.to_owned(), |(name, _)| name.to_owned());
    wanted == step || wanted == name(step) || (!step.contains('[') && wanted == format!("{step}[1]"))
}

impl FromStr for DropPath {
    type Err = DropPathError;

    fn from_str(text: &str) -> Result<Self, DropPathError> {
        let below = text.strip_prefix("/domain/").is_some_and(|steps| steps.split('/').all(|step| !step.is_empty()));
        if below { Ok(Self(text.to_owned())) } else { Err(DropPathError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for DropPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RemarkKind {
    /// Its name, which is also the one in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Assumed => "assumed",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}
