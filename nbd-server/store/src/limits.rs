//! The named limits of reading: times, sizes, counts.

use std::time::Duration;

/// Requests to one origin that are under way at once, and so its connections.
pub const ORIGIN_REQUESTS_MAX: usize = 12;

/// Requests that are not for waiting readers; the rest of [`ORIGIN_REQUESTS_MAX`] is kept for those who wait.
pub const ORIGIN_LESSER_REQUESTS_MAX: usize = 8;

/// Requests among these for what is to be here some day.
pub const ORIGIN_BACKGROUND_REQUESTS_MAX: usize = 4;

/// Frames that somebody hurries before their request is queued, of one origin; the oldest are dropped.
pub const HURRIED_FRAMES_MAX: usize = 256;

/// Time between two looks whether the background may go on, if its rate is limited.
pub const BACKGROUND_LOOK: Duration = Duration::from_millis(50);

/// Share of an origin's demand requests that begin sooner than a hedge is sent.
pub const HEDGE_QUANTILE: f64 = 0.95;

/// A hedge waits so many times as long as that.
pub const HEDGE_FACTOR: u32 = 2;

/// A hedge waits at least so long.
pub const HEDGE_AFTER_MIN: Duration = Duration::from_millis(100);

/// A hedge waits at most so long.
pub const HEDGE_AFTER_MAX: Duration = Duration::from_secs(2);

/// Of so many requests one may have a hedge: a server that is slow for everybody must not be asked twice as often.
pub const HEDGE_PARTS: u64 = 20;

/// Time for which a mirror that failed is not asked while another can be; it doubles with each failure in a row.
pub const MIRROR_REST_MIN: Duration = Duration::from_secs(1);

/// The longest such time.
pub const MIRROR_REST_MAX: Duration = Duration::from_secs(60);

/// Objects that are remembered of one mirror as missing or damaged there.
pub const MIRROR_AVOIDED_MAX: usize = 1024;

/// Of so many requests that nobody waits for one asks another mirror than the best, to learn how that one is.
pub const MIRROR_PROBE_PARTS: u64 = 16;

/// Responses of an origin whose first bytes' times are remembered.
pub const PACE_SAMPLES: usize = 32;

/// Time to open a TCP connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from sending a request to the head of its response.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without a byte of a response's body, or with fewer than [`STALL_BYTES_MIN`].
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a response's body that come in [`STALL_TIMEOUT`] at least: less is no slow line but a broken one, or a server
/// that wants to hold its readers. A modem's line still gives as much to each of [`ORIGIN_REQUESTS_MAX`] requests.
pub const STALL_BYTES_MIN: u64 = 2048;

/// Time that an unused connection is kept.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(50);

/// Time after which a silent connection is probed.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);

/// Time between two probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// Probes without an answer after which a connection is dead.
pub const KEEPALIVE_RETRIES: u32 = 2;

/// The longest time for which a failing read can be tried again: a year.
pub const RETRY_FOR_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time for which a failing read is tried again unless the user of the store chooses another.
pub const RETRY_FOR: Duration = Duration::from_secs(60);

/// The first pause between two tries; each later one is twice as long.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two tries.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Tries for a chunk whose bytes arrive but have the wrong digest: a proxy may have damaged them once.
pub const DAMAGED_TRIES_MAX: u32 = 3;

/// Time for which it is remembered where a resource was redirected to.
pub const REDIRECTION_KEPT: Duration = Duration::from_secs(60);

/// Resources of which that is remembered.
pub const REDIRECTIONS_KEPT_MAX: usize = 4096;

/// Bytes of a netrc file or of one with a token.
pub const ACCESS_FILE_BYTES_MAX: u64 = 1 << 20;

/// Redirections that are followed for one request.
pub const REDIRECTS_MAX: u32 = 5;

/// Bytes between two wanted frames that are fetched along rather than starting a new request.
pub const COALESCE_GAP_BYTES: u64 = 16 << 10;

/// Bytes of one range request.
pub const RANGE_BYTES_MAX: u64 = 4 << 20;

/// Bytes of a response that are passed over when a server ignores the Range header.
pub const SKIPPED_BYTES_MAX: u64 = 1 << 30;

/// Bytes of decoded index leaves kept for one image: those of 2.6 GiB without a hole, or all of an index that is fetched whole.
pub const LEAVES_BYTES_MAX: u64 = 2 << 20;

/// Bytes of what is kept of other leaves, because it was read: about as much as leads to the chunks of a memory tier of
/// 512 MiB.
pub const LEAF_PARTS_BYTES_MAX: u64 = 8 << 20;

/// Bytes of the manifests, layout objects and orders that a cache directory keeps.
pub const OBJECTS_BYTES_MAX: u64 = 256 << 20;

/// Their number.
pub const OBJECTS_MAX: usize = 1024;

/// Bytes of one segment of the disk tier, unless there would be more than [`SEGMENTS_MAX`] of them.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// Segments into which the disk tier is divided at least, since it evicts whole segments.
pub const SEGMENTS_MIN: u64 = 8;

/// Segments of a larger disk tier, about: each is an open file.
pub const SEGMENTS_MAX: u64 = 512;

/// Bytes of the largest file that is read as a segment: offsets in it have 32 bits.
pub const SEGMENT_FILE_BYTES_MAX: u64 = u32::MAX as u64;

