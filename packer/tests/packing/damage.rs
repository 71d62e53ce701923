//! Every flipped bit, every missing and every shortened object is found, and nothing panics.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use vmnetx_format::SecretKey;
use vmnetx_pack::{
    BuildOptions, Depth, DiskFile, ExportOptions, Output, Reader, Signing, Silent, build, export, info, list,
    verify_link, verify_repository,
};
use vmnetx_store::failure::{Class, Told};

use crate::support::{LEAF_BYTES, Scene, blocks, noise, program, sparse, text};

/// A small repository: two versions of one package, and another package with two disks that is signed.
fn small() -> Scene {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &[text(1, blocks(3)), noise(1, 700)].concat()));
    scene.build("vm", &scene.image("a", &[text(1, blocks(3)), text(2, 9000)].concat()));
    let disks = vec![
        DiskFile::raw("one".parse().unwrap(), scene.path("a")),
        DiskFile::raw("two".parse().unwrap(), scene.image("b", &text(9, blocks(5)))),
    ];
    let title = Some("A title".parse().unwrap());
    let signing = Signing { key: Some(SecretKey::from_seed(&[1; SecretKey::SEED_BYTES])), replace: false };
    build(&BuildOptions { disks, title, signing, ..scene.options("pair", &scene.path("a")) }, &Silent).unwrap();
    scene.verify_whole();
    scene
}

/// Verifies a damaged repository, and looks at it in every other way: nothing may panic.
fn assert_found(scene: &Scene, damaged: &Path, how: &str) {
    let report = scene.verify();
    assert!(!report.findings.is_empty(), "{how} in {} was not found", damaged.display());
    for name in ["vm", "pair"] {
        let link = scene.link(name).to_str().unwrap().parse().unwrap();
        let _ = info(&link, &Reader::default(), &Silent);
        let _ = verify_link(&scene.repository(), &name.parse().unwrap(), Depth::Deep, &Silent).unwrap();
        for disk in ["disk0", "two"] {
            let out = Output::File { path: scene.path("out"), force: true };
            let (link, reader) = (link.clone(), Reader::default());
            let _ = export(&ExportOptions { link, disk: disk.to_owned(), out, reader }, &Silent);
        }
    }
    let _ = list(&scene.repository());
}

#[test]
fn every_flipped_byte_is_found() {
    let scene = small();
    let files = scene.files();
    let mut flips = 0;
    for file in &files {
        let whole = fs::read(file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(file, &bytes).unwrap();
            let report = scene.verify();
            assert!(!report.findings.is_empty(), "byte {at} of {} was not found", file.display());
            flips += 1;
        }
        fs::write(file, whole).unwrap();
    }
    assert!(flips > 3000, "{flips}");
    scene.verify_whole();
}

#[test]
fn every_shortened_and_every_missing_object_is_found() {
    let scene = small();
    for file in scene.files() {
        let whole = fs::read(&file).unwrap();
        for length in [0, 1, 7, 8, 47, 48, whole.len() / 2, whole.len().saturating_sub(1)] {
            if length < whole.len() {
                fs::write(&file, &whole[..length]).unwrap();
                assert_found(&scene, &file, &format!("an end at byte {length}"));
            }
        }
        fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
        assert_found(&scene, &file, "one more byte");
        // A link that is gone is a package that is gone: nothing says that there ever was one.
        if file.extension().is_some_and(|suffix| suffix != "vmnetx") {
            fs::remove_file(&file).unwrap();
            assert_found(&scene, &file, "nothing");
        }
        fs::write(&file, whole).unwrap();
    }
    scene.verify_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_to_an_image_with_inner_nodes_is_found(
        which: prop::sample::Index, at: prop::sample::Index, flip in 1_u8..=255,
    ) {
        let scene = Scene::new();
        let image = scene.path("image");
        let (first, last) = (text(1, blocks(9)), noise(2, 5000));
        sparse(&image, 9 << 30, &[(LEAF_BYTES - 4096, &first[..]), ((9 << 30) - 5000, &last[..])]);
        scene.build("vm", &image);
        let files = scene.files();
        let file = which.get(&files);
        let mut bytes = fs::read(file).unwrap();
        *at.get_mut(&mut bytes) ^= flip;
        fs::write(file, bytes).unwrap();
        assert_found(&scene, file, "a flipped byte");
    }

    #[test]
    fn objects_of_other_bytes_never_panic(
        which: prop::sample::Index, bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let scene = small();
        let files = scene.files();
        let file = which.get(&files);
        fs::write(file, bytes).unwrap();
        assert_found(&scene, file, "other bytes");
    }
}

