//! The criterion benches: chunk reads by tier, index look-ups, NBD latency, packing.
//!
//! `cargo bench -p vmnetx-benches -- 'NBD'` runs those whose name contains NBD.

mod chunk_read;
mod nbd_latency;
mod pack_throughput;
mod support;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    chunk_read::by_tier,
    chunk_read::index_lookup,
    nbd_latency::by_depth,
    pack_throughput::by_version
);
criterion_main!(benches);
