//! Single flight: one fetch for however many, and no memory of failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use vmnetx_store::origin::{DirOrigin, OriginTier};
use vmnetx_store::tier::{Arrivals, Found, Source as Origin, Tier, Wanted, Why};
use vmnetx_store::{Error, Flights, SingleFlight};

use crate::faulty_tier::{Fate, FaultyTier, failure};
use crate::support::repository::{Frame, Repository};
use crate::support::source::mixed;
use crate::within;

struct Rig {
    repository: Repository,
    flights: Arc<SingleFlight>,
    /// What stands behind single flight and counts what it is asked for.
    counted: Arc<FaultyTier>,
}

fn rig(fate: impl Fn() -> Fate + Send + Sync + 'static) -> Rig {
    let repository = Repository::of(&mixed());
    let origin = Arc::new(DirOrigin::new(repository.root()));
    let next = Arc::new(OriginTier::new(origin, Duration::from_secs(5)));
    let counted = Arc::new(FaultyTier::new(next, move |_| fate()));
    let flights = Arc::new(SingleFlight::new(Arc::<FaultyTier>::clone(&counted)));
    Rig { repository, flights, counted }
}

impl Rig {
    fn frame(&self) -> &Frame {
        &self.repository.chunks[0]
    }

    async fn one(&self) -> Result<Found, Error> {
        let mut arrivals = self.flights.fetch(vec![self.frame().wanted.clone()], Why::Demand);
        arrivals.next().await.expect("an answer").result
    }
}

#[tokio::test]
async fn many_readers_cause_one_fetch() {
    let (open, gate) = watch::channel(false);
    let rig = rig(move || Fate::When(gate.clone()));
    let waiting: Vec<_> = (0..50).map(|_| rig.flights.fetch(vec![rig.frame().wanted.clone()], Why::Demand)).collect();
    assert!(rig.flights.is_under_way(&rig.frame().wanted.digest));
    open.send(true).unwrap();
    let mut joined = 0;
    for mut arrivals in waiting {
        let found = within(20, arrivals.next()).await.unwrap().result.unwrap();
        assert!(found.plain == rig.frame().plain);
        joined += usize::from(found.source == Origin::Joined);
        assert!(arrivals.next().await.is_none());
    }
    assert_eq!((rig.counted.asked(), joined), (1, 49));
    assert!(!rig.flights.is_under_way(&rig.frame().wanted.digest));
}

#[tokio::test]
async fn a_waiter_that_leaves_does_not_end_the_fetch() {
    let (open, gate) = watch::channel(false);
    let rig = rig(move || Fate::When(gate.clone()));
    let first = rig.flights.fetch(vec![rig.frame().wanted.clone()], Why::Demand);
    let mut second = rig.flights.fetch(vec![rig.frame().wanted.clone()], Why::Demand);
    drop(first);
    // Not even when nobody else waits yet.
    tokio::task::yield_now().await;
    let mut third = rig.flights.fetch(vec![rig.frame().wanted.clone()], Why::Demand);
    open.send(true).unwrap();
    for arrivals in [&mut second, &mut third] {
        assert!(within(20, arrivals.next()).await.unwrap().result.unwrap().plain == rig.frame().plain);
    }
    assert_eq!(rig.counted.asked(), 1);
}

