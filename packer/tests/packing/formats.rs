//! Disks in every format that QEMU reads: the same disk has the same digest, and nothing but its data is read.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmnetx_format::Name;
use vmnetx_pack::{ChainFile, DiskError, DiskFormat, Error, Progress, build};
use vmnetx_store::failure::{Class, Told};

use crate::images::{SIZE, build_read, chain, content, convert, disk, options, refused, stderr};
use crate::support::{Scene, noise, program, qemu, text};

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
    // Killed, also before the program has begun to be qemu-nbd, and ended in order. Ctrl-C would do as well, but whoever runs
    // the tests in the background has it ignored.
    for round in 0..12 {
        let signal = if round % 2 == 0 { rustix::process::Signal::KILL } else { rustix::process::Signal::TERM };
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
