//! Images and repositories for the tests.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;
use vmnetx_format::machine::Machine;
use vmnetx_format::{BLOCK_BYTES, Chunker, Digest, Purpose, Record, RecordTouch};
use vmnetx_pack::{
    BuildOptions, BuildReport, Depth, DiskFile, ExportOptions, OrderChoice, OrderOptions, OrderReport, Output, Reader,
    Signing, Silent, VerifyReport, VersionName, build, export, publish_order, verify_repository,
};
use vmnetx_store::dir::{RepositoryDir, Wait};

/// Bytes of an image that one leaf covers.
pub(crate) const LEAF_BYTES: u64 = 16 << 20;

/// A folder with a repository and images in it.
pub(crate) struct Scene {
    folder: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    pub(crate) fn repository(&self) -> RepositoryDir {
        RepositoryDir::open(self.repo()).unwrap()
    }

    /// The real program, run by a user who remembers links in the scene's own folder.
    pub(crate) fn program(&self) -> Command {
        let mut command = program();
        command.env("VMNETX_STATE_DIR", self.path("state"));
        command
    }

    /// The link file of the package `name`.
    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.repo().join(format!("{name}.vmnetx"))
    }

    /// Writes an image file.
    pub(crate) fn image(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, data).unwrap();
        path
    }

    /// What publishing `image` as the only disk of `name` takes.
    pub(crate) fn options(&self, name: &str, image: &Path) -> BuildOptions {
        BuildOptions {
            repository: self.repo(),
            name: name.parse().unwrap(),
            disks: vec![DiskFile::raw("disk0".parse().unwrap(), image.to_owned())],
            allow_backing: false,
            base: None,
            memory: None,
            machine: Some(machine()),
            title: None,
            urls: Vec::new(),
            chunker: None,
            keep: None,
            level: 1,
            orders: OrderChoice::Inherit,
            order_level: 3,
            signing: Signing::default(),
            wait: Wait::No,
        }
    }

    pub(crate) fn build(&self, name: &str, image: &Path) -> BuildReport {
        build(&self.options(name, image), &Silent).unwrap()
    }

    pub(crate) fn build_cut(&self, name: &str, image: &Path, chunker: Chunker) -> BuildReport {
        build(&BuildOptions { chunker: Some(chunker), ..self.options(name, image) }, &Silent).unwrap()
    }

    /// Publishes the order of a boot that touches blocks of `disk0`, in this sequence: first block and blocks of each touch.
    pub(crate) fn order(&self, name: &str, touches: &[(u64, u32)]) -> OrderReport {
        let options = OrderOptions {
            repository: self.repo(),
            name: name.parse().unwrap(),
            version: VersionName::Current,
            choice: OrderChoice::Records(vec![record(touches)]),
            level: 3,
            signing: Signing::default(),
            wait: Wait::No,
        };
        publish_order(&options, &Silent).unwrap()
    }

    /// Exports a disk into a new file.
    pub(crate) fn export(&self, link: &str, disk: &str) -> PathBuf {
        let path = self.path("exported");
        let out = Output::File { path: path.clone(), force: true };
        let (link, disk, reader) = (link.parse().unwrap(), disk.to_owned(), Reader::default());
        export(&ExportOptions { link, disk, out, reader }, &Silent).unwrap();
        path
    }

    /// The bytes of the first disk of the current version.
    pub(crate) fn exported(&self, name: &str) -> Vec<u8> {
        fs::read(self.export(self.link(name).to_str().unwrap(), "disk0")).unwrap()
    }

    pub(crate) fn verify(&self) -> VerifyReport {
        verify_repository(&self.repository(), Depth::Deep, &Silent).unwrap()
    }

    /// Verifies the repository, which must be whole.
    pub(crate) fn verify_whole(&self) -> VerifyReport {
        let report = self.verify();
        assert_eq!(report.findings, []);
        report
    }

    /// All files of the repository but the lock, in order.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.repo()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with(".lock") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// What a recorder notes of a boot that touches blocks of `disk0`: first block and blocks of each touch.
pub(crate) fn record(touches: &[(u64, u32)]) -> Record {
    let touch = |(number, &(first_block, blocks)): (usize, &(u64, u32))| RecordTouch {
        after_ms: number as u32,
        image: "disk0".to_owned(),
        first_block,
        blocks,
    };
    Record::new(Digest::of(b"what ran"), Purpose::Boot, touches.iter().enumerate().map(touch).collect()).unwrap()
}

/// The machine of packages whose publisher names none.
pub(crate) fn machine() -> Machine {
    Machine::from_toml(include_str!("../../../qemu-configs/default.toml")).unwrap()
}

/// The real program, which must not read links from servers: it would remember them for whoever runs the tests.
pub(crate) fn program() -> Command {
    assert_cmd::cargo::cargo_bin_cmd!("vmnetx-pack")
}

/// Runs one of QEMU's tools, which must succeed.
pub(crate) fn qemu(tool: &str, arguments: &[&str], more: &[&str], files: &[&Path]) {
    const TRIES: usize = 20;
    for left in (0..TRIES).rev() {
        let output = std::process::Command::new(tool).args(arguments).args(more).args(files).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        // To make a key it measures the processor, which it cannot do on a busy machine.
        if left > 0 && said.contains("Unable to get accurate CPU usage") {
            continue;
        }
        assert!(output.status.success(), "{tool} {arguments:?} {more:?}: {said}");
        return;
    }
}

/// Bytes that no compressor makes smaller, always the same for a seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// 10 leaves of one-block chunks, each with the same blocks in another order: an index of more than 1 MiB.
pub(crate) fn large_index(seed: usize, changed_leaf: Option<usize>) -> Vec<u8> {
    let pool = noise(7, blocks(4096));
    let order = |leaf: usize| {
        let step = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19][leaf];
        let shift = leaf * 100 + if changed_leaf == Some(leaf) { seed } else { 0 };
        (0..4096).map(move |index| (index * step + shift) % 4096)
    };
    (0..10).flat_map(order).flat_map(|block| &pool[blocks(block)..][..blocks(1)]).copied().collect()
}

/// Text, different for each seed.
pub(crate) fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let line = format!("line {seed} of a file that a compressor makes much smaller\n");
    line.bytes().cycle().take(bytes).collect()
}

/// Makes a file of `size` bytes with data only at the given offsets.
pub(crate) fn sparse(path: &Path, size: u64, parts: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, data) in parts {
        file.write_all_at(data, *offset).unwrap();
    }
}

/// Compares two files without reading their holes.
pub(crate) fn assert_same_content(a: &Path, b: &Path) {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let size = a.metadata().unwrap().len();
    assert_eq!(size, b.metadata().unwrap().len());
    for source in [&a, &b] {
        let mut at = 0;
        while let Ok(start) = seek(source, SeekFrom::Data(at)) {
            let end = seek(source, SeekFrom::Hole(start)).unwrap();
            let mut offset = start;
            while offset < end {
                let length = (end - offset).min(1 << 20) as usize;
                let [mut left, mut right] = [vec![0; length], vec![0; length]];
                a.read_exact_at(&mut left, offset).unwrap();
                b.read_exact_at(&mut right, offset).unwrap();
                assert!(left == right, "the images differ within {length} bytes at {offset}");
                offset += length as u64;
            }
            at = end;
        }
    }
}

/// Whole blocks as bytes.
pub(crate) const fn blocks(count: usize) -> usize {
    count * BLOCK_BYTES
}
