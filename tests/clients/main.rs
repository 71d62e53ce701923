//! Packages on a real web server, read by other people's NBD clients through our programs.
//!
//! Needs what `tests/setup test` installs.

#[path = "../../nbd-server/store/tests/support/certificates.rs"]
#[allow(dead_code, reason = "the tests of other crates use other parts")]
mod certificates;
mod network;
mod publishing;
mod support;
mod tls;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use support::{Ended, Served, Site, disk, said, talk, tool, vmnetx, wait_until};

/// 20 MiB and a bit: two leaves.
const BLOCKS: usize = 5120;

#[test]
fn libnbds_tools_see_and_copy_the_disk() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let size = said(&mut tool("nbdinfo", &["--size", &served.uri]));
    assert_eq!(size.trim(), published.len().to_string());
    for (question, answer) in [("--is", "read-only"), ("--can", "multi-conn"), ("--can", "df"), ("--can", "connect")] {
        said(&mut tool("nbdinfo", &[question, answer, &served.uri]));
    }
    assert!(said(&mut tool("nbdinfo", &["--list", &served.uri])).contains("export=\"disk0\""));
    // The map adds up to the disk and calls nothing a hole that is not zero.
    let map = said(&mut tool("nbdinfo", &["--map", &served.uri]));
    let mut end = 0;
    for line in map.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (offset, length): (usize, usize) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        assert_eq!(offset, end, "{line}");
        end += length;
        let zero = published[offset..end].iter().all(|&byte| byte == 0);
        assert!(zero || words[2] == "0", "{line}");
        assert!(!zero || words[2] == "3", "{line}");
    }
    assert_eq!(end, published.len());
    for how in
        [&[][..], &["--synchronous", "--no-extents"], &["--connections=4", "--requests=64"], &["--request-size=4096"]]
    {
        let copy = site.path("copy");
        let _ = fs::remove_file(&copy);
        said(tool("nbdcopy", how).arg(&served.uri).arg(&copy));
        assert!(fs::read(&copy).unwrap() == published, "{how:?}");
    }
    served.stop();
    assert!(!site.path("nbd").exists());
}

/// What a guest wrote over the served disk is published as the next version, without a look at the rest.
#[test]
fn an_overlay_over_the_served_disk_becomes_the_next_version() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let repository = site.path("repository");
    let link = repository.join("vm.vmnetx");
    let version = |link: &Path| {
        let info = said(vmnetx(&["pack", "info", "--json"]).arg(link));
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["version"].as_str().unwrap().to_owned()
    };
    let first = version(&link);

    // Written through the export, then bound to the version as those of `vmnetx run --persist` are from the start.
    let overlay = site.path("overlay.qcow2");
    let options = ["create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "-F", "raw", "-b", &served.uri];
    said(tool("qemu-img", &options).arg(&overlay));
    let script =
        ["-c", "write -P 0xab 100k 8k", "-c", "write -z 9M 256k", "-c", "write -P 0xcd 16383k 2k", "-c", "flush"];
    said(tool("qemu-io", &script).arg(&overlay));
    let merged = site.path("merged.img");
    said(tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw"]).arg(&overlay).arg(&merged));
    let binding = format!("vmnetx:{first}:disk0");
    said(tool("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &binding]).arg(&overlay));

    let mut build = vmnetx(&["pack", "build", "--json", "--base", "current", "--format", "qcow2"]);
    let report = said(build.arg(&repository).args(["vm", "--disk"]).arg(&overlay));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["serial"], &report["disks"][0]["base"]), (&serde_json::json!(2), &serde_json::json!(first)));
    let exported = site.path("exported.img");
    said(vmnetx(&["pack", "export"]).arg(&link).arg("disk0").arg(&exported));
    assert!(fs::read(&exported).unwrap() == fs::read(&merged).unwrap());
    said(vmnetx(&["pack", "verify"]).arg(&repository));
    let full = site.path("full");
    said(vmnetx(&["pack", "build"]).arg(&full).args(["vm", "--disk"]).arg(&merged));
    assert_eq!(version(&full.join("vm.vmnetx")), report["version"]);
    served.stop();
}

#[test]
fn qemus_tools_read_compare_and_layer_the_disk() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let raw = site.disk();
    said(tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri]).arg(&raw));
    let converted = site.path("converted");
    said(tool("qemu-img", &["convert", "-W", "-m", "16", "-f", "raw", "-O", "raw", &served.uri]).arg(&converted));
    assert!(fs::read(&converted).unwrap() == published);
    said(&mut tool("qemu-io", &["-r", "-f", "raw", "-c", "read -v 0 512", "-c", "read 3 5", &served.uri]));
    let written = tool("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4k", &served.uri]).output().unwrap();
    assert!(!written.status.success(), "a pristine disk was written");

    let overlay = site.path("overlay.qcow2");
    let options = "extended_l2=on,cluster_size=128k";
    let mut create = tool("qemu-img", &["create", "-f", "qcow2", "-o", options, "-F", "raw", "-b", &served.uri]);
    said(create.arg(&overlay));
    let script = ["-c", "write -P 0xab 4k 8k", "-c", "read -P 0xab 4k 8k", "-c", "flush"];
    said(tool("qemu-io", &script).arg(&overlay));
    said(tool("qemu-img", &["convert", "-O", "raw"]).arg(&overlay).arg(&converted));
    let layered = fs::read(&converted).unwrap();
    assert!(layered[4096..12288].iter().all(|&byte| byte == 0xab));
    assert!(layered[12288..published.len()] == published[12288..]);
    said(tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri]).arg(&raw));
    served.stop();
}

