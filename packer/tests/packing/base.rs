//! New versions from overlays over a published one: the same as a full build of the merged disk, with little read.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vmnetx_format::{BLOCK_BYTES, Chunker, Digest, Disk, Name};
use vmnetx_pack::{
    BaseOptions, BuildOptions, BuildReport, DiskError, DiskFile, DiskFormat, Error, Silent, VersionName, build,
};

use crate::images::Read;
use crate::support::{LEAF_BYTES, Scene, assert_same_content, blocks, large_index, noise, program, qemu, sparse, text};

const CURRENT: BaseOptions = BaseOptions { version: VersionName::Current, trust: false };

/// A version by its digest.
fn pinned(version: Digest, trust: bool) -> BaseOptions {
    BaseOptions { version: version.to_string().parse().unwrap(), trust }
}

/// The options of a version of `vm` whose disk0 is an overlay.
fn over(scene: &Scene, overlay: &Path) -> BuildOptions {
    let disk = DiskFile { name: "disk0".parse().unwrap(), file: overlay.to_owned(), format: DiskFormat::Qcow2 };
    BuildOptions { disks: vec![disk], base: Some(CURRENT), ..scene.options("vm", overlay) }
}

/// The disks of a package's current version.
fn disks(scene: &Scene, name: &str) -> Vec<Disk> {
    let repository = scene.repository();
    let version = repository.link(&name.parse().unwrap()).unwrap().unwrap().link.current;
    repository.manifest(&version).unwrap().disks
}

/// An empty overlay such as `vmnetx run --persist` makes, with other clusters perhaps.
fn overlay(scene: &Scene, name: &str, version: Digest, options: &str, size: u64) -> PathBuf {
    let file = scene.path(name);
    let binding = format!("vmnetx:{version}:disk0");
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-b", &binding, "-F", "raw", "-o", options];
    qemu("qemu-img", &arguments, &[], &[&file, Path::new(&size.to_string())]);
    file
}

/// The overlay over the raw image that was published, as QEMU takes it.
fn node(overlay: &Path, base: &Path) -> String {
    let file = |path: &Path| serde_json::json!({ "driver": "file", "filename": path });
    let base = serde_json::json!({ "driver": "raw", "file": file(base) });
    format!("json:{}", serde_json::json!({ "driver": "qcow2", "file": file(overlay), "backing": base }))
}

/// Has the guest's writes done to the overlay, and gives the disk that the guest sees.
fn written(scene: &Scene, overlay: &Path, base: &Path, commands: &[String]) -> PathBuf {
    let node = node(overlay, base);
    let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    qemu("qemu-io", &["-d", "unmap"], &commands, &[Path::new(&node)]);
    let merged = scene.path("merged.raw");
    qemu("qemu-img", &["convert", "-O", "raw"], &[], &[Path::new(&node), &merged]);
    merged
}

/// Publishes the overlay as the next version and the merged disk in a repository of its own: they must be the same.
fn assert_same_as_full(scene: &Scene, overlay: &Path, merged: &Path, chunker: Chunker) -> (BuildReport, u64) {
    let read = Read::default();
    let report = build(&over(scene, overlay), &read).unwrap();
    let full = BuildOptions { chunker: Some(chunker), repository: scene.path("full"), ..scene.options("vm", merged) };
    let full = build(&full, &Silent).unwrap();
    assert_eq!(report.version, full.version, "the overlay is another version than the merged disk");
    scene.verify_whole();
    assert!(scene.exported("vm") == fs::read(merged).unwrap());
    (report, read.done.into_inner())
}

