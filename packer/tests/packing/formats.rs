//! Disks in every format that QEMU reads: the same disk has the same digest, and what is not to be read is not.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use assert_cmd::assert::Assert;
use vmnetx_format::{Digest, Name};
use vmnetx_pack::{
    BuildOptions, BuildReport, ChainFile, DiskError, DiskFile, DiskFormat, Error, FilePart, Progress, build,
};
use vmnetx_store::failure::{Class, Told};

use crate::support::{LEAF_BYTES, Scene, blocks, noise, program, qemu, sparse, text};

/// What a build read, in bytes, and what it warned of.
#[derive(Default)]
struct Read {
    total: AtomicU64,
    done: AtomicU64,
    warnings: std::sync::Mutex<Vec<String>>,
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
const SIZE: u64 = 3 * LEAF_BYTES + (1 << 20);

/// A raw disk with data in several leaves and at its end.
fn disk(scene: &Scene) -> PathBuf {
    let path = scene.path("disk.raw");
    let (first, second, last) = (noise(1, 300_000), text(2, blocks(70)), noise(3, 5000));
    let parts = [(0, &first[..]), (LEAF_BYTES - 100_000, &second[..]), (SIZE - 5000, &last[..])];
    sparse(&path, SIZE, &parts);
    path
}

fn options(scene: &Scene, name: &str, file: &Path, format: DiskFormat) -> BuildOptions {
    let disks = vec![DiskFile { name: "disk0".parse().unwrap(), file: file.to_owned(), format }];
    BuildOptions { disks, ..scene.options(name, file) }
}

fn build_read(scene: &Scene, name: &str, file: &Path, format: DiskFormat) -> (BuildReport, u64) {
    let read = Read::default();
    let report = build(&options(scene, name, file, format), &read).unwrap();
    let [total, done] = [&read.total, &read.done].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(total, done);
    assert_eq!(*read.warnings.lock().unwrap(), Vec::<String>::new());
    (report, done)
}

fn refused(scene: &Scene, file: &Path, format: DiskFormat) -> Error {
    let error = build(&options(scene, "refused", file, format), &Read::default()).unwrap_err();
    assert!(!scene.link("refused").exists());
    error
}

/// The content digest and the size of a package's only disk.
fn content(scene: &Scene, name: &str) -> (Digest, u64) {
    let repository = scene.repository();
    let version = repository.link(&name.parse().unwrap()).unwrap().unwrap().link.current;
    let manifest = repository.manifest(&version).unwrap();
    (manifest.disks[0].content, manifest.disks[0].size_bytes)
}

fn convert(raw: &Path, to: &Path, format: &str, options: &[&str]) {
    qemu("qemu-img", &["convert", "-f", "raw", "-O", format], options, &[raw, to]);
}

#[test]
fn one_disk_in_every_format_is_one_version() {
    let scene = Scene::new();
    let raw = disk(&scene);
    let (whole, read) = build_read(&scene, "raw", &raw, DiskFormat::Raw);
    let wanted = content(&scene, "raw");
    assert_eq!(wanted.1, SIZE);
    let formats: [(&str, DiskFormat, &[&str]); 15] = [
        ("qcow2", DiskFormat::Qcow2, &[]),
        ("qcow2", DiskFormat::Qcow2, &["-c"]),
        ("qcow2", DiskFormat::Qcow2, &["-o", "cluster_size=512"]),
        ("qcow2", DiskFormat::Qcow2, &["-o", "extended_l2=on,cluster_size=128k"]),
        ("qcow2", DiskFormat::Qcow2, &["-o", "compat=0.10"]),
        ("qcow", DiskFormat::Qcow, &[]),
        ("qed", DiskFormat::Qed, &[]),
        ("vmdk", DiskFormat::Vmdk, &[]),
        ("vmdk", DiskFormat::Vmdk, &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vmdk", DiskFormat::Vmdk, &["-o", "subformat=streamOptimized"]),
        ("vmdk", DiskFormat::Vmdk, &["-o", "subformat=monolithicFlat"]),
        ("vdi", DiskFormat::Vdi, &[]),
        ("vhdx", DiskFormat::Vhdx, &[]),
        ("vpc", DiskFormat::Vpc, &["-o", "force_size=on"]),
        ("parallels", DiskFormat::Parallels, &[]),
    ];
    for (index, (name, format, how)) in formats.into_iter().enumerate() {
        let file = scene.path(&format!("image{index}.{name}"));
        convert(&raw, &file, name, how);
        let package = format!("vm{index}");
        let (report, format_read) = build_read(&scene, &package, &file, format);
        assert_eq!(content(&scene, &package), wanted, "{name} {how:?}");
        assert_eq!((report.version, report.new_chunks), (whole.version, 0), "{name} {how:?}");
        assert_eq!(report.disks[0].files[0].format, format);
        // Formats know holes in clusters of up to 8 MiB (vhdx), and then no more than the disk is read.
        assert!(format_read >= read && format_read <= SIZE, "{name} {how:?}: {format_read} bytes read");
        if name == "qcow2" {
            assert!(format_read < read + (1 << 19), "{how:?}: {format_read} bytes read of {read}");
        }
    }
    scene.verify_whole();
}

#[test]
fn a_vpc_image_has_the_size_that_its_format_gives_it() {
    let scene = Scene::new();
    let raw = disk(&scene);
    scene.build("raw", &raw);
    let file = scene.path("image.vpc");
    convert(&raw, &file, "vpc", &[]);
    build_read(&scene, "vpc", &file, DiskFormat::Vpc);
    let ((digest, size), (wanted, _)) = (content(&scene, "vpc"), content(&scene, "raw"));
    // Cylinders, heads and sectors make another size; zeros at the end change no content.
    assert_eq!(digest, wanted);
    assert!(size > SIZE, "{size}");
}

#[test]
fn rare_formats_are_read() {
    let scene = Scene::new();
    let data = [noise(1, 100_000), vec![0; 200_000], text(2, 8000)].concat();
    let size = data.len().next_multiple_of(1 << 16);
    let padded = [&data[..], &vec![0; size - data.len()]].concat();
    scene.build("raw", &scene.image("raw", &padded));
    // cloop: QEMU's block/cloop.c. Blocks of 64 KiB, each of which zlib has compressed.
    let make = "import struct,sys,zlib
data = open(sys.argv[1], 'rb').read()
blocks = [zlib.compress(data[i:i + 65536]) for i in range(0, len(data), 65536)]
offsets, at = [], 136 + 8 * (len(blocks) + 1)
for block in blocks: offsets.append(at); at += len(block)
offsets.append(at)
head = b'#!/bin/sh\\n#V2.0 Format\\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\\n'.ljust(128, b'\\0')
open(sys.argv[2], 'wb').write(head + struct.pack('>II', 65536, len(blocks)) + struct.pack('>%dQ' % len(offsets), *offsets) + b''.join(blocks))";
    let file = scene.path("image.cloop");
    let made = Command::new("python3").args(["-c", make]).arg(scene.path("raw")).arg(&file).status().unwrap();
    assert!(made.success());
    build_read(&scene, "cloop", &file, DiskFormat::Cloop);
    assert_eq!(content(&scene, "cloop"), content(&scene, "raw"));

    // bochs: QEMU's block/bochs.c. One extent of 64 KiB for each entry of the catalogue, after a bitmap of one sector.
    let extents = size as u32 / (1 << 16);
    let mut head = vec![0; 512];
    head[..22].copy_from_slice(b"Bochs Virtual HD Image");
    head[32..39].copy_from_slice(b"Redolog");
    head[48..55].copy_from_slice(b"Growing");
    for (at, number) in [(64, 0x20000), (68, 512), (72, extents), (76, 512), (80, 1 << 16)] {
        head[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
    }
    head[88..96].copy_from_slice(&(size as u64).to_le_bytes());
    let catalogue: Vec<u8> = (0..extents).flat_map(u32::to_le_bytes).collect();
    let bitmap = [0xff; 512];
    let image = padded.chunks(1 << 16).flat_map(|extent| [&bitmap[..], extent].concat());
    let file = scene.image("image.bochs", &[head, catalogue, image.collect()].concat());
    build_read(&scene, "bochs", &file, DiskFormat::Bochs);
    assert_eq!(content(&scene, "bochs"), content(&scene, "raw"));

    // dmg: QEMU's block/dmg.c. One section that zlib has compressed, two as they are.
    let make = "import base64,struct,sys,zlib
data = open(sys.argv[1], 'rb').read()
first, last = data[:65536], data[-65536:]
packed = zlib.compress(first)
middle = (len(data) - 131072) // 512
sections = [(0x80000005, 0, 128, 0, len(packed)), (1, 128, middle, len(packed) + 65536, middle * 512),
            (1, 128 + middle, 128, len(packed), 65536)]
mish = b'mish' + struct.pack('>IQQQ', 1, 0, len(data) // 512, 0)
mish = mish.ljust(200, b'\\0') + struct.pack('>I', len(sections))
for kind, sector, count, at, length in sections: mish += struct.pack('>IIQQQQ', kind, 0, sector, count, at, length)
mish += struct.pack('>IIQQQQ', 0xffffffff, 0, len(data) // 512, 0, 0, 0)
xml = b'<plist><data>' + base64.b64encode(mish) + b'</data></plist>'
body = packed + last + data[65536:-65536]
koly = bytearray(512)
koly[0:4] = b'koly'
for at, number in [(0x18, 0), (0x20, len(body)), (0xd8, len(body)), (0xe0, len(xml)), (0x1ec, len(data) // 512)]: struct.pack_into('>Q', koly, at, number)
open(sys.argv[2], 'wb').write(body + xml + koly)";
    let file = scene.path("image.dmg");
    let made = Command::new("python3").args(["-c", make]).arg(scene.path("raw")).arg(&file).status().unwrap();
    assert!(made.success());
    build_read(&scene, "dmg", &file, DiskFormat::Dmg);
    assert_eq!(content(&scene, "dmg"), content(&scene, "raw"));
}

#[test]
fn holes_cost_nothing() {
    let scene = Scene::new();
    let file = scene.path("large.qcow2");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2"], &[], &[&file, Path::new("4T")]);
    let writes = ["-c", "write -P 7 3T 64k", "-c", "write -z 1T 1G", "-c", "write -P 9 0 64k", "-c", "discard 0 64k"];
    qemu("qemu-io", &["-f", "qcow2"], &writes, &[&file]);
    let (report, read) = build_read(&scene, "vm", &file, DiskFormat::Qcow2);
    assert_eq!((read, report.data_bytes), (64 << 10, 64 << 10));
    assert_eq!(report.disk_bytes, 4 << 40);
}

/// Three images over a raw one: each has something that no other has.
fn chain(scene: &Scene) -> [PathBuf; 4] {
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

#[test]
fn a_backing_chain_is_one_disk_and_every_file_of_it_is_named() {
    let scene = Scene::new();
    let [base, one, two, top] = chain(&scene);
    let merged = scene.path("merged.raw");
    qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw"], &[], &[&top, &merged]);
    scene.build("raw", &merged);
    let (report, _) = build_read(&scene, "vm", &top, DiskFormat::Qcow2);
    assert_eq!(content(&scene, "vm"), content(&scene, "raw"));
    let files: Vec<_> = report.disks[0].files.iter().map(|file| (PathBuf::from(&file.file), file.format)).collect();
    let qcow2 = DiskFormat::Qcow2;
    let wanted =
        [(top.clone(), qcow2), (two.clone(), qcow2), (one.clone(), DiskFormat::Qed), (base.clone(), DiskFormat::Raw)];
    assert_eq!(files, wanted);
    scene.verify_whole();

    // The program says it on standard error whatever else it is told to keep quiet about.
    let command = |arguments: &[&str]| {
        let mut command = program();
        command.arg("build").arg(scene.repo()).arg("cli").arg("--disk").arg(&top).args(arguments);
        command.assert()
    };
    let told = command(&["--format", "qcow2", "--quiet", "--json"]).success();
    let told = stderr(&told);
    let expected = format!(
        "disk0 is read from {} (qcow2), over {} (qcow2), over {} (qed), over {} (raw)\n",
        top.display(),
        two.display(),
        one.display(),
        base.display()
    );
    assert_eq!(told, expected);
}

#[test]
fn a_vmdk_image_over_another_one_needs_no_record_of_its_format() {
    let scene = Scene::new();
    let raw = disk(&scene);
    for (name, how) in [("sparse", "subformat=monolithicSparse"), ("split", "subformat=twoGbMaxExtentSparse")] {
        let (base, top) = (scene.path(&format!("{name}.vmdk")), scene.path(&format!("{name}-top.vmdk")));
        convert(&raw, &base, "vmdk", &["-o", how]);
        let below = format!("{name}.vmdk");
        qemu("qemu-img", &["create", "-q", "-f", "vmdk", "-o", how, "-b", &below, "-F", "vmdk"], &[], &[&top]);
        qemu("qemu-io", &["-f", "vmdk", "-c", "write -P 7 100k 64k"], &[], &[&top]);
        let merged = scene.path("merged.raw");
        qemu("qemu-img", &["convert", "-f", "vmdk", "-O", "raw"], &[], &[&top, &merged]);
        scene.build("raw", &merged);
        let (report, _) = build_read(&scene, "vm", &top, DiskFormat::Vmdk);
        assert_eq!(content(&scene, "vm"), content(&scene, "raw"), "{how}");
        let images = report.disks[0].files.iter().filter(|file| file.part == FilePart::Image).count();
        assert_eq!(images, 2, "{how}");
    }
}

#[test]
fn an_image_that_is_in_use_is_not_read() {
    let scene = Scene::new();
    let [.., top] = chain(&scene);
    let socket = scene.path("socket");
    let mut user = Command::new("qemu-nbd").args(["-t", "-f", "qcow2", "-k"]).arg(&socket).arg(&top).spawn().unwrap();
    while !socket.exists() {
        assert!(user.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let error = refused(&scene, &top, DiskFormat::Qcow2);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(matches!(error, Error::Disk(DiskError::Program { .. })), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("shut the VM down")), "{error}");
    build_read(&scene, "vm", &top, DiskFormat::Qcow2);
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

#[test]
fn files_elsewhere_are_read_only_if_they_may_be() {
    let scene = Scene::new();
    let [base, ..] = chain(&scene);
    fs::create_dir(scene.path("sub")).unwrap();
    // Beside a folder whose name begins like the image's own.
    fs::create_dir(scene.path("sub-other")).unwrap();
    fs::copy(&base, scene.path("sub-other/base.raw")).unwrap();
    symlink(&base, scene.path("sub/link.raw")).unwrap();
    for below in ["../base.raw", "../sub-other/base.raw", base.to_str().unwrap(), "link.raw"] {
        let top = scene.path("sub/top.qcow2");
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", "raw"], &[], &[&top]);
        let error = refused(&scene, &top, DiskFormat::Qcow2);
        assert!(matches!(error, Error::Disk(DiskError::Outside { .. })), "{below}: {error}");
        assert_eq!(error.class(), Class::Usage);
        assert!(error.hint().unwrap().contains("--allow-backing"));
        let allowed = BuildOptions { allow_backing: true, ..options(&scene, "vm", &top, DiskFormat::Qcow2) };
        build(&allowed, &Read::default()).unwrap();
    }
    // Below the folder is not outside of it.
    let top = scene.path("above.qcow2");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "sub-other/base.raw", "-F", "raw"], &[], &[&top]);
    build_read(&scene, "vm", &top, DiskFormat::Qcow2);
}

#[test]
fn names_that_are_no_files_are_refused() {
    let scene = Scene::new();
    let secret = scene.image("secret", &noise(1, 1 << 20));
    let json = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#, secret.display());
    let names = [
        &json[..],
        "nbd:localhost:10809",
        "nbd+unix:///?socket=/x",
        "http://localhost/disk",
        "file:secret",
        "fat:/etc",
    ];
    for name in names {
        let top = scene.path("top.qcow2");
        qemu(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw"],
            &[],
            &[&top, Path::new("1M")],
        );
        let error = refused(&scene, &top, DiskFormat::Qcow2);
        assert!(
            matches!(&error, Error::Disk(DiskError::NotLocal { name: told, .. }) if told == name),
            "{name}: {error}"
        );
        let allowed = BuildOptions { allow_backing: true, ..options(&scene, "vm", &top, DiskFormat::Qcow2) };
        assert!(matches!(build(&allowed, &Read::default()), Err(Error::Disk(DiskError::NotLocal { .. }))));
    }
    // CVE-2024-4467: a qcow2 image whose "data file" is a description of any device. QEMU itself writes no such image.
    let top = scene.path("data.qcow2");
    let data = scene.path("0123456789012345678901234567890123456789.raw");
    let option = format!("data_file={},data_file_raw=on", data.display());
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option], &[], &[&top, Path::new("1M")]);
    let mut bytes = fs::read(&top).unwrap();
    let name = data.to_str().unwrap().as_bytes();
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut forged = br#"json:{"driver":"null-co"}"#.to_vec();
    forged.resize(name.len(), b' ');
    bytes[at..at + name.len()].copy_from_slice(&forged);
    let forged = scene.image("forged.qcow2", &bytes);
    let error = refused(&scene, &forged, DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::NotLocal { .. })), "{error}");

    for line in ["RW 2048 FLAT \"nbd:localhost:1\" 0", "RW 2048\nFLAT \"secret\" 0", "RW 2048 FLAT \"secret"] {
        let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
        let file = scene.image("disk.vmdk", format!("{head}{line}\n").as_bytes());
        let error = refused(&scene, &file, DiskFormat::Vmdk);
        assert!(matches!(error, Error::Disk(DiskError::NotLocal { .. } | DiskError::NotThatFormat { .. })), "{error}");
    }
}

#[test]
fn parts_of_an_image_obey_the_rule_of_its_folder() {
    let scene = Scene::new();
    let raw = disk(&scene);
    scene.build("raw", &raw);
    for folder in ["own", "elsewhere"] {
        fs::create_dir(scene.path(folder)).unwrap();
    }
    let create = |data: &Path| {
        let option = format!("data_file={}", data.display());
        let top = scene.path("own/top.qcow2");
        let _ = fs::remove_file(&top);
        convert(&raw, &top, "qcow2", &["-o", &option]);
        top
    };
    let inside = create(&scene.path("own/top.data"));
    let (report, _) = build_read(&scene, "vm", &inside, DiskFormat::Qcow2);
    assert_eq!(content(&scene, "vm"), content(&scene, "raw"));
    assert_eq!(report.disks[0].files.len(), 2);
    let outside = create(&scene.path("elsewhere/top.data"));
    let error = refused(&scene, &outside, DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::Outside { .. })), "{error}");

    let file = scene.path("own/flat.vmdk");
    convert(&raw, &file, "vmdk", &["-o", "subformat=monolithicFlat"]);
    let extent = scene.path("own/flat-flat.vmdk");
    fs::rename(&extent, scene.path("elsewhere/flat-flat.vmdk")).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("flat-flat.vmdk", "../elsewhere/flat-flat.vmdk")).unwrap();
    let error = refused(&scene, &file, DiskFormat::Vmdk);
    assert!(matches!(error, Error::Disk(DiskError::Outside { .. })), "{error}");
    let allowed = BuildOptions { allow_backing: true, ..options(&scene, "vmdk", &file, DiskFormat::Vmdk) };
    build(&allowed, &Read::default()).unwrap();
    assert_eq!(content(&scene, "vmdk"), content(&scene, "raw"));
    // A part that is too short.
    fs::OpenOptions::new()
        .write(true)
        .open(scene.path("elsewhere/flat-flat.vmdk"))
        .unwrap()
        .set_len(SIZE - 512)
        .unwrap();
    let error = build(&allowed, &Read::default()).unwrap_err();
    assert!(matches!(error, Error::Disk(DiskError::Damaged { .. })), "{error}");
}

#[test]
fn images_that_do_not_say_enough_or_too_much_are_refused() {
    let scene = Scene::new();
    let [_, one, two, top] = chain(&scene);
    let rebase = |image: &Path, arguments: &[&str]| {
        qemu("qemu-img", &["rebase", "-u", "-f", "qcow2"], arguments, &[image]);
    };
    // No format is recorded. QEMU no longer writes such images, so the record is made one that means nothing.
    let mut bytes = fs::read(&top).unwrap();
    let at = bytes.windows(4).position(|window| window == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at] = 0x12;
    let unsaid = scene.image("unsaid.qcow2", &bytes);
    let error = refused(&scene, &unsaid, DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::NoBackingFormat { .. })), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("qemu-img rebase -u -F FORMAT -b two.qcow2 "), "{hint}");

    rebase(&two, &["-b", "top.qcow2", "-F", "qcow2"]);
    let error = refused(&scene, &top, DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::Cycle { .. })), "{error}");
    rebase(&two, &["-b", "one.qed", "-F", "qed"]);

    // Of another format than it is said to be.
    for format in
        [DiskFormat::Vmdk, DiskFormat::Qcow2, DiskFormat::Qcow, DiskFormat::Vdi, DiskFormat::Vhdx, DiskFormat::Vpc]
    {
        let error = refused(&scene, &one, format);
        assert!(
            matches!(error, Error::Disk(DiskError::NotThatFormat { .. } | DiskError::Program { .. })),
            "{format}: {error}"
        );
    }
    let error = refused(&scene, &scene.path("base.raw"), DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::NotThatFormat { .. })), "{error}");
    assert!(error.hint().unwrap().contains("--format"));

    let secret = ["-o", "encrypt.format=luks,encrypt.key-secret=s", "--object", "secret,id=s,data=abc"];
    let file = scene.path("secret.qcow2");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2"], &secret, &[&file, Path::new("1M")]);
    let error = refused(&scene, &file, DiskFormat::Qcow2);
    assert!(matches!(error, Error::Disk(DiskError::Encrypted { .. })), "{error}");

    // A disk that is said to be raw is read as it is, with a warning if that may be a mistake.
    let read = Read::default();
    build(&options(&scene, "plain", &two, DiskFormat::Raw), &read).unwrap();
    assert!(read.warnings.lock().unwrap()[0].contains("--format qcow2"));
    assert!(scene.exported("plain") == fs::read(&two).unwrap());
}

