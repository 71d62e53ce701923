//! How much the packer holds in memory and keeps waiting.

use std::time::Duration;

/// Spans of a leaf's 16 MiB that are read, hashed, compressed or written at the same time; each has its own buffer.
pub const SPANS_IN_FLIGHT: usize = 4;

/// Finished packs that wait to be flushed to the disk.
pub const SEALS_WAITING: usize = 4;

/// Leaves whose layout waits for the pack that is being written; when there are more, that pack is ended early.
pub const LEAVES_WAITING: usize = 1024;

/// Bytes of an order's plain frames that are compressed at the same time.
pub const ORDER_BATCH_BYTES: u64 = 8 << 20;

/// Part of an order's plain bytes that an earlier order must have for its frames to be used again; else all are written
/// anew. Frames that are not in the earlier packs lie in another one, which a reader fetches beside them.
pub const ORDER_REUSED_MIN: f64 = 0.8;

/// Packs beyond those that an order fills in which it may lie for frames to be used again: each is a range more to fetch.
pub const ORDER_MORE_PACKS_MAX: u64 = 3;

/// Part of the touched data of the version before that lies where it lay if the new one is an update in place: its order's
/// touches stay at their blocks then, and follow their data else.
pub const ORDER_IN_PLACE_MIN: f64 = 0.5;

/// Leaves that are kept while an order is planned: some 40 KiB each.
pub const ORDER_LEAVES: usize = 1024;

/// Inner nodes that are kept while an order is planned: 8 GiB of an image each.
pub const ORDER_INNER_NODES: usize = 64;

/// Chunks that one repository's catalogue and one build may know together.
pub const CHUNKS_MAX: usize = u32::MAX as usize;

/// Damaged places that `verify` lists.
pub const FINDINGS_MAX: usize = 1000;

/// Packs that are kept open while images are read.
pub const PACKS_OPEN: usize = 64;

/// Reads that are under way at the same time while a remote image is exported, and bytes of each.
pub const REMOTE_READS: usize = 8;

/// Bytes of one such read.
pub const REMOTE_READ_BYTES: u64 = 2 << 20;

/// Bytes of a section of pages in an exported stream; QEMU looks at its monitor between two.
pub const STREAM_SECTION_BYTES: usize = 1 << 20;

/// Seconds for which `serve` lets requests end after it was told to stop.
pub const SERVE_GRACE_S: u64 = 5;

/// Bytes that `serve` reads from a file at a time.
pub const SERVE_PIECE_BYTES: usize = 256 << 10;

/// Seconds for which `info` tries to reach a server: someone waits for the answer.
pub const INFO_RETRY_S: u64 = 10;

/// Bytes of a libvirt domain XML; virt-manager's have about 8 KiB.
pub const DOMAIN_BYTES_MAX: usize = 256 << 10;

/// Elements, texts and comments of a domain XML.
pub const DOMAIN_NODES_MAX: u32 = 10_000;

/// Elements of a domain XML that stand inside one another.
pub const DOMAIN_DEPTH_MAX: usize = 32;

/// Namespaces that a domain XML declares.
pub const DOMAIN_NAMESPACES_MAX: usize = 64;

/// Remarks on a domain XML.
pub const DOMAIN_REMARKS_MAX: usize = 2000;

/// Bytes of a name or number in the hardware that is kept of a saved domain.
pub(crate) const WORD_BYTES_MAX: usize = 64;

/// Images that may lie below a disk image.
pub const CHAIN_DEPTH_MAX: usize = 64;

/// Files of which one vmdk image may consist.
pub const CHAIN_FILES_MAX: usize = 1024;

/// Bytes of a file's name in an image's header (QEMU's own limit).
pub const BACKING_NAME_BYTES_MAX: u64 = 1023;

/// Header extensions of a qcow2 image that are looked at.
pub const QCOW2_EXTENSIONS_MAX: usize = 64;