#[test]
fn an_overlay_costs_what_it_changes() {
    let scene = Scene::new();
    let base = scene.path("base.raw");
    let size = 6 * LEAF_BYTES + 3 * 512;
    let leaf = noise(1, LEAF_BYTES as usize);
    sparse(&base, size, &[(0, &leaf), (LEAF_BYTES, &noise(2, 5 << 20)), (4 * LEAF_BYTES, &leaf)]);
    let first = scene.build("vm", &base);
    let overlay = overlay(&scene, "overlay.qcow2", first.version, "extended_l2=on,cluster_size=128k", size);
    let commands =
        ["write -P 7 5M 4k", "write -P 8 6295552 512", "write -z 17M 1M", "discard 18M 1M", "write -P 3 33M 2k"];
    let merged = written(&scene, &overlay, &base, &commands.map(String::from));
    let (report, read) = assert_same_as_full(&scene, &overlay, &merged, Chunker::DISK);
    assert_eq!(report.serial, 2);
    // Three leaves are touched, of which one was zero; one is taken over as it is.
    assert_eq!(report.kept_bytes, LEAF_BYTES);
    assert!(report.new_chunks <= 6, "{} chunks are new", report.new_chunks);
    assert!(read <= 64 << 10, "{read} bytes of the overlay were read");
    assert_eq!(report.disks[0].base, Some(first.version));
    assert_eq!(report.disks[0].files.len(), 1);

    // An overlay in which nothing was written makes the same version again.
    let empty = self::overlay(&scene, "empty.qcow2", report.version, "cluster_size=64k", size);
    let again = build(&over(&scene, &empty), &Silent).unwrap();
    assert_eq!((again.version, again.published, again.new_chunks), (report.version, false, 0));
}

