//! A publisher that is killed leaves every version whole, and the next one completes its work.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{Scene, noise};

/// Times that a build is killed.
const ROUNDS: u32 = 10;

fn build(scene: &Scene, name: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
    command.arg("build").arg(scene.repo()).arg(name).arg("--wait").arg("--disk").arg(scene.path("disk"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_killed_build_leaves_the_old_version_whole() {
    let scene = Scene::new();
    let content = |round: u32| noise(u64::from(round), 48 << 20);
    let mut published = content(0);
    fs::write(scene.path("disk"), &published).unwrap();
    let started = Instant::now();
    assert!(build(&scene, "vm").status().unwrap().success());
    let whole = started.elapsed();

    let mut killed = 0;
    for round in 1..=ROUNDS {
        let new = content(round);
        fs::write(scene.path("disk"), &new).unwrap();
        let mut publisher = build(&scene, "vm").spawn().unwrap();
        std::thread::sleep(whole * (round - 1) / ROUNDS);
        if publisher.try_wait().unwrap().is_none() {
            publisher.kill().unwrap();
            killed += 1;
        }
        let finished = publisher.wait().unwrap().success();
        scene.verify_whole();
        let found = scene.exported("vm");
        assert!(
            found == new || (found == published && !finished),
            "round {round}: neither the old nor the new version"
        );
        published = found;
    }
    assert!(killed >= 3, "only {killed} builds were killed");

    assert!(build(&scene, "vm").status().unwrap().success());
    assert!(scene.exported("vm") == content(ROUNDS));
    scene.verify_whole();
    assert_eq!(fs::read_dir(scene.repo().join("tmp")).unwrap().count(), 0);
}

#[test]
fn publishers_at_the_same_time_take_turns() {
    let scene = Scene::new();
    fs::write(scene.path("disk"), noise(1, 8 << 20)).unwrap();
    let mut publishers: Vec<_> = (0..4).map(|index| build(&scene, &format!("vm{index}")).spawn().unwrap()).collect();
    for publisher in &mut publishers {
        assert!(publisher.wait().unwrap().success());
    }
    let report = scene.verify_whole();
    assert_eq!(report.links, 4);
    // All are the same version, stored once.
    assert_eq!(fs::read_dir(scene.repo().join("manifests")).unwrap().count(), 1);
    assert_eq!(report.unreferenced, Vec::<String>::new());
}

#[test]
fn a_full_disk_leaves_the_old_version_whole() {
    // A limit on the size of files stands for a disk that is full: the write fails in the same place.
    let scene = Scene::new();
    fs::write(scene.path("disk"), noise(1, 1 << 20)).unwrap();
    assert!(build(&scene, "vm").status().unwrap().success());
    fs::write(scene.path("disk"), noise(2, 40 << 20)).unwrap();
    let script = format!(
        "ulimit -f 8192; trap '' XFSZ; exec '{}' build '{}' vm --quiet --disk '{}'",
        assert_cmd::cargo::cargo_bin!("vmnetx-pack").display(),
        scene.repo().display(),
        scene.path("disk").display(),
    );
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{told}");
    assert!(told.starts_with("error: write"), "{told}");
    assert_eq!(scene.verify_whole().versions, 1);
    assert!(scene.exported("vm") == noise(1, 1 << 20));
    assert_eq!(fs::read_dir(scene.repo().join("tmp")).unwrap().count(), 0, "a failed build leaves nothing");
}
