//! Readers: random ranges over connections that come and go, each byte compared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use vmnetx_nbd_proto::client::{Client, ClientError, ConnectOptions};

use crate::world::{Random, Serving, World};

/// Reads of one reader that are under way at once.
pub(crate) const DEPTH_MAX: u64 = 8;
/// A read that takes longer hangs: much more than the server tries again for, and than an origin may be silent for.
const HANGS_AFTER: Duration = Duration::from_secs(60);
const READ_BYTES_MAX: u64 = 192 << 10;
/// Rounds of reads over one connection.
const ROUNDS_MAX: u64 = 100;

/// Reads until the world stops.
pub(crate) async fn read(world: Arc<World>, which: usize) {
    let mut random = Random::new(world.seed() ^ (which as u64 + 1) << 32);
    while !world.is_stopping() {
        let serving = world.serving();
        let Some(client) = connect(&world, &serving).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        for _ in 0..=random.below(ROUNDS_MAX) {
            let mut reads = JoinSet::new();
            for _ in 0..=random.below(DEPTH_MAX - 1) {
                let (offset, length) = range(&mut random, serving.image.len() as u64);
                reads.spawn(one(Arc::clone(&world), client.clone(), Arc::clone(&serving), offset, length));
            }
            let alive = reads.join_all().await.into_iter().all(|alive| alive);
            if !alive || world.is_stopping() {
                break;
            }
        }
    }
}

/// A connection to a server; nothing if the server is going.
pub(crate) async fn connect(world: &World, serving: &Serving) -> Option<Client> {
    let opening = async {
        let stream = UnixStream::connect(&serving.socket).await.map_err(|error| error.to_string())?;
        Client::connect(stream, &ConnectOptions::new("disk0")).await.map_err(|error| error.to_string())
    };
    match timeout(HANGS_AFTER, opening).await {
        Ok(Ok(client)) => {
            world.count(|report| report.connections += 1);
            return Some(client);
        }
        Ok(Err(_)) if serving.has_ended() => world.count(|report| report.cut_off += 1),
        Ok(Err(error)) => world.count(|report| report.complain(format!("a connection is refused: {error}"))),
        Err(_) => world.count(|report| report.hung_reads += 1),
    }
    None
}

/// Half of the ranges are of whole blocks, as file systems read.
fn range(random: &mut Random, size_bytes: u64) -> (u64, u32) {
    let unit = if random.below(2) == 0 { 4096 } else { 1 };
    let offset = random.below(size_bytes) / unit * unit;
    let length = (random.below(READ_BYTES_MAX) / unit * unit + unit).min(size_bytes - offset);
    (offset, length as u32)
}

/// Says whether the connection is still of use.
async fn one(world: Arc<World>, client: Client, serving: Arc<Serving>, offset: u64, length: u32) -> bool {
    let begun = Instant::now();
    match timeout(HANGS_AFTER, client.read(offset, length)).await {
        Ok(Ok(found)) => {
            let image = &serving.image[offset as usize..offset as usize + length as usize];
            let wrong = found.iter().zip(image).filter(|(found, image)| found != image).count();
            world.count(|report| {
                report.reads += 1;
                report.bytes += u64::from(length);
                report.wrong_bytes += (wrong + image.len().abs_diff(found.len())) as u64;
                report.slowest_ms = report.slowest_ms.max(begun.elapsed().as_millis() as u64);
            });
            true
        }
        Ok(Err(error @ ClientError::Server { .. })) => {
            world.failed(begun, &error.to_string());
            true
        }
        Ok(Err(_)) if serving.has_ended() => {
            world.count(|report| report.cut_off += 1);
            false
        }
        Ok(Err(error)) => {
            world.count(|report| report.complain(format!("a connection ends: {error}")));
            false
        }
        Err(_) => {
            world.count(|report| report.hung_reads += 1);
            false
        }
    }
}
