//! Freeing space: nothing that a link leads to is ever touched, and nothing else goes before its time.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use vmnetx_format::{layout_path, manifest_path};
use vmnetx_pack::{Error, LinkOptions, PruneOptions, PruneReport, RetainOptions, Signing, Silent, prune, retain};
use vmnetx_store::dir::{Tombstones, Wait};
use vmnetx_store::failure::{Class, Told};

use crate::support::{Scene, noise, program};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn options(scene: &Scene, grace: Duration) -> PruneOptions {
    PruneOptions { repository: scene.repo(), grace, dry_run: false, wait: Wait::No }
}

fn pruned(scene: &Scene, grace: Duration) -> PruneReport {
    prune(&options(scene, grace), &Silent).unwrap()
}

/// Keeps no version but the current one.
fn forget(scene: &Scene, name: &str) {
    let link = LinkOptions {
        repository: scene.repo(),
        name: name.parse().unwrap(),
        signing: Signing::default(),
        wait: Wait::No,
    };
    retain(&link, &RetainOptions { keep: Some(0), ..RetainOptions::default() }).unwrap();
}

fn objects(scene: &Scene) -> BTreeSet<PathBuf> {
    let hidden = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with('.');
    scene.files().into_iter().filter(|path| !hidden(path)).collect()
}

#[test]
fn what_links_lead_to_stays_and_the_rest_goes_after_its_time() {
    let scene = Scene::new();
    let shared = noise(1, 1 << 20);
    scene.build("vm", &scene.image("a", &[&shared[..], &noise(2, 1 << 20)].concat()));
    scene.build("other", &scene.image("b", &noise(3, 1 << 20)));
    let last = [&shared[..], &noise(4, 1 << 20)].concat();
    scene.build("vm", &scene.image("c", &last));
    let all = objects(&scene);

    let nothing = pruned(&scene, Duration::ZERO);
    assert_eq!((nothing.marked.count, nothing.removed.count), (0, 0), "retained versions are in use: {nothing:?}");
    assert_eq!(nothing.reached.count as usize + 2, all.len(), "all but the links");

    fs::remove_file(scene.link("other")).unwrap();
    forget(&scene, "vm");
    let dry = prune(&PruneOptions { dry_run: true, ..options(&scene, Duration::ZERO) }, &Silent).unwrap();
    let marked = pruned(&scene, Duration::ZERO);
    assert_eq!(dry, marked, "a dry run says what a run does");
    // The manifest and the layout object of both versions, the pack of `other` with its index, and the index of the old
    // `vm`; the pack of the first `vm` is needed for what its versions share.
    assert!(marked.marked.count >= 6 && marked.removed.count == 0, "{marked:?}");
    assert_eq!(objects(&scene).len() + 1, all.len(), "the first run only marks");

    let waiting = pruned(&scene, WEEK);
    assert_eq!((waiting.waiting, waiting.removed.count), (marked.marked, 0));
    let dry = prune(&PruneOptions { dry_run: true, ..options(&scene, Duration::ZERO) }, &Silent).unwrap();
    let removed = pruned(&scene, Duration::ZERO);
    assert_eq!((removed.removed, dry), (marked.marked, removed.clone()));
    assert_eq!(objects(&scene).len() as u64 + 1 + removed.removed.count, all.len() as u64);
    let report = scene.verify_whole();
    assert_eq!(report.unreferenced, Vec::<String>::new());
    assert!(scene.exported("vm") == last);
    assert_eq!(pruned(&scene, Duration::ZERO).reached, removed.reached);
}

#[test]
fn a_build_does_not_count_on_what_has_a_tombstone() {
    let scene = Scene::new();
    let data = noise(1, 1 << 20);
    scene.build("vm", &scene.image("a", &data));
    scene.build("vm", &scene.image("b", &noise(2, 100_000)));
    forget(&scene, "vm");
    assert!(pruned(&scene, WEEK).marked.count > 0);
    // Another package has the same data, behind other data, so that its packs are others.
    let again = scene.build("new", &scene.image("c", &[noise(3, 100_000), vec![0; 4096], data.clone()].concat()));
    assert!(again.new_bytes >= data.len() as u64 - 4096, "{again:?}");
    for _ in 0..2 {
        pruned(&scene, Duration::ZERO);
    }
    scene.verify_whole();
    assert!(scene.exported("new").ends_with(&data));
}

