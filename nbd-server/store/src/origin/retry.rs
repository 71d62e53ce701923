//! When a failed try is followed by another, and after what pause.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{RETRY_FOR_MAX, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};

/// The tries for one piece of work: pauses that double, with jitter, until a deadline.
#[derive(Debug)]
pub(crate) struct Retry {
    deadline: Instant,
    pause: Duration,
}

impl Retry {
    /// Tries for as long as `budget`.
    pub(crate) fn for_as_long_as(budget: Duration) -> Self {
        Self { deadline: Instant::now() + budget.min(RETRY_FOR_MAX), pause: RETRY_PAUSE_MIN }
    }

    /// Pauses before another try; false when the time is over.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = jittered(self.pause);
        if Instant::now() + pause > self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        true
    }

    /// What `work` gives, if it gives it before the time is over.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(self.deadline, work).await.ok()
    }

    /// Something succeeded: the time starts anew, for it is progress that counts.
    pub(crate) fn progress(&mut self, budget: Duration) {
        *self = Self::for_as_long_as(budget);
    }
}

/// Half to all of `pause`, so that many who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // The keys of a RandomState are random: good enough for jitter, and no further crate.
    let random = RandomState::new().hash_one(0_u8);
    pause / 2 + pause.mul_f64((random % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_deadline_and_not_before_several_tries() {
        let start = Instant::now();
        let mut retry = Retry::for_as_long_as(Duration::from_secs(15));
        let mut tries = 0;
        while retry.pause().await {
            tries += 1;
        }
        assert!((6..=20).contains(&tries), "{tries}");
        assert!(start.elapsed() <= Duration::from_secs(15) && start.elapsed() >= Duration::from_secs(9));
    }
}
