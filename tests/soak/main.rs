//! The soak: readers of a served disk, caches far too small, and one misfortune after the other. Every byte that is read is
//! the image's; a read may fail while the origin does, and for no other reason; none hangs.
//!
//! Each kind of misfortune happens at least once. `benches/soak` runs the same for half an hour. It is told by variables:
//! `VMNETX_SOAK_SECONDS`, `VMNETX_SOAK_SEED`, and `VMNETX_SOAK_JSON`, a file that gets the report.
#![allow(clippy::print_stdout, reason = "the report is the test's output")]

mod faults;
mod readers;
mod report;
mod world;

#[path = "../../nbd-server/store/tests/support/mod.rs"]
#[allow(dead_code, reason = "the tests of other crates use other parts")]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use faults::Fault;
use world::World;

/// Readers at a time, each with up to [`readers::DEPTH_MAX`] reads under way.
const READERS: usize = 6;
/// How long it goes on unless it is told otherwise; each kind of fault has its turn also when that takes longer.
const SECONDS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn readers_get_the_images_bytes_whatever_happens_around_the_server() {
    let seed = number("VMNETX_SOAK_SEED").unwrap_or(1);
    let lasts = Duration::from_secs(number("VMNETX_SOAK_SECONDS").unwrap_or(SECONDS));
    let world = Arc::new(World::new(seed).await);
    let started = Instant::now();
    let readers: Vec<_> = (0..READERS).map(|which| tokio::spawn(readers::read(Arc::clone(&world), which))).collect();
    loop {
        world.copy_all().await;
        for fault in Fault::ALL {
            world.suffer(fault).await;
            world.recovers().await;
        }
        if started.elapsed() >= lasts {
            break;
        }
        // What fails from here on has no fault to blame.
        world.rest().await;
    }
    world.stop_readers();
    for reader in readers {
        reader.await.unwrap();
    }
    let report = world.report(started.elapsed()).await;
    if let Ok(file) = std::env::var("VMNETX_SOAK_JSON") {
        std::fs::write(file, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
    println!("{report}");
    let all_had_their_turn = Fault::ALL.iter().all(|fault| report.faults.contains_key(fault));
    assert!(report.is_good() && all_had_their_turn, "see above");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}: {error}")))
}
