use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use vmnetx_format::{Compressor, Kind, Link};

use super::*;

fn repository() -> (TempDir, RepositoryDir) {
    let folder = TempDir::new().unwrap();
    let repository = RepositoryDir::create(folder.path().join("repo")).unwrap();
    (folder, repository)
}

fn link(name: &str, serial: u64) -> Envelope {
    let current = Version {
        manifest: Digest::of(b"manifest"),
        manifest_bytes: 8,
        layout: Digest::of(b"layout"),
        layout_bytes: 6,
        orders: Vec::new(),
        published_unix_s: 1,
        pinned: false,
    };
    let name = name.parse().unwrap();
    Envelope::unsigned(Link { name, title: None, serial, repositories: Vec::new(), current, retained: Vec::new() })
        .unwrap()
}

/// Writes a pack of chunks with these bytes.
fn put_pack(publisher: &Publisher, chunks: &[&[u8]]) -> Digest {
    let mut builder = PackBuilder::new();
    let mut bytes = PackBuilder::HEADER.to_vec();
    for chunk in chunks {
        let stored = Compressor::new(3).unwrap().encode(chunk).unwrap();
        builder.push(Kind::Chunk, Digest::of(chunk), chunk.len() as u32, &stored);
        bytes.extend(stored);
    }
    let (footer, digest) = builder.finish().unwrap();
    bytes.extend(footer);
    publisher.put(&pack_path(&digest), &digest, &bytes).unwrap();
    digest
}

fn temporary_files(repository: &RepositoryDir) -> usize {
    fs::read_dir(repository.root().join("tmp")).unwrap().count()
}

#[test]
fn what_is_put_is_read_back() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = put_pack(&publisher, &[b"one", &[2; 5000]]);
    publisher.replace_link(&link("debian", 1)).unwrap();
    publisher.replace_link(&link("debian", 2)).unwrap();
    publisher.replace_link(&link("arch", 1)).unwrap();

    let names: Vec<String> = repository.links().unwrap().into_iter().map(String::from).collect();
    assert_eq!(names, ["arch", "debian"]);
    assert_eq!(repository.link(&"debian".parse().unwrap()).unwrap().unwrap().link.serial, 2);
    assert!(repository.link(&"absent".parse().unwrap()).unwrap().is_none());
    assert_eq!(repository.packs().unwrap().objects, [digest]);
    let catalogue = repository.pack(&digest).unwrap().catalogue().unwrap();
    let entries: Vec<_> = catalogue.entries().map(|(_, entry)| (entry.digest, entry.plain_len)).collect();
    assert_eq!(entries, [(Digest::of(b"one"), 3), (Digest::of(&[2; 5000]), 5000)]);
    assert_eq!(temporary_files(&repository), 0);
}

#[test]
fn one_publisher_at_a_time_and_the_other_learns_who() {
    let (_folder, repository) = repository();
    let first = repository.lock(Wait::No).unwrap();
    let error = repository.lock(Wait::No).unwrap_err();
    assert_eq!(error.class(), Class::Failure);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert!(error.hint().unwrap().contains("--wait"));

    let (sender, locked) = mpsc::channel();
    let waiting = std::thread::spawn({
        let repository = repository.clone();
        move || {
            let second = repository.lock(Wait::Yes).unwrap();
            sender.send(()).unwrap();
            drop(second);
        }
    });
    assert!(locked.recv_timeout(Duration::from_millis(200)).is_err(), "two publishers hold the lock");
    drop(first);
    locked.recv_timeout(Duration::from_secs(10)).unwrap();
    waiting.join().unwrap();
    // Readers need no lock, and an orderly end leaves no trace of its holder.
    assert_eq!(fs::metadata(repository.root().join(LOCK_FILE)).unwrap().len(), 0);
}

#[test]
fn leftovers_of_the_dead_are_swept_and_what_they_finished_is_kept() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = put_pack(&publisher, &[b"finished"]);
    let mut unfinished = publisher.temporary().unwrap();
    io::Write::write_all(&mut unfinished, b"half a pack").unwrap();
    // A publisher that is killed runs no destructor; the system ends its lock.
    std::mem::forget(unfinished);
    let file = fs::read_dir(repository.root().join("tmp")).unwrap().next().unwrap().unwrap().path();
    drop(publisher);
    fs::write(repository.root().join(LOCK_FILE), "process 1 on nowhere\n").unwrap();
    assert!(file.exists());

    let next = repository.lock(Wait::No).unwrap();
    assert_eq!(temporary_files(&repository), 0);
    assert_eq!(repository.packs().unwrap().objects, [digest]);
    // Their directories are flushed before a link can build on them.
    assert!(next.unsynced_folders().contains(&repository.root().join("packs")));
    next.replace_link(&link("debian", 1)).unwrap();
    assert!(next.unsynced_folders().is_empty());
}

#[test]
fn good_objects_are_left_alone_and_damaged_ones_replaced() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = Digest::of(b"content");
    let path = manifest_path(&digest);
    let file = repository.root().join(&path);
    publisher.put(&path, &digest, b"content").unwrap();
    let inode = |file: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap());
    let before = inode(&file);
    publisher.put(&path, &digest, b"content").unwrap();
    assert_eq!(inode(&file), before, "a good object was written again");

    fs::write(&file, b"c0ntent").unwrap();
    assert!(matches!(repository.verified(&path, 100, &digest), Err(DirError::Digest { .. })));
    publisher.put(&path, &digest, b"content").unwrap();
    assert_eq!(repository.verified(&path, 100, &digest).unwrap(), b"content");
    assert_eq!(temporary_files(&repository), 0);
}

