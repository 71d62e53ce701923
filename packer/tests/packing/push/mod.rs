//! Pushing to a real S3 server, through good and bad networks, against other publishers and after being killed.

mod faults;
mod links;
mod objects;
mod proxy;
mod prune;
mod server;

use std::process::{Command, Output};

use vmnetx_pack::{Depth, Reader, Silent, verify_remote};

use crate::support::{Scene, noise, text};

/// The keys that the server knows.
const KEY_ID: &str = "AKIDOFTHETESTS";
const SECRET: &str = "hush/SecretOfTheTests+0123456789";

/// `vmnetx-pack push` of the scene's repository to a bucket, with good credentials and nothing else from the environment.
fn command_to(scene: &Scene, bucket: &str, words: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vmnetx-pack"));
    command.env_clear().env("HOME", scene.path("home"));
    command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.arg("push").arg(scene.repo()).args([bucket, "--quiet"]).args(words);
    command
}

/// The same to the bucket of the tests.
fn command(scene: &Scene, endpoint: &str, words: &[&str]) -> Command {
    command_to(scene, "s3://vms/lab", &[&["--endpoint", endpoint], words].concat())
}

/// Runs it to its end; its exit code and what it said on standard output and standard error.
fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Pushes, which must succeed; the report.
fn pushed(scene: &Scene, endpoint: &str, words: &[&str]) -> serde_json::Value {
    let (code, out, told) = run(command(scene, endpoint, &[words, &["--json"]].concat()));
    assert_eq!(code, 0, "{told}");
    serde_json::from_str(&out).unwrap()
}

/// Reads everything that a reader of the link may ask for.
fn verify_whole(url: &str) {
    let report = verify_remote(&url.parse().unwrap(), Depth::Deep, &Reader::default(), &Silent).unwrap();
    assert_eq!(report.findings, []);
}

/// A disk whose chunks fill more than two packs, so that some objects are uploaded in parts and others whole.
fn disk(seed: u64) -> Vec<u8> {
    [noise(seed, 70 << 20), text(seed, 1 << 20)].concat()
}
