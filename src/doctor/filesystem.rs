//! What kind of file system a directory is on, and what is free there.

use std::io;
use std::path::Path;

use rustix::fs::{statfs, statvfs};

/// The kind of a file system, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// On a disk of this host, as far as can be told.
    Local,
    /// In this host's memory.
    Memory,
    /// On other hosts.
    Network(&'static str),
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filesystem {
    pub(super) kind: Kind,
    /// Bytes that this user may still write.
    pub(super) free_bytes: u64,
}

impl Filesystem {
    /// The one that a file or directory is on.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let space = statvfs(path)?;
        // Of 32 bits, whatever the width that the system tells it in.
        let kind = kind(statfs(path)?.f_type as u32);
        Ok(Self { kind, free_bytes: space.f_bavail.saturating_mul(space.f_frsize) })
    }
}

/// The kind that a number of statfs(2) stands for.
const fn kind(magic: u32) -> Kind {
    match magic {
        0x0102_1994 | 0x8584_58f6 => Kind::Memory,
        0x0000_6969 => Kind::Network("NFS"),
        0x0000_517b | 0xff53_4d42 | 0xfe53_4d42 => Kind::Network("SMB"),
        0x0102_1997 => Kind::Network("9P"),
        0x00c3_6400 => Kind::Network("Ceph"),
        0x5346_414f | 0x6b41_4653 => Kind::Network("AFS"),
        0x7375_7245 => Kind::Network("Coda"),
        0x0bd0_0bd0 => Kind::Network("Lustre"),
        0x0116_1970 => Kind::Network("GFS2"),
        0x7461_636f => Kind::Network("OCFS2"),
        _ => Kind::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(kind(0xef53), Kind::Local);
        assert_eq!(kind(0x6969), Kind::Network("NFS"));
        assert_eq!(kind(0xfe53_4d42), Kind::Network("SMB"));
        // Where the kernel has one, this is in memory.
        assert_eq!(Filesystem::of(Path::new("/dev/shm")).unwrap().kind, Kind::Memory);
        assert!(Filesystem::of(Path::new("/nonexistent")).is_err());
    }
}