/// Bytes of a vmdk image's descriptor (QEMU's own limit).
pub const VMDK_DESCRIPTOR_BYTES_MAX: usize = (1 << 20) - 1;

/// Seconds in which qemu-nbd must have opened its image and answered.
pub const NBD_NEGOTIATE_S: u64 = 60;

/// Seconds in which it must answer one request; a disk that spins up or a slow file server may take long.
pub const NBD_REPLY_S: u64 = 300;

/// Bytes that are read from it with one request.
pub const NBD_READ_BYTES: u32 = 1 << 20;

/// Requests that it works on at the same time: as many as it does on one connection.
pub const NBD_READS: usize = 16;

/// Bytes for which it is asked at a time where it has data.
pub const NBD_STATUS_BYTES: u32 = 1 << 30;

/// Seconds after which a program whose work is done, or that was killed, must have ended.
pub const PROGRAM_END_S: u64 = 10;

/// Bytes that are kept of what a program says, and lines of them that are told.
pub const PROGRAM_WORDS_BYTES: usize = 8 << 10;

/// Lines of it that are told.
pub const PROGRAM_WORDS_LINES: usize = 8;

/// Tries for each object that `repair` copies from another repository.
pub const COPY_TRIES: u32 = 3;

/// Bytes of the largest pack that `repair` copies; it is held in memory until its digest is known to be right. Publishers
/// end packs near 32 MiB.
pub const COPIED_PACK_BYTES_MAX: u64 = 256 << 20;

/// Objects that `push` uploads at the same time.
pub const PUSH_OBJECTS: usize = 6;

/// Bytes of a part: a larger object is uploaded in several. Servers want 5 MiB at least and 10,000 parts at most.
pub const PUSH_PART_BYTES: u64 = 8 << 20;

/// Parts and smaller objects that are in memory and under way at the same time, so connections too.
pub const PUSH_PARTS: usize = 8;

/// Bytes of a body that are handed to the connection at a time: how finely stalls are told from slow lines.
pub const PUSH_PIECE_BYTES: usize = 64 << 10;

/// Bytes that wait in the system's buffer of one connection: what was handed over and is not sent yet must pass within
/// [`PUSH_STALL`] on a slow line.
pub const PUSH_SEND_BUFFER_BYTES: usize = 256 << 10;

/// Time in which nothing of a request is sent or answered before it is given up and tried again.
pub const PUSH_STALL: Duration = Duration::from_secs(20);

/// Bytes of an answer: a page of a list has 1000 objects.
pub const PUSH_ANSWER_BYTES_MAX: usize = 16 << 20;

/// Characters of a server's error that are shown.
pub const PUSH_ERROR_CHARS_MAX: usize = 300;

/// Time for which a request is tried again. Its signature is made once and is good for 15 minutes.
pub const PUSH_RETRY_FOR: Duration = Duration::from_secs(240);

/// Time for which the first request is tried again: a wrong endpoint should be told soon.
pub const PUSH_RETRY_FIRST: Duration = Duration::from_secs(10);

/// Tries of a request beyond the first.
pub const PUSH_RETRIES_MAX: usize = 40;

/// The first pause between two tries; each later one is longer.
pub const PUSH_PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause between two tries.
pub const PUSH_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Times that a bucket is listed and completed before its link is put.
pub const PUSH_ROUNDS: usize = 4;

/// Times that putting a link is tried when it is not known what became of the try before.
pub const PUSH_LINK_TRIES: usize = 6;

/// Time for which an interrupted push removes what it has half uploaded.
pub const PUSH_ABORT: Duration = Duration::from_secs(5);

/// Objects of a bucket that are listed.
pub const PUSH_LISTED_MAX: usize = 4 << 20;

/// Objects that are deleted with one request.
pub const PUSH_DELETES: usize = 1000;

/// Bytes of a credentials file that are read.
pub const CREDENTIALS_BYTES_MAX: u64 = 1 << 20;
