//! 4 KiB random reads over a Unix socket, warm, at queue depths 1 and 16: ours, and the `nbd` crate's server on a file.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{DISK_BYTES, Offsets, Published};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use vmnetx_nbd::{Export, Exports, Listener};
use vmnetx_nbd_proto::client::{Client, ConnectOptions, Mode};
use vmnetx_store::Options;

const READ_BYTES: u32 = 4096;

pub(crate) fn by_depth(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let published = Published::new();
    let mut group = criterion.benchmark_group("NBD read 4 KiB");
    group.throughput(Throughput::Elements(1));

    let (_store, _package, image) = runtime.block_on(published.open_warm(Options::default()));
    let exports = Exports::new();
    exports.add(Export::new("disk0", "", image));
    let shutdown = CancellationToken::new();
    let socket = published.path("ours.sock");
    let listener = runtime.block_on(async { Listener::unix(&socket) }).expect("a listener");
    let server = runtime.spawn(vmnetx_nbd::serve(listener, exports, shutdown.clone()));
    measure(&mut group, &runtime, "ours", &socket, Mode::Structured);
    shutdown.cancel();
    runtime.block_on(server).expect("the server's end");

    let socket = published.path("nbd-crate.sock");
    serve_with_nbd_crate(&socket, &published.disk());
    measure(&mut group, &runtime, "nbd crate", &socket, Mode::ExportName);
    group.finish();
}

fn measure(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    runtime: &Runtime,
    server: &str,
    socket: &Path,
    mode: Mode,
) {
    let client = runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.expect("a connection");
        let options = ConnectOptions { mode, ..ConnectOptions::new("") };
        Client::connect(stream, &options).await.expect("a handshake")
    });
    for depth in [1, 16] {
        group.bench_function(format!("{server}, depth {depth}"), |bencher| {
            bencher.iter_custom(|reads| runtime.block_on(read_all(&client, reads, depth)));
        });
    }
    runtime.block_on(client.disconnect()).expect("the client's leave");
}

/// Time for `reads` reads of which `depth` are under way at any time.
async fn read_all(client: &Client, reads: u64, depth: u64) -> Duration {
    let start = Instant::now();
    let workers = (0..depth).map(|worker| {
        let client = client.clone();
        let share = reads / depth + u64::from(worker < reads % depth);
        tokio::spawn(async move {
            let mut offsets = Offsets::new(u64::from(READ_BYTES));
            for _ in 0..worker {
                offsets.next(READ_BYTES.into());
            }
            for _ in 0..share {
                client.read(offsets.next(READ_BYTES.into()), READ_BYTES).await.expect("a read");
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker's end");
    }
    start.elapsed()
}

/// One blocking thread that serves the raw disk, from the page cache, to one client.
fn serve_with_nbd_crate(socket: &Path, disk: &Path) {
    let listener = UnixListener::bind(socket).expect("a socket");
    let file = Arc::new(std::fs::File::open(disk).expect("the disk"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let export: nbd::Export = nbd::Export { size: DISK_BYTES, readonly: true, ..nbd::Export::default() };
        nbd::server::handshake(&mut stream, |_name| Ok(export)).expect("a handshake");
        // Ends with an error when the client leaves.
        let _ = nbd::server::transmission(&mut stream, &mut &*file);
        let _ = stream.flush();
    });
}
