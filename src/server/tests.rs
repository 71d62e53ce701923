use std::os::unix::fs::PermissionsExt;

use super::*;

fn versions(api: &[u32], draining: bool) -> Versions {
    Versions { api: api.into(), program: "0".into(), pid: 1, draining }
}

#[test]
fn a_server_is_fit_if_it_speaks_our_version_and_stays() {
    assert_eq!(unfit(&versions(&[API_VERSION], false)), None);
    assert_eq!(unfit(&versions(&[API_VERSION, API_VERSION + 1], false)), None);
    assert!(unfit(&versions(&[API_VERSION + 1], false)).is_some());
    assert!(unfit(&versions(&[], false)).is_some());
    assert!(unfit(&versions(&[API_VERSION], true)).is_some());
}

#[test]
fn a_cache_directory_is_made_for_its_user_alone() {
    let base = tempfile::tempdir().unwrap();
    let dir = prepare(&base.path().join("a/b")).unwrap();
    assert!(dir.is_absolute());
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert!(prepare(&File::create(base.path().join("file")).map(|_| base.path().join("file")).unwrap()).is_err());
}

#[test]
fn sockets_need_a_short_path() {
    let control = |dir: &str| Control::new(control_socket(Path::new(dir)));
    assert!(has_room_for_sockets(&control("/home/somebody/.cache/vmnetx")));
    assert!(has_room_for_sockets(&control(&format!("/{}", "x".repeat(74)))));
    assert!(!has_room_for_sockets(&control(&format!("/{}", "x".repeat(80)))));
}

#[test]
fn a_log_tells_its_last_words_and_begins_anew_when_it_is_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOG);
    std::fs::write(&path, "first\nsecond\nerror: third\nhint: fourth\n").unwrap();
    assert_eq!(words(&path), "error: third; hint: fourth");
    log(&path).unwrap();
    assert!(path.metadata().unwrap().len() > 0);
    std::fs::write(&path, vec![b'x'; LOG_BYTES_MAX as usize + 1]).unwrap();
    log(&path).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 0);
    assert!(words(&dir.path().join("none")).contains("cannot be read"));
}