#[tokio::test]
async fn a_fetch_that_everybody_left_still_lands() {
    let (open, gate) = watch::channel(false);
    let rig = rig(move || Fate::When(gate.clone()));
    drop(rig.flights.fetch(vec![rig.frame().wanted.clone()], Why::Demand));
    open.send(true).unwrap();
    within(20, async {
        while rig.flights.is_under_way(&rig.frame().wanted.digest) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(rig.counted.asked(), 1);
}

#[tokio::test]
async fn failures_are_shared_but_not_remembered() {
    for fate in [Fate::Fail, Fate::Lose] {
        let failing = Arc::new(AtomicBool::new(true));
        let rig = rig({
            let failing = Arc::clone(&failing);
            move || if failing.load(Ordering::SeqCst) { fate.clone() } else { Fate::Pass }
        });
        let answers = within(20, async { tokio::join!(rig.one(), rig.one(), rig.one()) }).await;
        for error in [answers.0, answers.1, answers.2].map(Result::unwrap_err) {
            let expected = [failure().to_string(), Error::Closing.to_string()];
            assert!(expected.contains(&error.to_string()), "{error}");
        }
        assert_eq!(rig.counted.asked(), 1);
        failing.store(false, Ordering::SeqCst);
        assert!(within(20, rig.one()).await.unwrap().plain == rig.frame().plain);
    }
}

/// One list in which each frame stands behind another fetch of it.
#[tokio::test]
async fn a_list_may_join_some_flights_and_start_others() {
    let (open, gate) = watch::channel(false);
    let rig = rig(move || Fate::When(gate.clone()));
    let list: Vec<_> = rig.repository.chunks.iter().map(|frame| frame.wanted.clone()).collect();
    let early = rig.flights.fetch(list.iter().step_by(2).cloned().collect(), Why::ReadAhead);
    let mut all = rig.flights.fetch(list.clone(), Why::Demand);
    drop(early);
    open.send(true).unwrap();
    let mut answered = 0;
    while let Some(arrival) = within(20, all.next()).await {
        assert!(arrival.result.unwrap().plain == rig.repository.chunks[arrival.index].plain);
        answered += 1;
    }
    assert_eq!((answered, rig.counted.asked()), (list.len(), list.len()));
}

/// Two packages of one repository: whoever comes first fetches for both, and one whose own origin is well does not suffer
/// from the other's.
#[tokio::test]
async fn packages_share_flights_but_not_failures() {
    let shared = Arc::<Flights>::default();
    let (open, gate) = watch::channel(false);
    let first = rig(move || Fate::When(gate.clone()));
    let winner = SingleFlight::shared(Arc::clone(&shared), Arc::<FaultyTier>::clone(&first.counted));
    let mut fetched = winner.fetch(vec![first.frame().wanted.clone()], Why::ReadAhead);
    let second = rig(|| Fate::Pass);
    let joiner = SingleFlight::shared(Arc::clone(&shared), Arc::<FaultyTier>::clone(&second.counted));
    let mut joined = joiner.fetch(vec![first.frame().wanted.clone()], Why::Demand);
    open.send(true).unwrap();
    assert!(within(20, fetched.next()).await.unwrap().result.is_ok());
    assert_eq!(within(20, joined.next()).await.unwrap().result.unwrap().source, Origin::Joined);
    assert_eq!((first.counted.asked(), second.counted.asked()), (1, 0));

    for fate in [Fate::Fail, Fate::Lose] {
        let failing = Arc::new(FaultyTier::new(Arc::<FaultyTier>::clone(&first.counted), move |_| fate.clone()));
        let winner = SingleFlight::shared(Arc::clone(&shared), failing);
        let mut lost = winner.fetch(vec![first.frame().wanted.clone()], Why::Demand);
        let mut joined = joiner.fetch(vec![first.frame().wanted.clone()], Why::Demand);
        assert!(within(20, lost.next()).await.unwrap().result.is_err());
        assert!(within(20, joined.next()).await.unwrap().result.unwrap().plain == first.frame().plain);
    }
}

/// A reader that joins what only the background wanted makes it urgent.
#[tokio::test]
async fn joining_promotes() {
    let (open, gate) = watch::channel(false);
    let rig = rig(move || Fate::When(gate.clone()));
    let list: Vec<_> = rig.repository.chunks.iter().map(|frame| frame.wanted.clone()).collect();
    let background = rig.flights.fetch(list.clone(), Why::Background);
    let ahead = rig.flights.fetch(list[..2].to_vec(), Why::ReadAhead);
    let reader = rig.flights.fetch(list[1..2].to_vec(), Why::Demand);
    let late = rig.flights.fetch(list[..2].to_vec(), Why::Order);
    let promoted = rig.counted.promoted();
    let of = |index: usize, why| (list[index].digest, why);
    assert_eq!(promoted, [of(0, Why::ReadAhead), of(1, Why::ReadAhead), of(1, Why::Demand), of(0, Why::Order)]);
    open.send(true).unwrap();
    drop((background, ahead, reader, late));
}

#[derive(Debug)]
struct Panics;

impl Tier for Panics {
    fn fetch(&self, _: Vec<Wanted>, _: Why) -> Arrivals {
        panic!("the test says so")
    }
}

/// Whoever joined a fetch that fell over is told, and the next one tries anew.
#[tokio::test]
async fn a_fetch_that_panics_leaves_nobody_waiting() {
    let repository = Repository::of(&mixed());
    let wanted = vec![repository.chunks[0].wanted.clone()];
    let flights = Arc::new(SingleFlight::new(Arc::new(Panics)));
    let fetch = || {
        tokio::spawn({
            let (flights, wanted) = (Arc::clone(&flights), wanted.clone());
            async move { flights.fetch(wanted, Why::Demand) }
        })
    };
    for _ in 0..2 {
        assert!(within(20, fetch()).await.unwrap_err().is_panic());
        assert!(!flights.is_under_way(&wanted[0].digest));
    }
}
