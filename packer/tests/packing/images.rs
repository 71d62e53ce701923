//! Disk images in other formats, and builds that count what they read of them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use assert_cmd::assert::Assert;
use vmnetx_format::{Digest, Name};
use vmnetx_pack::{BuildOptions, BuildReport, ChainFile, DiskFile, DiskFormat, Error, Progress, build};

use crate::support::{LEAF_BYTES, Scene, blocks, noise, qemu, sparse, text};

/// What a build read, in bytes, and what it warned of.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) total: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Progress for Read {
    fn total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn note(&self, _text: &str) {}

    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.to_owned());
    }

    fn reads(&self, _disk: &Name, _files: &[ChainFile]) {}
}

/// The size of the test disk: three leaves and a bit, in whole MiB.
pub(crate) const SIZE: u64 = 3 * LEAF_BYTES + (1 << 20);

/// A raw disk with data in several leaves and at its end.
pub(crate) fn disk(scene: &Scene) -> PathBuf {
    let path = scene.path("disk.raw");
    let (first, second, last) = (noise(1, 300_000), text(2, blocks(70)), noise(3, 5000));
    let parts = [(0, &first[..]), (LEAF_BYTES - 100_000, &second[..]), (SIZE - 5000, &last[..])];
    sparse(&path, SIZE, &parts);
    path
}

pub(crate) fn options(scene: &Scene, name: &str, file: &Path, format: DiskFormat) -> BuildOptions {
    let disks = vec![DiskFile { name: "disk0".parse().unwrap(), file: file.to_owned(), format }];
    BuildOptions { disks, ..scene.options(name, file) }
}

pub(crate) fn build_read(scene: &Scene, name: &str, file: &Path, format: DiskFormat) -> (BuildReport, u64) {
    let read = Read::default();
    let report = build(&options(scene, name, file, format), &read).unwrap();
    let [total, done] = [&read.total, &read.done].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(total, done);
    assert_eq!(*read.warnings.lock().unwrap(), Vec::<String>::new());
    (report, done)
}

pub(crate) fn refused(scene: &Scene, file: &Path, format: DiskFormat) -> Error {
    let error = build(&options(scene, "refused", file, format), &Read::default()).unwrap_err();
    assert!(!scene.link("refused").exists());
    error
}

/// The content digest and the size of a package's only disk.
pub(crate) fn content(scene: &Scene, name: &str) -> (Digest, u64) {
    let repository = scene.repository();
    let version = repository.link(&name.parse().unwrap()).unwrap().unwrap().link.current;
    let manifest = repository.manifest(&version).unwrap();
    (manifest.disks[0].content, manifest.disks[0].size_bytes)
}

pub(crate) fn convert(raw: &Path, to: &Path, format: &str, options: &[&str]) {
    qemu("qemu-img", &["convert", "-f", "raw", "-O", format], options, &[raw, to]);
}

/// Three images over a raw one: each has something that no other has.
pub(crate) fn chain(scene: &Scene) -> [PathBuf; 4] {
    let files = ["base.raw", "one.qed", "two.qcow2", "top.qcow2"].map(|name| scene.path(name));
    let [base, one, two, top] = &files;
    sparse(base, SIZE, &[(0, &noise(1, 200_000)), (LEAF_BYTES, &noise(2, 100_000))]);
    let create = |image: &Path, format: &str, below: &str, of: &str| {
        qemu("qemu-img", &["create", "-q", "-f", format, "-b", below, "-F", of], &[], &[image]);
    };
    create(one, "qed", "base.raw", "raw");
    qemu("qemu-io", &["-f", "qed", "-c", "write -P 5 50k 100k", "-c", "write -z 16M 64k"], &[], &[one]);
    create(two, "qcow2", "one.qed", "qed");
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 6 40M 4k"], &[], &[two]);
    create(top, "qcow2", "two.qcow2", "qcow2");
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 100k 5k"], &[], &[top]);
    files
}

pub(crate) fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}
