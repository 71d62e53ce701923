//! Machines from libvirt domain XML: what becomes of the domains in `tests/domains`, and packages built from some.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Scene, noise, program, qemu};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/domains")
}

fn names() -> Vec<String> {
    let files = fs::read_dir(samples()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter_map(|name| Some(name.strip_suffix(".xml")?.to_owned())).collect();
    names.sort();
    names
}

fn described(file: &Path, options: &[&str]) -> (String, String) {
    let assert = program().arg("describe-domain").arg(file).args(options).assert().success();
    let output = assert.get_output();
    (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn remarks(description: &Value) -> Vec<(String, String)> {
    let text = |remark: &Value, field: &str| remark[field].as_str().unwrap().to_owned();
    let remarks = description["remarks"].as_array().unwrap();
    remarks.iter().map(|remark| (text(remark, "kind"), text(remark, "path"))).collect()
}

/// A domain on a Q35 board with these devices.
fn domain(scene: &Scene, devices: &str) -> PathBuf {
    let path = scene.path("domain.xml");
    let text = format!(
        "<domain type='kvm'><name>vm</name><memory unit='MiB'>256</memory>\
         <os><type arch='x86_64' machine='pc-q35-6.2'>hvm</type></os><features><acpi/></features>\
         <devices>{devices}</devices></domain>"
    );
    fs::write(&path, text).unwrap();
    path
}

fn disk(path: &Path, format: &str, target: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
         <target dev='{target}' bus='virtio'/></disk>",
        path.display()
    )
}

fn build(scene: &Scene, domain: &Path, options: &[&str]) -> assert_cmd::Command {
    let mut command = program();
    command.arg("build").arg(scene.repo()).arg("vm").arg("--domain").arg(domain).args(options);
    command
}

fn failing(mut command: assert_cmd::Command, words: &[&str]) {
    let assert = command.assert().code(2);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(assert.get_output().stdout.is_empty());
}

#[test]
fn domains_become_machines_with_a_remark_for_all_that_is_not_in_them() {
    for name in names() {
        let (machine, remarks) = described(&samples().join(format!("{name}.xml")), &[]);
        insta::with_settings!({ snapshot_path => samples(), prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, format!("{machine}\n{remarks}"));
        });
    }
}

#[test]
fn the_sample_domains_are_what_libvirt_takes() {
    for name in names() {
        let output = Command::new("virt-xml-validate")
            .arg(samples().join(format!("{name}.xml")))
            .arg("domain")
            .output()
            .expect("virt-xml-validate is there: run tests/setup");
        assert_eq!(output.status.success(), name != "hostile", "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_boards_that_a_domain_keeps_are_boards_of_qemu() {
    let output = Command::new("qemu-system-x86_64").args(["-machine", "help"]).output();
    let output = output.expect("qemu-system-x86_64 is there: run tests/setup");
    let help = String::from_utf8(output.stdout).unwrap();
    let scene = Scene::new();
    for version in ["5.0", "5.1", "5.2", "6.0", "6.1", "6.2", "7.0", "7.1", "7.2"] {
        for board in [format!("pc-i440fx-{version}"), format!("pc-q35-{version}")] {
            assert!(help.lines().any(|line| line.starts_with(&format!("{board} "))), "{board}");
            let file = domain(&scene, "");
            let text = fs::read_to_string(&file).unwrap().replace("pc-q35-6.2", &board);
            fs::write(&file, text).unwrap();
            let (machine, _) = described(&file, &[]);
            assert!(machine.starts_with(&format!("machine = \"{board}\"\n")), "{machine}");
        }
    }
}

#[test]
fn what_a_remark_names_is_found_by_others() {
    for name in names().into_iter().filter(|name| name != "hostile") {
        let file = samples().join(format!("{name}.xml"));
        let description: Value = serde_json::from_str(&described(&file, &["--json"]).0).unwrap();
        let mut there = remarks(&description);
        // What is assumed or changed need not stand in the text, and xmllint knows no prefixes.
        there.retain(|(kind, path)| matches!(&**kind, "dropped" | "refused") && !path.contains(':'));
        assert!(!there.is_empty(), "{name}");
        let counts: Vec<_> = there.iter().map(|(_, path)| format!("count({path})")).collect();
        let expression = format!("concat({},'')", counts.join(",' ',"));
        let output = Command::new("xmllint").args(["--xpath", &expression]).arg(&file).output();
        let output = output.expect("xmllint is there: run tests/setup");
        let said = String::from_utf8(output.stdout).unwrap();
        for ((_, path), count) in there.iter().zip(said.split_whitespace()) {
            assert_eq!(count, "1", "{name}: {path}");
        }
        assert_eq!(said.split_whitespace().count(), there.len(), "{said}");
    }
}

#[test]
fn a_domains_own_disks_are_published_in_its_order() {
    let scene = Scene::new();
    let (system, data) = (noise(1, 100_000), noise(2, 50_000));
    let disks = [
        disk(&scene.image("data", &data), "raw", "vdb"),
        disk(&scene.image("system", &system), "raw", "vda"),
        "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>".to_owned(),
    ];
    let file = domain(&scene, &disks.concat());
    let assert = build(&scene, &file, &["--json"]).assert().success();
    assert!(assert.get_output().stderr.is_empty());
    let report: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(report["published"], true);
    assert_eq!(report["domain"]["disks"][0]["target"], "vda");
    assert!(remarks(&report["domain"]).contains(&("dropped".into(), "/domain/devices/disk[3]".into())));
    let link = scene.link("vm").display().to_string();
    assert!(fs::read(scene.export(&link, "disk0")).unwrap() == system);
    assert!(fs::read(scene.export(&link, "disk1")).unwrap() == data);
    let info = program().args(["info", &link, "--json"]).assert().success();
    let info: Value = serde_json::from_slice(&info.get_output().stdout).unwrap();
    assert_eq!(info["machine"]["machine"], "pc-q35-6.2");
    assert_eq!((&info["machine"]["memory_mib"], &info["machine"]["disk_bus"]), (&256.into(), &"virtio".into()));

    // The same machine by way of a file that could be edited.
    let toml = scene.path("machine.toml");
    fs::write(&toml, described(&file, &[]).0).unwrap();
    let mut again = program();
    again.arg("build").arg(scene.repo()).args(["vm", "--machine"]).arg(&toml).arg("--disk");
    let assert = again.arg(scene.path("system")).arg(scene.path("data")).assert().success();
    assert!(String::from_utf8_lossy(&assert.get_output().stdout).contains("nothing was changed"));

    // Without --json the remarks go to standard error.
    let assert = build(&scene, &file, &[]).assert().success();
    let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(
        told.contains("dropped  /domain/devices/disk[3]: ") && told.contains("disk0 is the domain's vda"),
        "{told}"
    );
}

#[test]
fn given_disks_take_the_places_of_the_domains() {
    let scene = Scene::new();
    let image = scene.image("a", b"a");
    let image = image.to_str().unwrap();
    let disks = disk(&scene.path("absent.qcow2"), "qcow2", "vda");
    let network = "<disk type='network'><source protocol='rbd' name='a/b'/><target dev='vdb' bus='virtio'/></disk>";
    let file = domain(&scene, &format!("{disks}{network}"));
    build(&scene, &file, &["--disk", &format!("system={image}"), image]).assert().success();
    let names = program().arg("info").arg(scene.link("vm")).arg("--json").assert().success();
    let info: Value = serde_json::from_slice(&names.get_output().stdout).unwrap();
    assert_eq!((&info["disks"][0]["name"], &info["disks"][1]["name"]), (&"system".into(), &"disk1".into()));
    failing(build(&scene, &file, &["--disk", image]), &["places for 2 disks", "gives 1"]);

    let file = domain(&scene, &disk(&scene.path("absent.img"), "luks", "vda"));
    failing(build(&scene, &file, &[]), &["\"vda\"", "absent.img", "\"luks\"", "qemu-img convert", "--disk"]);
}

#[test]
fn the_domains_own_disks_have_the_formats_that_it_says() {
    let scene = Scene::new();
    let raw = scene.image("a", &noise(1, 100 << 10));
    let image = scene.path("a.qcow2");
    qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2"], &[], &[&raw, &image]);
    let file = domain(&scene, &[disk(&raw, "raw", "vda"), disk(&image, "qcow2", "vdb")].concat());
    build(&scene, &file, &[]).assert().success();
    let manifest = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link.current;
    let disks = scene.repository().manifest(&manifest).unwrap().disks;
    assert_eq!((disks.len(), disks[0].content), (2, disks[1].content));
    failing(build(&scene, &file, &["--format", "raw"]), &["--disk"]);
}

#[test]
fn a_domain_with_what_no_package_can_have_is_refused_with_all_of_it() {
    let scene = Scene::new();
    let image = scene.image("a", b"a");
    let devices = format!("{}<hostdev/><hostdev/><tpm model='tpm-crb'/>", disk(&image, "raw", "vda"));
    let file = domain(&scene, &devices);
    failing(
        build(&scene, &file, &[]),
        &[
            "domain.xml: ",
            "/domain/devices/hostdev[1]: ",
            "/domain/devices/hostdev[2]: ",
            "/domain/devices/tpm: ",
            "--drop",
        ],
    );
    failing(build(&scene, &file, &["--drop", "/domain/devices/tpm"]), &["hostdev[1]"]);
    failing(build(&scene, &file, &["--drop", "/domain/devices/vsock"]), &["nothing that is refused lies at"]);
    failing(build(&scene, &file, &["--drop", "tpm"]), &["no path below /domain"]);
    failing(build(&scene, &file, &["--machine", "x.toml"]), &["--machine", "cannot be used with"]);
    assert!(!scene.repo().exists(), "nothing was begun");
    let drop = ["--drop", "/domain/devices/tpm", "--drop", "/domain/devices/hostdev", "--json"];
    let assert = build(&scene, &file, &drop).assert().success();
    let report: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert!(remarks(&report["domain"]).iter().all(|(kind, _)| kind != "refused"));

    let mut command = program();
    command.arg("build").arg(scene.repo()).arg("vm").arg("--disk").arg(&image).args(["--drop", "/domain/cpu"]);
    failing(command, &["--domain"]);
    failing(build(&scene, &image, &[]), &["this is no XML"]);
}
