//! A publisher that is killed leaves every version whole, and the next one completes its work.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmnetx_format::Digest;
use vmnetx_format::limits::PACK_BYTES_TARGET;
use vmnetx_pack::{LinkOptions, RetainOptions, Signing, retain};
use vmnetx_store::dir::Wait;

use crate::support::{Scene, noise, record};

/// Times that a program is killed by each test, unless `VMNETX_KILLS` says otherwise.
const ROUNDS: u32 = 10;

pub(crate) fn rounds() -> u32 {
    std::env::var("VMNETX_KILLS").map_or(ROUNDS, |text| text.parse().expect("VMNETX_KILLS is a number"))
}

/// Kills a program after some part of the time that it takes, different for each round; whether it was still running. If
/// not, it takes less time than was thought, as on a machine that is less busy than it was.
pub(crate) fn kill(mut child: Child, whole: &mut Duration, round: u32) -> bool {
    // Steps of the golden ratio fall everywhere, however many there are.
    std::thread::sleep(whole.mul_f64(f64::from(round) * 0.618_033_988_75 % 1.0));
    let running = child.try_wait().unwrap().is_none();
    if !running {
        *whole = whole.mul_f64(0.8);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

fn build(scene: &Scene, name: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
    command.arg("build").arg(scene.repo()).arg(name).arg("--wait").arg("--disk").arg(scene.path("disk"));
    // The first build records the order of a boot, and the later ones inherit it.
    let first = scene.path("record");
    if !scene.link(name).exists() {
        if !first.exists() {
            fs::write(&first, record(&[(40, 9), (0, 1), (500, 900)]).encode().unwrap()).unwrap();
        }
        command.arg("--order").arg(first);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Says how many were killed while they ran, which must be enough of them.
#[allow(clippy::print_stdout, reason = "the count is what a soak is run for")]
pub(crate) fn tell_kills(what: &str, killed: u32, rounds: u32) {
    println!("{killed} of {rounds} {what} were killed");
    assert!(killed >= rounds / 3);
}

#[test]
fn a_killed_build_leaves_the_old_version_whole() {
    let scene = Scene::new();
    let content = |round: u32| noise(u64::from(round), 48 << 20);
    let mut published = content(0);
    fs::write(scene.path("disk"), &published).unwrap();
    let started = Instant::now();
    assert!(build(&scene, "vm").status().unwrap().success());
    let mut whole = started.elapsed();

    let (rounds, mut killed) = (rounds(), 0);
    for round in 1..=rounds {
        let new = content(round);
        fs::write(scene.path("disk"), &new).unwrap();
        let running = kill(build(&scene, "vm").spawn().unwrap(), &mut whole, round);
        killed += u32::from(running);
        scene.verify_whole();
        let found = scene.exported("vm");
        assert!(found == new || (found == published && running), "round {round}: neither the old nor the new version");
        published = found;
    }
    tell_kills("builds", killed, rounds);

    assert!(build(&scene, "vm").status().unwrap().success());
    assert!(scene.exported("vm") == content(rounds));
    scene.verify_whole();
    assert_eq!(fs::read_dir(scene.repo().join("tmp")).unwrap().count(), 0);
}

/// What a killed build has written is not written again.
#[test]
fn a_build_after_a_killed_one_goes_on_where_it_was() {
    let scene = Scene::new();
    fs::write(scene.path("disk"), noise(1, 160 << 20)).unwrap();
    let packs = || scene.files().iter().filter(|path| path.extension().is_some_and(|end| end == "pack")).count();
    let mut publisher = build(&scene, "vm").spawn().unwrap();
    let started = Instant::now();
    while !scene.repo().join("packs").is_dir() || packs() < 2 {
        assert!(publisher.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    let there = packs() as u64 * PACK_BYTES_TARGET;
    let report = scene.build("vm", &scene.path("disk"));
    assert!(
        report.written_bytes < (160 << 20) - there * 9 / 10,
        "{} bytes written beside {there}",
        report.written_bytes
    );
    scene.verify_whole();
}

#[test]
fn a_killed_prune_takes_nothing_that_is_in_use() {
    let scene = Scene::new();
    let prune = || {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
        command.arg("prune").arg(scene.repo()).args(["--grace", "0s"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let content = |round: u32| [noise(0, 1 << 20), noise(u64::from(round) + 1, 4 << 20)].concat();
    let link = LinkOptions {
        repository: scene.repo(),
        name: "vm".parse().unwrap(),
        signing: Signing::default(),
        wait: Wait::No,
    };
    let mut whole = Duration::ZERO;
    let (rounds, mut killed) = (rounds(), 0);
    for round in 0..=rounds {
        scene.build("vm", &scene.image("disk", &content(round)));
        retain(&link, &RetainOptions { keep: Some(1), ..RetainOptions::default() }).unwrap();
        if round == 0 {
            scene.order("vm", &[(700, 40), (0, 90)]);
            let started = Instant::now();
            assert!(prune().status().unwrap().success());
            whole = started.elapsed();
            continue;
        }
        killed += u32::from(kill(prune().spawn().unwrap(), &mut whole, round));
        scene.verify_whole();
        assert!(scene.exported("vm") == content(round), "round {round}");
        let before = format!("{}#b3={}", scene.link("vm").display(), before(&scene));
        assert!(fs::read(scene.export(&before, "disk0")).unwrap() == content(round - 1), "round {round}");
    }
    tell_kills("prunes", killed, rounds);
    for _ in 0..2 {
        assert!(prune().status().unwrap().success());
    }
    assert_eq!(scene.verify_whole().unreferenced, Vec::<String>::new());
}

/// The version that is retained.
fn before(scene: &Scene) -> Digest {
    scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.retained[0].manifest
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
