//! The life of a package: versions that are published, compared, rolled back to, pinned and given up.

use std::fs;

use vmnetx_format::Digest;
use vmnetx_pack::{
    BuildOptions, Error, LinkOptions, LinkReport, Reader, RetainOptions, Signing, Silent, State, VersionName, build,
    diff, log, retain, roll_back,
};
use vmnetx_store::dir::Wait;
use vmnetx_store::failure::{Class, Told};

use crate::support::{Scene, blocks, noise, program};

/// A package with versions that grow by `growth` blocks each, oldest first.
fn grown(scene: &Scene, versions: usize, growth: usize) -> Vec<Digest> {
    let disk = |number: usize| noise(1, blocks(growth * number));
    (1..=versions).map(|number| scene.build("vm", &scene.image("disk", &disk(number))).version).collect()
}

fn options(scene: &Scene) -> LinkOptions {
    LinkOptions { repository: scene.repo(), name: "vm".parse().unwrap(), signing: Signing::default(), wait: Wait::No }
}

fn name(version: &Digest) -> VersionName {
    version.to_string()[..12].parse().unwrap()
}

fn names(versions: &[Digest]) -> Vec<VersionName> {
    versions.iter().map(name).collect()
}

fn retained(scene: &Scene, wishes: RetainOptions) -> Result<LinkReport, Error> {
    retain(&options(scene), &wishes)
}

#[test]
fn the_log_says_what_each_version_added() {
    let scene = Scene::new();
    let versions = grown(&scene, 3, 64);
    let report = log(&scene.link("vm").to_str().unwrap().parse().unwrap(), &Reader::default(), &Silent).unwrap();
    assert_eq!(report.serial, 3);
    let listed: Vec<Digest> = report.versions.iter().map(|entry| entry.version).collect();
    assert_eq!(listed, [versions[2], versions[1], versions[0]]);
    let states: Vec<State> = report.versions.iter().map(|entry| entry.state).collect();
    assert_eq!(states, [State::Current, State::Retained, State::Retained]);
    let added: Vec<u64> = report.versions.iter().map(|entry| entry.added.unwrap().bytes).collect();
    // Each version has what the one before it has, but for the chunk that the old end cut short.
    assert_eq!(added[2], blocks(64) as u64);
    assert!(added[..2].iter().all(|&bytes| (blocks(64) as u64..=blocks(96) as u64).contains(&bytes)), "{added:?}");
}

#[test]
fn a_difference_adds_up_to_both_versions() {
    let scene = Scene::new();
    let before = [noise(1, blocks(100)), noise(2, blocks(100))].concat();
    let after = [noise(1, blocks(100)), vec![0; blocks(50)], noise(3, blocks(150))].concat();
    let old = scene.build("vm", &scene.image("a", &before)).version;
    let new = scene.build("vm", &scene.image("b", &after)).version;
    let location = scene.link("vm").to_str().unwrap().parse().unwrap();
    let report = diff(&location, &name(&old), &VersionName::Current).unwrap();
    assert_eq!((report.from, report.to), (old, new));
    let disk = report.disks["disk0"];
    assert_eq!(report.total, disk);
    assert_eq!(disk.shared.bytes + disk.new.bytes, blocks(250) as u64);
    assert_eq!(disk.shared.bytes + disk.gone.bytes, before.len() as u64);
    // All that stayed is shared but for a chunk at its end.
    assert!((blocks(68)..=blocks(100)).contains(&(disk.shared.bytes as usize)), "{disk:?}");
    assert!(disk.new.stored_bytes >= disk.new.bytes, "noise does not become smaller");
    let back = diff(&location, &VersionName::Current, &name(&old)).unwrap();
    assert_eq!((back.total.new, back.total.gone, back.total.shared), (disk.gone, disk.new, disk.shared));
    let none = diff(&location, &name(&old), &name(&old)).unwrap().total;
    assert_eq!((none.new.chunks, none.gone.chunks), (0, 0));
}

#[test]
fn rolling_back_is_a_publication_of_its_own() {
    let scene = Scene::new();
    let versions = grown(&scene, 3, 20);
    let report = roll_back(&options(&scene), &name(&versions[0])).unwrap();
    assert!(report.published && report.serial == 4 && report.given_up.is_empty(), "{report:?}");
    assert_eq!(report.current, versions[0]);
    assert_eq!(report.retained, [versions[2], versions[1]]);
    assert!(scene.exported("vm") == noise(1, blocks(20)));
    let again = roll_back(&options(&scene), &VersionName::Current).unwrap();
    assert!(!again.published && again.serial == 4, "{again:?}");
    // Forward again, by publishing the same disk: nothing of it is stored anew.
    let forward = scene.build("vm", &scene.image("disk", &noise(1, blocks(60))));
    assert_eq!((forward.version, forward.serial, forward.new_chunks), (versions[2], 5, 0));
    scene.verify_whole();
}

