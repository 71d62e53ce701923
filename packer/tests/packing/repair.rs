//! Damage brought back from another repository, whether that is a copy or is packed otherwise.

use std::fs;
use std::path::{Path, PathBuf};

use vmnetx_pack::{
    BuildOptions, RepairOptions, RepairReport, RepairSource, Signing, Silent, build, repair, verify_repository,
};
use vmnetx_store::dir::Wait;
use vmnetx_store::origin::AccessArgs;

use crate::server::Server;
use crate::support::{Scene, blocks, noise, program, sparse, text};

fn repaired(scene: &Scene, from: &RepairSource) -> RepairReport {
    let options = RepairOptions {
        repository: scene.repo(),
        from: from.clone(),
        access: AccessArgs::default(),
        level: 1,
        signing: Signing::default(),
        wait: Wait::No,
    };
    repair(&options, &Silent).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What a boot of the newer version touches.
const TOUCHES: [(u64, u32); 3] = [(300, 20), (0, 9), (6000, 100)];

/// Two versions of a package, and a package with two disks.
fn published(scene: &Scene) -> [Vec<u8>; 2] {
    let old = [noise(1, 3 << 20), vec![0; 20 << 20], text(1, 1 << 20)].concat();
    let new = [&old[..2 << 20], &noise(2, 1 << 20), &vec![0; 18 << 20], &text(2, 300_000)].concat();
    scene.build("vm", &scene.image("old", &old));
    scene.build("vm", &scene.image("new", &new));
    scene.order("vm", &TOUCHES);
    scene.build("other", &scene.image("other", &noise(3, 500_000)));
    [old, new]
}

fn check(scene: &Scene, [old, new]: &[Vec<u8>; 2]) {
    scene.verify_whole();
    assert!(scene.exported("vm") == *new && scene.exported("other") == noise(3, 500_000));
    let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
    let before = format!("{}#b3={}", scene.link("vm").display(), link.retained[0].manifest);
    assert!(fs::read(scene.export(&before, "disk0")).unwrap() == *old);
}

/// What happens to a file, and how that is called.
type Harm = (&'static str, fn(&Path));

fn damages() -> [Harm; 4] {
    [
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 4;
            fs::write(path, bytes).unwrap();
        }),
        ("cut", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        }),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("removed", |path| fs::remove_file(path).unwrap()),
    ]
}

fn is_link(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "vmnetx")
}

#[test]
fn every_object_is_copied_back_from_a_copy() {
    let scene = Scene::new();
    let disks = published(&scene);
    let mirror = RepairSource::Dir(scene.path("mirror"));
    copy(&scene.repo(), &scene.path("mirror"));
    let before = scene.files();
    assert_eq!(repaired(&scene, &mirror), RepairReport::default(), "nothing is damaged");
    for file in &before {
        for (how, damage) in damages() {
            // A link that is gone is no damage: its package was taken away.
            if how == "removed" && is_link(file) {
                continue;
            }
            damage(file);
            let report = repaired(&scene, &mirror);
            assert!(report.left.is_empty() && report.relaid.is_empty(), "{how} {}: {report:?}", file.display());
            assert_eq!(report.copied.len(), 1, "{how} {}: {report:?}", file.display());
            check(&scene, &disks);
        }
    }
    // Everything at once.
    let objects: Vec<&PathBuf> = before.iter().filter(|file| !is_link(file)).collect();
    objects.iter().for_each(|file| fs::remove_file(file).unwrap());
    assert_eq!(repaired(&scene, &mirror).copied.len(), objects.len());
    check(&scene, &disks);
    assert_eq!(scene.files(), before);
}

#[test]
fn what_a_mirror_packs_otherwise_is_read_there() {
    for (level, compress) in [(9, "other packs"), (1, "the same packs")] {
        let scene = Scene::new();
        let disks = published(&scene);
        // The same versions, published elsewhere, all of them behind another package.
        let elsewhere = Scene::new();
        if level == 9 {
            elsewhere.build("first", &elsewhere.image("first", &text(7, 900_000)));
        }
        for (name, disk) in [("vm", &disks[0]), ("vm", &disks[1]), ("other", &noise(3, 500_000))] {
            let image = elsewhere.image("disk", disk);
            build(&BuildOptions { level, ..elsewhere.options(name, &image) }, &Silent).unwrap();
        }
        // A mirror without orders has no copy of one: it is gone then, and nothing else with it.
        if level == 1 {
            elsewhere.order("vm", &TOUCHES);
        }
        let server = Server::start(&elsewhere, 1);
        let url = format!("http://{}", server.address);
        for source in [RepairSource::Dir(elsewhere.repo()), url.parse().unwrap()] {
            for (how, damage) in damages() {
                let is_object = |file: &PathBuf| !is_link(file) && !file.ends_with(".tombstones");
                let files: Vec<PathBuf> = scene.files().into_iter().filter(is_object).collect();
                let manifests = |path: &&PathBuf| path.parent().unwrap().ends_with("manifests");
                let (manifests, others): (Vec<&PathBuf>, Vec<&PathBuf>) = files.iter().partition(manifests);
                others.iter().for_each(|file| damage(file));
                manifests.iter().take(1).for_each(|file| damage(file));
                let report = repaired(&scene, &source);
                assert!(report.left.is_empty(), "{how}, {compress}, {source}: {report:?}");
                assert_eq!(report.relaid.is_empty(), level == 1, "{how}, {compress}, {source}: {report:?}");
                check(&scene, &disks);
                // The damaged packs are no longer needed, and nothing counts on them.
                let again = repaired(&scene, &source);
                assert!(again.damaged.is_empty(), "{how}, {compress}, {source}: {again:?}");
            }
        }
    }
}

