//! The web server, asked by a real HTTP client and by the store.

use std::fs;
use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::server::Server;
use crate::support::{Scene, noise, text};

fn scene() -> (Scene, Vec<u8>) {
    let scene = Scene::new();
    let data = [text(1, 300_000), vec![0; 20 << 20], noise(2, 500_001)].concat();
    scene.build("vm", &scene.image("a", &data));
    (scene, data)
}

#[test]
fn objects_are_served_with_ranges_and_the_right_headers() {
    let (scene, _) = scene();
    let server = Server::start(&scene, 1);
    assert_eq!(server.urls, [format!("http://{}/vm.vmnetx", server.address)]);
    for file in scene.files() {
        let path = format!("/{}", file.strip_prefix(scene.repo()).unwrap().display());
        let whole = fs::read(&file).unwrap();
        let (status, headers, body) = server.get(&path, &[]);
        assert_eq!((status, body == whole), (StatusCode::OK, true), "{path}");
        let is_link = path == "/vm.vmnetx";
        let caching = if is_link { "no-cache" } else { "public, max-age=31536000, immutable" };
        assert_eq!(headers["cache-control"], caching, "{path}");
        let json = path.ends_with(".json") || is_link;
        assert_eq!(headers["content-type"].to_str().unwrap().ends_with("json"), json, "{path}");

        let (status, headers, body) = server.get(&path, &[("range", "bytes=3-9")]);
        assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, &whole[3..10]), "{path}");
        assert_eq!(headers["content-range"], format!("bytes 3-9/{}", whole.len()));
        assert_eq!(headers["cache-control"], caching, "{path}");
        let (status, _, body) = server.get(&path, &[("range", "bytes=-5")]);
        assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, &whole[whole.len() - 5..]), "{path}");
        let (status, ..) = server.get(&path, &[("range", "bytes=99999999-")]);
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE, "{path}");
        let (status, headers, body) = server.ask("HEAD", &path, &[]);
        assert_eq!((status, body.len()), (StatusCode::OK, 0), "{path}");
        assert_eq!(headers["content-length"], whole.len().to_string(), "{path}");
        let (status, ..) = server.ask("POST", &path, &[]);
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
}

#[test]
fn a_link_that_was_replaced_is_not_answered_from_a_cache() {
    let (scene, _) = scene();
    let server = Server::start(&scene, 1);
    let (_, headers, _) = server.get("/vm.vmnetx", &[]);
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(server.get("/vm.vmnetx", &[("if-none-match", &tag)]).0, StatusCode::NOT_MODIFIED);
    scene.build("vm", &scene.image("a", &noise(3, 10_000)));
    let (status, _, body) = server.get("/vm.vmnetx", &[("if-none-match", &tag)]);
    assert_eq!(status, StatusCode::OK);
    assert!(body[..] == fs::read(scene.link("vm")).unwrap());
}

#[test]
fn nothing_else_is_served() {
    let (scene, _) = scene();
    fs::write(scene.repo().join("tmp/secret"), "x").unwrap();
    fs::write(scene.repo().join("index.html"), "x").unwrap();
    fs::write(scene.repo().join("packs/README"), "x").unwrap();
    fs::write(scene.path("outside.vmnetx"), "x").unwrap();
    let server = Server::start(&scene, 1);
    let pack = scene.files().iter().find(|file| file.extension().is_some_and(|e| e == "pack")).cloned().unwrap();
    let pack = format!("{}", pack.strip_prefix(scene.repo()).unwrap().display());
    for path in [
        "/",
        "/.lock",
        "/tmp/secret",
        "/tmp/",
        "/index.html",
        "/packs/",
        "/packs/README",
        "/absent.vmnetx",
        "/../outside.vmnetx",
        "/%2e%2e/outside.vmnetx",
        "/manifests/../.lock",
        &format!("//{pack}"),
        &format!("/tmp/../{pack}"),
        &format!("/{pack}/"),
    ] {
        let (status, headers, body) = server.get(path, &[]);
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(!body.is_empty(), "{path} is refused without a word");
        assert_eq!(headers["cache-control"], "no-cache", "{path}");
    }
}

#[test]
fn a_package_is_read_over_http() {
    let (scene, data) = scene();
    let server = Server::start(&scene, 1);
    let out = scene.path("out");
    scene.program().args(["export", &server.urls[0], "disk0"]).arg(&out).assert().success();
    assert!(fs::read(&out).unwrap() == data);
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&out).unwrap()) * 512 < 2 << 20, "not sparse");
    let piped = scene.program().args(["export", &server.urls[0], "disk0", "-", "--quiet"]).assert().success();
    assert!(piped.get_output().stdout == data);
    let info = scene.program().args(["info", &server.urls[0], "--json"]).assert().success();
    let info: serde_json::Value = serde_json::from_slice(&info.get_output().stdout).unwrap();
    assert_eq!(info["name"], "vm");
    assert_eq!(info["disks"][0]["size_bytes"], data.len());
    scene.program().args(["export", &server.urls[0], "absent"]).arg(scene.path("x")).assert().code(2);

    scene.program().args(["verify", &server.urls[0]]).assert().success();

    // Damage at the origin is told as damage, and no file appears.
    let pack = scene.files().into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    scene.program().args(["export", &server.urls[0], "disk0"]).arg(scene.path("y")).assert().code(4);
    assert!(!scene.path("y").exists());
    let found = scene.program().args(["verify", &server.urls[0], "--json"]).assert().code(4);
    let found: serde_json::Value = serde_json::from_slice(&found.get_output().stdout).unwrap();
    assert_eq!(found["findings"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["findings"][0]["affects"]["disk"], "disk0");
    fs::remove_file(&pack).unwrap();
    scene.program().args(["verify", &server.urls[0]]).assert().code(4);
}

#[test]
fn it_stops_when_it_is_told_to() {
    let (scene, _) = scene();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut server = Server::start(&scene, 1);
        // An idle connection must not hold it.
        let _idle = std::net::TcpStream::connect(&server.address).unwrap();
        assert_eq!(server.get("/vm.vmnetx", &[]).0, StatusCode::OK);
        let started = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&server.child), signal).unwrap();
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal:?}");
        assert!(started.elapsed() < Duration::from_secs(8), "{signal:?} took {:?}", started.elapsed());
    }
}

/// A repository that is far away is looked at without fetching it.
#[test]
fn a_part_of_a_served_package_is_verified() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("disk", &noise(1, 20 << 20)));
    let server = Server::start(&scene, 1);
    let verify = |words: &[&str]| {
        let assert = scene.program().args(["verify", "--json"]).arg(&server.urls[0]).args(words).assert();
        let output = assert.get_output();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), report["read_bytes"].as_u64().unwrap())
    };
    let (quick, sample, deep) = (verify(&["--quick"]), verify(&["--sample", "40%"]), verify(&[]));
    assert_eq!((quick.0, sample.0, deep.0), (0, 0, 0));
    assert_eq!(quick.1, 0);
    assert!(deep.1 >= 20 << 20 && sample.1 < deep.1, "{sample:?} of {deep:?}");
    for file in scene.files().iter().filter(|file| file.extension().is_some_and(|end| end == "pack")) {
        fs::remove_file(file).unwrap();
    }
    assert_eq!(verify(&["--quick"]).0, 4);
    scene.program().args(["verify", "--sample", "200"]).arg(&server.urls[0]).assert().code(2);
}