/// Bytes of the index at the end of a segment: room for 760,000 records.
pub const SEGMENT_INDEX_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a segment when the disk tier may have `max_bytes`.
#[must_use]
pub fn segment_bytes_max(max_bytes: u64) -> u64 {
    let share = (max_bytes / SEGMENTS_MAX).clamp(SEGMENT_BYTES_MAX, SEGMENT_FILE_BYTES_MAX / 2);
    share.min(max_bytes / SEGMENTS_MIN)
}

/// A segment is evicted only if that frees one in so many of its bytes: the rest is copied.
pub const EVICT_FREED_PARTS: u64 = 8;

/// The disk tier's part, one in so many bytes, that is moved because it was used before something is dropped though it was.
pub const EVICT_MOVED_PARTS: u64 = 4;

/// The disk tier's part that may be pinned, as quarters: what is left must do for all the rest.
pub const PINNED_QUARTERS_MAX: u64 = 3;

/// Bytes of the file that says which records of the disk tier were used: four million of them.
pub const USES_BYTES_MAX: u64 = 32 << 20;

/// Time for which nothing is written to the disk tier after a write has failed.
pub const DISK_OFF_PAUSE: Duration = Duration::from_secs(30);

/// A file's time may be so far ahead of the clock: file systems and processors keep their own.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Links that a cache directory keeps, as last read at each URL.
pub const KEPT_LINKS_MAX: usize = 1024;

/// Versions of which a cache directory remembers what was read first.
pub const TOUCHED_FILES_MAX: usize = 64;

/// Chunks that are remembered of one version.
pub const TOUCHED_FRAMES_MAX: usize = 16 << 10;

/// Their plain bytes.
pub const TOUCHED_BYTES_MAX: u64 = 256 << 20;

/// Time from opening a package in which chunks that are read count as read first.
pub const TOUCHED_TIME: Duration = Duration::from_secs(120);

/// Threads that bring these chunks into memory.
pub const TOUCHED_THREADS_MAX: usize = 4;

/// Plain bytes of a chunk that is read from the disk tier by whoever waits for it, without handing it to another thread.
pub const DISK_INLINE_BYTES_MAX: u32 = 256 << 10;

/// Bytes of a pin's file: two million frames.
pub const PIN_FILE_BYTES_MAX: u64 = 64 << 20;

/// Bytes of the text in it.
pub const PIN_TEXT_BYTES_MAX: u32 = 64 << 10;

/// Stored bytes that a pull asks for at once.
pub const PULL_BATCH_BYTES: u64 = 4 << 20;

/// Such batches that are under way.
pub const PULL_BATCHES_MAX: usize = 4;

/// Leaves of an image that a pull fetches at once.
pub const PULL_LEAVES: u32 = 16;

/// Packs that `pull --to` fetches at once.
pub const PULL_PACKS_MAX: usize = 4;

/// Bytes of frames that wait to be written to the disk tier; more are not cached.
pub const DISK_QUEUE_BYTES_MAX: u64 = 64 << 20;

/// Sequential streams of reads that are followed at once in one image.
pub const STREAMS_MAX: usize = 16;

/// Bytes ahead of a stream that are fetched when it is first seen, until the origin's line is known.
pub const READ_AHEAD_FIRST_BYTES: u64 = 128 << 10;

/// The least of them on any line.
pub const READ_AHEAD_FIRST_BYTES_MIN: u64 = 32 << 10;

/// The most of them on any line.
pub const READ_AHEAD_FIRST_BYTES_MAX: u64 = 512 << 10;

/// Bytes ahead of a stream that are fetched along with what a reader waits for.
pub const READ_AHEAD_BYTES_MAX: u64 = 512 << 10;

/// Bytes ahead of a long stream.
pub const READ_AHEAD_STREAM_BYTES_MAX: u64 = 4 << 20;

/// Stored bytes of one request of an order's replay.
pub const ORDER_REQUEST_BYTES: u64 = 1 << 20;

/// Stored bytes of an order that are asked for before its replay waits for some of them.
pub const ORDER_IN_FLIGHT_BYTES: u64 = 3 << 20;

/// The memory tier's part that an order's frames may fill while nobody has read them: one in so many.
pub const ORDER_AHEAD_PARTS: u64 = 2;

/// Plain blocks of one request of a prefetch.
pub const PREFETCH_REQUEST_BLOCKS: u32 = 512;

/// Plain blocks of a package that are under way for prefetches; further requests wait.
pub const PREFETCH_IN_FLIGHT_BLOCKS: u32 = 4096;

/// What one prefetch may bring: one in so many parts of what the disk tier keeps, or without one the memory tier.
pub const PREFETCH_PARTS: u64 = 2;

/// Leaves that one question about residency looks into, when they are neither holes nor unknown: 256 MiB of image.
pub const RESIDENCY_LEAVES_MAX: u32 = 16;

/// URLs of signed links that are remembered, and packages whose serial numbers are: beyond that no new one is believed.
pub const SIGNED_LINKS_MAX: usize = 4096;

/// URLs of links without a signature that are remembered; the oldest are dropped.
pub const UNSIGNED_LINKS_MAX: usize = 1024;

/// Bytes of the file that links are remembered in.
pub const KNOWN_LINKS_BYTES_MAX: u64 = 16 << 20;

/// Time for which another process may hold the file that links are remembered in.
pub const STATE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two tries to take it.
pub const STATE_LOCK_PAUSE: Duration = Duration::from_millis(5);
