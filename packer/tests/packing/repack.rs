//! Packs that mostly hold what nobody needs: what is needed moves out, and nothing else changes.

use std::fs;

use vmnetx_format::Digest;
use vmnetx_pack::{
    LinkOptions, PruneOptions, RepackOptions, RepackReport, RetainOptions, Signing, Silent, prune, repack, retain,
};
use vmnetx_store::dir::Wait;
use vmnetx_store::failure::{Class, Told};

use crate::support::{Scene, blocks, noise, program, sparse};

fn repacked(scene: &Scene, below: f64) -> RepackReport {
    let options =
        RepackOptions { repository: scene.repo(), below, level: 1, signing: Signing::default(), wait: Wait::No };
    repack(&options, &Silent).unwrap()
}

fn forget(scene: &Scene, name: &str) {
    let signing = Signing::default();
    let link = LinkOptions { repository: scene.repo(), name: name.parse().unwrap(), signing, wait: Wait::No };
    retain(&link, &RetainOptions { keep: Some(0), ..RetainOptions::default() }).unwrap();
}

fn prune_twice(scene: &Scene) -> u64 {
    let grace = std::time::Duration::ZERO;
    let options = PruneOptions { repository: scene.repo(), grace, dry_run: false, wait: Wait::No };
    prune(&options, &Silent).unwrap();
    prune(&options, &Silent).unwrap().removed.bytes
}

fn version(scene: &Scene, name: &str) -> (Digest, Digest, u64) {
    let link = scene.repository().link(&name.parse().unwrap()).unwrap().unwrap().link;
    (link.current.manifest, link.current.layout, link.serial)
}

fn bytes(scene: &Scene) -> u64 {
    scene.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

#[test]
fn what_is_in_use_moves_and_keeps_its_identity() {
    let scene = Scene::new();
    let old = noise(1, 8 << 20);
    scene.build("vm", &scene.image("a", &old));
    let new = [&old[..1 << 20], &noise(2, 1 << 20)].concat();
    scene.build("vm", &scene.image("b", &new));
    // Another package needs a part of the old pack, too.
    scene.build("other", &scene.image("c", &old[6 << 20..7 << 20]));
    forget(&scene, "vm");
    prune_twice(&scene);
    let (before, size) = (version(&scene, "vm"), bytes(&scene));
    assert!(size > 9 << 20, "what shares a pack with something in use is not freed: {size}");

    assert_eq!(repacked(&scene, 0.1).emptied.count, 0, "a quarter of it is in use");
    let report = repacked(&scene, 0.5);
    assert_eq!(report.emptied.count, 1, "{report:?}");
    assert!((1_800_000..2_400_000).contains(&report.moved_bytes) && report.written_bytes < 3 << 20, "{report:?}");
    assert_eq!((report.versions, report.links.len()), (2, 2));
    let after = version(&scene, "vm");
    assert!(after.0 == before.0 && after.1 != before.1 && after.2 == before.2 + 1, "{before:?}, then {after:?}");
    scene.verify_whole();
    assert!(scene.exported("vm") == new && scene.exported("other") == old[6 << 20..7 << 20]);
    // Who reads by the old layout still can.
    assert!(bytes(&scene) > size);
    assert!(prune_twice(&scene) > 8 << 20);
    assert!(bytes(&scene) < 4 << 20, "{}", bytes(&scene));
    assert_eq!(scene.verify_whole().unreferenced, Vec::<String>::new());
    assert!(scene.exported("vm") == new && scene.exported("other") == old[6 << 20..7 << 20]);
    let again = repacked(&scene, 0.5);
    assert!(again.emptied.count == 0 && again.links.is_empty(), "{again:?}");
}

/// An index with inner nodes, of which some lie in packs that are left.
#[test]
fn large_indexes_move_too() {
    let scene = Scene::new();
    let size = 12 << 30;
    let parts: Vec<(u64, Vec<u8>)> = (0..24).map(|part| (part * (512 << 20), noise(part, blocks(40)))).collect();
    let write = |name: &str, taken: &dyn Fn(usize) -> bool| {
        let taken: Vec<(u64, &[u8])> =
            parts.iter().enumerate().filter(|(at, _)| taken(*at)).map(|(_, (at, data))| (*at, &data[..])).collect();
        let path = scene.path(name);
        sparse(&path, size, &taken);
        path
    };
    scene.build("vm", &write("a", &|_| true));
    let last = write("b", &|part| part % 5 == 0);
    scene.build("vm", &last);
    let before = version(&scene, "vm");
    forget(&scene, "vm");
    prune_twice(&scene);
    let report = repacked(&scene, 1.0);
    assert!(report.emptied.count > 0 && report.versions == 1, "{report:?}");
    assert!(prune_twice(&scene) > 0);
    assert_eq!(version(&scene, "vm").0, before.0);
    scene.verify_whole();
    let exported = scene.export(scene.link("vm").to_str().unwrap(), "disk0");
    crate::support::assert_same_content(&exported, &last);
}

#[test]
fn any_history_survives() {
    for seed in 0..6_u64 {
        let scene = Scene::new();
        let part = |number: u64| noise(number % 7, blocks(5 + number as usize % 9));
        let disk = |number: u64| (0..6).flat_map(|at| part(seed * 3 + number * at + at)).collect::<Vec<u8>>();
        for number in 0..5 {
            scene.build(["vm", "other"][number as usize % 2], &scene.image("disk", &disk(number)));
            if number < 2 {
                scene.order(["vm", "other"][number as usize % 2], &[(seed + number, 9), (0, 2), (20, 11)]);
            }
            if number % 2 == seed % 2 {
                forget(&scene, ["vm", "other"][number as usize % 2]);
            }
            repacked(&scene, 0.3 + seed as f64 / 8.0);
            prune_twice(&scene);
            scene.verify_whole();
        }
        assert!(scene.exported("vm") == disk(4) && scene.exported("other") == disk(3), "seed {seed}");
        let report = scene.verify_whole();
        assert!(report.orders > 0 && report.unreferenced.is_empty(), "seed {seed}: {report:?}");
    }
}

#[test]
fn signed_links_need_their_key() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 1 << 20)));
    let key = scene.path("key");
    program().arg("keygen").arg(&key).assert().success();
    program().arg("sign").arg(scene.repo()).arg("vm").arg("--sign-key").arg(&key).assert().success();
    let options =
        RepackOptions { repository: scene.repo(), below: 1.0, level: 1, signing: Signing::default(), wait: Wait::No };
    let error = repack(&options, &Silent).unwrap_err();
    assert!(error.class() == Class::Failure && error.to_string().contains("signed"), "{error}");
    let run = |words: &[&str]| {
        let assert = program().arg("repack").arg(scene.repo()).args(words).arg("--sign-key").arg(&key).assert();
        String::from_utf8(assert.success().get_output().stdout.clone()).unwrap()
    };
    assert!(run(&["--below", "10%"]).contains("emptied   0 of them"));
    // Of the old pack, half is needed.
    let half = scene.image("b", &noise(1, 1 << 19));
    let mut build = program();
    build.arg("build").arg(scene.repo()).args(["vm", "--keep", "0", "--disk"]).arg(half);
    build.arg("--sign-key").arg(&key).assert().success();
    assert!(run(&["--below", "100"]).contains("published vm"));
    program().arg("repack").arg(scene.repo()).args(["--below", "120"]).assert().code(2);
    scene.verify_whole();
}