#[test]
fn shortened_images_are_refused() {
    let scene = Scene::new();
    let raw = scene.image("disk.raw", &noise(1, 8 << 20));
    let formats = [
        ("qcow2", DiskFormat::Qcow2),
        ("qed", DiskFormat::Qed),
        ("vmdk", DiskFormat::Vmdk),
        ("vdi", DiskFormat::Vdi),
        ("vhdx", DiskFormat::Vhdx),
        ("vpc", DiskFormat::Vpc),
        ("parallels", DiskFormat::Parallels),
    ];
    for (name, format) in formats {
        let file = scene.path("image");
        convert(&raw, &file, name, &[]);
        let length = fs::metadata(&file).unwrap().len();
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length - (3 << 20)).unwrap();
        let error = refused(&scene, &file, format);
        assert!(matches!(error, Error::Disk(DiskError::Damaged { .. } | DiskError::Program { .. })), "{name}: {error}");
        assert!([Class::Integrity, Class::Failure].contains(&error.class()), "{name}");
    }
}

#[test]
fn an_image_that_changes_meanwhile_is_not_published() {
    struct Writes(PathBuf);
    impl Progress for Writes {
        fn total(&self, _bytes: u64) {
            // Longer than the file system's clock takes for a tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::OpenOptions::new().write(true).open(&self.0).unwrap().write_all_at(b"x", 500_000).unwrap();
        }
        fn advance(&self, _bytes: u64) {}
        fn note(&self, _text: &str) {}

        fn warn(&self, _text: &str) {}
        fn reads(&self, _disk: &Name, _files: &[ChainFile]) {}
    }
    let scene = Scene::new();
    let [base, _, _, top] = chain(&scene);
    let error = build(&options(&scene, "vm", &top, DiskFormat::Qcow2), &Writes(base.clone())).unwrap_err();
    assert!(matches!(&error, Error::DiskChanged { path, .. } if *path == base), "{error}");
    assert!(!scene.link("vm").exists());
}

