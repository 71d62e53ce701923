//! Images that consist of several files: what is followed, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use vmnetx_pack::{BuildOptions, DiskError, DiskFormat, Error, FilePart, build};
use vmnetx_store::failure::{Class, Told};

use crate::images::{Read, SIZE, build_read, chain, content, convert, disk, options, refused, stderr};
use crate::support::{Scene, noise, program, qemu};

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