#[test]
fn chunks_that_are_not_looked_at_are_not_read() {
    let scene = Scene::new();
    let base = scene.image("base.raw", &noise(1, 4 << 20));
    let first = scene.build("vm", &base);
    let overlay = overlay(&scene, "overlay.qcow2", first.version, "cluster_size=64k", 4 << 20);
    written(&scene, &overlay, &base, &["write -P 7 2M 64k".to_owned()]);
    // A base whose first chunks are damaged is no obstacle: nobody looks at them.
    let pack = scene.files().into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    build(&over(&scene, &overlay), &Silent).unwrap();
    // One that is needed is.
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle - 200_000..middle + 200_000] {
        *byte ^= 1;
    }
    fs::write(&pack, &bytes).unwrap();
    let base = Some(pinned(first.version, false));
    let error = build(&BuildOptions { base, ..over(&scene, &overlay) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn a_resized_disk_has_zeros_behind_and_a_shrunk_one_is_refused() {
    let scene = Scene::new();
    let base = scene.image("base.raw", &noise(1, 100_000));
    let first = scene.build("vm", &base);
    let size = 2 * LEAF_BYTES;
    let overlay = overlay(&scene, "larger.qcow2", first.version, "cluster_size=64k", size);
    let commands = ["write -P 7 20M 64k", "write -P 5 99000 500"].map(String::from);
    let merged = written(&scene, &overlay, &base, &commands);
    assert_same_as_full(&scene, &overlay, &merged, Chunker::DISK);
    assert_eq!(disks(&scene, "vm")[0].size_bytes, size);

    let current = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current.manifest;
    let small = self::overlay(&scene, "small.qcow2", current, "cluster_size=64k", LEAF_BYTES);
    let error = build(&over(&scene, &small), &Silent).unwrap_err();
    assert!(matches!(error, Error::Disk(DiskError::Shorter { .. })), "{error}");
}

#[test]
fn overlays_over_overlays_are_one_change() {
    let scene = Scene::new();
    let base = scene.image("base.raw", &noise(1, 2 << 20));
    let first = scene.build("vm", &base);
    let lower = overlay(&scene, "lower.qcow2", first.version, "cluster_size=64k", 2 << 20);
    written(&scene, &lower, &base, &["write -P 7 64k 128k".to_owned()]);
    let upper = scene.path("upper.qcow2");
    qemu(
        "qemu-img",
        &["create", "-q", "-u", "-f", "qcow2", "-b", "lower.qcow2", "-F", "qcow2"],
        &[],
        &[&upper, Path::new("2M")],
    );
    let file = |path: &Path| serde_json::json!({ "driver": "file", "filename": path });
    let below: serde_json::Value = serde_json::from_str(node(&lower, &base).strip_prefix("json:").unwrap()).unwrap();
    let node = format!("json:{}", serde_json::json!({ "driver": "qcow2", "file": file(&upper), "backing": below }));
    qemu("qemu-io", &[], &["-c", "write -P 8 100k 4k", "-c", "write -P 9 1M 4k"], &[Path::new(&node)]);
    let merged = scene.path("merged.raw");
    qemu("qemu-img", &["convert", "-O", "raw"], &[], &[Path::new(&node), &merged]);
    let (report, _) = assert_same_as_full(&scene, &upper, &merged, Chunker::DISK);
    assert_eq!(report.disks[0].files.len(), 2);
}

#[test]
fn an_overlay_belongs_to_its_version() {
    let scene = Scene::new();
    let base = scene.image("base.raw", &noise(1, 1 << 20));
    let first = scene.build("vm", &base);
    let second = scene.build("vm", &scene.image("second.raw", &noise(2, 1 << 20)));
    let old = overlay(&scene, "old.qcow2", first.version, "cluster_size=64k", 1 << 20);
    written(&scene, &old, &base, &["write -P 7 64k 64k".to_owned()]);
    let error = build(&over(&scene, &old), &Silent).unwrap_err();
    assert!(matches!(error, Error::Disk(DiskError::OtherBase { .. })), "{error}");
    // As it is, it is no whole disk.
    let error = build(&BuildOptions { base: None, ..over(&scene, &old) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::Disk(DiskError::Overlay { version, .. }) if version == first.version), "{error}");
    let third =
        build(&BuildOptions { base: Some(pinned(first.version, false)), ..over(&scene, &old) }, &Silent).unwrap();
    assert_eq!(third.serial, 3);
    let mut expected = noise(1, 1 << 20);
    expected[64 << 10..128 << 10].fill(7);
    assert!(scene.exported("vm") == expected);
    let unknown = BuildOptions { base: Some(pinned(Digest::of(b"nothing"), false)), ..over(&scene, &old) };
    assert!(matches!(build(&unknown, &Silent), Err(Error::VersionName { .. })));
    let other = BuildOptions { name: "other".parse().unwrap(), ..over(&scene, &old) };
    assert!(matches!(build(&other, &Silent), Err(Error::NoSuchPackage { .. })));

    // One that says nothing, or something else, takes the user's word; one that says another version does not.
    let unbound = scene.path("unbound.qcow2");
    let names = ["nbd+unix:///disk0?socket=/run/nbd", "second.raw"];
    for name in names {
        qemu(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw"],
            &[],
            &[&unbound, Path::new("1M")],
        );
        written(&scene, &unbound, &scene.path("second.raw"), &["write -P 9 0 64k".to_owned()]);
        let asked = |base| build(&BuildOptions { base, ..over(&scene, &unbound) }, &Silent);
        let error = asked(Some(pinned(second.version, false))).unwrap_err();
        assert!(matches!(error, Error::Disk(DiskError::Unbound { .. })), "{error}");
        asked(Some(pinned(second.version, true))).unwrap();
        let mut expected = noise(2, 1 << 20);
        expected[..64 << 10].fill(9);
        assert!(scene.exported("vm") == expected);
    }
    let wrong = pinned(second.version, true);
    let error = build(&BuildOptions { base: Some(wrong), ..over(&scene, &old) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::Disk(DiskError::OtherBase { .. })), "{error}");
}

#[test]
fn disks_that_are_not_given_are_taken_over() {
    let scene = Scene::new();
    let [system, data] = [noise(1, 3 << 20), text(2, 1 << 20)];
    let files = [scene.image("system.raw", &system), scene.image("data.raw", &data)];
    let names: [Name; 2] = ["disk0".parse().unwrap(), "data".parse().unwrap()];
    let whole = names.iter().zip(&files).map(|(name, file)| DiskFile::raw(name.clone(), file.clone())).collect();
    let first = build(&BuildOptions { disks: whole, ..scene.options("vm", &files[0]) }, &Silent).unwrap();
    let before = disks(&scene, "vm");
    let overlay = overlay(&scene, "overlay.qcow2", first.version, "cluster_size=64k", 3 << 20);
    written(&scene, &overlay, &files[0], &["write -P 7 1M 64k".to_owned()]);
    let report = build(&over(&scene, &overlay), &Silent).unwrap();
    let after = disks(&scene, "vm");
    assert_eq!((&after[1], after[0].content == before[0].content), (&before[1], false));
    assert_eq!(report.kept_bytes, 1 << 20);
    scene.verify_whole();

    // A disk in another format is a whole one, in its place; a new one comes last.
    let third = scene.image("third.raw", &noise(3, 50_000));
    let added = ["data", "third"].map(|name| DiskFile::raw(name.parse().unwrap(), third.clone()));
    build(&BuildOptions { disks: added.to_vec(), ..over(&scene, &overlay) }, &Silent).unwrap();
    let names: Vec<_> = disks(&scene, "vm").into_iter().map(|disk| disk.name.to_string()).collect();
    assert_eq!(names, ["disk0", "data", "third"]);
    assert_eq!(disks(&scene, "vm")[0], after[0]);
    let stranger = DiskFile { name: "sda".parse().unwrap(), file: overlay.clone(), format: DiskFormat::Qcow2 };
    let error = build(&BuildOptions { disks: vec![stranger], ..over(&scene, &overlay) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::NoSuchDisk { .. }), "{error}");
    scene.verify_whole();
}

#[test]
fn the_program_takes_a_base() {
    let scene = Scene::new();
    let base = scene.image("base.raw", &noise(1, 1 << 20));
    // A machine that is not the default one: the new version keeps it.
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/../qemu-configs/server.toml");
    program().arg("build").arg(scene.repo()).args(["vm", "--machine", server, "--disk"]).arg(&base).assert().success();
    let machine = || {
        let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
        (link.current.manifest, scene.repository().manifest(&link.current).unwrap().machine)
    };
    let (first, hardware) = machine();
    let overlay = overlay(&scene, "overlay.qcow2", first, "cluster_size=64k", 1 << 20);
    let merged = written(&scene, &overlay, &base, &["write -P 7 64k 64k".to_owned()]);
    let mut command = program();
    command
        .arg("build")
        .arg(scene.repo())
        .args(["vm", "--base", "current", "--format", "qcow2", "--disk"])
        .arg(&overlay);
    let told = command.assert().success();
    let told = String::from_utf8(told.get_output().stdout.clone()).unwrap();
    assert!(told.starts_with("published vm, serial 2"), "{told}");
    assert!(scene.exported("vm") == fs::read(merged).unwrap());
    assert_eq!(machine().1, hardware);
    assert_ne!(hardware, crate::support::machine());
}

#[test]
fn a_large_index_is_taken_over_where_it_is() {
    let scene = Scene::new();
    let one_block = Chunker::new(1, 1, 1).unwrap();
    let data = large_index(0, None);
    let base = scene.image("base.raw", &data);
    let first = scene.build_cut("vm", &base, one_block);
    let overlay = overlay(&scene, "overlay.qcow2", first.version, "cluster_size=64k", data.len() as u64);
    let merged = written(&scene, &overlay, &base, &["write -P 7 80M 4k".to_owned()]);
    let (report, _) = assert_same_as_full(&scene, &overlay, &merged, one_block);
    assert_eq!((report.new_chunks, report.kept_bytes), (1, 9 * LEAF_BYTES));
    assert!(report.written_bytes < 300_000, "{} bytes written for one leaf", report.written_bytes);
}

#[test]
fn a_disk_grows_over_the_border_of_inner_nodes() {
    let scene = Scene::new();
    let base = scene.path("base.raw");
    sparse(&base, 1 << 30, &[(0, &noise(1, 3 << 20)), (900 << 20, &noise(2, 1 << 20))]);
    let first = scene.build("vm", &base);
    let size = (9 << 30) + 512;
    let overlay = overlay(&scene, "overlay.qcow2", first.version, "cluster_size=64k", size);
    let commands = ["write -P 7 8G 64k", "write -P 8 9G 512", "discard 900M 64k"].map(String::from);
    let merged = written(&scene, &overlay, &base, &commands);
    let read = Read::default();
    let report = build(&over(&scene, &overlay), &read).unwrap();
    let options = BuildOptions { repository: scene.path("full"), ..scene.options("vm", &merged) };
    assert_eq!(report.version, build(&options, &Silent).unwrap().version);
    assert_eq!((report.disk_bytes, report.kept_bytes), (size, LEAF_BYTES));
    scene.verify_whole();
    assert_same_content(&merged, &scene.export(scene.link("vm").to_str().unwrap(), "disk0"));

    // And once more, over a base that has inner nodes.
    let next = self::overlay(&scene, "next.qcow2", report.version, "cluster_size=64k", size);
    let base = scene.path("second.raw");
    fs::rename(&merged, &base).unwrap();
    written(&scene, &next, &base, &["write -P 9 8G 4k".to_owned()]);
    let again = build(&over(&scene, &next), &read).unwrap();
    assert_eq!((again.new_chunks, again.kept_bytes), (1, 2 * LEAF_BYTES + 512));
    scene.verify_whole();
}

/// What a guest does to its disk, in units of 512 bytes.
#[derive(Debug, Clone)]
enum Act {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
}

fn act(sectors: u64) -> impl Strategy<Value = Act> {
    let place = (0..sectors, prop_oneof![1_u64..9, 8_u64..200]);
    let place = place.prop_map(move |(start, count)| (start, count.min(sectors - start)));
    prop_oneof![
        3 => (place.clone(), 1_u8..255).prop_map(|((start, count), fill)| Act::Write(start, count, fill)),
        2 => place.clone().prop_map(|(start, count)| Act::Zero(start, count)),
        1 => place.prop_map(|(start, count)| Act::Discard(start, count)),
    ]
}

impl Act {
    fn command(&self) -> String {
        match *self {
            Self::Write(start, count, fill) => format!("write -P {fill} {} {}", start * 512, count * 512),
            Self::Zero(start, count) => format!("write -z {} {}", start * 512, count * 512),
            Self::Discard(start, count) => format!("discard {} {}", start * 512, count * 512),
        }
    }
}

/// Blocks of a base: zeros, data that is cut in many places, and runs of equal blocks that are cut only where they are long.
fn base_blocks() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (1_usize..12).prop_map(|count| vec![0; blocks(count)]),
        (any::<u64>(), 1_usize..40).prop_map(|(seed, count)| noise(seed, blocks(count))),
        (1_u8..255, 1_usize..40).prop_map(|(fill, count)| vec![fill; blocks(count)]),
    ];
    proptest::collection::vec(run, 1..10).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_overlay_is_the_same_version_as_the_merged_disk(
        // Some bases end in the middle of a block, some overlays are larger, and some cross the border of two leaves.
        (data, acts, cluster, growth) in (base_blocks(), prop_oneof![Just(0), 1_u64..300], any::<bool>()).prop_flat_map(
            |(data, growth, far)| {
                let lead = if far { LEAF_BYTES as usize - data.len() / 2 / BLOCK_BYTES * BLOCK_BYTES } else { 0 };
                let sectors = ((lead + data.len()) as u64).div_ceil(512) + growth;
                // Acts are near the data, wherever it lies.
                let near = sectors - lead as u64 / 512;
                let acts = proptest::collection::vec(act(near), 0..12);
                (Just((lead, data)), acts, 0_usize..4, Just(growth))
            }
        ),
        tail in 0_usize..4096,
        (min, cut, more) in (1_u32..6, 0_u32..4, 0_u32..20),
    ) {
        let chunker = Chunker::new(min, 1 << cut, min + more).unwrap();
        let scene = Scene::new();
        let base = scene.path("base.raw");
        let (lead, data) = data;
        let data = &data[..data.len() - tail.min(data.len() - 1) / 512 * 512];
        sparse(&base, (lead + data.len()) as u64, &[(lead as u64, data)]);
        let first = scene.build_cut("vm", &base, chunker);
        let options = ["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "extended_l2=on,cluster_size=128k"][cluster];
        let size = (lead + data.len()) as u64 + growth * 512;
        let overlay = overlay(&scene, "overlay.qcow2", first.version, options, size);
        let shift = |start: u64| (start + lead as u64 / 512).min(size / 512 - 1);
        let shifted: Vec<String> = acts.iter().map(|act| {
            let (start, count) = match *act { Act::Write(s, c, _) | Act::Zero(s, c) | Act::Discard(s, c) => (shift(s), c) };
            let count = count.min(size / 512 - start);
            match *act {
                Act::Write(_, _, fill) => Act::Write(start, count, fill),
                Act::Zero(..) => Act::Zero(start, count),
                Act::Discard(..) => Act::Discard(start, count),
            }.command()
        }).collect();
        let merged = written(&scene, &overlay, &base, &shifted);
        assert_same_as_full(&scene, &overlay, &merged, chunker);
    }
}
