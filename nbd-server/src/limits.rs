//! The named limits of serving.

use std::time::Duration;

/// Connections that are served at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;

/// Time that a client has for the whole handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a file with certificates or a key.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;

/// Requests of one connection that wait for the tiers at once; more are not read from the socket. QEMU has 16.
pub const IN_FLIGHT_MAX: usize = 128;

/// Bytes that these requests ask for together.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;

/// CACHE requests of one connection that bring something at once.
pub const CACHES_AT_ONCE_MAX: usize = 16;

/// CACHE requests of one connection that wait for their turn; more are refused.
pub const CACHES_WAITING_MAX: usize = 4096;

/// Bytes of answers that are put together before they are written.
pub const OUTPUT_BYTES: usize = 1 << 20;

/// Bytes that are read from a socket at a time: a few hundred requests.
pub const INPUT_BYTES: usize = 16 << 10;

/// Payloads up to this many bytes are copied behind their header, so that a batch of small replies is one buffer.
pub const COPY_BYTES_MAX: usize = 16 << 10;

/// Extents in one answer to BLOCK_STATUS.
pub const EXTENTS_MAX: usize = 4096;

/// Time that requests under way have to end once the server stops.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of an answer on the control socket that a client reads: a record of first touches has up to 16 MiB.
pub const CONTROL_BYTES_MAX: usize = 16 << 20;

/// Connections to an attachment's private socket that are served at once: a guest's disks, each several times.
pub const ATTACHMENT_CONNECTIONS_MAX: usize = 128;

/// Attachments of a server.
pub const ATTACHMENTS_MAX: usize = 1024;

/// Attachments of one user, unless it is the server's own or root.
pub const ATTACHMENTS_PER_UID_MAX: usize = 128;

/// For how long an attachment without lease and without connection is kept: QEMU's `reconnect-delay`, within which a client
/// whose connection broke comes back.
pub const ATTACH_GRACE: Duration = Duration::from_secs(60);

/// The longest time for which an attachment may ask reads to be tried again.
pub const ATTACH_RETRY_MAX: Duration = Duration::from_secs(600);

/// Bytes of an attachment's id; longer ones would not fit into the path of a socket.
pub const ATTACHMENT_ID_BYTES_MAX: usize = 40;

/// Random bytes of an id that a client makes up, in hexadecimal: so many that nobody guesses it, so few that the folder's path
/// may be long.
pub const RANDOM_ID_BYTES: usize = 10;

/// Bytes of a Unix socket's path, without the closing NUL (`sun_path` of unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections to the control socket that are served at once. Each attachment's lease is one.
pub const CONTROL_CONNECTIONS_MAX: usize = 2048;

/// Connections to the control socket of one user, unless it is the server's own or root.
pub const CONTROL_CONNECTIONS_PER_UID_MAX: usize = 256;

/// Bytes of a request's body on the control socket.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 64 << 10;

/// Bytes of a request's header on the control socket.
pub const CONTROL_HEADER_BYTES_MAX: usize = 16 << 10;

/// Keys in one request.
pub const CONTROL_KEYS_MAX: usize = 64;

/// Names of exports in one request.
pub const CONTROL_EXPORTS_MAX: usize = 64;

/// Time that a client of the control socket has for a request's header, and again for its body.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a server has for an answer that waits for nothing remote.
pub const CONTROL_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a server says over a lease that it lives.
pub const LEASE_BEAT: Duration = Duration::from_secs(10);

/// How often a server says how far a pull or a verification is.
pub const PROGRESS_BEAT: Duration = Duration::from_millis(500);

/// After so long a silence in an answer that goes on, the client takes the server for dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Bytes of one line of such an answer.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Pulls of a server that run at once.
pub const PULLS_MAX: usize = 16;

/// Pulls of one user that run at once, unless it is the server's own or root.
pub const PULLS_PER_UID_MAX: usize = 2;

/// Time that a server has to empty its cache directory: what is kept for good may have to be moved.
pub const PRUNE_TIMEOUT: Duration = Duration::from_secs(600);

/// Time that whoever has a cache directory has to answer at its control socket, before it is taken for one without.
pub const UNHEARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that an idle or a drained server has to leave its cache directory to a command that waits for it.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks whether it has.
pub const RELEASE_LOOK: Duration = Duration::from_millis(20);

/// Bytes of RAM that are read at once to be mapped.
pub const MAPPED_READ_BYTES: u64 = 4 << 20;

/// Such reads of one RAM that are under way at once.
pub const MAPPED_READS_MAX: usize = 4;

/// Parts of the host's memory of which mapped RAM takes one at most, unless the server is told otherwise.
pub const MAPPED_SHARE_OF_HOST: u64 = 2;

/// Parts of the mapped RAM that others have left of which what one user has had read takes one at most, unless it is the server's own or
/// root: the next user always finds room.
pub const MAPPED_SHARE_PER_UID: u64 = 2;

/// Time that a server has to hand over mapped RAM that is ready.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);
