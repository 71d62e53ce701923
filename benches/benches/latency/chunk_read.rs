//! What a 4 KiB read costs by the tier that has its chunk, and what a look at the index costs.

use std::hint::black_box;

use crate::support::{Offsets, Published};
use criterion::Criterion;
use tokio::runtime::Runtime;
use vmnetx_store::Options;

pub(crate) fn by_tier(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let published = Published::new();
    let mut group = criterion.benchmark_group("read 4 KiB");

    let (_store, _package, image) = runtime.block_on(published.open_warm(Options::default()));
    group.bench_function("memory tier", |bencher| {
        let mut offsets = Offsets::new(4096);
        let mut pieces = Vec::new();
        bencher.iter(|| {
            pieces.clear();
            assert!(image.read_now(offsets.next(4096), 4096, black_box(&mut pieces)));
        });
    });

    // A memory tier that keeps nothing: every read goes on to the next one.
    let disk = Options { memory_bytes: 0, disk: Some((published.path("cache"), 1 << 30)), ..Options::default() };
    let (store, _package, image) = runtime.block_on(published.open_warm(disk));
    store.disk().expect("a disk tier").flush();
    let mut offsets = Offsets::new(4096);
    group.bench_function("disk tier", |bencher| {
        bencher.to_async(&runtime).iter(|| image.read(offsets.next(4096), 4096));
    });

    let (_store, _package, image) = runtime.block_on(published.open(Options { memory_bytes: 0, ..Options::default() }));
    let mut offsets = Offsets::new(4096);
    group.bench_function("origin in a directory", |bencher| {
        bencher.to_async(&runtime).iter(|| image.read(offsets.next(4096), 4096));
    });
    group.finish();
}

pub(crate) fn index_lookup(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let published = Published::new();
    let (_store, _package, image) = runtime.block_on(published.open_warm(Options::default()));
    let mut offsets = Offsets::new(4096);
    criterion.bench_function("index look-up", |bencher| {
        bencher.to_async(&runtime).iter(|| image.extents(offsets.next(4096), 4096, 1));
    });
}
