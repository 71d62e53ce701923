//! What the guest is at, for those who would stand in its way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep};

use crate::resume::Fill;
use crate::resume::limits::{QUIET, QUIET_LOOK, QUIET_WAIT_MAX};

/// When the guest last had to wait for the network, and whether it is still being brought what it is known to need.
#[derive(Debug)]
pub(super) struct Activity {
    fill: Fill,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_demand: Option<Instant>,
    is_order_done: bool,
}

impl Activity {
    pub(super) fn new(fill: Fill) -> Self {
        Self { fill, state: Mutex::default() }
    }

    /// What the guest is given.
    pub(super) const fn fill(&self) -> Fill {
        self.fill
    }

    /// The guest waits for a page.
    pub(super) fn demand(&self) {
        self.lock().last_demand = Some(Instant::now());
    }

    /// What is known to be needed has been brought, or there is no such knowledge.
    pub(super) fn order_is_done(&self) {
        self.lock().is_order_done = true;
    }

    pub(super) fn is_order_done(&self) -> bool {
        self.lock().is_order_done
    }

    /// Waits until the guest has asked for nothing for a while, but not for ever: what it will ask for is to come, too.
    pub(super) async fn quiet(&self) {
        let start = Instant::now();
        while self.is_busy() && start.elapsed() < QUIET_WAIT_MAX {
            sleep(QUIET_LOOK).await;
        }
    }

    fn is_busy(&self) -> bool {
        self.lock().last_demand.is_some_and(|last| last.elapsed() < QUIET)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that changes the state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
