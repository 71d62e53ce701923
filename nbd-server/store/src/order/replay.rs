//! Replays an order: what a boot touched before is fetched ahead of the guest, in the same sequence, and so that the line is
//! never idle.
//!
//! A replay only warms the memory tier, and the disk tier behind it. Frames are known by their digests, so a wrong order
//! wastes bytes and nothing else.

use std::sync::{Arc, OnceLock};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use vmnetx_format::{Digest, OrderFrame, Purpose, Touch, Version};

use super::read::read;
use super::{OrderCounts, Plan};
use crate::Store;
use crate::image::Tiers;
use crate::limits::{ORDER_AHEAD_PARTS, ORDER_IN_FLIGHT_BYTES, ORDER_REQUEST_BYTES};
use crate::origin::Origin;
use crate::tier::{Tier, Wanted, Why};

/// The replay of a version's recorded orders, which ends with it.
#[derive(Debug)]
pub(crate) struct OrderReplay {
    plan: Arc<OnceLock<Plan>>,
    /// What the orders say is touched, once they are here.
    touches: watch::Receiver<Option<Vec<Touch>>>,
    _task: AbortOnDropHandle<()>,
}

impl OrderReplay {
    /// Fetches the orders of `version` and replays what they say of the purpose that is told meanwhile; the plan is set once
    /// they are here. Returns at once.
    pub(crate) fn start(
        store: &Store,
        origin: &Arc<dyn Origin>,
        version: &Version,
        tiers: Tiers,
        (plan, purpose): (Arc<OnceLock<Plan>>, oneshot::Receiver<Purpose>),
    ) -> Self {
        let (store, origin, orders) = (store.clone(), Arc::clone(origin), version.orders.clone());
        let (tell, touches) = watch::channel(None);
        let task = tokio::spawn({
            let plan = Arc::clone(&plan);
            async move {
                let mut all = Vec::new();
                for digest in orders {
                    match read(&store, &*origin, digest).await {
                        Ok(order) => all.push(order),
                        Err(error) => tracing::warn!(%error, "nothing is fetched ahead by this order"),
                    }
                }
                // Nobody tells it of a package that cannot be opened.
                let Ok(purpose) = purpose.await else { return };
                all.retain(|order| order.purpose() == purpose);
                let touches = all.iter().flat_map(|order| order.touches().iter().copied()).collect();
                tell.send_replace(Some(touches));
                let frames: Vec<_> = all.iter().flat_map(|order| order.frames().iter().cloned()).collect();
                if !frames.is_empty() {
                    plan.get_or_init(|| Plan::new(frames));
                    replay(&plan, &tiers, store.memory_bytes()).await;
                }
            }
        });
        Self { plan, touches, _task: AbortOnDropHandle::new(task) }
    }

    /// What the orders say is touched, in their sequence; waits until they are here.
    pub(crate) async fn touches(&self) -> Vec<Touch> {
        let mut touches = self.touches.clone();
        // A replay that has ended without orders says nothing any more.
        let known = touches.wait_for(Option::is_some).await;
        known.ok().and_then(|known| known.clone()).unwrap_or_default()
    }

    /// What came of it until now; nothing before the orders are here.
    pub(crate) fn counts(&self) -> Option<OrderCounts> {
        self.plan.get().map(Plan::counts)
    }
}

/// Brings the frames of the plan; ends with the last one. Dropping the future ends it early.
///
/// At any time about [`ORDER_IN_FLIGHT_BYTES`] stored bytes are asked for, in requests of [`ORDER_REQUEST_BYTES`]; and no
/// more plain bytes wait for their readers than one in [`ORDER_AHEAD_PARTS`] of the `memory_bytes` of the memory tier.
async fn replay(plan: &Arc<OnceLock<Plan>>, tiers: &Tiers, memory_bytes: u64) {
    let Some(known) = plan.get() else { return };
    let mut under_way = JoinSet::new();
    let mut in_flight_bytes: u64 = 0;
    let mut frames = known.frames().iter();
    loop {
        while in_flight_bytes >= ORDER_IN_FLIGHT_BYTES {
            match under_way.join_next().await {
                Some(Ok(bytes)) => in_flight_bytes -= bytes,
                // A panic, which the runtime has told.
                Some(Err(_)) => {}
                None => in_flight_bytes = 0,
            }
        }
        known.room(memory_bytes / ORDER_AHEAD_PARTS).await;
        let (wanted, bytes) = next_request(&mut frames, tiers);
        if wanted.is_empty() {
            break;
        }
        in_flight_bytes += bytes;
        under_way.spawn(bring(Arc::clone(plan), tiers.clone(), wanted, bytes));
    }
    while under_way.join_next().await.is_some() {}
    known.done();
}

/// The next frames that the memory tier lacks, and their stored bytes; none at the end.
fn next_request<'a>(frames: &mut impl Iterator<Item = &'a OrderFrame>, tiers: &Tiers) -> (Vec<Wanted>, u64) {
    let mut wanted = Vec::new();
    let mut bytes = 0;
    for frame in frames.filter(|frame| !tiers.memory.contains(&frame.digest)) {
        bytes += u64::from(frame.place.stored_len);
        wanted.push(super::read::wanted(frame));
        if bytes >= ORDER_REQUEST_BYTES {
            break;
        }
    }
    (wanted, bytes)
}

/// Fetches `wanted`, whose stored bytes it gives back in the end.
async fn bring(plan: Arc<OnceLock<Plan>>, tiers: Tiers, wanted: Vec<Wanted>, bytes: u64) -> u64 {
    let Some(plan) = plan.get() else { return bytes };
    let digests: Vec<Digest> = wanted.iter().map(|frame| frame.digest).collect();
    let mut arrivals = tiers.flights.fetch(wanted, Why::Order);
    while let Some(arrival) = arrivals.next().await {
        match (arrival.result, digests.get(arrival.index)) {
            (Ok(found), Some(digest)) => plan.brought(digest, found.source),
            (Ok(_), None) => {}
            (Err(error), _) => {
                // Whoever reads it fetches it from its own place, and tells if that fails.
                tracing::debug!(%error, "a frame of the order is not to be had");
                plan.failed();
            }
        }
    }
    bytes
}
