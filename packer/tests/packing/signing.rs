//! Keys and signatures as a publisher handles them, compared with what OpenSSL says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use assert_cmd::assert::Assert;
use vmnetx_format::{Envelope, Link, PublicKey};
use vmnetx_store::dir::Wait;

use crate::support::{Scene, noise, program, text};

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn json(assert: &Assert) -> serde_json::Value {
    serde_json::from_slice(&assert.get_output().stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Makes a key in the scene's folder; its public key.
pub(crate) fn keygen(scene: &Scene, name: &str) -> String {
    let made = program().arg("keygen").arg(scene.path(name)).arg("--json").assert().success();
    json(&made)["key"].as_str().unwrap().to_owned()
}

/// Publishes this data as `vm`, with these options too.
pub(crate) fn publish(scene: &Scene, data: &[u8], options: &[&str]) -> Assert {
    let image = scene.image("disk", data);
    let mut command = program();
    command.current_dir(scene.path("")).args(["build", "repo", "vm", "--quiet", "--disk"]).arg(image).args(options);
    command.assert()
}

fn sign(scene: &Scene, options: &[&str]) -> Assert {
    program().current_dir(scene.path("")).args(["sign", "repo", "vm"]).args(options).assert()
}

fn link(scene: &Scene) -> Envelope {
    Envelope::decode(&fs::read(scene.link("vm")).unwrap()).unwrap()
}

fn signer(scene: &Scene) -> Option<String> {
    link(scene).signer().unwrap().map(|key| key.to_string())
}

/// Changes the link as somebody does who may write the file, but has no key.
fn forge(scene: &Scene, edit: impl FnOnce(&mut Link)) {
    let Envelope { link: mut forged, signature, .. } = link(scene);
    edit(&mut forged);
    let mut forged = Envelope::unsigned(forged).unwrap();
    forged.signature = signature;
    fs::write(scene.link("vm"), forged.encode()).unwrap();
}

#[test]
fn a_key_is_its_owners_alone_and_never_replaced() {
    let scene = Scene::new();
    // Whatever mask the user has.
    let script = format!("umask 000; exec '{}' keygen key", assert_cmd::cargo::cargo_bin!("vmnetx-pack").display());
    let made = Command::new("sh").args(["-c", &script]).current_dir(scene.path("")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (secret, public) = (scene.path("key"), scene.path("key.pub"));
    assert_eq!(mode(&secret), 0o600);
    let key = fs::read_to_string(&public).unwrap();
    let told = String::from_utf8(made.stdout).unwrap();
    assert_eq!(told.lines().next(), Some(format!("key       {}", key.trim_end()).as_str()));
    assert!(key.trim_end().parse::<PublicKey>().is_ok(), "{key}");
    let text = fs::read_to_string(&secret).unwrap();
    let seed = text.split(' ').nth(1).unwrap();
    assert!(seed.len() == 64 && !told.contains(seed), "the secret is shown");
    assert_eq!(fs::read_dir(scene.path("")).unwrap().count(), 2, "temporary files are left");

    for there in [&secret, &public] {
        let before = fs::read(there).unwrap();
        let refused = program().arg("keygen").arg(&secret).assert().code(2);
        assert!(stderr(&refused).contains("exists already"), "{}", stderr(&refused));
        assert_eq!(fs::read(there).unwrap(), before);
        // Also when only one of the two is there.
        fs::rename(there, scene.path("aside")).unwrap();
        program().arg("keygen").arg(&secret).assert().code(2);
        assert!(!there.exists());
        fs::rename(scene.path("aside"), there).unwrap();
    }
    assert_ne!(keygen(&scene, "other"), key.trim_end());
    program().arg("keygen").arg(scene.path("absent/key")).assert().code(1);
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let scene = Scene::new();
    keygen(&scene, "key");
    let key = scene.path("key");
    publish(&scene, &text(1, 5000), &[]).success();
    for open in [0o644, 0o640, 0o660, 0o604, 0o602] {
        fs::set_permissions(&key, fs::Permissions::from_mode(open)).unwrap();
        for refused in [sign(&scene, &["--sign-key", "key"]), publish(&scene, b"x", &["--sign-key", "key"])] {
            let refused = refused.code(2);
            let told = stderr(&refused);
            assert!(told.contains(&format!("mode {open:03o}")) && told.contains("chmod 600"), "{told}");
        }
    }
    for private in [0o600, 0o400] {
        fs::set_permissions(&key, fs::Permissions::from_mode(private)).unwrap();
        sign(&scene, &["--sign-key", "key"]).success();
    }
    assert!(signer(&scene).is_some());
    let secret = fs::read_to_string(&key).unwrap();
    for damaged in [secret.replace(' ', "  "), secret[..70].to_owned(), "x".repeat(100_000), String::new()] {
        fs::write(scene.path("damaged"), damaged).unwrap();
        fs::set_permissions(scene.path("damaged"), fs::Permissions::from_mode(0o600)).unwrap();
        let refused = sign(&scene, &["--sign-key", "damaged"]).code(2);
        assert!(stderr(&refused).contains("damaged: not a secret key"), "{}", stderr(&refused));
    }
    sign(&scene, &["--sign-key", "absent"]).code(1);
    // The public key's file is taken for what it is, and no secret is shown where the files are mixed up.
    fs::set_permissions(scene.path("key.pub"), fs::Permissions::from_mode(0o600)).unwrap();
    sign(&scene, &["--sign-key", "key.pub"]).code(2);
    let mixed = program().args(["info", "--trust-key", secret.trim_end()]).arg(scene.link("vm")).assert().code(2);
    assert!(stderr(&mixed).contains("secret key"), "{}", stderr(&mixed));
}

#[test]
fn openssl_finds_the_signature_good() {
    let scene = Scene::new();
    let key = keygen(&scene, "key");
    publish(&scene, &text(1, 5000), &["--sign-key", "key", "--title", "Ünïcode \"quoted\""]).success();
    let file: serde_json::Value = serde_json::from_slice(&fs::read(scene.link("vm")).unwrap()).unwrap();
    let bytes = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let public = file["signature"]["key"].as_str().unwrap();
    assert_eq!(key, format!("vmnetx-key-{public}"));
    // What stands before the 32 bytes of an Ed25519 key in its DER form (RFC 8410).
    let der = [bytes("302a300506032b6570032100"), bytes(public)].concat();
    fs::write(scene.path("public.der"), der).unwrap();
    fs::write(scene.path("signature"), bytes(file["signature"]["ed25519"].as_str().unwrap())).unwrap();
    let verified = |message: &[u8]| {
        fs::write(scene.path("message"), message).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", "public.der"]);
        openssl.args(["-sigfile", "signature", "-in", "message"]).current_dir(scene.path(""));
        openssl.output().unwrap().status.success()
    };
    let text = link(&scene).text().to_vec();
    assert!(verified(&[b"vmnetx link 0\n", &text[..]].concat()));
    assert!(!verified(&text), "the text alone is signed");
}

#[test]
fn a_signature_is_neither_lost_nor_changed_by_accident() {
    let scene = Scene::new();
    let (ours, other) = (keygen(&scene, "ours"), keygen(&scene, "other"));
    assert_eq!(json(&publish(&scene, &text(1, 5000), &["--sign-key", "ours", "--json"]).success())["key"], ours);
    assert_eq!(signer(&scene), Some(ours.clone()));
    let before = fs::read(scene.link("vm")).unwrap();

    let refused = publish(&scene, &text(2, 5000), &[]).code(1);
    let told = stderr(&refused);
    assert!(told.contains("is signed") && told.contains("--sign-key") && told.contains("--remove"), "{told}");
    for refused in [publish(&scene, &text(2, 5000), &["--sign-key", "other"]), sign(&scene, &["--sign-key", "other"])] {
        let refused = refused.code(1);
        let told = stderr(&refused);
        assert!(told.contains(&ours) && told.contains(&other) && told.contains("--replace-key"), "{told}");
    }
    publish(&scene, &text(2, 5000), &["--replace-key"]).code(2);
    sign(&scene, &[]).code(2);
    sign(&scene, &["--sign-key", "ours", "--remove"]).code(2);
    assert_eq!(fs::read(scene.link("vm")).unwrap(), before);
    // What was refused was refused before any work.
    assert_eq!(scene.verify_whole().unreferenced, Vec::<String>::new());

    publish(&scene, &text(2, 5000), &["--sign-key", "ours"]).success();
    assert_eq!((link(&scene).link.serial, signer(&scene)), (2, Some(ours)));
    publish(&scene, &text(3, 5000), &["--sign-key", "other", "--replace-key"]).success();
    assert_eq!((link(&scene).link.serial, signer(&scene)), (3, Some(other.clone())));
    let removed = sign(&scene, &["--remove"]).success();
    assert!(stderr(&removed).contains("refuse"), "{}", stderr(&removed));
    assert_eq!((link(&scene).link.serial, signer(&scene)), (3, None));
    assert!(stdout(&sign(&scene, &["--remove"]).success()).contains("no signature"));
    publish(&scene, &text(4, 5000), &[]).success();
    assert_eq!(signer(&scene), None);
    scene.verify_whole();
}

#[test]
fn signing_a_link_changes_nothing_that_it_says() {
    let scene = Scene::new();
    let key = keygen(&scene, "key");
    publish(&scene, &text(1, 5000), &[]).success();
    let unsigned = link(&scene);
    let signed = json(&sign(&scene, &["--sign-key", "key", "--json"]).success());
    assert_eq!((&signed["key"], &signed["serial"], &signed["changed"]), (&key.into(), &1.into(), &true.into()));
    assert_eq!(link(&scene).text(), unsigned.text());
    let again = sign(&scene, &["--sign-key", "key"]).success();
    assert!(stdout(&again).contains("already"), "{}", stdout(&again));
    // The same disk again is no new version, with or without a signature that was missing.
    let built = json(&publish(&scene, &text(1, 5000), &["--sign-key", "key", "--json"]).success());
    assert_eq!(built["published"], false);
    sign(&scene, &["--remove"]).success();
    assert_eq!(fs::read(scene.link("vm")).unwrap(), unsigned.encode());
    let built = json(&publish(&scene, &text(1, 5000), &["--sign-key", "key", "--json"]).success());
    assert_eq!((&built["published"], &built["serial"]), (&true.into(), &1.into()));
    assert_eq!(link(&scene).text(), unsigned.text());

    let mut absent = program();
    absent.current_dir(scene.path("")).args(["sign", "repo", "absent", "--sign-key", "key"]);
    assert!(stderr(&absent.assert().code(2)).contains("no package absent"));
    let held = scene.repository().lock(Wait::No).unwrap();
    assert!(stderr(&sign(&scene, &["--sign-key", "key"]).code(1)).contains("another publisher"));
    drop(held);
}

#[test]
fn a_forged_link_is_found_and_not_built_upon() {
    let scene = Scene::new();
    let key = keygen(&scene, "key");
    publish(&scene, &noise(1, 5000), &["--sign-key", "key"]).success();
    let good = program().arg("info").arg(scene.link("vm")).assert().success();
    assert!(stdout(&good).contains(&format!("signature good, with {key}\n")), "{}", stdout(&good));
    scene.verify_whole();

    forge(&scene, |link| link.serial = 9);
    let findings = scene.verify().findings;
    assert_eq!(findings.len(), 1);
    assert!(findings[0].object == "vm.vmnetx" && findings[0].what.contains(&key), "{findings:?}");
    program().arg("verify").arg(scene.link("vm")).assert().code(4);
    let info = json(&program().arg("info").arg(scene.link("vm")).arg("--json").assert().success());
    assert_eq!((&info["signature"]["key"], &info["signature"]["good"]), (&key.clone().into(), &false.into()));
    let told = stdout(&program().arg("info").arg(scene.link("vm")).assert().success());
    assert!(told.contains("signature BAD"), "{told}");
    program().arg("export").arg(scene.link("vm")).args(["disk0", "-"]).assert().code(4);
    for refused in [publish(&scene, &noise(2, 5000), &["--sign-key", "key"]), sign(&scene, &["--sign-key", "key"])] {
        let refused = refused.code(4);
        assert!(stderr(&refused).contains("forged or damaged"), "{}", stderr(&refused));
    }
    sign(&scene, &["--sign-key", "key", "--replace-key"]).success();
    scene.verify_whole();
    assert_eq!(link(&scene).link.serial, 9);
}

/// Every command that changes a link signs it again, and none goes by a forged one.
#[test]
fn a_link_is_signed_again_when_its_versions_change() {
    let scene = Scene::new();
    let key = keygen(&scene, "key");
    keygen(&scene, "other");
    for seed in 1..=3 {
        publish(&scene, &noise(seed, 5000), &["--sign-key", "key"]).success();
    }
    let first = link(&scene).link.retained[1].manifest.to_string();
    let change = |words: &[&str], options: &[&str]| {
        let mut command = program();
        command.current_dir(scene.path("")).args(&words[..1]).args(["repo", "vm"]).args(&words[1..]).args(options);
        command.assert()
    };
    for (serial, words) in [(4, &["rollback", &first][..]), (5, &["retain", "--keep", "1"])] {
        assert!(stderr(&change(words, &[]).code(1)).contains("--sign-key"));
        change(words, &["--sign-key", "other"]).code(1);
        change(words, &["--sign-key", "key"]).success();
        assert_eq!((link(&scene).link.serial, signer(&scene)), (serial, Some(key.clone())));
    }
    scene.verify_whole();
    forge(&scene, |link| link.retained.clear());
    change(&["retain", "--keep", "1"], &["--sign-key", "key"]).code(4);
    // What a forged link leaves out is not removed for its sake.
    let before = scene.files();
    let refused = program().arg("prune").arg(scene.repo()).args(["--grace", "0s"]).assert().code(4);
    assert!(stderr(&refused).contains("forged"), "{}", stderr(&refused));
    assert_eq!(scene.files(), before);
}

#[test]
fn on_this_host_only_what_is_demanded_counts() {
    let scene = Scene::new();
    let (ours, other) = (keygen(&scene, "ours"), keygen(&scene, "other"));
    publish(&scene, &noise(1, 5000), &["--sign-key", "ours"]).success();
    let reading = |key: &str, code: i32| {
        for (command, more) in [("info", &[][..]), ("verify", &[]), ("export", &["disk0", "-", "--quiet"])] {
            let target = scene.link("vm");
            scene.program().arg(command).arg(target).args(more).args(["--trust-key", key]).assert().code(code);
        }
        scene.program().arg("verify").arg(scene.repo()).args(["--trust-key", key]).assert().code(code);
    };
    reading(&ours, 0);
    reading(scene.path("ours.pub").to_str().unwrap(), 0);
    reading(&other, 4);
    sign(&scene, &["--remove"]).success();
    reading(&ours, 4);
    // Nothing is remembered: the publisher makes and unmakes as they please.
    program().arg("export").arg(scene.link("vm")).args(["disk0", "-", "--quiet"]).assert().success();
    assert!(!scene.path("state").exists());
}
