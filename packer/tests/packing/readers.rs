//! What somebody can and cannot do to readers who has the web server, but not the publisher's key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use assert_cmd::assert::Assert;
use vmnetx_format::{Envelope, Link};
use vmnetx_pack::{generate_key, read_key};

use crate::server::Server;
use crate::signing::{keygen, publish};
use crate::support::{Scene, noise, program};

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// A web server with two versions of the package `vm`, signed with `ours`, and a reader.
struct Site {
    scene: Scene,
    server: Server,
    ours: String,
    other: String,
}

impl Site {
    fn new() -> Self {
        let scene = Scene::new();
        let [ours, other] = ["ours", "other"].map(|name| keygen(&scene, name));
        for version in 1..=2 {
            publish(&scene, &noise(version, 5000), &["--sign-key", "ours"]).success();
        }
        let server = Server::start(&scene, 1);
        Self { scene, server, ours, other }
    }

    fn url(&self) -> String {
        format!("http://{}/vm.vmnetx", self.server.address)
    }

    fn link(&self) -> Link {
        Envelope::decode(&fs::read(self.scene.link("vm")).unwrap()).unwrap().link
    }

    /// The link, changed, and signed with the key in this file.
    fn signed(&self, key: &str, edit: impl FnOnce(&mut Link)) -> Envelope {
        self.unsigned(edit).signed(&read_key(&self.scene.path(key)).unwrap())
    }

    fn unsigned(&self, edit: impl FnOnce(&mut Link)) -> Envelope {
        let mut link = self.link();
        edit(&mut link);
        Envelope::unsigned(link).unwrap()
    }

    /// Serves this in place of the link.
    fn show(&self, envelope: &Envelope) {
        fs::write(self.scene.link("vm"), envelope.encode()).unwrap();
    }

    fn info(&self, options: &[&str]) -> Assert {
        self.read(&self.url(), options)
    }

    fn read(&self, link: &str, options: &[&str]) -> Assert {
        self.scene.program().args(["info", link]).args(options).assert()
    }

    /// Reads without trouble and without a word.
    fn silent(&self) {
        let assert = self.info(&[]).success();
        assert_eq!(stderr(&assert), "");
    }

