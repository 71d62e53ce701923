//! What an overlay says that it lies over: a disk of one version.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, Name};

/// A disk of a version, as an overlay names it in the place of a backing file: `vmnetx:DIGEST:DISK`. QEMU opens nothing of
/// that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The manifest's digest.
    pub version: Digest,
    /// The disk's name in the package.
    pub disk: Name,
}

/// A text that names no disk of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this names no disk of a version")]
pub struct NoBinding;

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vmnetx:{}:{}", self.version, self.disk)
    }
}

impl FromStr for Binding {
    type Err = NoBinding;

    fn from_str(text: &str) -> Result<Self, NoBinding> {
        let (version, disk) = text.strip_prefix("vmnetx:").and_then(|rest| rest.split_once(':')).ok_or(NoBinding)?;
        let version = version.parse().map_err(|_| NoBinding)?;
        Ok(Self { version, disk: disk.parse().map_err(|_| NoBinding)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_survives_its_text() {
        let binding = Binding { version: Digest::of(b"x"), disk: "disk-0.a_b".parse().unwrap() };
        assert_eq!(binding.to_string().parse(), Ok(binding));
        for bad in ["", "vmnetx:", "vmnetx:00:disk0", "/etc/passwd", "nbd:unix:/x"] {
            assert_eq!(bad.parse::<Binding>(), Err(NoBinding), "{bad}");
        }
    }
}
