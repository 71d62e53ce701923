//! The sizes and waits of resuming.

use std::time::Duration;

/// Between two attempts at reading memory that the server cannot give, at first and at most.
pub(super) const READ_AGAIN_PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const READ_AGAIN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long memory may be out of reach before the guest runs: then another way is taken.
pub(super) const OUTAGE_BEFORE_MAX: Duration = Duration::from_secs(90);

/// How long a guest that runs waits for a part of its memory before it is given up: it stands still meanwhile.
pub(super) const OUTAGE_AFTER_MAX: Duration = Duration::from_secs(30 * 60);

/// Bytes of RAM that are read with one request of a stream.
pub(super) const STREAM_READ_BYTES: u64 = 1 << 20;

/// Reads of a stream that are under way at once; so many bytes of RAM are in memory at most.
pub(super) const STREAM_READS_MAX: usize = 16;

/// Bytes of a section of pages in a stream; QEMU looks at its monitor between two.
pub(super) const SECTION_BYTES: usize = 1 << 20;

/// Bytes on both sides of a page that was asked for, among which those that are on this host go along.
pub(super) const NEIGHBOURHOOD_BYTES: u64 = 64 << 10;

/// Bytes of pages that are sent before the guest runs: each byte delays it a little, and each that it asks for later, too.
pub(super) const BEFORE_BYTES_MAX: u64 = 32 << 20;

/// Bytes of RAM that the server is asked to bring at once in the background.
pub(super) const BRING_BYTES: u64 = 2 << 20;

/// Requests of that kind that are under way at once.
pub(super) const BRINGS_MAX: usize = 8;

/// Bytes of RAM that are pushed in one piece: a page that is asked for waits behind at most two.
pub(super) const PUSH_BYTES: u64 = 128 << 10;

/// Bytes of RAM that are pushed in a second, though they are all here: the guest is to have the processor.
pub(super) const PUSH_BYTES_PER_S: u64 = 400 << 20;

/// Requests of QEMU that are read ahead of their answers.
pub(super) const REQUESTS_MAX: usize = 1024;

/// For QEMU's answers to the first and the last of a migration, which wait for nothing but QEMU itself.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks whether the next pages of an order have come.
pub(super) const ORDER_LOOK: Duration = Duration::from_millis(5);

/// When nothing of an order has come for so long, the rest of memory is brought without it.
pub(super) const ORDER_STALL_MAX: Duration = Duration::from_secs(2);

/// Reads of pages that the guest waits for, at once: it has not so many threads.
pub(super) const DEMANDS_MAX: usize = 256;

/// Looks at what lies beside such pages, at once.
pub(super) const BESIDE_MAX: usize = 16;
