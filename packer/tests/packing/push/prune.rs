//! What the repository no longer has leaves the bucket, if nothing there can need it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::proxy::{Fate, Proxy};
use super::server::S3;
use super::{command, pushed, run};
use crate::support::{Scene, noise};

/// Two packages in the bucket, one of which the repository no longer has; the path of a pack of that one.
fn scene(s3: &S3) -> (Scene, String) {
    let scene = Scene::new();
    scene.build("old", &scene.image("disk", &noise(1, 1 << 20)));
    pushed(&scene, &s3.endpoint(), &[]);
    let old = s3.objects();
    fs::remove_dir_all(scene.repo()).unwrap();
    scene.build("vm", &scene.image("disk", &noise(2, 1 << 20)));
    pushed(&scene, &s3.endpoint(), &[]);
    (scene, old.into_iter().find(|path| path.starts_with("packs/")).unwrap())
}

#[test]
fn what_is_gone_from_the_repository_goes_after_its_grace() {
    let s3 = S3::start();
    let (scene, pack) = scene(&s3);
    let here = || {
        let files = scene.files();
        files.iter().map(|p| p.strip_prefix(scene.repo()).unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // The old link still leads to the old objects.
    let all = s3.objects();
    let (code, _, told) = run(command(&scene, &s3.endpoint(), &["--prune", "--grace", "0s"]));
    assert!(code == 1 && told.contains("old.vmnetx") && told.contains("nothing is pruned"), "{told}");
    assert_eq!(s3.objects(), all);
    fs::remove_file(s3.file("old.vmnetx")).unwrap();
    // Too young.
    let report = pushed(&scene, &s3.endpoint(), &["--prune"]);
    assert_eq!(report["pruned"].as_array().unwrap().len(), 0);
    // Rehearsed.
    let report = pushed(&scene, &s3.endpoint(), &["--prune", "--grace", "0s", "--dry-run"]);
    let paths: Vec<&str> = report["pruned"].as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&pack.as_str()) && paths.len() == all.len() - 1 - here().len(), "{report}");
    assert!(s3.file(&pack).exists());
    let report = pushed(&scene, &s3.endpoint(), &["--prune", "--grace", "0s"]);
    assert_eq!(report["pruned"].as_array().unwrap().len(), paths.len());
    assert_eq!(s3.objects(), here());
}

#[test]
fn a_publisher_who_comes_meanwhile_stops_it_or_is_told() {
    let s3 = S3::start();
    let (scene, pack) = scene(&s3);
    fs::remove_file(s3.file("old.vmnetx")).unwrap();
    let whole = s3.objects();
    // A link is replaced while objects are listed, the second time in this run, or while they are deleted.
    for (request, times_before, told_of) in
        [("lab%2Fmanifests", 1, "replaced while objects were listed"), ("delete", 0, "while objects were deleted")]
    {
        let link = s3.file("vm.vmnetx");
        let times = AtomicUsize::new(0);
        let proxy = Proxy::start(s3.port(), move |seen, _| {
            if seen.query.contains(request) && times.fetch_add(1, Ordering::Relaxed) == times_before {
                let good = fs::read(&link).unwrap();
                fs::write(&link, [good.as_slice(), b" "].concat()).unwrap();
            }
            Fate::Pass
        });
        assert_eq!(s3.objects(), whole);
        let (code, _, told) = run(command(&scene, &proxy.endpoint(), &["--prune", "--grace", "0s"]));
        assert!(code == 1 && told.contains("vm.vmnetx") && told.contains(told_of), "{told}");
        assert_eq!(s3.file(&pack).exists(), request != "delete");
        fs::copy(scene.link("vm"), s3.file("vm.vmnetx")).unwrap();
    }
}

#[test]
fn a_link_that_differs_stops_it() {
    let s3 = S3::start();
    let (scene, pack) = scene(&s3);
    fs::remove_file(s3.file("old.vmnetx")).unwrap();
    scene.build("other", &scene.image("disk", &noise(3, 1 << 20)));
    pushed(&scene, &s3.endpoint(), &[]);
    // Only `vm` is pushed, while `other` has moved on.
    scene.build("other", &scene.image("disk", &noise(4, 1 << 20)));
    let (code, _, told) = run(command(&scene, &s3.endpoint(), &["--name", "vm", "--prune", "--grace", "0s"]));
    assert!(code == 1 && told.contains("other.vmnetx") && told.contains("differs"), "{told}");
    assert!(s3.file(&pack).exists());
    // In a rehearsal of a push of both it counts as pushed.
    let report = pushed(&scene, &s3.endpoint(), &["--prune", "--grace", "0s", "--dry-run"]);
    assert!(!report["pruned"].as_array().unwrap().is_empty());
    // A link that cannot be ours.
    fs::copy(s3.file("vm.vmnetx"), s3.file("-odd-.vmnetx")).unwrap();
    let (code, _, told) = run(command(&scene, &s3.endpoint(), &["--prune", "--grace", "0s"]));
    assert!(code == 1 && told.contains("-odd-.vmnetx"), "{told}");
    assert!(s3.file(&pack).exists());
}
