//! What is uploaded, what is not, and what readers find.

use std::fs;
use std::process::Command;

use super::proxy::{Fate, Proxy};
use super::server::S3;
use super::{KEY_ID, SECRET, command, command_to, disk, pushed, run, verify_whole};
use crate::support::{Scene, noise};

/// The headers of an answer to a reader without keys, in lower case.
fn headers(url: &str) -> String {
    let output = Command::new("curl").args(["--silent", "--show-error", "--fail", "--head", url]).output().unwrap();
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().to_lowercase()
}

#[test]
fn a_bucket_is_read_like_any_web_server() {
    let (scene, s3) = (Scene::new(), S3::start());
    let proxy = Proxy::start(s3.port(), |_, _| Fate::Pass);
    let first = disk(1);
    scene.build("vm", &scene.image("disk", &first));
    scene.order("vm", &[(9, 40), (200, 3)]);
    let report = pushed(&scene, &proxy.endpoint(), &[]);
    assert_eq!(report["links"][0]["changed"], true);
    assert_eq!(report["uploaded_objects"], report["objects"]);
    // In the bucket is just what is in the repository.
    let here: Vec<String> = scene
        .files()
        .iter()
        .map(|path| path.strip_prefix(scene.repo()).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(s3.objects(), here);
    let requests = proxy.seen();
    let last = requests.iter().rfind(|seen| seen.uploads()).unwrap();
    assert_eq!(last.path, "vms/lab/vm.vmnetx", "the link comes last");
    assert!(last.headers.contains_key("if-none-match"));
    assert!(requests.iter().any(|seen| seen.query.contains("partNumber=2")), "packs go in parts");

    // What servers and caches say of it.
    let pack = here.iter().find(|path| path.starts_with("packs/")).unwrap();
    let manifest = here.iter().find(|path| path.starts_with("manifests/")).unwrap();
    let order = here.iter().find(|path| path.starts_with("orders/")).unwrap();
    let binary = "application/octet-stream";
    for (path, kind) in [(pack, binary), (order, binary), (manifest, "application/json")] {
        let told = headers(&s3.url(path));
        assert!(told.contains("cache-control: public, max-age=31536000, immutable"), "{told}");
        assert!(told.contains(&format!("content-type: {kind}")), "{told}");
    }
    let told = headers(&s3.url("vm.vmnetx"));
    assert!(told.contains("cache-control: no-cache"), "{told}");
    assert!(told.contains("content-type: application/x-vmnetx-link+json"), "{told}");
    let url = s3.url("vm.vmnetx");
    verify_whole(&url);
    assert!(fs::read(scene.export(&url, "disk0")).unwrap() == first);

    // Pushed again, nothing is: one list for each folder, and one look at the link.
    let report = pushed(&scene, &proxy.endpoint(), &[]);
    assert_eq!((&report["uploaded_objects"], &report["links"][0]["changed"]), (&0.into(), &false.into()));
    let requests: Vec<_> = proxy.seen().iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(requests, ["GET"; 5]);

    // The next version costs what is new.
    let second = [first, noise(2, 1 << 20)].concat();
    scene.build("vm", &scene.image("disk", &second));
    let report = pushed(&scene, &proxy.endpoint(), &[]);
    assert!(report["uploaded_bytes"].as_u64().unwrap() < 2 << 20, "{report}");
    assert!(proxy.seen().iter().rfind(|seen| seen.uploads()).unwrap().headers.contains_key("if-match"));
    assert!(fs::read(scene.export(&url, "disk0")).unwrap() == second);
}

#[test]
fn only_the_packages_that_are_named_are_pushed() {
    let (scene, s3) = (Scene::new(), S3::start());
    scene.build("one", &scene.image("disk", &noise(1, 1 << 20)));
    scene.build("two", &scene.image("disk", &noise(2, 1 << 20)));
    pushed(&scene, &s3.endpoint(), &["--name", "two"]);
    assert_eq!(s3.objects().len(), 5, "two packs, manifest, layout object and link: {:?}", s3.objects());
    assert!(!s3.file("one.vmnetx").exists());
    let (code, _, told) = run(command(&scene, &s3.endpoint(), &["--name", "three"]));
    assert_eq!((code, told.lines().next()), (4, Some("error: three.vmnetx: it is missing")));
    // Nothing changes in a rehearsal.
    let report = pushed(&scene, &s3.endpoint(), &["--dry-run"]);
    assert_eq!((&report["dry_run"], &report["links"][0]["changed"]), (&true.into(), &true.into()));
    assert!(report["uploaded_bytes"].as_u64().unwrap() > 1 << 20, "{report}");
    assert!(!s3.file("one.vmnetx").exists());
}

#[test]
fn damage_is_refused_before_anything_is_uploaded() {
    let (scene, s3) = (Scene::new(), S3::start());
    let proxy = Proxy::start(s3.port(), |_, _| Fate::Pass);
    scene.build("vm", &scene.image("disk", &disk(1)));
    scene.order("vm", &[(9, 40)]);
    for object in scene.files() {
        if object == scene.link("vm") {
            continue;
        }
        let good = fs::read(&object).unwrap();
        let mut bad = good.clone();
        // In a pack this is within the first chunk.
        let at = good.len().min(2000) / 2;
        bad[at] ^= 1;
        fs::write(&object, bad).unwrap();
        let (code, out, told) = run(command(&scene, &proxy.endpoint(), &[]));
        assert_eq!((code, out.as_str()), (4, ""), "{}: {told}", object.display());
        fs::remove_file(&object).unwrap();
        let (code, _, told) = run(command(&scene, &proxy.endpoint(), &[]));
        assert_eq!(code, 4, "{}: {told}", object.display());
        fs::write(&object, good).unwrap();
    }
    assert!(!proxy.seen().iter().any(super::proxy::Seen::uploads));
    assert_eq!(s3.objects(), Vec::<String>::new());
    pushed(&scene, &proxy.endpoint(), &[]);
}

#[test]
fn what_vanishes_from_the_bucket_meanwhile_is_uploaded_again() {
    let (scene, s3) = (Scene::new(), S3::start());
    let content = noise(1, 1 << 20);
    scene.build("vm", &scene.image("disk", &content));
    pushed(&scene, &s3.endpoint(), &[]);
    let pack = s3.file(&s3.objects().into_iter().find(|path| path.starts_with("packs/")).unwrap());
    // Another publisher prunes what this push has seen in the list and counts on.
    let proxy = Proxy::start(s3.port(), move |seen, _| {
        if seen.uploads() && !seen.is_conditional() && seen.path.contains("layouts") {
            let _ = fs::remove_file(&pack);
        }
        Fate::Pass
    });
    let content = [content, noise(2, 1 << 20)].concat();
    scene.build("vm", &scene.image("disk", &content));
    pushed(&scene, &proxy.endpoint(), &[]);
    assert_eq!(proxy.seen().iter().filter(|seen| seen.query.contains("lab%2Fpacks")).count(), 3);
    assert!(fs::read(scene.export(&s3.url("vm.vmnetx"), "disk0")).unwrap() == content);
}

#[test]
fn an_object_of_another_size_is_named() {
    let (scene, s3) = (Scene::new(), S3::start());
    scene.build("vm", &scene.image("disk", &noise(1, 1 << 20)));
    pushed(&scene, &s3.endpoint(), &[]);
    let pack = s3.objects().into_iter().find(|path| path.starts_with("packs/")).unwrap();
    fs::write(s3.file(&pack), b"short").unwrap();
    let (code, _, told) = run(command(&scene, &s3.endpoint(), &[]));
    assert!(code == 4 && told.contains(&pack) && told.contains("5 bytes in the bucket"), "{told}");
}

#[test]
fn credentials_come_from_a_profile_too_and_are_never_shown() {
    let (scene, s3) = (Scene::new(), S3::start());
    scene.build("vm", &scene.image("disk", &noise(1, 1 << 20)));
    let endpoint = s3.endpoint();
    let with = |file: &str, words: &[&str]| {
        fs::create_dir_all(scene.path("home/.aws")).unwrap();
        fs::write(scene.path("home/.aws/credentials"), file).unwrap();
        let mut command = command(&scene, &endpoint, words);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env("VMNETX_LOG", "trace");
        command
    };
    let good = format!("[ci]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    let (code, _, told) = run(with(&good, &[]));
    assert!(code == 2 && told.contains("no credentials"), "{told}");
    let wrong = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}x\n");
    let refused = run(with(&wrong, &[]));
    assert!(refused.0 == 5 && refused.2.contains("SignatureDoesNotMatch"), "{refused:?}");
    let mut command = with(&good, &[]);
    let pushed = run({
        command.env("AWS_PROFILE", "ci");
        command
    });
    assert_eq!(pushed.0, 0, "{}", pushed.2);
    assert!(pushed.2.contains("TRACE"), "the log is on");
    for told in [&refused.1, &refused.2, &pushed.1, &pushed.2] {
        for secret in [SECRET, KEY_ID, "Signature="] {
            assert!(!told.contains(secret), "{secret} in {told}");
        }
    }
}

#[test]
fn what_cannot_be_reached_is_told() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("disk", &noise(1, 1 << 20)));
    let (code, _, told) = run(command(&scene, "http://s3.example.org", &[]));
    assert!(code == 2 && told.contains("not encrypted") && told.contains("--allow-http"), "{told}");
    let (code, _, told) = run(command(&scene, "https://me:hush@s3.example.org", &[]));
    assert!(code == 2 && !told.contains("hush"), "{told}");
    let (code, _, told) = run(command(&scene, "http://127.0.0.1:1", &[]));
    assert!(code == 5 && told.contains("127.0.0.1:1"), "{told}");
    let s3 = S3::start();
    let mut nowhere = command_to(&scene, "s3://nowhere", &[]);
    nowhere.env("AWS_ENDPOINT_URL", s3.endpoint());
    let (code, _, told) = run(nowhere);
    assert!(code == 5 && told.contains("s3://nowhere") && told.contains("NoSuchBucket"), "{told}");
    let code = run(command(&scene, &s3.endpoint(), &["--region", "eu-west-1"])).0;
    assert_eq!(code, 0, "a region is only a name to this server");
}
