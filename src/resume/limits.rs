//! The sizes and waits of resuming.

use std::time::Duration;

/// Between two attempts at reading memory that the server cannot give, at first and at most.
pub(super) const READ_AGAIN_PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const READ_AGAIN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long memory may be out of reach before the guest runs: then another way is taken.
pub(super) const OUTAGE_BEFORE_MAX: Duration = Duration::from_secs(90);

/// How long a guest that runs waits for a part of its memory before it is given up: it stands still meanwhile.
pub(super) const OUTAGE_AFTER_MAX: Duration = Duration::from_secs(30 * 60);

/// How long memory is tried again that the server, after tries of its own at every mirror, says is damaged, or absent before the
/// guest runs.
pub(super) const SETTLED_MAX: Duration = Duration::from_secs(5);

/// The same of what is absent when a guest runs: a web server that is started, or being filled, may say so for a while.
pub(super) const ABSENT_AFTER_MAX: Duration = Duration::from_secs(30);

/// Between two attempts at bringing those parts of memory that were damaged or absent and that nobody waits for, at first and at most.
pub(super) const LACKING_PAUSE_MIN: Duration = Duration::from_secs(5);
pub(super) const LACKING_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Bytes of RAM that are read, or brought by the server, with one request.
pub(super) const READ_BYTES: u64 = 1 << 20;

/// Reads of a stream that are under way at once; so many bytes of RAM are in memory at most.
pub(super) const STREAM_READS_MAX: usize = 16;

/// Bytes of a section of pages in a stream; QEMU looks at its monitor between two.
pub(super) const SECTION_BYTES: usize = 1 << 20;

/// Bytes on both sides of a page that was asked for, among which those that are on this host go along.
pub(super) const NEIGHBOURHOOD_BYTES: u64 = 64 << 10;

/// Bytes of pages that are sent before the guest runs: each byte delays it a little, and each that it asks for later, too.
pub(super) const BEFORE_BYTES_MAX: u64 = 32 << 20;

/// Requests to bring what nobody has asked for that are under way at once.
pub(super) const BRINGS_MAX: usize = 16;

/// Bytes of RAM that are pushed in one piece: a page that is asked for waits behind at most two.
pub(super) const PUSH_BYTES: u64 = 128 << 10;

/// Bytes of RAM that are pushed in a second, though they are all here: the guest is to have the processor.
pub(super) const PUSH_BYTES_PER_S: u64 = 400 << 20;

/// How long a wait must be to be worth a timer.
pub(super) const TIMER: Duration = Duration::from_millis(2);

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

/// What was asked for in the background and takes longer to come is too much at once: the guest's requests wait behind it.
pub(super) const BRING_SLOW: Duration = Duration::from_millis(100);

/// Bytes of RAM that are brought along with a page that the guest asks for, if nothing is recorded of it. Over 100 Mbit/s and 20 ms,
/// a guest of 1 GiB first ticked after 5.2 s without, after 3.8, 2.9, 2.5 and 2.6 s with 256 KiB to 2 MiB.
pub(super) const AROUND_BYTES: u64 = 1 << 20;

/// Requests of that kind that are under way at once.
pub(super) const AROUNDS_MAX: usize = 4;

/// A guest that has not asked for a page for so long is not kept waiting by what is brought in the background.
pub(super) const QUIET: Duration = Duration::from_millis(150);

/// How long that is waited for at most, for each piece.
pub(super) const QUIET_WAIT_MAX: Duration = Duration::from_secs(1);

/// Between two looks whether the guest is quiet.
pub(super) const QUIET_LOOK: Duration = Duration::from_millis(20);

/// From the end of QEMU's channel to its own end, or to its saying what is wrong.
pub(super) const END_DEADLINE: Duration = Duration::from_secs(5);

/// How long the server may take to tell what is recorded of a resume; without it, the guest's requests tell.
pub(super) const ORDER_DEADLINE: Duration = Duration::from_secs(2);

/// How long it may take to have memory to map where nobody demands that: lazily, the guest runs about as soon.
pub(super) const MAP_DEADLINE: Duration = Duration::from_millis(500);
