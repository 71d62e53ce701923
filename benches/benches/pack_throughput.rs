//! Publishing a disk: the first version, and the same disk again.

mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use support::{DATA_BYTES, Published};
use vmnetx_pack::{Silent, build};

fn pack_throughput(criterion: &mut Criterion) {
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

criterion_group!(benches, pack_throughput);
criterion_main!(benches);
