//! Other people's NBD programs: illegal requests, layers for writing, benchmarks that verify, servers that die under them.
//!
//! Needs what `tests/setup test` installs.

#[path = "clients/support.rs"]
#[allow(dead_code, reason = "the tests beside these use other parts")]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Ended, Served, Site, disk, said, talk, tool, vmnetx, wait_until};

/// 20 MiB and a bit: two leaves.
const BLOCKS: usize = 5120;

/// What a program says, as JSON.
fn json(command: &mut Command) -> Value {
    serde_json::from_str(&said(command)).unwrap()
}

/// Runs a script in nbdsh, which finds the URI in `uri` and the published disk in `reference`.
fn run_script(site: &Site, uri: &str, script: &str) {
    let head = format!("uri = {uri:?}\nreference = open({:?}, 'rb').read()\n", site.disk());
    let path = site.path("script.py");
    fs::write(&path, head + script).unwrap();
    let run = format!("exec(open({path:?}).read())");
    // Another Python before Debian's would not have the module.
    let programs = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    said(tool("nbdsh", &["-c", &run]).env("PATH", programs));
}

fn expect_copy(uri: &str, how: &[&str], expected: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    said(tool("nbdcopy", how).arg(uri).arg(&copy));
    assert!(fs::read(&copy).unwrap() == expected, "nbdcopy {how:?} {uri}");
}

#[test]
fn nbdinfo_tells_everything_that_is_negotiated() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::start(&site.link(), &["--listen", "127.0.0.1:0"]);
    let told = json(&mut tool("nbdinfo", &["--json", &served.uri]));
    assert_eq!(told["protocol"], "newstyle-fixed");
    assert_eq!((&told["TLS"], &told["structured"]), (&Value::Bool(false), &Value::Bool(true)));
    let export = &told["exports"][0];
    assert_eq!(export["export-name"], "disk0");
    assert_eq!(export["export-size"], published.len());
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "vmnetx:residency"]));
    for can in ["is_read_only", "can_cache", "can_df", "can_flush", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can}");
    }
    for cannot in ["is_rotational", "can_fast_zero", "can_fua", "can_trim", "can_zero"] {
        assert_eq!(export[cannot], false, "{cannot}");
    }
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|size| export[size].as_u64());
    assert_eq!(sizes, [Some(1), Some(4096), Some(64 << 20)]);
    let totals = said(&mut tool("nbdinfo", &["--map", "--totals", &served.uri]));
    let bytes: usize =
        totals.lines().map(|line| line.split_whitespace().next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(bytes, published.len(), "{totals}");
    expect_copy(&served.uri, &["--connections=4", "--requests=64", "--flush"], &published);
    served.stop();
}

/// The lines of `nbdinfo --map`: bytes and status of each extent, which add up to the disk.
fn map_of(uri: &str, context: &str, size: usize) -> Vec<(usize, u32)> {
    let map = said(&mut tool("nbdinfo", &[&format!("--map={context}"), uri]));
    let mut end = 0;
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], end.to_string(), "{line}");
        let length: usize = words[1].parse().unwrap();
        end += length;
        (length, words[2].parse().unwrap())
    };
    let extents = map.lines().map(line).collect();
    assert_eq!(end, size, "{map}");
    extents
}