#[test]
fn the_nbd_crates_client_reads_over_unix_and_tcp() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let unix = Served::unix(&site.link(), &site.path("nbd"));
    let tcp = Served::start(&site.link(), &["--listen", "127.0.0.1:0"]);
    read_with_nbd_crate(UnixStream::connect(site.path("nbd")).unwrap(), &published);
    let address = tcp.uri.trim_start_matches("nbd://").trim_end_matches("/disk0");
    read_with_nbd_crate(TcpStream::connect(address).unwrap(), &published);
    unix.stop();
    tcp.stop();
}

fn read_with_nbd_crate(mut stream: impl Read + Write, published: &[u8]) {
    let export = nbd::client::handshake(&mut stream, b"disk0").unwrap();
    assert_eq!((export.size, export.readonly), (published.len() as u64, true));
    let mut client = nbd::client::NbdClient::new(stream, &export);
    for (offset, length) in [(0, 512), (4095, 2), (1_000_000, 100_000), (published.len() - 700, 700)] {
        let mut data = vec![0; length];
        client.seek(SeekFrom::Start(offset as u64)).unwrap();
        client.read_exact(&mut data).unwrap();
        assert!(data == published[offset..offset + length], "{length} bytes at {offset}");
    }
}

#[test]
fn counts_are_told_while_it_runs_and_a_second_run_asks_for_nothing() {
    let site = Site::publish(&disk(BLOCKS));
    let (socket, control, cache) = (site.path("nbd"), site.path("control"), site.path("cache"));
    let words = ["--socket", socket.to_str().unwrap(), "--control", control.to_str().unwrap(), "--cache-dir"];
    let words = [&words[..], &[cache.to_str().unwrap()]].concat();
    let stats = || -> serde_json::Value {
        let text = said(vmnetx(&["nbd", "stats", "--json", "--control"]).arg(&control));
        serde_json::from_str(&text).unwrap()
    };
    for run in 0..2 {
        let served = Served::start(&site.link(), &words);
        said(&mut tool("nbdcopy", &[&served.uri, "null:"]));
        let counts = stats();
        let counts = &counts["attachments"][0];
        let export = &counts["exports"][0];
        assert_eq!(export["name"], "disk0");
        let export = &export["counts"];
        assert!(export["read_bytes"].as_u64().unwrap() > 1_000_000, "{counts}");
        assert_eq!(export["failed_chunks"], 0, "{counts}");
        assert_eq!(export["origin_chunks"].as_u64().unwrap() > 0, run == 0, "{counts}");
        // Not even the index: what the first run has fetched is on the disk, and in memory before it is asked for.
        assert_eq!(counts["origin"]["requests"].as_u64().unwrap() > 0, run == 0, "{counts}");
        served.stop();
    }
}

#[test]
fn a_web_server_that_goes_away_for_a_while_only_delays() {
    let published = disk(4 * BLOCKS);
    let mut site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let copy = site.path("copy");
    let mut copying = tool("nbdcopy", &["--requests=4", "--request-size=65536", &served.uri]);
    let mut copying = copying.arg(&copy).spawn().unwrap();
    site.stop_nginx();
    std::thread::sleep(Duration::from_millis(1500));
    site.start_nginx();
    assert!(copying.wait().unwrap().success());
    assert!(fs::read(&copy).unwrap() == published);
    served.stop();
}

