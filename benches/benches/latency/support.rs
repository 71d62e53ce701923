//! A published disk for the benches: 64 MiB of data that compresses as file systems do, and a hole behind it.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vmnetx_format::machine::Machine;
use vmnetx_pack::{BuildOptions, DiskFile, LEVEL_DEFAULT, ORDER_LEVEL_DEFAULT, OrderChoice, Signing, Silent, build};
use vmnetx_store::dir::Wait;
use vmnetx_store::{Image, Location, Options, Package, Store};

/// Bytes of data on the disk.
pub(crate) const DATA_BYTES: u64 = 64 << 20;
/// Bytes of the disk.
pub(crate) const DISK_BYTES: u64 = DATA_BYTES + (64 << 20);

/// A repository with one package, in a directory that goes away with it.
pub(crate) struct Published {
    dir: TempDir,
}

impl Published {
    /// Publishes the disk.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let published = Self { dir };
        std::fs::write(published.disk(), data()).expect("the disk's data");
        let disk = std::fs::File::options().write(true).open(published.disk()).expect("the disk");
        disk.set_len(DISK_BYTES).expect("the disk's hole");
        build(&published.options("repository"), &Silent).expect("a package");
        published
    }

    /// The raw disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// Where disk tiers and sockets of a bench may lie.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How the disk is published into the repository of this name.
    pub(crate) fn options(&self, repository: &str) -> BuildOptions {
        BuildOptions {
            repository: self.path(repository),
            name: "bench".parse().expect("a name"),
            disks: vec![DiskFile::raw("disk0".parse().expect("a name"), self.disk())],
            allow_backing: false,
            base: None,
            memory: None,
            machine: Some(
                Machine::from_toml(include_str!("../../../qemu-configs/default.toml")).expect("the default machine"),
            ),
            title: None,
            urls: Vec::new(),
            chunker: None,
            keep: None,
            level: LEVEL_DEFAULT,
            orders: OrderChoice::Inherit,
            order_level: ORDER_LEVEL_DEFAULT,
            signing: Signing::default(),
            wait: Wait::No,
        }
    }

    /// Opens the package through a store of its own.
    pub(crate) async fn open(&self, options: Options) -> (Store, Package, Arc<Image>) {
        let link = self.path("repository/bench.vmnetx").display().to_string();
        let location: Location = link.parse().expect("a path");
        let store = Store::open(options).expect("a store");
        let package = store.package(&location).await.expect("the package");
        let image = Arc::clone(package.image("disk0").expect("the disk"));
        (store, package, image)
    }

    /// The same with all of its data read once.
    pub(crate) async fn open_warm(&self, options: Options) -> (Store, Package, Arc<Image>) {
        let opened = self.open(options).await;
        let mut at = 0;
        while at < DATA_BYTES {
            opened.2.read(at, 1 << 20).await.expect("a read");
            at += 1 << 20;
        }
        opened
    }
}

/// Blocks half of pseudo-random bytes and half of a text that repeats: about 2:1 in zstd.
fn data() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut data = Vec::with_capacity(DATA_BYTES as usize);
    while (data.len() as u64) < DATA_BYTES {
        for _ in 0..256 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend(state.to_le_bytes());
        }
        let line = format!("{:060} the quick brown fox jumps over the lazy dog\n", state % 10_000);
        data.extend(line.bytes().cycle().take(2048));
    }
    data
}

/// A cheap row of offsets all over the data, multiples of `align`.
pub(crate) struct Offsets(u64, u64);

impl Offsets {
    /// Starts the row.
    pub(crate) const fn new(align: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15, align)
    }

    /// The next offset at which `length` bytes can be read.
    pub(crate) fn next(&mut self, length: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % ((DATA_BYTES - length) / self.1) * self.1
    }
}