/// What libnbd's tools see of what is here, and that it comes here when they say CACHE.
#[test]
fn libnbds_tools_see_residency_and_prefetch() {
    const SCRIPT: &str = r#"
h.add_meta_context("base:allocation")
h.add_meta_context("vmnetx:residency")
h.connect_uri(uri)
assert h.can_meta_context("vmnetx:residency") and h.can_meta_context("base:allocation") and h.can_cache()
size = h.get_size()

def told(count, offset, flags=0):
    seen = {}
    h.block_status(count, offset, lambda name, at, list, error: seen.update({name: (at, list)}), flags)
    assert sorted(seen) == ["base:allocation", "vmnetx:residency"], seen
    assert all(at == offset for at, _ in seen.values()), seen
    return {name: list for name, (_, list) in seen.items()}

remote = told(size, 0)
assert [bool(flags) for flags in remote["vmnetx:residency"][1::2]] == [not flags for flags in remote["base:allocation"][1::2]]
assert remote["vmnetx:residency"][::2] == remote["base:allocation"][::2]
h.cache(size // 3, 4097)
assert told(size // 3, 4097)["vmnetx:residency"] == [size // 3, 0]
assert told(size, 0, nbd.CMD_FLAG_REQ_ONE)["vmnetx:residency"][1::2] in ([0], [1])
# Many at once, over each other.
cookies = [h.aio_cache(size - at, at) for at in range(0, 4096 * 50, 4095)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
assert told(size, 0)["vmnetx:residency"] == [size, 0]
h.shutdown()
"#;
    let published = disk(BLOCKS);
    let size = published.len();
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let residency = |uri: &str| map_of(uri, "vmnetx:residency", size);
    let sum = |extents: Vec<(usize, u32)>, flags| -> usize {
        extents.iter().filter(|extent| extent.1 == flags).map(|extent| extent.0).sum()
    };
    // This question brings the index, without which all would be remote.
    let data = sum(map_of(&served.uri, "base:allocation", size), 0);
    assert_eq!(sum(residency(&served.uri), 1), data, "what is no hole is remote before anybody reads");
    run_script(&site, &served.uri, SCRIPT);
    assert_eq!(residency(&served.uri), [(size, 0)]);
    served.stop();

    // Reading brings it too, and who copies sees no difference.
    let served = Served::unix(&site.link(), &site.path("nbd"));
    expect_copy(&served.uri, &["--connections=4", "--requests=64"], &published);
    assert_eq!(residency(&served.uri), [(size, 0)]);
    said(&mut tool("nbdinfo", &["--can", "cache", &served.uri]));
    said(tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri]).arg(site.disk()));
    served.stop();
}

#[test]
fn qemu_maps_and_measures_the_disk() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let map = json(&mut tool("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri]));
    let mut end = 0;
    for extent in map.as_array().unwrap() {
        assert_eq!(extent["start"], end, "{extent}");
        let length = extent["length"].as_u64().unwrap() as usize;
        // QEMU counts in sectors and rounds the end up.
        let piece = &published[end..published.len().min(end + length)];
        assert_eq!(extent["zero"], piece.iter().all(|&byte| byte == 0), "{extent}");
        assert_eq!(extent["data"], !extent["zero"].as_bool().unwrap(), "{extent}");
        end += length;
    }
    assert_eq!(end, published.len().next_multiple_of(512));
    for depth in ["1", "16", "64"] {
        let words = ["bench", "-f", "raw", "-c", "2000", "-d", depth, "-s", "4096", "-S", "12288", &served.uri];
        said(&mut tool("qemu-img", &words));
    }
    served.stop();
}

/// libnbd sends what it is told to once its strict mode is off.
#[test]
fn nbdsh_sends_what_is_not_allowed_and_is_told_so() {
    const SCRIPT: &str = r#"
import errno

h.add_meta_context("base:allocation")
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()

def refused(number, call, *args, **keys):
    try:
        call(*args, **keys)
    except nbd.Error as error:
        assert error.errnum == number, (call, args, error)
    else:
        raise AssertionError((call, args, "was allowed"))

refused(errno.EPERM, h.pwrite, b"x" * 70000, 0)
refused(errno.EPERM, h.pwrite, b"x", size - 1, nbd.CMD_FLAG_FUA)
refused(errno.EPERM, h.zero, 4096, 0)
refused(errno.EPERM, h.trim, size, 0)
refused(errno.EINVAL, h.cache, 2, size - 1)
refused(errno.EINVAL, h.cache, 4096, 0, 1 << 5)
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.EINVAL, h.pread, 2, size - 1)
refused(errno.EINVAL, h.pread, 512, 1 << 63)
refused(errno.EINVAL, h.block_status, 512, size, lambda *args: 0)
refused(errno.EINVAL, h.pread, 512, 0, 1 << 5)
# The connection is as good as before.
assert h.pread(700, size - 700) == reference[-700:]
assert h.pread(3, 4095) == reference[4095:4098]
chunks = []
def chunk(data, offset, status, error):
    assert error.value == 0
    chunks.append((offset, len(data), status))
data = h.pread_structured(1 << 20, 12345, chunk)
assert data == reference[12345:12345 + (1 << 20)]
assert sum(length for _, length, _ in chunks) == 1 << 20, chunks
one = []
h.pread_structured(1 << 20, 12345, lambda *args: one.append(args[2]), nbd.CMD_FLAG_DF)
assert one == [nbd.READ_DATA], one
entries = []
h.block_status(size, 0, lambda name, offset, list, error: entries.extend(list))
assert sum(entries[::2]) == size and set(entries[1::2]) == {0, 3}, entries
h.flush()
h.shutdown()
"#;
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    run_script(&site, &served.uri, SCRIPT);
    served.stop();
}

/// A server of another kind on a Unix socket, ended with this value.
fn layer(command: &mut Command, socket: &Path) -> Ended {
    let layer = Ended(command.stdout(Stdio::null()).spawn().unwrap());
    wait_until("the layer listens", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    layer
}

#[test]
fn fio_reads_the_disk_and_verifies_what_it_writes_on_top() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let size = format!("--size={}", published.len() / 4096 * 4096);
    let fio = |uri: &str, how: &[&str]| {
        let words =
            ["--ioengine=nbd", "--name=test", "--bs=4k", "--iodepth=16", "--randseed=7", "--output-format=json"];
        let mut command = tool("fio", &words);
        let told = said(command.current_dir(site.dir.path()).arg(format!("--uri={uri}")).args(how));
        // It talks before it answers.
        let told: Value = serde_json::from_str(&told[told.find('{').unwrap()..]).unwrap();
        assert_eq!(told["jobs"][0]["error"], 0, "{told}");
        told
    };
    let told = fio(&served.uri, &["--rw=randread", &size]);
    assert_eq!(told["jobs"][0]["read"]["total_ios"].as_u64(), Some(published.len() as u64 / 4096));

    let overlay = site.path("overlay.qcow2");
    let words = ["create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "-F", "raw", "-b", &served.uri];
    said(tool("qemu-img", &words).arg(&overlay));
    let socket = site.path("layer");
    let mut command = tool("qemu-nbd", &["-t", "-f", "qcow2", "-x", "disk0", "-k"]);
    let mut qemu_nbd = layer(command.arg(&socket).arg(&overlay), &socket);
    let over = format!("nbd+unix:///disk0?socket={}", socket.display());
    let told = fio(&over, &["--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--io_size=4M", &size]);
    assert_eq!(told["jobs"][0]["write"]["total_ios"].as_u64(), Some(1024));
    let pid = rustix::process::Pid::from_child(&qemu_nbd.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(qemu_nbd.0.wait().unwrap().success());
    // The published disk is as it was.
    expect_copy(&served.uri, &[], &published);
    served.stop();
}

#[test]
fn nbdkit_puts_copy_on_write_in_front() {
    let published = disk(BLOCKS);
    let site = Site::publish(&published);
    let served = Served::unix(&site.link(), &site.path("nbd"));
    let socket = site.path("layer");
    let mut command = tool("nbdkit", &["-f", "--filter=cow", "-U"]);
    let _nbdkit = layer(command.arg(&socket).args(["nbd", &format!("uri={}", served.uri)]), &socket);
    let over = format!("nbd+unix:///?socket={}", socket.display());
    let script = ["-c", "write -P 0xab 0 64k", "-c", "write -z 64k 64k", "-c", "discard 128k 64k", "-c", "flush"];
    said(tool("qemu-io", &["-f", "raw"]).args(script).arg(&over));
    let mut expected = published.clone();
    expected[..64 << 10].fill(0xab);
    expected[64 << 10..192 << 10].fill(0);
    expect_copy(&over, &[], &expected);
    expect_copy(&served.uri, &[], &published);
    served.stop();
}

#[test]
fn every_disk_is_an_export_and_one_can_be_picked() {
    let (one, two) = (disk(800), disk(300));
    let site = Site::empty();
    let files = [site.path("one.img"), site.path("two.img")];
    fs::write(&files[0], &one).unwrap();
    fs::write(&files[1], &two).unwrap();
    let mut build = vmnetx(&["pack", "build"]);
    build.arg(site.path("repository")).args(["vm", "--disk"]);
    said(build.arg(&files[0]).arg("--disk").arg(format!("data={}", files[1].display())));
    // Straight from the directory, without a web server.
    let link = site.path("repository/vm.vmnetx").display().to_string();
    let socket = site.path("nbd");
    let served = Served::unix(&link, &socket);
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", socket.display());
    let listed = json(&mut tool("nbdinfo", &["--list", "--json", &uri("")]));
    let names: Vec<&Value> =
        listed["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["disk0", "data"]);
    expect_copy(&uri("disk0"), &[], &one);
    expect_copy(&uri("data"), &[], &two);
    expect_copy(&uri(""), &[], &one);
    let unknown = tool("nbdinfo", &[&uri("disk1")]).output().unwrap();
    assert!(!unknown.status.success() && talk(&unknown).contains("disk1"), "{}", talk(&unknown));
    served.stop();

    let words = ["nbd", "serve", &link, "--export", "data", "--socket", socket.to_str().unwrap()];
    let server = Ended(vmnetx(&words).spawn().unwrap());
    wait_until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    expect_copy(&uri(""), &[], &two);
    assert!(!tool("nbdinfo", &[&uri("disk0")]).output().unwrap().status.success());
    drop(server);
    let words = ["nbd", "serve", &link, "--export", "other", "--socket", socket.to_str().unwrap()];
    let refused = vmnetx(&words).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(talk(&refused).contains("disk0, data"), "{}", talk(&refused));
}

/// A run keeps the version with which it began; a later one finds the new version, or asks for the old one.
#[test]
fn publishing_a_version_disturbs_nobody() {
    let old = disk(BLOCKS);
    let site = Site::publish(&old);
    let running = Served::unix(&site.link(), &site.path("old"));
    let version = |link: &str| -> String {
        let text = said(&mut vmnetx(&["pack", "info", link, "--json"]));
        let told: Value = serde_json::from_str(&text).unwrap();
        told["version"].as_str().or_else(|| told["manifest"].as_str()).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let before = version(&site.link());
    let mut new = old.clone();
    new.truncate(old.len() - 8192);
    new[1 << 20..2 << 20].fill(0x77);
    fs::write(site.disk(), &new).unwrap();
    site.build();
    assert_ne!(version(&site.link()), before);
    expect_copy(&running.uri, &[], &old);
    let later = Served::unix(&site.link(), &site.path("new"));
    expect_copy(&later.uri, &[], &new);
    let pinned = Served::unix(&format!("{}#b3={before}", site.link()), &site.path("pinned"));
    expect_copy(&pinned.uri, &[], &old);
    for served in [running, later, pinned] {
        served.stop();
    }
}

/// Our own web server under the same load as nginx.
#[test]
fn our_own_web_server_feeds_many_connections() {
    let published = disk(BLOCKS);
    let site = Site::empty();
    fs::write(site.disk(), &published).unwrap();
    site.build();
    let told = site.path("serve.out");
    let mut command = vmnetx(&["pack", "serve", "--listen", "127.0.0.1:0"]);
    let command = command.arg(site.path("repository")).stdout(fs::File::create(&told).unwrap());
    let _server = Ended(command.spawn().unwrap());
    let link = || {
        let text = fs::read_to_string(&told).unwrap();
        text.split_whitespace().find(|word| word.ends_with("/vm.vmnetx")).map(str::to_owned)
    };
    wait_until("the link is told", || link().is_some());
    let served = Served::start(&link().unwrap(), &["--listen", "127.0.0.1:0"]);
    let copies = std::thread::scope(|scope| {
        let copies: Vec<_> =
            (0..4).map(|_| scope.spawn(|| expect_copy(&served.uri, &["-C", "2", "-R", "16"], &published))).collect();
        copies.into_iter().map(|copy| copy.join()).collect::<Vec<_>>()
    });
    assert!(copies.iter().all(Result::is_ok));
    served.stop();
}