#[test]
fn versions_are_kept_pinned_and_given_up() {
    let scene = Scene::new();
    let versions = grown(&scene, 6, 10);
    let wish = |wishes| retained(&scene, wishes).unwrap();
    let pinned = wish(RetainOptions { pin: names(&versions[..2]), ..RetainOptions::default() });
    assert_eq!((pinned.serial, pinned.retained.len()), (7, 5));
    let kept = wish(RetainOptions { keep: Some(1), ..RetainOptions::default() });
    assert_eq!(kept.retained, [versions[4], versions[1], versions[0]]);
    assert_eq!(kept.given_up, [versions[3], versions[2]]);
    for (wishes, reason) in [
        (RetainOptions { give_up: names(&versions[..1]), ..RetainOptions::default() }, "pinned"),
        (RetainOptions { give_up: vec![VersionName::Current], ..RetainOptions::default() }, "current"),
        (RetainOptions { pin: names(&versions[3..4]), ..RetainOptions::default() }, "no version"),
    ] {
        let error = retained(&scene, wishes).unwrap_err();
        assert!(error.class() == Class::Usage && error.to_string().contains(reason), "{error}");
    }
    let gone = wish(RetainOptions {
        unpin: names(&versions[..1]),
        give_up: names(&versions[..1]),
        ..RetainOptions::default()
    });
    assert_eq!((gone.serial, gone.retained), (9, vec![versions[4], versions[1]]));
    let nothing = wish(RetainOptions { keep: Some(9), ..RetainOptions::default() });
    assert!(!nothing.published && nothing.serial == 9);
    // A build keeps as many as it is told to, and what is pinned.
    let image = scene.image("disk", &noise(9, blocks(9)));
    let report = build(&BuildOptions { keep: Some(1), ..scene.options("vm", &image) }, &Silent).unwrap();
    assert_eq!(report.serial, 10);
    let listed =
        log(&scene.link("vm").to_str().unwrap().parse().unwrap(), &Reader::default(), &Silent).unwrap().versions;
    let listed: Vec<(Digest, bool)> = listed.iter().map(|entry| (entry.version, entry.pinned)).collect();
    assert_eq!(listed, [(report.version, false), (versions[5], false), (versions[1], true)]);
    scene.verify_whole();
}

#[test]
fn names_of_versions_must_be_clear() {
    for text in ["", "abc12", "current2", "ABCDEF0", "xyzxyz", &"a".repeat(65)] {
        assert!(text.parse::<VersionName>().is_err(), "{text}");
    }
    let scene = Scene::new();
    grown(&scene, 1, 4);
    let missing = roll_back(&options(&scene), &"000000000000".parse().unwrap()).unwrap_err();
    assert!(missing.class() == Class::Usage && missing.hint().unwrap().contains("log"), "{missing}");
    let other = LinkOptions { name: "other".parse().unwrap(), ..options(&scene) };
    let missing = roll_back(&other, &VersionName::Current).unwrap_err();
    assert!(matches!(missing, Error::NoSuchPackage { .. }), "{missing}");
}

#[test]
fn the_commands_say_what_they_did() {
    let scene = Scene::new();
    let versions = grown(&scene, 3, 10);
    let run = |words: &[&str]| {
        let assert = program().args(words).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let (repo, link) = (scene.repo(), scene.link("vm"));
    let (repo, link) = (repo.to_str().unwrap(), link.to_str().unwrap());
    let first = versions[0].to_string();
    let listed = run(&["log", link]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.lines().last().unwrap().starts_with(&first), "{listed}");
    let compared = run(&["diff", link, &first[..8]]);
    assert!(compared.contains(&format!("from      {first}")) && compared.contains("disk0     new"), "{compared}");
    let rolled = run(&["rollback", repo, "vm", &first[..8]]);
    assert!(rolled.starts_with(&format!("published vm, serial 4\ncurrent   {first}\n")), "{rolled}");
    let kept = run(&["retain", repo, "vm", "--keep", "0", "--json"]);
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["retained"], serde_json::json!([]));
    assert_eq!(kept["given_up"].as_array().unwrap().len(), 2);
    program().args(["retain", repo, "vm"]).assert().code(2);
    program().args(["rollback", repo, "vm", "nonsense"]).assert().code(2);
    assert_eq!(fs::read_dir(scene.repo().join("manifests")).unwrap().count(), 3, "prune frees, not retain");
}
