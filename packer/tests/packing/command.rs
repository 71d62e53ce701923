//! The command line: what goes to standard output, what to standard error, and the exit codes.

use std::fs;
use std::path::Path;

use assert_cmd::assert::Assert;
use vmnetx_store::dir::Wait;

use crate::support::{Scene, noise, program, text};

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn json(text: &str) -> serde_json::Value {
    assert_eq!(text.lines().count(), 1, "one line of JSON: {text}");
    serde_json::from_str(text).unwrap()
}

fn build(scene: &Scene, image: &Path) -> assert_cmd::Command {
    let mut command = program();
    command.arg("build").arg(scene.repo()).arg("vm").arg("--disk").arg(image);
    command
}

#[test]
fn build_reports_on_stdout_and_json_is_one_object() {
    let scene = Scene::new();
    let image = scene.image("a", &[noise(1, 100_000), vec![0; 100_000]].concat());
    let first = build(&scene, &image).args(["--title", "A machine"]).assert().success();
    assert!(stdout(&first).starts_with("published vm, serial 1\nversion   "), "{}", stdout(&first));
    assert_eq!(stderr(&first), "", "a short build has nothing to say");
    let again = build(&scene, &image).arg("--json").assert().success();
    let report = json(&stdout(&again));
    assert_eq!(report["published"], false);
    assert_eq!(report["new_chunks"], 0);
    assert_eq!(report["written_bytes"], 0);
    assert_eq!(report["disk_bytes"], 200_000);
    assert_eq!(report["data_bytes"], 102_400);
    assert!(stdout(&build(&scene, &image).assert().success()).contains("nothing was changed"));

    let info = program().arg("info").arg(scene.link("vm")).arg("--json").assert().success();
    let info = json(&stdout(&info));
    assert_eq!(info["version"], report["version"]);
    assert_eq!(info["title"], "A machine");
    assert_eq!(info["machine"]["machine"], "pc-i440fx-7.2");
    assert_eq!(info["disks"][0]["chunks"], report["chunks"]);
    assert_eq!(info["disks"][0]["data_bytes"], 102_400);
    let text = stdout(&program().arg("info").arg(scene.link("vm")).assert().success());
    assert!(text.contains("title     A machine\n"), "{text}");

    let list = json(&stdout(&program().arg("list").arg(scene.repo()).arg("--json").assert().success()));
    assert_eq!(list[0]["name"], "vm");
    assert_eq!(list[0]["disk_bytes"], 200_000);
    let text = stdout(&program().arg("list").arg(scene.repo()).assert().success());
    assert!(text.starts_with("vm  2"), "{text}");

    let verify = json(&stdout(&program().arg("verify").arg(scene.repo()).arg("--json").assert().success()));
    assert_eq!(verify["findings"].as_array().unwrap().len(), 0);
    program().arg("verify").arg(scene.link("vm")).assert().success();
}

#[test]
fn disks_have_the_names_that_they_are_given() {
    let scene = Scene::new();
    let plain = scene.image("plain", b"one");
    let equals = scene.image("a=b", b"two");
    let mut named = std::ffi::OsString::from("data=");
    named.push(&plain);
    program()
        .arg("build")
        .arg(scene.repo())
        .arg("vm")
        .arg("--disk")
        .args([plain, equals])
        .arg(named)
        .assert()
        .success();
    let info = program().arg("info").arg(scene.link("vm")).arg("--json").assert().success();
    let info = json(&stdout(&info));
    let names: Vec<_> = info["disks"].as_array().unwrap().iter().map(|disk| disk["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk0", "disk1", "data"]);
    assert_eq!(fs::read(scene.export(scene.link("vm").to_str().unwrap(), "disk1")).unwrap(), b"two");
}

