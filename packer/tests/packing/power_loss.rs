//! Power that fails at any moment: a publisher's system calls are recorded, and disks are made up that kept of them no more
//! than was flushed, or any part of the rest.

mod disk;
mod trace;

use std::path::Path;

use vmnetx_pack::{
    BuildOptions, Depth, PruneOptions, RepackOptions, RepairOptions, RepairSource, Signing, Silent, build, prune,
    repack, repair, verify_repository,
};
use vmnetx_store::dir::{RepositoryDir, Wait};
use vmnetx_store::origin::AccessArgs;

use self::disk::{Chance, Disk};
use self::trace::{Call, record};
use crate::support::{Scene, noise};

/// Disks that are made up for each moment: one that lost all that it could, one that kept all, and some between.
const DISKS_PER_MOMENT: u64 = 3;

/// Runs a command and visits a disk for every moment at which power could have failed, and some ways of losing data.
fn every_loss(scene: &Scene, words: &[&str], mut visit: impl FnMut(&Scene, &str)) {
    let before = Disk::of(&scene.repo());
    let calls = record(&scene.repo(), words);
    assert!(calls.iter().any(|call| matches!(call, Call::Flush { .. })), "nothing was flushed: {calls:?}");
    for moment in 0..=calls.len() {
        let mut disk = before.clone();
        for call in &calls[..moment] {
            disk.apply(call);
        }
        for number in 0..DISKS_PER_MOMENT {
            let chance = match number {
                0 => Chance::Nothing,
                1 => Chance::Everything,
                _ => Chance::Seed(moment as u64 * DISKS_PER_MOMENT + number),
            };
            let after = Scene::new();
            disk.write(&after.repo(), chance);
            visit(&after, &format!("after {moment} of {} calls, {chance:?}", calls.len()));
        }
    }
}

fn whole(scene: &Scene, moment: &str) {
    let report = verify_repository(&scene.repository(), Depth::Deep, &Silent)
        .unwrap_or_else(|error| panic!("{moment}: {error}"));
    assert_eq!(report.findings, [], "{moment}");
}

#[test]
fn a_build_that_loses_power_leaves_the_old_or_the_new_version() {
    let scene = Scene::new();
    let old = [noise(1, 200_000), vec![0; 1 << 20], noise(2, 200_000)].concat();
    let new = [&old[..300_000], &noise(3, 400_000)].concat();
    scene.build("vm", &scene.image("old", &old));
    let image = scene.image("new", &new);
    let words = ["build", "REPO", "vm", "--quiet", "--disk", image.to_str().unwrap()];
    let (mut olds, mut news) = (0, 0);
    every_loss(&scene, &words, |after, moment| {
        whole(after, moment);
        let found = after.exported("vm");
        assert!(found == old || found == new, "{moment}");
        if found == new {
            news += 1
        } else {
            olds += 1
        }
        let again = BuildOptions { repository: after.repo(), ..scene.options("vm", &image) };
        build(&again, &Silent).unwrap_or_else(|error| panic!("{moment}: {error}"));
        whole(after, moment);
        assert!(after.exported("vm") == new, "{moment}");
    });
    assert!(olds > 50 && news > 2, "{olds} old and {news} new versions were seen");
}

#[test]
fn a_first_build_that_loses_power_can_be_done_again() {
    let scene = Scene::new();
    RepositoryDir::create(scene.repo()).unwrap();
    let image = scene.image("disk", &noise(1, 100_000));
    let words = ["build", "REPO", "vm", "--quiet", "--disk", image.to_str().unwrap()];
    every_loss(&scene, &words, |after, moment| {
        whole(after, moment);
        let again = BuildOptions { repository: after.repo(), ..scene.options("vm", &image) };
        build(&again, &Silent).unwrap_or_else(|error| panic!("{moment}: {error}"));
        assert!(after.exported("vm") == noise(1, 100_000), "{moment}");
    });
}