#[test]
fn several_disks_have_several_formats() {
    let scene = Scene::new();
    let raw = disk(&scene);
    let qcow2 = scene.path("disk.qcow2");
    convert(&raw, &qcow2, "qcow2", &[]);
    let command = |formats: &[&str], code: i32| {
        let mut command = program();
        command.arg("build").args(formats).arg(scene.repo()).arg("vm").arg("--disk").args([&raw, &qcow2]);
        command.arg("--json").assert().code(code)
    };
    command(&["--format", "qcow2"], 2);
    command(&["--format", "raw,qcow2,raw"], 2);
    command(&["--format", "raw,luks"], 2);
    command(&["--format", "raw", "--format", "qcow2"], 0);
    let report = command(&["--format", "raw,qcow2"], 0);
    let report: serde_json::Value = serde_json::from_slice(&report.get_output().stdout).unwrap();
    assert_eq!(report["disks"][1]["files"][0]["format"], "qcow2");
    let manifest = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
    let manifest = scene.repository().manifest(&manifest).unwrap();
    assert_eq!(manifest.disks[0].content, manifest.disks[1].content);
}

#[test]
fn a_missing_program_is_named() {
    let scene = Scene::new();
    let [.., top] = chain(&scene);
    let folder = scene.path("bin");
    fs::create_dir(&folder).unwrap();
    let mut command = program();
    command.arg("build").arg(scene.repo()).arg("vm").arg("--disk").arg(&top).args(["--format", "qcow2"]);
    let told = command.env("PATH", &folder).assert().code(6);
    assert!(stderr(&told).contains("apt install qemu-utils"), "{}", stderr(&told));
}