#[test]
fn a_second_signal_does_not_wait_for_what_is_under_way() {
    let mut site = Site::publish(&disk(4 * BLOCKS));
    let served = Served::unix(&site.link(), &site.path("nbd"));
    site.stop_nginx();
    let copying = tool("nbdcopy", &["--requests=4", &served.uri]).arg(site.path("copy")).spawn();
    let _copying = Ended(copying.unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let (status, took) = served.stop_at_once();
    assert!(status.code() == Some(1) && took < Duration::from_secs(1), "{status} after {took:?}");
}

#[test]
fn damage_and_absence_have_their_exit_codes() {
    let site = Site::publish(&disk(BLOCKS));
    let code = |words: &[&str]| {
        let output = vmnetx(words).output().unwrap();
        (output.status.code(), talk(&output))
    };
    let socket = site.path("nbd").display().to_string();
    let serve = |link: &str| code(&["nbd", "serve", link, "--retry-for", "1", "--socket", &socket]);
    let missing = serve(&site.link().replace("vm.vmnetx", "other.vmnetx"));
    assert!(missing.0 == Some(5) && missing.1.contains("404"), "{missing:?}");
    assert_eq!(serve("http://127.0.0.1:1/vm.vmnetx").0, Some(5));
    assert_eq!(serve("ftp://host/vm.vmnetx").0, Some(2));
    let pinned = format!("{}#b3={}", site.link(), "0".repeat(64));
    assert_eq!(serve(&pinned).0, Some(2));
    assert_eq!(code(&["run", &site.link(), "--qemu", "/nonexistent/qemu"]).0, Some(6));

    let repository = site.path("repository").display().to_string();
    assert_eq!(code(&["pack", "verify", &repository]).0, Some(0));
    let manifests = fs::read_dir(site.path("repository/manifests")).unwrap();
    let manifest = manifests.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[20] ^= 1;
    fs::write(&manifest, bytes).unwrap();
    assert_eq!(code(&["pack", "verify", &repository]).0, Some(4));
    assert_eq!(serve(&site.link()).0, Some(4));
}

#[test]
fn our_own_web_server_serves_as_well() {
    let published = disk(BLOCKS);
    let site = Site::empty();
    fs::write(site.disk(), &published).unwrap();
    site.build();
    let output = site.path("serve.out");
    let mut command = vmnetx(&["pack", "serve", "--listen", "127.0.0.1:0"]);
    let command = command.arg(site.path("repository")).stdout(fs::File::create(&output).unwrap());
    let _server = Ended(command.spawn().unwrap());
    let link = || {
        let text = fs::read_to_string(&output).unwrap();
        text.split_whitespace().find(|word| word.ends_with("/vm.vmnetx")).map(str::to_owned)
    };
    wait_until("the link is told", || link().is_some());
    let exported = said(vmnetx(&["pack", "export", &link().unwrap(), "disk0"]).arg(site.path("copy")).arg("--json"));
    assert!(exported.starts_with('{'), "{exported}");
    assert!(fs::read(site.path("copy")).unwrap() == published);
}

/// Whoever replaces a signed package on its web server is found out before anything of it is used.
#[test]
fn a_package_of_somebody_else_is_neither_served_nor_run() {
    let published = disk(100);
    let mut site = Site::empty();
    fs::write(site.disk(), &published).unwrap();
    site.build();
    let repository = site.path("repository").display().to_string();
    let [ours, theirs] = ["ours", "theirs"].map(|name| {
        let file = site.path(name).display().to_string();
        said(&mut vmnetx(&["pack", "keygen", &file]));
        file
    });
    said(&mut vmnetx(&["pack", "sign", &repository, "vm", "--sign-key", &ours]));
    site.start_nginx();
    let (link, socket) = (site.link(), site.path("nbd"));
    Served::unix(&link, &socket).stop();

    said(&mut vmnetx(&["pack", "sign", &repository, "vm", "--sign-key", &theirs, "--replace-key"]));
    let serve = ["nbd", "serve", &link, "--socket", socket.to_str().unwrap()];
    let run = ["run", &link, "--accel", "tcg", "--display", "none", "--disk-cache", "0"];
    let public = |key: &str| fs::read_to_string(format!("{key}.pub")).unwrap().trim_end().to_owned();
    for words in [&serve[..], &run] {
        let refused = vmnetx(words).output().unwrap();
        assert_eq!(refused.status.code(), Some(4), "{}", talk(&refused));
        for words in [public(&ours), public(&theirs), "hint: ".to_owned()] {
            assert!(talk(&refused).contains(&words), "{words:?} is not in {}", talk(&refused));
        }
    }
    let asked = fs::read_to_string(site.path("access.log")).unwrap();
    let after = asked.rsplit("/vm.vmnetx").take(2).collect::<String>();
    assert!(!after.contains("/manifests/"), "something was fetched for a link that nobody believes: {asked}");

    // The user has asked the publisher, and says so once.
    Served::start(&link, &["--socket", socket.to_str().unwrap(), "--trust-key", &public(&theirs)]).stop();
    let served = Served::unix(&link, &socket);
    said(&mut tool("nbdcopy", &[&served.uri, site.path("copy").to_str().unwrap()]));
    assert!(fs::read(site.path("copy")).unwrap() == published);
    served.stop();
}
