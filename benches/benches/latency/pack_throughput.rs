//! Publishing a disk: the first version, and the same disk again.

use crate::support::{DATA_BYTES, Published};
use criterion::{BatchSize, Criterion, Throughput};
use vmnetx_pack::{Silent, build};

pub(crate) fn by_version(criterion: &mut Criterion) {
    let published = Published::new();
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10).throughput(Throughput::Bytes(DATA_BYTES));
    let mut number = 0;
    group.bench_function("first version", |bencher| {
        bencher.iter_batched(
            || {
                // The repository before is of no more use.
                let _ = std::fs::remove_dir_all(published.path(&format!("new-{number}")));
                number += 1;
                published.options(&format!("new-{number}"))
            },
            |options| build(&options, &Silent).expect("a package"),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("unchanged", |bencher| {
        let options = published.options("repository");
        bencher.iter(|| build(&options, &Silent).expect("a package"));
    });
    group.finish();
}