#[test]
fn an_object_that_is_not_committed_leaves_nothing() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    drop(publisher.temporary().unwrap());
    let digest = Digest::of(b"x");
    assert!(matches!(publisher.put("packs/../../x", &digest, b"x"), Err(DirError::Path(_))));
    assert_eq!(temporary_files(&repository), 0);
}

#[test]
fn paths_stay_inside_and_are_not_hidden() {
    let (_folder, repository) = repository();
    for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".lock", "packs/.x", "a\0b"] {
        assert!(matches!(repository.object(path, 10), Err(DirError::Path(_))), "{path:?}");
    }
}

#[test]
fn a_web_server_of_another_account_can_read_all_objects() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = put_pack(&publisher, &[b"chunk"]);
    publisher.replace_link(&link("debian", 1)).unwrap();
    // What the system gives a new file and a new folder under the umask of this process, whatever it is.
    let (file, folder) = (repository.root().join("file"), repository.root().join("folder"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&folder).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode();
    let pack = repository.root().join(pack_path(&digest));
    assert_eq!(mode(pack.clone()), mode(file.clone()));
    assert_eq!(mode(repository.root().join("debian.vmnetx")), mode(file));
    assert_eq!(mode(pack.parent().unwrap().to_owned()), mode(folder));
}

#[test]
fn a_directory_in_use_for_something_else_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    let error = RepositoryDir::create(folder.path()).unwrap_err();
    assert!(error.to_string().contains("letter.txt"), "{error}");
    assert_eq!(error.class(), Class::Usage);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "it made folders there");
    assert!(matches!(RepositoryDir::open(folder.path()), Err(DirError::NotARepository { .. })));
    assert!(RepositoryDir::open(folder.path().join("absent")).unwrap_err().is_not_found());
}

#[test]
fn a_repository_that_was_half_made_or_half_copied_is_completed() {
    let (_folder, repository) = repository();
    fs::write(repository.root().join("index.html"), "hello").unwrap();
    fs::remove_dir(repository.root().join("tmp")).unwrap();
    RepositoryDir::create(repository.root()).unwrap().lock(Wait::No).unwrap();
    fs::remove_file(repository.root().join("index.html")).unwrap();
    fs::remove_dir(repository.root().join("packs")).unwrap();
    assert!(RepositoryDir::open(repository.root()).is_err());
    RepositoryDir::create(repository.root()).unwrap();
    RepositoryDir::open(repository.root()).unwrap();
}

#[test]
fn a_repository_may_lack_the_folder_for_orders() {
    let (_folder, repository) = repository();
    fs::remove_dir(repository.root().join("orders")).unwrap();
    let repository = RepositoryDir::open(repository.root()).unwrap();
    assert_eq!(repository.orders().unwrap(), Listing::default());
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = Digest::of(b"order");
    publisher.put(&order_path(&digest), &digest, b"order").unwrap();
    publisher.replace_link(&link("debian", 1)).unwrap();
    assert_eq!(repository.orders().unwrap().objects, [digest]);
}

#[test]
fn files_that_are_no_objects_are_strangers() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    let digest = put_pack(&publisher, &[b"chunk"]);
    let root = repository.root();
    let strangers = ["packs/README", "packs/00/x.pack", &format!("packs/00/{digest}.pack")].map(|path| root.join(path));
    fs::create_dir_all(root.join("packs/00")).unwrap();
    for path in &strangers {
        fs::write(path, "").unwrap();
    }
    let listing = repository.packs().unwrap();
    assert_eq!(listing.objects, [digest]);
    let mut expected = strangers.to_vec();
    expected.sort();
    assert_eq!(listing.strangers, expected);
}

#[test]
fn damaged_links_and_packs_are_told_apart_from_absent_ones() {
    let (_folder, repository) = repository();
    let publisher = repository.lock(Wait::No).unwrap();
    publisher.replace_link(&link("debian", 1)).unwrap();
    fs::rename(repository.root().join("debian.vmnetx"), repository.root().join("other.vmnetx")).unwrap();
    let error = repository.link(&"other".parse().unwrap()).unwrap_err();
    assert!(matches!(error, DirError::LinkName { .. }), "{error}");
    assert_eq!(error.class(), Class::Integrity);
    fs::write(repository.root().join("other.vmnetx"), "{}").unwrap();
    assert_eq!(repository.link(&"other".parse().unwrap()).unwrap_err().class(), Class::Integrity);

    let digest = put_pack(&publisher, &[b"chunk"]);
    let path = repository.root().join(pack_path(&digest));
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = repository.pack(&digest).unwrap().catalogue().unwrap_err();
        assert_eq!(error.class(), Class::Integrity, "{length}: {error}");
    }
    assert!(repository.pack(&Digest::of(b"absent")).unwrap_err().is_not_found());
}

#[test]
fn objects_that_are_too_large_are_not_read() {
    let (_folder, repository) = repository();
    fs::write(repository.root().join("manifests/x"), [0; 101]).unwrap();
    assert_eq!(repository.object("manifests/x", 101).unwrap().len(), 101);
    let error = repository.object("manifests/x", 100).unwrap_err();
    assert!(matches!(error, DirError::TooLarge { bytes: 101, max_bytes: 100, .. }), "{error}");
}
