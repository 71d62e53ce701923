//! Links are replaced by those who have seen the one before, and by nobody else.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;

use tokio::sync::Barrier;

use super::proxy::{Fate, Proxy, Seen};
use super::server::S3;
use super::{command, pushed, run, verify_whole};
use crate::support::{Scene, noise};

/// A scene whose `vm` has this content.
fn scene(seed: u64) -> Scene {
    let scene = Scene::new();
    scene.build("vm", &scene.image("disk", &noise(seed, 1 << 20)));
    scene
}

fn puts_link(seen: &Seen) -> bool {
    seen.method == "PUT" && seen.path == "vms/lab/vm.vmnetx"
}

#[test]
fn another_history_is_not_overwritten() {
    let s3 = S3::start();
    let (ours, theirs) = (scene(1), scene(2));
    pushed(&theirs, &s3.endpoint(), &[]);
    let before = s3.objects();
    ours.build("vm", &ours.image("disk", &noise(3, 1 << 20)));
    let (code, _, told) = run(command(&ours, &s3.endpoint(), &[]));
    assert!(code == 1 && told.contains("serial 1") && told.contains("serial 2"), "{told}");
    assert!(told.contains("--force-link"), "{told}");
    assert_eq!(s3.objects(), before, "nothing is uploaded");
    // An older state of the same history is not put back either.
    pushed(&ours, &s3.endpoint(), &["--force-link"]);
    let newer = fs::read(ours.link("vm")).unwrap();
    assert!(fs::read(s3.file("vm.vmnetx")).unwrap() == newer);
    let older = scene(1);
    let (code, _, told) = run(command(&older, &s3.endpoint(), &[]));
    assert!(code == 1 && told.contains("no earlier state"), "{told}");
    // A damaged link is no earlier one.
    fs::write(s3.file("vm.vmnetx"), b"{}").unwrap();
    assert_eq!(run(command(&ours, &s3.endpoint(), &[])).0, 4);
    pushed(&ours, &s3.endpoint(), &["--force-link"]);
}

#[test]
fn of_two_that_push_at_once_one_wins() {
    for first_version in [false, true] {
        let s3 = S3::start();
        let scenes = [scene(1), scene(1)];
        if first_version {
            pushed(&scenes[0], &s3.endpoint(), &[]);
        }
        for (index, scene) in scenes.iter().enumerate() {
            scene.build("vm", &scene.image("disk", &noise(10 + index as u64, 20 << 20)));
        }
        // Both have looked at the link and uploaded everything when the first of them puts its link.
        let barrier = Arc::new(Barrier::new(2));
        let proxy =
            Proxy::start(
                s3.port(),
                move |seen, _| {
                    if puts_link(seen) { Fate::Meets(Arc::clone(&barrier)) } else { Fate::Pass }
                },
            );
        let start = |scene: &Scene| {
            let mut command = command(scene, &proxy.endpoint(), &[]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let running = scenes.each_ref().map(start);
        let ended = running.map(|child| child.wait_with_output().unwrap());
        let won: Vec<bool> = ended.iter().map(|output| output.status.success()).collect();
        assert!(won[0] != won[1], "{ended:?}");
        let (winner, loser) = if won[0] { (0, 1) } else { (1, 0) };
        let told = String::from_utf8_lossy(&ended[loser].stderr).into_owned();
        assert_eq!(ended[loser].status.code(), Some(1), "{told}");
        assert!(told.contains("another publisher replaced the link of vm"), "{told}");
        assert!(fs::read(s3.file("vm.vmnetx")).unwrap() == fs::read(scenes[winner].link("vm")).unwrap());
        let url = s3.url("vm.vmnetx");
        verify_whole(&url);
        let content = fs::read(scenes[winner].export(&url, "disk0")).unwrap();
        assert!(content == noise(10 + winner as u64, 20 << 20));
    }
}

#[test]
fn the_same_pushed_twice_at_once_is_no_conflict() {
    let (scene, s3) = (scene(1), S3::start());
    let barrier = Arc::new(Barrier::new(2));
    let proxy = Proxy::start(
        s3.port(),
        move |seen, _| {
            if puts_link(seen) { Fate::Meets(Arc::clone(&barrier)) } else { Fate::Pass }
        },
    );
    let start = || command(&scene, &proxy.endpoint(), &[]).stdout(Stdio::null()).spawn().unwrap();
    for mut child in [start(), start()] {
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_server_without_conditional_puts_is_told() {
    let scene = scene(1);
    let forgetful: fn(&Seen, usize) -> Fate = |_, _| Fate::Unconditional;
    let honest: fn(&Seen, usize) -> Fate = |seen, _| {
        if seen.is_conditional() { Fate::NotImplemented } else { Fate::Unconditional }
    };
    for rule in [forgetful, honest] {
        let s3 = S3::start();
        let proxy = Proxy::start(s3.public_port(), rule);
        let (code, _, told) = run(command(&scene, &proxy.endpoint(), &[]));
        assert_eq!(code, 1, "{told}");
        assert!(told.contains("does not support conditional puts (If-None-Match)"), "{told}");
        assert!(told.contains("--no-conditional-put"), "{told}");
        assert!(!s3.file("vm.vmnetx").exists());
        pushed(&scene, &proxy.endpoint(), &["--no-conditional-put"]);
        assert!(fs::read(s3.file("vm.vmnetx")).unwrap() == fs::read(scene.link("vm")).unwrap());
    }
}
