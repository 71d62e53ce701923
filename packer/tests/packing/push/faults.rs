//! Bad networks only delay a push, and a killed one is completed by the next.

use std::fs;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::proxy::{Fate, Proxy, Seen};
use super::server::S3;
use super::{command, disk, pushed, verify_whole};
use crate::crash::{kill, rounds, tell_kills};
use crate::support::Scene;

#[test]
fn a_bad_network_only_delays() {
    let (scene, s3) = (Scene::new(), S3::start());
    // Each kind of request fails in each way once before it passes; one of them all stalls.
    let failed = Mutex::new(std::collections::HashMap::<String, usize>::new());
    let proxy = Proxy::start(s3.port(), move |seen, _| {
        let kind = match (seen.method.as_str(), seen.path.as_str()) {
            ("GET", "vms") => "list".to_owned(),
            ("PUT", path) if path.ends_with(".vmnetx") || path.contains("manifests") => path.to_owned(),
            (method, path) => format!("{method} {} {}", path.ends_with(".pack"), seen.query.split('=').next().unwrap()),
        };
        let stalls = kind == "list";
        let mut failed = failed.lock().unwrap();
        let times = failed.entry(kind).or_default();
        *times += 1;
        match *times {
            1 => Fate::Unavailable,
            2 => Fate::Broken,
            3 => Fate::AnswerLost,
            4 if stalls => Fate::Stalled,
            _ => Fate::Pass,
        }
    });
    for seed in [1, 2] {
        let content = disk(seed);
        scene.build("vm", &scene.image("disk", &content));
        pushed(&scene, &proxy.endpoint(), &[]);
        assert!(fs::read(scene.export(&s3.url("vm.vmnetx"), "disk0")).unwrap() == content);
    }
    assert!(proxy.seen().len() > 30);
}

#[test]
fn a_killed_push_is_completed_by_the_next() {
    let (scene, s3) = (Scene::new(), S3::start());
    let proxy = Proxy::start(s3.port(), |_, _| Fate::Pass);
    let mut published = disk(0);
    scene.build("vm", &scene.image("disk", &published));
    let started = Instant::now();
    pushed(&scene, &proxy.endpoint(), &[]);
    let mut whole = started.elapsed();
    let url = s3.url("vm.vmnetx");
    let (rounds, mut killed, mut spared) = (rounds(), 0, 0);
    for round in 1..=rounds {
        let new = disk(round.into());
        scene.build("vm", &scene.image("disk", &new));
        let push = command(&scene, &proxy.endpoint(), &[]).stdout(Stdio::null()).spawn().unwrap();
        let running = kill(push, &mut whole, round);
        killed += u32::from(running);
        // What it left is whole: the version before, or the new one.
        verify_whole(&url);
        let found = fs::read(scene.export(&url, "disk0")).unwrap();
        assert!(found == new || (found == published && running), "round {round}: neither old nor new");
        // Requests that were sent before the kill may still be under way in the proxy and the server.
        std::thread::sleep(Duration::from_millis(300));
        let before = s3.objects();
        proxy.seen();
        pushed(&scene, &proxy.endpoint(), &[]);
        for seen in proxy.seen().iter().filter(|seen| seen.uploads() && !seen.is_conditional()) {
            let path = seen.path.strip_prefix("vms/lab/").unwrap();
            assert!(!before.iter().any(|there| there == path), "{path} was uploaded again");
        }
        spared += usize::from(before.iter().any(|path| {
            let file = scene.repo().join(path);
            path.starts_with("packs/") && fs::metadata(file).unwrap().modified().unwrap() > started_at(started)
        }));
        assert!(fs::read(scene.export(&url, "disk0")).unwrap() == new);
        published = new;
    }
    tell_kills("pushes", killed, rounds);
    assert!(spared > 0, "no push had got far enough to spare the next one work");
}

#[test]
fn an_interrupted_push_takes_back_what_it_half_uploaded() {
    let (scene, s3) = (Scene::new(), S3::start());
    scene.build("vm", &scene.image("disk", &disk(1)));
    let proxy =
        Proxy::start(s3.port(), |seen, _| if seen.query.contains("partNumber=2") { Fate::Stalled } else { Fate::Pass });
    let mut push = command(&scene, &proxy.endpoint(), &[]);
    let push = push.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut requests = Vec::new();
    let begun = Instant::now();
    while !requests.iter().any(|seen: &Seen| seen.query.contains("partNumber=2")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no part was uploaded");
        std::thread::sleep(Duration::from_millis(50));
        requests.extend(proxy.seen());
    }
    let interrupted = Instant::now();
    let pid = rustix::process::Pid::from_child(&push);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = push.wait_with_output().unwrap();
    assert!(interrupted.elapsed() < Duration::from_secs(10), "{:?}", interrupted.elapsed());
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(1), b"error: interrupted\n".as_slice()));
    requests.extend(proxy.seen());
    let count = |method: &str, query: &str| {
        requests.iter().filter(|seen| seen.method == method && seen.query.starts_with(query)).count()
    };
    assert!(count("POST", "uploads") > 0);
    assert_eq!(count("POST", "uploads"), count("DELETE", "uploadId"), "{requests:?}");
    assert!(!s3.file("vm.vmnetx").exists());
}

/// The wall clock's time at an instant.
fn started_at(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}