#[test]
fn the_affected_bytes_are_named() {
    let scene = Scene::new();
    let image = scene.path("image");
    // Two chunks in the second leaf, zeros before, between and behind.
    let (first, second) = (noise(1, blocks(2)), noise(2, blocks(3)));
    sparse(&image, 3 * LEAF_BYTES, &[(LEAF_BYTES + 8192, &first[..]), (LEAF_BYTES + 40_960, &second[..])]);
    let version = scene.build("vm", &image).version;
    let pack = scene.files().into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    // Noise is stored as it is: behind the head of 8 bytes lies the first chunk, then the second.
    bytes[8 + blocks(2) + 100] ^= 1;
    fs::write(&pack, bytes).unwrap();

    let report = scene.verify();
    let affected: Vec<_> = report.findings.iter().filter_map(|finding| finding.affects.as_ref()).collect();
    assert_eq!(affected.len(), 1);
    assert_eq!(affected[0].version, version);
    assert_eq!(affected[0].disk.as_deref(), Some("disk0"));
    assert_eq!((affected[0].start, affected[0].end), (LEAF_BYTES + 40_960, LEAF_BYTES + 40_960 + blocks(3) as u64));
    // The pack's own digest and its frame.
    assert_eq!(report.findings.len(), 3);

    let options = ExportOptions {
        link: scene.link("vm").to_str().unwrap().parse().unwrap(),
        disk: "disk0".to_owned(),
        out: Output::File { path: scene.path("out"), force: false },
        reader: Reader::default(),
    };
    let error = export(&options, &Silent).unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().contains("disk0"), "{error}");
    let left: Vec<_> = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("out")), "{left:?}");
}

/// What costs less finds less, and says how much it has read.
#[test]
fn a_quick_look_finds_what_is_missing_and_a_sample_some_of_what_is_damaged() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 4 << 20)));
    let verify = |depth| verify_repository(&scene.repository(), depth, &Silent).unwrap();
    let [deep, quick] = [Depth::Deep, Depth::Part(0.0)].map(verify);
    assert_eq!((deep.chunks, deep.packs), (quick.chunks, quick.packs));
    assert!(deep.read_bytes >= 4 << 20 && quick.read_bytes == 0, "{} and {}", deep.read_bytes, quick.read_bytes);
    let sample = verify(Depth::Part(0.5)).read_bytes;
    assert!((1 << 20..3 << 20).contains(&sample), "{sample}");

    let pack = scene.files().into_iter().filter(|file| file.ends_with_pack());
    let pack = pack.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let whole = fs::read(&pack).unwrap();
    // Every chunk is damaged.
    let mut bytes = whole.clone();
    (1000..bytes.len() - 50_000).step_by(1000).for_each(|at| bytes[at] ^= 1);
    fs::write(&pack, &bytes).unwrap();
    assert_eq!(verify(Depth::Part(0.0)).findings, []);
    let [half, deep] = [Depth::Part(0.5), Depth::Deep].map(|depth| verify(depth).findings.len());
    assert!(0 < half && half < deep, "{half} of {deep}");
    for cut in [0, 1, 40_000, whole.len()] {
        fs::write(&pack, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(verify(Depth::Part(0.0)).findings.is_empty(), cut == 0, "{cut} bytes are missing");
    }
}

#[test]
fn damage_to_one_package_is_not_damage_to_another() {
    let scene = Scene::new();
    scene.build("good", &scene.image("a", &noise(1, 50_000)));
    let before = scene.files();
    scene.build("bad", &scene.image("b", &noise(2, 50_000)));
    let pack = scene.files().into_iter().find(|file| !before.contains(file) && file.ends_with_pack()).unwrap();
    fs::write(pack, b"").unwrap();
    let verify = |name: &str| verify_link(&scene.repository(), &name.parse().unwrap(), Depth::Deep, &Silent).unwrap();
    assert!(verify("good").findings.is_empty());
    assert!(!verify("bad").findings.is_empty());
}

#[test]
fn what_nothing_refers_to_is_mentioned_and_no_damage() {
    let scene = small();
    fs::remove_file(scene.link("pair")).unwrap();
    fs::write(scene.repo().join("packs/README"), "hello").unwrap();
    fs::write(scene.repo().join(".vmnetx"), "").unwrap();
    let report = scene.verify_whole();
    assert!(report.unreferenced.iter().any(|object| object.starts_with("manifests/")), "{report:?}");
    assert!(report.unreferenced.iter().any(|object| object.starts_with("layouts/")), "{report:?}");
    assert!(report.unreferenced.iter().any(|object| object.starts_with("packs/")), "{report:?}");
    assert_eq!(report.strangers.len(), 2);
    program().arg("verify").arg(scene.repo()).assert().success();
}

#[test]
fn the_program_tells_damage_with_exit_code_4() {
    let scene = small();
    let pack = scene.files().into_iter().find(|file| file.ends_with_pack()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[10] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let output = program().arg("verify").arg(scene.repo()).assert().code(4).get_output().clone();
    assert!(String::from_utf8(output.stdout).unwrap().contains("damaged"));
    let output = program().arg("verify").arg("--json").arg(scene.repo()).assert().code(4).get_output().clone();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!json["findings"].as_array().unwrap().is_empty());
}

trait IsPack {
    fn ends_with_pack(&self) -> bool;
}

impl IsPack for std::path::PathBuf {
    fn ends_with_pack(&self) -> bool {
        self.extension().is_some_and(|suffix| suffix == "pack")
    }
}