    /// Is refused, with words that say why; what was tried is not remembered.
    fn refused(&self, options: &[&str], words: &[&str]) {
        let told = stderr(&self.info(options).code(4));
        for words in words {
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
        assert!(told.starts_with("error: ") && told.contains("\nhint: "), "{told}");
    }

    fn state(&self) -> PathBuf {
        self.scene.path("state/known-links.json")
    }
}

#[test]
fn the_first_use_is_told_and_later_ones_are_silent() {
    let site = Site::new();
    let told = stderr(&site.info(&[]).success());
    assert_eq!(
        told,
        format!("note: {} is signed with {}; from now on no other key is taken there\n", site.url(), site.ours)
    );
    assert_eq!(fs::metadata(site.state()).unwrap().permissions().mode() & 0o777, 0o600);
    site.silent();
    let before = fs::read(site.state()).unwrap();
    publish(&site.scene, &noise(3, 5000), &["--sign-key", "ours"]).success();
    site.silent();
    assert_ne!(fs::read(site.state()).unwrap(), before);
    // Every command that reads is the same reader.
    for (command, more) in [("export", &["disk0", "-", "--quiet"][..]), ("verify", &["--quiet"])] {
        let read = site.scene.program().arg(command).arg(site.url()).args(more).assert().success();
        assert_eq!(stderr(&read), "", "{command}");
    }
    site.show(&site.signed("other", |_| ()));
    for (command, more) in [("export", &["disk0", "-"][..]), ("verify", &[]), ("info", &[])] {
        site.scene.program().arg(command).arg(site.url()).args(more).assert().code(4);
    }
}

#[test]
fn another_key_is_refused_until_the_user_names_it() {
    let site = Site::new();
    site.info(&[]).success();
    let (old, new) = (site.signed("ours", |_| ()), site.signed("other", |link| link.serial += 1));
    site.show(&new);
    site.refused(&[], &[&site.ours, &site.other, "ask the publisher", &format!("--trust-key {}", site.other)]);
    site.refused(&["--accept-unsigned"], &[&site.other]);
    site.refused(&["--trust-key", &site.ours], &["none of the keys that are trusted"]);
    site.show(&old);
    site.silent();

    site.show(&new);
    let told = stderr(&site.info(&["--trust-key", &site.other]).success());
    assert!(told.starts_with("note: ") && told.contains(&site.ours) && told.contains(&site.other), "{told}");
    site.silent();
    site.show(&old);
    site.refused(&[], &[&site.ours, &site.other]);
}

#[test]
fn a_signature_that_is_taken_off_is_missed() {
    let site = Site::new();
    site.info(&[]).success();
    site.show(&site.unsigned(|link| link.serial += 1));
    site.refused(&[], &[&site.ours, "not signed now", "--accept-unsigned"]);
    site.refused(&["--trust-key", &site.ours], &["is not signed"]);
    let both = ["--accept-unsigned", "--trust-key", &site.ours];
    site.info(&both).code(2);
    let told = stderr(&site.info(&["--accept-unsigned"]).success());
    assert!(told.starts_with("warning: ") && told.contains(&site.ours), "{told}");
    site.silent();
}

#[test]
fn a_signature_that_does_not_hold_is_refused_by_everyone() {
    let site = Site::new();
    let mut forged = site.unsigned(|link| link.serial += 1);
    forged.signature = site.signed("ours", |_| ()).signature;
    site.show(&forged);
    let digest = site.link().current.manifest;
    for options in [&[][..], &["--accept-unsigned"], &["--trust-key", &site.ours]] {
        site.refused(options, &["forged or damaged", &site.ours]);
        let pinned = site.read(&format!("{}#b3={digest}", site.url()), options).code(4);
        assert!(stderr(&pinned).contains("forged"), "{}", stderr(&pinned));
    }
    assert!(!site.state().exists(), "a forged link was remembered");
    let found = site.scene.program().args(["verify", &site.url(), "--json"]).assert().code(4);
    let found: serde_json::Value = serde_json::from_slice(&found.get_output().stdout).unwrap();
    assert!(found["findings"][0]["what"].as_str().unwrap().contains("forged"), "{found}");
}

#[test]
fn an_old_state_is_refused_at_its_place_and_at_a_mirror() {
    let site = Site::new();
    site.info(&[]).success();
    let new = fs::read(site.scene.link("vm")).unwrap();
    let first = site.link().retained[0].clone();
    // As it was published: the first version, signed with the right key.
    let old = site.signed("ours", |link| (link.serial, link.current, link.retained) = (1, first.clone(), Vec::new()));

    // A mirror, which this reader has never seen.
    let mirror = site.scene.path("mirror");
    assert!(Command::new("cp").arg("-r").arg(site.scene.repo()).arg(&mirror).status().unwrap().success());
    fs::write(mirror.join("vm.vmnetx"), old.encode()).unwrap();
    let mirror = Server::of(&mirror, 1);
    let told = stderr(&site.read(&mirror.urls[0], &[]).code(4));
    assert!(told.contains("serial 1") && told.contains("serial 2") && told.contains(&mirror.urls[0]), "{told}");

    site.show(&old);
    // Not even asked for: the link is judged before anything that it names is fetched.
    fs::rename(site.scene.repo().join("manifests"), site.scene.path("manifests")).unwrap();
    for options in [&[][..], &["--trust-key", &site.ours], &["--accept-unsigned"]] {
        site.refused(options, &["rolled back", "serial 1", "serial 2"]);
    }
    fs::rename(site.scene.path("manifests"), site.scene.repo().join("manifests")).unwrap();
    // Whoever asks for just this version gets it, and learns nothing from it.
    let before = fs::read(site.state()).unwrap();
    for url in [site.url(), mirror.urls[0].clone()] {
        let pinned = site.read(&format!("{url}#b3={}", first.manifest), &[]).success();
        assert_eq!(stderr(&pinned), "");
    }
    assert_eq!(fs::read(site.state()).unwrap(), before);

    // Another text under the serial number that was read.
    site.show(&site.signed("ours", |link| link.serial = 2));
    site.refused(&[], &["serial 2", "another link"]);
    // Going back as a publisher does is no roll-back.
    site.show(&site.signed("ours", |link| link.serial = 3));
    site.silent();
    fs::write(site.scene.link("vm"), new).unwrap();
    site.refused(&[], &["serial 3"]);
}

#[test]
fn a_package_in_the_place_of_another_is_refused() {
    let site = Site::new();
    site.show(&site.signed("ours", |link| link.name = "other".parse().unwrap()));
    let digest = site.link().current.manifest;
    for options in [&[][..], &["--trust-key", &site.ours]] {
        site.refused(options, &["the link of other", "other.vmnetx"]);
        site.read(&format!("{}#b3={digest}", site.url()), options).code(4);
    }
    // With or without a signature.
    site.show(&site.unsigned(|_| ()));
    site.refused(&[], &["the link of other"]);
    assert!(!site.state().exists());
}

#[test]
fn a_link_file_that_was_handed_on_brings_its_key() {
    let site = Site::new();
    let base = format!("http://{}/", site.server.address);
    publish(&site.scene, &noise(3, 5000), &["--sign-key", "ours", "--url", &base]).success();
    let file = site.scene.path("vm.vmnetx");
    fs::copy(site.scene.link("vm"), &file).unwrap();
    let canonical = fs::read(&file).unwrap();
    let read = || site.read(file.to_str().unwrap(), &[]);
    // Nobody has read the canonical link before.
    site.show(&site.signed("other", |link| link.serial += 1));
    let told = stderr(&read().code(4));
    assert!(told.contains(&site.ours) && told.contains(&site.other), "{told}");
    site.show(&site.signed("ours", |link| link.serial = 2));
    assert!(stderr(&read().code(4)).contains("rolled back"));
    fs::write(site.scene.link("vm"), canonical).unwrap();
    assert!(stderr(&read().success()).contains(&site.ours));
    site.silent();
}

#[test]
fn readers_at_the_same_time_remember_all() {
    const PACKAGES: usize = 6;
    let site = Site::new();
    let url = |which: usize| format!("http://{}/vm{which}.vmnetx", site.server.address);
    for which in 0..PACKAGES {
        let signed = site.signed("ours", |link| link.name = format!("vm{which}").parse().unwrap());
        fs::write(site.scene.link(&format!("vm{which}")), signed.encode()).unwrap();
    }
    let program = assert_cmd::cargo::cargo_bin!("vmnetx-pack");
    let read = |url: String| {
        let mut command = Command::new(program);
        command.args(["info", &url]).env("VMNETX_STATE_DIR", site.scene.path("state"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut readers: Vec<_> = (0..PACKAGES).map(|which| read(url(which))).collect();
    for reader in &mut readers {
        assert!(reader.wait().unwrap().success());
    }
    for which in 0..PACKAGES {
        let signed = site.signed("other", |link| link.name = format!("vm{which}").parse().unwrap());
        fs::write(site.scene.link(&format!("vm{which}")), signed.encode()).unwrap();
        site.read(&url(which), &[]).code(4);
    }
}

#[test]
fn a_reader_that_is_killed_leaves_what_was_known_whole() {
    const ROUNDS: u32 = 24;
    let site = Site::new();
    // Enough that writing it takes a while.
    for which in 0..40 {
        let key = generate_key(&site.scene.path(&format!("key{which}"))).unwrap();
        site.show(&site.signed(&format!("key{which}"), |_| ()));
        site.info(&["--trust-key", &key.key.to_string()]).success();
    }
    site.show(&site.signed("ours", |_| ()));
    site.info(&["--trust-key", &site.ours]).success();
    let started = Instant::now();
    site.silent();
    let whole = started.elapsed();
    let mut killed = 0;
    for round in 1..=ROUNDS {
        site.show(&site.signed("ours", |link| link.serial += 1));
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
        command.args(["info", &site.url()]).env("VMNETX_STATE_DIR", site.scene.path("state"));
        let mut reader = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * round / ROUNDS);
        if reader.try_wait().unwrap().is_none() {
            reader.kill().unwrap();
            killed += 1;
        }
        reader.wait().unwrap();
        // Whole, and not forgotten: no word of a first use.
        site.silent();
        let known: serde_json::Value = serde_json::from_slice(&fs::read(site.state()).unwrap()).unwrap();
        assert_eq!(known["serials"].as_object().unwrap().len(), 41);
    }
    assert!(killed >= 8, "only {killed} readers were killed");
    assert_eq!(fs::read_dir(site.scene.path("state")).unwrap().count(), 2, "something is left behind");
}

#[test]
fn a_damaged_state_is_never_taken_for_an_empty_one() {
    let site = Site::new();
    site.info(&[]).success();
    let whole = fs::read(site.state()).unwrap();
    fs::write(site.state(), &whole[..whole.len() - 9]).unwrap();
    site.refused(&[], &["known-links.json is damaged", "remove"]);
    site.refused(&["--trust-key", &site.ours], &["known-links.json is damaged"]);
    assert_eq!(fs::read(site.state()).unwrap(), whole[..whole.len() - 9]);
    fs::remove_file(site.state()).unwrap();
    assert!(stderr(&site.info(&[]).success()).contains("from now on"));
}

#[test]
fn keys_can_be_listed_in_a_file() {
    let site = Site::new();
    let list = site.scene.path("keys");
    fs::write(&list, format!("# the team's\n{}\n{}\n", site.other, site.ours)).unwrap();
    let list = list.to_str().unwrap();
    assert_eq!(stderr(&site.info(&["--trust-key", list]).success()), "");
    site.info(&["--trust-key", site.scene.path("other.pub").to_str().unwrap()]).code(4);
    site.info(&["--trust-key", &site.other, "--trust-key", &site.ours]).success();
    for wrong in ["absent", "", "vmnetx-key-12", site.scene.link("vm").to_str().unwrap()] {
        site.info(&["--trust-key", wrong]).code(2);
    }
}

#[test]
fn state_lies_where_the_desktop_has_it() {
    let site = Site::new();
    let (home, xdg) = (site.scene.path("home"), site.scene.path("xdg"));
    let mut command = program();
    command.env_remove("VMNETX_STATE_DIR").env_remove("XDG_STATE_HOME").env("HOME", &home);
    command.args(["info", &site.url()]).assert().success();
    assert!(home.join(".local/state/vmnetx/known-links.json").exists());
    command.env("XDG_STATE_HOME", &xdg).assert().success();
    assert!(xdg.join("vmnetx/known-links.json").exists());
    // Where there is none, the user is told that nothing is remembered.
    command.env_remove("XDG_STATE_HOME").env_remove("HOME");
    let told = stderr(&command.assert().success());
    assert!(told.starts_with("warning: ") && told.contains("not remembered"), "{told}");
}
