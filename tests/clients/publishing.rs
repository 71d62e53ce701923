//! Ways of publishing that docs/publishing.md describes: nginx by its recipe, and a bucket of a real S3 server.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::{Ended, Served, Site, disk, free_port, said, tool, vmnetx, wait_until};

/// The head of nginx's answer, in lower case.
fn head(url: &str, words: &[&str]) -> String {
    let mut command = tool("curl", &["--silent", "--show-error", "--output", "/dev/null", "--dump-header", "-"]);
    said(command.args(["--path-as-is", "--header", "Accept-Encoding: gzip, br"]).args(words).arg(url)).to_lowercase()
}

#[test]
fn the_recipe_for_nginx_serves_objects_and_nothing_else() {
    let site = Site::publish(&disk(2048));
    let root = site.path("repository");
    let mut objects = 0;
    for (folder, kind) in [
        ("manifests", "application/json"),
        ("layouts", "application/octet-stream"),
        ("packs/*", "application/octet-stream"),
    ] {
        let pattern = format!("cd '{}' && ls -d {folder}/*", root.display());
        for path in said(&mut tool("sh", &["-c", &pattern])).lines() {
            objects += 1;
            let told = head(&site.url(path), &["--range", "0-7"]);
            assert!(told.starts_with("http/1.1 206"), "{path}: {told}");
            assert!(told.contains("content-length: 8\r") && !told.contains("content-encoding"), "{path}: {told}");
            assert!(told.contains("cache-control: public, max-age=31536000, immutable\r"), "{path}: {told}");
            assert!(told.contains(&format!("content-type: {kind}\r")), "{path}: {told}");
        }
    }
    assert!(objects >= 3);
    let told = head(&site.link(), &[]);
    assert!(told.starts_with("http/1.1 200") && told.contains("cache-control: no-cache\r"), "{told}");
    assert!(told.contains("content-type: application/x-vmnetx-link+json\r"), "{told}");
    let etag = told.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().trim().to_owned();
    let told = head(&site.link(), &["--header", &format!("If-None-Match: {etag}")]);
    assert!(told.starts_with("http/1.1 304"), "{told}");

    fs::write(root.join("tmp/1-1"), "half a pack").unwrap();
    fs::write(root.join("notes.txt"), "the publisher's").unwrap();
    let absent = format!("packs/00/{}.pack", "0".repeat(64));
    let others = [".lock", "tmp/1-1", "tmp/", "notes.txt", "", "packs/", "other.vmnetx", &absent, "packs/../.lock"];
    for path in others {
        let told = head(&site.url(path), &[]);
        assert!(told.starts_with("http/1.1 404"), "{path}: {told}");
        assert!(told.contains("cache-control: no-cache\r") && !told.contains("immutable"), "{path}: {told}");
    }
}

#[test]
fn a_disk_is_read_from_a_bucket() {
    let published = disk(5120);
    let site = Site::empty();
    fs::write(site.disk(), &published).unwrap();
    site.build();
    fs::create_dir_all(site.path("s3/vms")).unwrap();
    let (_private, pushing) = serve_s3("127.0.0.1", &site.path("s3"), &KEYS);
    let (_public, reading) = serve_s3("127.0.0.1", &site.path("s3"), &[]);
    let told = said(&mut push(&site.path("repository"), &pushing));
    assert!(told.contains("pushed    s3://vms/lab/vm.vmnetx, serial 1"), "{told}");
    let link = format!("{reading}/vms/lab/vm.vmnetx");
    said(&mut vmnetx(&["pack", "verify", &link]));
    let served = Served::unix(&link, &site.path("nbd"));
    let copy = site.path("copy");
    said(tool("nbdcopy", &[&served.uri]).arg(&copy));
    assert!(fs::read(&copy).unwrap() == published);
    served.stop();
}

/// Pushes a repository into a bucket of the server at `endpoint`.
pub(crate) fn push(repository: &Path, endpoint: &str) -> Command {
    let mut push = vmnetx(&["pack", "push"]);
    push.env("AWS_ACCESS_KEY_ID", "AKID").env("AWS_SECRET_ACCESS_KEY", "hush").env_remove("AWS_SESSION_TOKEN");
    push.arg(repository).args(["s3://vms/lab", "--endpoint", endpoint]);
    push
}

/// The keys of [`push`], as the server is told of them.
pub(crate) const KEYS: [&str; 4] = ["--access-key", "AKID", "--secret-key", "hush"];

/// `s3s-fs` at an address of this host over the buckets in a folder, and its URL. Without keys it lets in everybody.
pub(crate) fn serve_s3(host: &str, folder: &Path, words: &[&str]) -> (Ended, String) {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/s3s-fs");
    let port = free_port();
    let mut command = tool(program, &["--host", host, "--port", &port.to_string()]);
    let child = command.args(words).arg(folder).env("RUST_LOG", "off").spawn();
    let server = Ended(child.expect("s3s-fs, which tests/setup installs"));
    wait_until("s3s-fs listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (server, format!("http://{host}:{port}"))
}

/// What `pull --to` has made is a repository for readers and for publishers alike, and is pulled from again without its
/// origin.
#[test]
fn a_pulled_repository_is_served_as_it_lies() {
    let published = disk(2048);
    let mut site = Site::publish(&published);
    let copy = site.path("copy");
    let copied = said(vmnetx(&["nbd", "pull", &site.link(), "--to"]).arg(&copy));
    assert!(copied.contains("can be served as it is"), "{copied}");
    said(vmnetx(&["pack", "verify"]).arg(&copy));
    // In the place of the repository, behind the same nginx, and pulled into a cache directory from there.
    fs::rename(site.path("repository"), site.path("original")).unwrap();
    fs::rename(&copy, site.path("repository")).unwrap();
    let cache = site.path("cache");
    let pulled = said(vmnetx(&["nbd", "pull", &site.link(), "--cache-dir"]).arg(&cache));
    assert!(pulled.ends_with("complete: safe to disconnect\n"), "{pulled}");
    site.stop_nginx();
    let socket = site.path("nbd");
    let words = ["--offline", "--cache-dir", cache.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    let served = Served::start(&site.link(), &words);
    let out = site.path("out.img");
    said(tool("nbdcopy", &[&format!("nbd+unix:///?socket={}", socket.display())]).arg(&out));
    assert!(fs::read(out).unwrap() == published);
    served.stop();
}
