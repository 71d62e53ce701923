//! Sizes and waits of the list of running VMs.

use std::time::Duration;

/// Bytes of an entry; the machine's description is the longest part.
pub(super) const ENTRY_BYTES_MAX: u64 = 256 << 10;

/// Attempts at a name that no VM has any more: another command may look at its file just then.
pub(super) const CLAIM_ATTEMPTS: usize = 20;

/// Between two such attempts.
pub(super) const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Times that a file must be seen to be held until its name counts as taken.
pub(super) const HELD_LOOKS: u32 = 2;

/// Numbers that are tried behind a name that is taken.
pub(super) const SUFFIXES_MAX: usize = 1000;