#[test]
fn a_version_that_comes_back_takes_its_tombstones_away() {
    let scene = Scene::new();
    let data = noise(1, 1 << 20);
    let old = scene.build("vm", &scene.image("a", &data));
    scene.build("vm", &scene.image("b", &noise(2, 100_000)));
    forget(&scene, "vm");
    let marked = pruned(&scene, WEEK).marked;
    // The same disk once more is the same version in the same packs, on which the next build may count.
    assert_eq!(scene.build("vm", &scene.image("a", &data)).version, old.version);
    let grown = [&data[..], &noise(5, 50_000)].concat();
    let next = scene.build("vm", &scene.image("a", &grown));
    assert!(next.new_bytes < 200_000, "{next:?}");
    let after = pruned(&scene, Duration::ZERO);
    assert!(after.removed.count < marked.count && after.spared == 0, "{marked:?}, then {after:?}");
    scene.verify_whole();
    assert!(scene.exported("vm") == grown);
}

#[test]
fn a_damaged_repository_is_not_pruned() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 1 << 20)));
    scene.build("vm", &scene.image("b", &noise(2, 1 << 20)));
    forget(&scene, "vm");
    let before = objects(&scene);
    let current = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
    for object in [manifest_path(&current.manifest), layout_path(&current.layout)] {
        let path = scene.repo().join(object);
        let bytes = fs::read(&path).unwrap();
        for damage in [None, Some(&bytes[1..])] {
            fs::remove_file(&path).unwrap();
            if let Some(bytes) = damage {
                fs::write(&path, bytes).unwrap();
            }
            let error = prune(&options(&scene, Duration::ZERO), &Silent).unwrap_err();
            assert_eq!(error.class(), Class::Integrity, "{error}");
            assert!(!scene.repo().join(".tombstones").exists());
            fs::write(&path, &bytes).unwrap();
        }
    }
    fs::write(scene.link("vm"), "{}").unwrap();
    let error = prune(&options(&scene, Duration::ZERO), &Silent).unwrap_err();
    assert!(error.class() == Class::Integrity && error.to_string().contains("vm.vmnetx"), "{error}");
    assert_eq!(objects(&scene), before);
}

#[test]
fn tombstones_that_are_none_are_refused_by_name() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 100_000)));
    for text in ["", "{}", r#"{"vmnetx":7,"objects":{}}"#, r#"{"vmnetx":0,"objects":{},"more":1}"#, "{\"\x1b[31m\":0}"]
    {
        fs::write(scene.repo().join(".tombstones"), text).unwrap();
        let error = prune(&options(&scene, WEEK), &Silent).unwrap_err();
        assert!(matches!(&error, Error::Repository(_)) && error.to_string().contains(".tombstones"), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert_eq!(error.class(), Class::Integrity);
    }
}

#[test]
fn the_command_takes_times_as_people_write_them() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 100_000)));
    scene.build("vm", &scene.image("b", &noise(2, 100_000)));
    forget(&scene, "vm");
    let run = |words: &[&str]| {
        let assert = program().arg("prune").arg(scene.repo()).args(words).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    assert!(run(&["--dry-run"]).contains("marked"));
    assert!(run(&["--grace", "1h"]).contains("removed   0 objects"));
    let json: serde_json::Value = serde_json::from_str(&run(&["--grace", "0s", "--json"])).unwrap();
    assert!(json["removed"]["count"].as_u64().unwrap() > 0, "{json}");
    program().arg("prune").arg(scene.repo()).args(["--grace", "soon"]).assert().code(2);
    scene.verify_whole();
}

/// A clock that was a year ahead when objects were marked, and is right again: they wait as long as others, not a year.
#[test]
fn marks_from_the_future_are_made_anew() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("a", &noise(1, 100_000)));
    scene.build("vm", &scene.image("b", &noise(2, 100_000)));
    forget(&scene, "vm");
    let marked = pruned(&scene, WEEK).marked;
    let mut ahead = Tombstones::default();
    for (path, unix_s) in scene.repository().tombstones().unwrap().iter() {
        ahead.mark(path.to_owned(), unix_s + 365 * 24 * 3600);
    }
    scene.repository().lock(Wait::No).unwrap().replace_tombstones(&ahead).unwrap();
    let again = pruned(&scene, Duration::ZERO);
    assert_eq!((again.marked, again.removed.count), (marked, 0), "{again:?}");
    assert_eq!(pruned(&scene, Duration::ZERO).removed, marked);
}
