//! Which libvirt is meant.

use std::fmt;
use std::str::FromStr;

/// The URI of a libvirt on this host that runs QEMU: `qemu:///system`, `qemu:///session`, or `qemu+unix:` with a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri(String);

/// A URI of another libvirt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no libvirt of this host that runs QEMU, such as qemu:///system or qemu:///session")]
pub struct UriError(String);

impl Uri {
    /// The URI as libvirt takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Uri {
    /// The machines of this user; root's are those of the system.
    fn default() -> Self {
        Self(if rustix::process::geteuid().is_root() { "qemu:///system" } else { "qemu:///session" }.to_owned())
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let path = text.strip_prefix("qemu://").or_else(|| text.strip_prefix("qemu+unix://"));
        let is_local = path.is_some_and(|path| {
            let path = path.split('?').next().unwrap_or_default();
            matches!(path, "/system" | "/session")
        });
        if is_local && !text.contains('\0') { Ok(Self(text.to_owned())) } else { Err(UriError(text.to_owned())) }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_own_are_taken() {
        for good in ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/run/x"] {
            assert_eq!(good.parse::<Uri>().map(|uri| uri.to_string()), Ok(good.to_owned()));
        }
        let bad = [
            "qemu+ssh://host/system",
            "qemu://host/system",
            "qemu+unix://host/system",
            "xen:///",
            "test:///default",
            "",
        ];
        for bad in bad {
            assert_eq!(bad.parse::<Uri>(), Err(UriError(bad.to_owned())));
        }
    }
}