/// The frames of an order are here, whatever becomes of their copies.
#[test]
fn an_order_whose_pack_is_lost_is_laid_out_anew() {
    for (how, damage) in damages() {
        let scene = Scene::new();
        let disks = published(&scene);
        let elsewhere = Scene::new();
        for disk in &disks {
            elsewhere.build("vm", &elsewhere.image("disk", disk));
        }
        let version = || scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
        let order = || {
            let digest = version().orders[0];
            let object = vmnetx_format::order_path(&digest);
            vmnetx_format::Order::decode(&fs::read(scene.repo().join(object)).unwrap()).unwrap()
        };
        let (before, layout) = (order(), version().layout);
        damage(&scene.repo().join(vmnetx_format::pack_path(&before.frames()[0].place.pack)));
        let report = repaired(&scene, &RepairSource::Dir(elsewhere.repo()));
        assert_eq!((report.damaged.len(), report.copied.len(), report.relaid.len()), (1, 0, 1), "{how}: {report:?}");
        assert!(report.written_bytes > 0 && report.left.is_empty(), "{how}: {report:?}");
        assert_eq!((order().touches(), version().layout), (before.touches(), layout), "{how}");
        check(&scene, &disks);
    }
}

/// Only what is damaged is fetched, however large the rest.
#[test]
fn what_is_whole_here_is_not_fetched() {
    let scene = Scene::new();
    let size = 9_u64 << 30;
    let parts: Vec<(u64, Vec<u8>)> = (0..20).map(|part| (part * (400 << 20), noise(part, blocks(60)))).collect();
    let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, data)| (*at, &data[..])).collect();
    let image = scene.path("disk");
    sparse(&image, size, &parts);
    let elsewhere = Scene::new();
    // In two steps, so that its packs are others.
    let half = elsewhere.path("half");
    sparse(&half, size, &parts[..10]);
    elsewhere.build("vm", &half);
    elsewhere.build("vm", &image);
    scene.build("vm", &image);
    let pack = scene.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "pack"));
    let pack = pack.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let server = Server::start(&elsewhere, 1);
    let report = repaired(&scene, &format!("http://{}/", server.address).parse().unwrap());
    assert_eq!((report.damaged.len(), report.relaid.len(), report.left.len()), (1, 1, 0), "{report:?}");
    scene.verify_whole();
    let exported = scene.export(scene.link("vm").to_str().unwrap(), "disk0");
    crate::support::assert_same_content(&exported, &image);
    // A build finds all of it again, in packs that are whole.
    let again = scene.build("vm", &image);
    assert_eq!((again.new_chunks, again.published), (0, false));
}

#[test]
fn what_cannot_be_repaired_is_told() {
    let scene = Scene::new();
    let disks = published(&scene);
    let empty = Scene::new();
    empty.build("else", &empty.image("a", &noise(9, 9000)));
    for file in scene.files().iter().filter(|path| path.extension().is_some_and(|end| end == "pack")) {
        fs::write(file, "").unwrap();
    }
    let run = |from: &str, code: i32| {
        let assert = program().arg("repair").arg(scene.repo()).args(["--from", from, "--json"]).assert().code(code);
        let output = assert.get_output();
        (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
    };
    let (said, _) = run(empty.repo().to_str().unwrap(), 4);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["left"].as_array().unwrap().len(), 3, "{said}");
    let (_, told) = run("http://127.0.0.1:1/", 5);
    assert!(told.contains("127.0.0.1:1"), "{told}");
    run("ftp://h/", 2);
    // Forged data is not taken: a mirror that lies about a chunk is found out.
    let liar = Scene::new();
    for disk in &disks {
        let image = liar.image("disk", disk);
        build(&BuildOptions { level: 9, ..liar.options("vm", &image) }, &Silent).unwrap();
    }
    for file in liar.files().iter().filter(|path| path.extension().is_some_and(|end| end == "pack")) {
        let mut bytes = fs::read(file).unwrap();
        (50..bytes.len().saturating_sub(1000)).step_by(20_000).for_each(|at| bytes[at] ^= 1);
        fs::write(file, bytes).unwrap();
    }
    let (_, told) = run(liar.repo().to_str().unwrap(), 4);
    assert!(told.contains("damaged"), "{told}");
    assert!(!verify_repository(&scene.repository(), vmnetx_pack::Depth::Deep, &Silent).unwrap().findings.is_empty());
}
