//! The longest waits and the largest sizes of a launch.

use std::time::Duration;

/// Seconds that QEMU holds back requests while the NBD server is away, before they fail: a server that died is started
/// again within them.
pub(super) const RECONNECT_DELAY_S: u64 = 60;

/// Seconds for which QEMU tries to reach the NBD server at first; less than [`START_DEADLINE`], in which it must be up.
pub(super) const OPEN_TIMEOUT_S: u64 = 10;

/// From starting QEMU to its greeting. It opens its disks in this time, which may wait for the network.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(60);

/// For the answer to one QMP command.
pub(super) const QMP_REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of one message from QEMU's monitor.
pub(super) const QMP_LINE_BYTES_MAX: usize = 1 << 20;

/// Characters of QEMU's words that are shown.
pub(super) const QMP_WORDS_CHARS_MAX: usize = 300;

/// Events that wait while a command is under way.
pub(super) const QMP_EVENTS_MAX: usize = 1024;

/// From asking the agent of a guest that has just been resumed to its first answer: its memory may still be on its way.
pub(super) const AGENT_SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// Between two attempts at that.
pub(super) const AGENT_SYNC_PERIOD: Duration = Duration::from_secs(2);

/// For its next answers: it may run a program of the guest's.
pub(super) const AGENT_REPLY_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of one answer of a guest's agent.
pub(super) const AGENT_LINE_BYTES_MAX: usize = 64 << 10;

/// From asking QEMU to quit to its end, when it has a persistent overlay to complete.
pub(super) const QUIT_DEADLINE: Duration = Duration::from_secs(10);

/// The same when all that the guest wrote is thrown away.
pub(super) const QUIT_DEADLINE_SCRATCH: Duration = Duration::from_secs(2);

/// From SIGTERM to QEMU's end.
pub(super) const TERM_DEADLINE: Duration = Duration::from_secs(3);

/// From SIGKILL to QEMU's end.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// From the guest's power-off to QEMU's end: it writes back what its overlays lack.
pub(super) const EXIT_DEADLINE: Duration = Duration::from_secs(30);

/// Between two attempts to continue a guest that stands still on an I/O error.
pub(super) const CONTINUE_PERIOD: Duration = Duration::from_secs(3);

/// How long a continued guest must run before the error counts as over: longer than a read is retried (15 s) before
/// it fails again.
pub(super) const STEADY_PERIOD: Duration = Duration::from_secs(20);

/// For the tiny guest that shows whether KVM works.
pub(super) const KVM_PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// For one run of qemu-img, or of QEMU when it is asked what it has.
pub(super) const TOOL_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes that are kept of what a program says.
pub(super) const WORDS_BYTES_MAX: usize = 16 << 10;

/// Lines of a program's words that go into an error message.
pub(super) const WORDS_LINES_MAX: usize = 8;

/// Bytes of a tool's standard output.
pub(super) const TOOL_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Bytes moved at a time between the serial port and its ends.
pub(super) const SERIAL_BUFFER_BYTES: usize = 16 << 10;

/// For what the serial port still holds when QEMU has ended.
pub(super) const SERIAL_DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Attempts at a run directory of our own: one is lost when another launcher sweeps it before it is locked.
pub(super) const RUN_DIR_ATTEMPTS: usize = 16;

/// Bytes of a Unix socket's path, without the closing NUL (`sun_path` of unix(7)).
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;
