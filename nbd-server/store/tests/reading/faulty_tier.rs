//! A tier that wraps another and delays or fails what the test tells it to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use vmnetx_format::Digest;
use vmnetx_store::Error;
use vmnetx_store::tier::{Arrivals, Tier, Wanted, Why};

/// What happens to a frame.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// It comes.
    Pass,
    /// It comes later.
    Late(Duration),
    /// It comes when the value is true.
    When(watch::Receiver<bool>),
    /// It fails.
    Fail,
    /// It is never answered, as if the tier had gone away.
    Lose,
}

/// A [`Tier`] whose frames meet fates.
pub(crate) struct FaultyTier {
    next: Arc<dyn Tier>,
    fate: Box<dyn Fn(&Wanted) -> Fate + Send + Sync>,
    asked: AtomicUsize,
    promoted: Mutex<Vec<(Digest, Why)>>,
}

impl FaultyTier {
    pub(crate) fn new(next: Arc<dyn Tier>, fate: impl Fn(&Wanted) -> Fate + Send + Sync + 'static) -> Self {
        Self { next, fate: Box::new(fate), asked: AtomicUsize::new(0), promoted: Mutex::default() }
    }

    /// Frames that it was asked for so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// What became more urgent so far.
    pub(crate) fn promoted(&self) -> Vec<(Digest, Why)> {
        self.promoted.lock().unwrap().clone()
    }
}

impl std::fmt::Debug for FaultyTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyTier").finish_non_exhaustive()
    }
}

/// The failure that this tier makes up.
pub(crate) fn failure() -> Error {
    Error::Network { object: "nowhere".into(), reason: "the test says so".into() }
}

impl Tier for FaultyTier {
    fn fetch(&self, wanted: Vec<Wanted>, why: Why) -> Arrivals {
        self.asked.fetch_add(wanted.len(), Ordering::SeqCst);
        let (sender, arrivals) = Arrivals::new(wanted.len());
        for (index, frame) in wanted.into_iter().enumerate() {
            let fate = (self.fate)(&frame);
            let (sender, next) = (sender.clone(), Arc::clone(&self.next));
            tokio::spawn(async move {
                match fate {
                    Fate::Pass => {}
                    Fate::Late(pause) => tokio::time::sleep(pause).await,
                    Fate::When(mut open) => {
                        // An error says that the test is over.
                        let _ = open.wait_for(|open| *open).await;
                    }
                    Fate::Fail => return sender.send(index, Err(failure())),
                    Fate::Lose => return,
                }
                let mut inner = next.fetch(vec![frame], why);
                if let Some(arrival) = inner.next().await {
                    sender.send(index, arrival.result);
                }
            });
        }
        arrivals
    }

    fn promote(&self, digests: &[Digest], why: Why) {
        self.promoted.lock().unwrap().extend(digests.iter().map(|digest| (*digest, why)));
        self.next.promote(digests, why);
    }
}