#[test]
fn nothing_of_qemu_is_left_behind() {
    let scene = Scene::new();
    let raw = scene.image("disk.raw", &noise(1, 64 << 20));
    let file = scene.path("disk.qcow2");
    convert(&raw, &file, "qcow2", &[]);
    let running = || {
        let of_ours = |entry: fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&line).into_owned();
            (text.contains("qemu-nbd") && text.contains(file.to_str().unwrap())).then(|| entry.file_name())
        };
        fs::read_dir("/proc").unwrap().filter_map(|entry| of_ours(entry.ok()?)).collect::<Vec<_>>()
    };
    let temporary = scene.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let start = || {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
        command.arg("build").arg(scene.repo()).args(["vm", "--quiet", "--level", "19", "--format", "qcow2", "--disk"]);
        command.arg(&file).env("TMPDIR", &temporary).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    // Killed, also before the program has begun to be qemu-nbd, and interrupted as Ctrl-C does.
    for round in 0..12 {
        let signal = if round % 2 == 0 { rustix::process::Signal::KILL } else { rustix::process::Signal::INT };
        let mut builder = start();
        while running().is_empty() {
            assert!(builder.try_wait().unwrap().is_none(), "it ended before it was killed");
        }
        std::thread::sleep(std::time::Duration::from_millis(round / 2));
        let pid = rustix::process::Pid::from_child(&builder);
        rustix::process::kill_process(pid, signal).unwrap();
        assert!(!builder.wait().unwrap().success());
        let mut rounds = 0;
        while !running().is_empty() {
            assert!(rounds < 1000, "qemu-nbd outlives the packer");
            rounds += 1;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
        assert!(!scene.link("vm").exists());
    }
    // qemu-nbd killed under a build: the build fails and says so.
    let builder = start();
    let pid = loop {
        if let Some(pid) = running().pop() {
            break pid.to_str().unwrap().parse().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let ended = builder.wait_with_output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("qemu-nbd cannot read"), "{told}");
    assert!(!scene.link("vm").exists());
}