#[test]
fn export_writes_the_image_and_nothing_else() {
    let scene = Scene::new();
    let data = [text(1, 50_000), vec![0; 20 << 20], noise(2, 12_345)].concat();
    build(&scene, &scene.image("a", &data)).assert().success();
    let link = scene.link("vm");
    let piped = program().arg("export").arg(&link).args(["disk0", "-", "--quiet"]).assert().success();
    assert!(piped.get_output().stdout == data);
    assert_eq!(stderr(&piped), "");
    let talking = program().arg("export").arg(&link).args(["disk0", "-"]).assert().success();
    assert!(talking.get_output().stdout == data);
    assert!(stderr(&talking).starts_with("exported "));

    let out = scene.path("out");
    program().arg("export").arg(&link).arg("disk0").arg(&out).assert().success();
    assert!(fs::read(&out).unwrap() == data);
    let metadata = fs::metadata(&out).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 1 << 20, "the zeros are not holes");

    fs::write(&out, "precious").unwrap();
    let refused = program().arg("export").arg(&link).arg("disk0").arg(&out).assert().code(2);
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    program().arg("export").arg(&link).arg("disk0").arg(&out).arg("--force").assert().success();
    assert!(fs::read(&out).unwrap() == data);

    let refused = program().arg("export").arg(&link).arg("sda").arg(scene.path("x")).assert().code(2);
    assert!(stderr(&refused).contains("it has disk0"), "{}", stderr(&refused));
    program().arg("export").arg(&link).arg("disk0").arg("/dev/null").arg("--force").assert().code(2);
    program().arg("export").arg(&link).args(["disk0", "-", "--json"]).assert().code(2);
}

#[test]
fn failures_have_their_exit_codes_and_leave_stdout_empty() {
    let scene = Scene::new();
    let image = scene.image("a", &noise(1, 10_000));
    build(&scene, &image).assert().success();
    let failing = |arguments: &[&str], code: i32, words: &str| {
        let assert = scene.program().current_dir(scene.path("")).args(arguments).assert().code(code);
        let told = stderr(&assert);
        assert!(told.contains(words), "{arguments:?}: {told}");
        assert_eq!(stdout(&assert), "", "{arguments:?}");
    };
    failing(&["build", "repo", "vm"], 2, "--disk");
    failing(&["build", "repo", "../vm", "--disk", "a"], 2, "is not a name");
    failing(&["build", "repo", "vm", "--disk", "a", "--format", "luks"], 2, "qcow2");
    failing(&["build", "repo", "vm", "--disk", "a", "--format", "qcow2"], 2, "is not qcow2");
    failing(&["build", "repo", "vm", "--disk", "a", "--base", "current", "--chunk-size", "16K"], 2, "--chunk-size");
    failing(&["build", "repo", "vm", "--disk", "a", "--base", "latest"], 2, "latest");
    failing(&["build", "repo", "vm", "--disk", "a", "--level", "23"], 2, "23");
    failing(&["build", "repo", "vm", "--disk", "a", "--chunk-size", "2K"], 2, "8K to 1M");
    failing(&["build", "repo", "vm", "--disk", "a", "--url", "ftp://example.org/"], 2, "neither http nor https");
    failing(&["build", "repo", "vm", "--disk", "absent"], 1, "open disk image absent");
    failing(&["build", "repo", "vm", "--disk", "repo"], 2, "neither a regular file nor a block device");
    failing(&["build", ".", "vm", "--disk", "a"], 2, "not empty");
    failing(&["build", "repo", "vm", "--disk", "a", "--machine", "absent"], 1, "read machine description absent");
    fs::write(scene.path("machine.toml"), "machine = \"pc-q35-7.2\"\nqemu = \"-enable-kvm\"\n").unwrap();
    failing(&["build", "repo", "vm", "--disk", "a", "--machine", "machine.toml"], 2, "qemu");
    failing(&["info", "repo/absent.vmnetx"], 1, "absent.vmnetx");
    failing(&["list", "."], 2, "is not a VMNetX repository");
    failing(&["verify", "."], 2, "is not a VMNetX repository");
    failing(&["verify", "a"], 2, "neither a repository nor a link");
    failing(&["verify", "repo/absent.vmnetx"], 1, "absent.vmnetx");
    failing(&["serve", "repo", "--listen", "192.0.2.1:1"], 6, "192.0.2.1:1");
    failing(&["info", "http://127.0.0.1:1/vm.vmnetx"], 5, "127.0.0.1");

    let held = scene.repository().lock(Wait::No).unwrap();
    failing(&["build", "repo", "vm", "--disk", "a"], 1, "another publisher");
    drop(held);
    fs::write(scene.link("vm"), "damaged").unwrap();
    failing(&["info", "repo/vm.vmnetx"], 4, "damaged");
    failing(&["list", "repo"], 4, "damaged");
}

#[test]
fn help_names_every_command() {
    let help = stdout(&program().arg("--help").assert().success());
    for command in ["build", "describe-domain", "info", "list", "verify", "export", "push", "serve", "keygen", "sign"] {
        assert!(help.contains(command), "{help}");
        program().args([command, "--help"]).assert().success();
    }
    assert!(stdout(&program().arg("--version").assert().success()).starts_with("vmnetx-pack "));
}