#[test]
fn a_prune_that_loses_power_takes_nothing_that_is_in_use() {
    let scene = Scene::new();
    let disk = |seed| [noise(9, 100_000), noise(seed, 300_000)].concat();
    scene.build("vm", &scene.image("a", &disk(1)));
    scene.build("vm", &scene.image("b", &disk(2)));
    std::fs::remove_file(scene.link("vm")).unwrap();
    scene.build("vm", &scene.image("c", &disk(3)));
    let options = |repo: &Path| PruneOptions {
        repository: repo.to_owned(),
        grace: std::time::Duration::ZERO,
        dry_run: false,
        wait: Wait::No,
    };
    // The first run marks, the second removes.
    for _ in 0..2 {
        every_loss(&scene, &["prune", "REPO", "--grace", "0s", "--quiet"], |after, moment| {
            whole(after, moment);
            assert!(after.exported("vm") == disk(3), "{moment}");
            // A build may come between, and finds nothing that is not there.
            build(&BuildOptions { repository: after.repo(), ..scene.options("again", &scene.path("a")) }, &Silent)
                .unwrap();
            whole(after, moment);
            prune(&options(&after.repo()), &Silent).unwrap_or_else(|error| panic!("{moment}: {error}"));
            whole(after, moment);
            assert!(after.exported("vm") == disk(3) && after.exported("again") == disk(1), "{moment}");
        });
    }
    assert_eq!(prune(&options(&scene.repo()), &Silent).unwrap().marked.count, 0);
    assert_eq!(scene.verify_whole().unreferenced, Vec::<String>::new());
}

#[test]
fn a_roll_back_that_loses_power_leaves_a_link() {
    let scene = Scene::new();
    let first = scene.build("vm", &scene.image("a", &noise(1, 50_000))).version.to_string();
    scene.build("vm", &scene.image("b", &noise(2, 50_000)));
    every_loss(&scene, &["rollback", "REPO", "vm", &first], |after, moment| {
        whole(after, moment);
        let found = after.exported("vm");
        assert!(found == noise(1, 50_000) || found == noise(2, 50_000), "{moment}");
    });
}

#[test]
fn a_repack_that_loses_power_changes_nothing_that_is_read() {
    let scene = Scene::new();
    let old = noise(1, 400_000);
    scene.build("vm", &scene.image("a", &old));
    std::fs::remove_file(scene.link("vm")).unwrap();
    let new = [&old[..100_000], &noise(2, 50_000)].concat();
    scene.build("vm", &scene.image("b", &new));
    let words = ["repack", "REPO", "--below", "90", "--level", "1", "--quiet"];
    every_loss(&scene, &words, |after, moment| {
        whole(after, moment);
        assert!(after.exported("vm") == new, "{moment}");
        let options = RepackOptions {
            repository: after.repo(),
            below: 0.9,
            level: 1,
            signing: Signing::default(),
            wait: Wait::No,
        };
        repack(&options, &Silent).unwrap_or_else(|error| panic!("{moment}: {error}"));
        whole(after, moment);
        assert!(after.exported("vm") == new, "{moment}");
    });
}

#[test]
fn a_repair_that_loses_power_can_be_done_again() {
    let scene = Scene::new();
    let disk = [noise(1, 200_000), vec![0; 100_000], noise(2, 100_000)].concat();
    let mirror = Scene::new();
    // Not packed alike: the data has to be read there.
    mirror.build("vm", &mirror.image("half", &disk[..250_000]));
    for scene in [&mirror, &scene] {
        scene.build("vm", &scene.image("disk", &disk));
    }
    let packs = scene.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "pack"));
    packs.for_each(|pack| std::fs::write(pack, "damaged").unwrap());
    let from = mirror.repo();
    let words = ["repair", "REPO", "--from", from.to_str().unwrap(), "--quiet"];
    every_loss(&scene, &words, |after, moment| {
        let options = RepairOptions {
            repository: after.repo(),
            from: RepairSource::Dir(from.clone()),
            access: AccessArgs::default(),
            level: 4,
            signing: Signing::default(),
            wait: Wait::No,
        };
        let report = repair(&options, &Silent).unwrap_or_else(|error| panic!("{moment}: {error}"));
        assert!(report.left.is_empty(), "{moment}: {report:?}");
        whole(after, moment);
        assert!(after.exported("vm") == disk, "{moment}");
    });
}
