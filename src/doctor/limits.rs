//! What a host should have, as far as numbers say it.

/// The first version of QEMU that VMs have been run with, and the last: major and minor.
pub(super) const QEMU_VERSION_MIN: (u32, u32) = (7, 2);
pub(super) const QEMU_VERSION_MAX: (u32, u32) = (10, 0);

/// The major version from which on QEMU opens `/dev/userfaultfd` where there is one.
pub(super) const QEMU_MAJOR_OF_DEVICE: u32 = 8;

/// Files that a server should be allowed to have open: a thousand connections of guests, and the segments of its cache.
pub(super) const OPEN_FILES_MIN: u64 = 2048;

/// Bytes that should be free where temporary overlays grow.
pub(super) const RUN_DIR_FREE_BYTES_MIN: u64 = 1 << 30;

/// Bytes of the memory that is sealed to see whether that can be done.
pub(super) const TRIAL_BYTES: u64 = 4096;

/// Names of CPU features that are listed; the others are counted.
pub(super) const FEATURES_SHOWN_MAX: usize = 8;

/// Bytes of a file of /proc that says one thing.
pub(super) const PROC_BYTES_MAX: u64 = 64 << 10;
