//! The waits of a machine that libvirt runs.

use std::time::Duration;

/// Between two looks whether libvirt reads what is to be restored: the guest waits for it.
pub(super) const OPEN_LOOK: Duration = Duration::from_millis(5);

/// Between two looks whether a machine still runs.
pub(super) const END_LOOK: Duration = Duration::from_millis(300);

/// For libvirt to give up a restore whose stream has ended early.
pub(super) const GIVE_UP_DEADLINE: Duration = Duration::from_secs(60);

/// For the agent of a guest that was restored to answer, and between two attempts.
pub(super) const AGENT_DEADLINE: Duration = Duration::from_secs(60);
pub(super) const AGENT_PERIOD: Duration = Duration::from_secs(2);

/// For a daemon of libvirt's that has gone to come back; its machines run on meanwhile.
pub(super) const RETURN_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks whether it is back.
pub(super) const RETURN_LOOK: Duration = Duration::from_millis(250);

/// For libvirt to end a machine, after its daemon has come back if it must: it asks QEMU first, kills it 15 s later and waits for as long
/// again.
pub(super) const DESTROY_DEADLINE: Duration = RETURN_DEADLINE.saturating_add(Duration::from_secs(45));

/// Seconds that QEMU holds back requests while the server is away: one that died is started again within them.
pub(super) const RECONNECT_DELAY_S: u64 = 60;

/// Characters of a machine's name that make it one of its own.
pub(super) const NAME_MARK_CHARS: usize = 8;

/// For libvirt to answer to somebody who only wants to know whether it is there; its daemon may have to start.
pub(super) const REACH_DEADLINE: Duration = Duration::from_secs(10);
