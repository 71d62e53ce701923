//! What publishing writes and what it leaves alone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use vmnetx_format::limits::SMALL_INDEX_BYTES_MAX;
use vmnetx_format::{Chunker, LayoutObject, NodePlace, Roots};
use vmnetx_pack::{BuildOptions, DiskFile, Error, Silent, build};
use vmnetx_store::dir::Wait;
use vmnetx_store::failure::{Class, Told};

use crate::support::{LEAF_BYTES, Scene, assert_same_content, blocks, large_index, noise, sparse, text};

/// The roots of the current version's disks.
fn roots(scene: &Scene, name: &str) -> Vec<Roots> {
    let repository = scene.repository();
    let version = repository.link(&name.parse().unwrap()).unwrap().unwrap().link.current;
    let manifest = repository.manifest(&version).unwrap();
    LayoutObject::decode(&repository.layout(&version).unwrap(), &manifest.shapes().unwrap()).unwrap().images
}

fn stored_bytes(place: &NodePlace) -> u64 {
    u64::from(place.content_stored_len) + u64::from(place.layout_stored_len)
}

fn is_one_piece(places: &[NodePlace]) -> bool {
    places.windows(2).all(|pair| {
        let [first, second] = pair else { return true };
        first.pack == second.pack && first.offset + stored_bytes(first) == second.offset
    })
}

#[test]
fn the_same_input_makes_the_same_repository() {
    let image = [noise(1, 6 << 20), vec![0; 1 << 20], text(2, 3 << 20), noise(1, 2 << 20)].concat();
    let made = || {
        let scene = Scene::new();
        let report = scene.build("vm", &scene.image("a", &image));
        let root = scene.repo();
        let objects: Vec<_> = scene.files().iter().map(|file| file.strip_prefix(&root).unwrap().to_owned()).collect();
        (report.version, report.layout, objects)
    };
    assert_eq!(made(), made());
}

#[test]
fn a_new_version_writes_only_what_is_new_and_retains_the_old_one() {
    let scene = Scene::new();
    let mut data = noise(1, 8 << 20);
    let first = scene.build("vm", &scene.image("a", &data));
    let old_files = scene.files();
    let times: Vec<_> = old_files.iter().map(|file| fs::metadata(file).unwrap().mtime_nsec()).collect();
    data[3 << 20] ^= 1;
    let second = scene.build("vm", &scene.image("b", &data));

    assert_eq!((second.serial, second.new_chunks), (2, 1));
    assert!(second.written_bytes < 300 << 10, "{} bytes written", second.written_bytes);
    let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
    assert_eq!(link.current.manifest, second.version);
    assert_eq!(link.retained.iter().map(|version| version.manifest).collect::<Vec<_>>(), [first.version]);
    for (file, time) in old_files.iter().zip(times).filter(|(file, _)| !file.ends_with("vm.vmnetx")) {
        assert_eq!(fs::metadata(file).unwrap().mtime_nsec(), time, "{} was written again", file.display());
    }
    assert_eq!(scene.verify_whole().versions, 2);
    assert!(scene.exported("vm") == data);
    data[3 << 20] ^= 1;
    let pinned = format!("{}#b3={}", scene.link("vm").display(), first.version);
    assert!(fs::read(scene.export(&pinned, "disk0")).unwrap() == data);

    // Publishing the first content again is no third version: it is current, and no longer retained beside itself.
    let back = scene.build("vm", &scene.image("c", &data));
    assert_eq!((back.serial, back.version, back.new_chunks), (3, first.version, 0));
    let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
    assert_eq!(link.retained.iter().map(|version| version.manifest).collect::<Vec<_>>(), [second.version]);
}

#[test]
fn packages_share_chunks() {
    let scene = Scene::new();
    let data = noise(1, 4 << 20);
    scene.build("one", &scene.image("a", &data));
    let other = scene.build("two", &scene.image("b", &[&[0; 8192], &data[..], b"and a bit"].concat()));
    assert!(other.new_chunks <= 3, "{} chunks are new", other.new_chunks);
    scene.verify_whole();
}

#[test]
fn several_disks_have_their_names_and_their_order() {
    let scene = Scene::new();
    let (system, empty, data) = (noise(1, 70_000), Vec::new(), text(3, 5000));
    let disks = [("system", &system), ("empty", &empty), ("data", &data)];
    let named = disks.map(|(name, bytes)| DiskFile::raw(name.parse().unwrap(), scene.image(name, bytes)));
    let options = BuildOptions { disks: named.to_vec(), ..scene.options("vm", &scene.path("system")) };
    let report = build(&options, &Silent).unwrap();
    assert_eq!(report.disk_bytes, 75_000);
    for (name, bytes) in disks {
        assert!(fs::read(scene.export(scene.link("vm").to_str().unwrap(), name)).unwrap() == *bytes, "{name}");
    }
    scene.verify_whole();
    assert!(!build(&options, &Silent).unwrap().published);
}

#[test]
fn title_and_urls_stay_until_they_are_given_anew() {
    let scene = Scene::new();
    let image = scene.image("a", &noise(1, 10_000));
    let named = BuildOptions {
        title: Some("First".parse().unwrap()),
        urls: vec!["https://example.org/vms/".parse().unwrap()],
        ..scene.options("vm", &image)
    };
    build(&named, &Silent).unwrap();
    assert!(!scene.build("vm", &image).published, "silence about the title is no change");
    let renamed = BuildOptions { title: Some("Second".parse().unwrap()), ..scene.options("vm", &image) };
    let report = build(&renamed, &Silent).unwrap();
    assert_eq!((report.published, report.serial, report.new_chunks), (true, 2, 0));
    let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
    assert_eq!(link.title.unwrap().as_str(), "Second");
    assert_eq!(link.repositories.len(), 1);
    assert!(link.retained.is_empty(), "a version is retained beside itself");
}

#[test]
fn a_version_is_cut_like_the_one_before() {
    let scene = Scene::new();
    let image = scene.image("a", &noise(1, 1 << 20));
    scene.build_cut("vm", &image, Chunker::with_mean(16 << 10).unwrap());
    assert_eq!(scene.build("vm", &image).new_chunks, 0);
    let fresh = scene.build("other", &image);
    assert!(fresh.new_chunks > 0, "another package is cut in its own way");
}

#[test]
fn a_small_index_lies_in_one_piece_even_if_parts_of_it_are_known() {
    let scene = Scene::new();
    let mut parts: Vec<Vec<u8>> = (0..5).map(|seed| noise(seed, blocks(40))).collect();
    let write = |parts: &[Vec<u8>]| {
        let placed: Vec<(u64, &[u8])> =
            parts.iter().enumerate().map(|(leaf, data)| (leaf as u64 * LEAF_BYTES + 4096, &data[..])).collect();
        sparse(&scene.path("image"), 6 * LEAF_BYTES + 5, &placed);
        scene.path("image")
    };
    let first = scene.build("vm", &write(&parts));
    parts[2] = noise(9, blocks(40));
    let second = scene.build("vm", &write(&parts));
    assert!(second.written_bytes < first.written_bytes / 2);
    let roots = &roots(&scene, "vm")[0];
    assert_eq!(roots.layout.children().len(), 5);
    assert!(is_one_piece(roots.layout.children()));
    scene.verify_whole();
}

#[test]
fn a_large_index_is_written_only_where_it_is_new() {
    let scene = Scene::new();
    let one_block = Chunker::new(1, 1, 1).unwrap();
    let first = scene.build_cut("vm", &scene.image("a", &large_index(0, None)), one_block);
    let places: u64 = roots(&scene, "vm")[0].layout.children().iter().map(stored_bytes).sum();
    assert!(places > SMALL_INDEX_BYTES_MAX, "the index has only {places} bytes");
    assert_eq!((first.chunks, first.new_chunks), (40_960, 4096));

    let data = large_index(5, Some(4));
    let second = scene.build_cut("vm", &scene.image("a", &data), one_block);
    assert_eq!(second.new_chunks, 0);
    let one_leaf = places / 10;
    assert!(second.written_bytes < 2 * one_leaf, "{} bytes for one leaf of {one_leaf}", second.written_bytes);
    assert!(scene.exported("vm") == data);
    scene.verify_whole();
    assert!(!scene.build_cut("vm", &scene.path("a"), one_block).published);
}

#[test]
fn images_with_inner_nodes_survive() {
    let scene = Scene::new();
    let image = scene.path("image");
    let size = (17 << 30) + 12_345;
    let (first, middle, last) = (noise(1, blocks(50)), text(2, blocks(9000)), noise(3, 10_000));
    // The middle crosses the border between two inner nodes, at 8 GiB; the last part ends with the image.
    let parts = [(0, &first[..]), ((8 << 30) - blocks(4200) as u64, &middle[..]), (size - 10_000, &last[..])];
    sparse(&image, size, &parts);
    let report = scene.build("vm", &image);
    assert_eq!(report.disk_bytes, size);
    let roots = &roots(&scene, "vm")[0];
    assert_eq!(roots.content.children().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(is_one_piece(roots.layout.children()));
    assert_same_content(&image, &scene.export(scene.link("vm").to_str().unwrap(), "disk0"));
    scene.verify_whole();
    assert!(!scene.build("vm", &image).published);
}

#[test]
fn many_leaves_that_wait_for_one_pack_end_it_early() {
    // More leaves than may wait, all of the same few chunks.
    let scene = Scene::new();
    let image = scene.path("image");
    let piece = noise(1, blocks(4));
    let leaves = vmnetx_pack::limits::LEAVES_WAITING as u64 + 40;
    let parts: Vec<(u64, &[u8])> = (0..leaves).map(|leaf| (leaf * LEAF_BYTES, &piece[..])).collect();
    sparse(&image, leaves * LEAF_BYTES, &parts);
    let report = scene.build("vm", &image);
    assert_eq!(report.chunks, leaves);
    assert_eq!(report.new_chunks, 1);
    scene.verify_whole();
    assert_same_content(&image, &scene.export(scene.link("vm").to_str().unwrap(), "disk0"));
}

#[test]
fn a_damaged_catalogue_is_not_built_upon() {
    let scene = Scene::new();
    let data = noise(1, 300_000);
    let image = scene.image("a", &data);
    let first = scene.build("vm", &image);
    let packs: Vec<_> =
        scene.files().into_iter().filter(|file| file.extension().is_some_and(|e| e == "pack")).collect();
    for pack in &packs {
        let length = fs::metadata(pack).unwrap().len();
        fs::OpenOptions::new().write(true).open(pack).unwrap().set_len(length - 1).unwrap();
    }
    assert!(!scene.verify().findings.is_empty());
    let second = scene.build("vm", &image);
    assert_eq!(second.new_chunks, first.new_chunks);
    scene.verify_whole();
    assert!(scene.exported("vm") == data);
}

#[test]
fn a_lost_pack_is_made_good_by_building_again() {
    let scene = Scene::new();
    let data = noise(1, 300_000);
    let image = scene.image("a", &data);
    let first = scene.build("vm", &image);
    let pack = scene.files().into_iter().find(|file| file.extension().is_some_and(|e| e == "pack")).unwrap();
    fs::remove_file(pack).unwrap();
    let second = scene.build("vm", &image);
    assert_eq!(second.version, first.version);
    scene.verify_whole();
    assert!(scene.exported("vm") == data);
}

#[test]
fn a_damaged_link_is_not_replaced() {
    let scene = Scene::new();
    let image = scene.image("a", &noise(1, 10_000));
    scene.build("vm", &image);
    fs::write(scene.link("vm"), "{\"vmnetx\":0}").unwrap();
    let error = build(&scene.options("vm", &image), &Silent).unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert_eq!(fs::read_to_string(scene.link("vm")).unwrap(), "{\"vmnetx\":0}");
}

#[test]
fn what_is_no_disk_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    fs::create_dir(scene.path("folder")).unwrap();
    let error = build(&scene.options("vm", &scene.path("folder")), &Silent).unwrap_err();
    assert!(matches!(error, Error::NoDisk { .. }), "{error}");
    let error = build(&scene.options("vm", &scene.path("absent")), &Silent).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    let image = scene.image("a", b"disk");
    let twice = vec![DiskFile::raw("x".parse().unwrap(), image.clone()); 2];
    let error = build(&BuildOptions { disks: twice, ..scene.options("vm", &image) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::DuplicateDisk(_)), "{error}");
    let error = build(&BuildOptions { disks: Vec::new(), ..scene.options("vm", &image) }, &Silent).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert!(!scene.repo().exists());
}

#[test]
fn a_second_publisher_waits_only_if_it_is_told_to() {
    let scene = Scene::new();
    let image = scene.image("a", &noise(1, 10_000));
    scene.build("vm", &image);
    let held = scene.repository().lock(Wait::No).unwrap();
    let error = build(&scene.options("vm", &image), &Silent).unwrap_err();
    assert!(error.to_string().contains("another publisher"), "{error}");
    let options = BuildOptions { wait: Wait::Yes, ..scene.options("other", &image) };
    let waiting = std::thread::spawn(move || build(&options, &Silent).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!waiting.is_finished());
    drop(held);
    assert!(waiting.join().unwrap().published);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_versions_keeps_all_of_them(seeds in proptest::collection::vec(0_u64..4, 1..6)) {
        let scene = Scene::new();
        let data = |seed: u64| [noise(seed, 40_000), text(seed, 30_000), noise(0, 50_000)].concat();
        let mut versions = std::collections::HashMap::new();
        for &seed in &seeds {
            let report = scene.build("vm", &scene.image("a", &data(seed)));
            versions.insert(seed, report.version);
        }
        let report = scene.verify_whole();
        prop_assert_eq!(report.versions, versions.len() as u64);
        prop_assert_eq!(report.unreferenced, Vec::<String>::new());
        for (seed, version) in versions {
            let pinned = format!("{}#b3={version}", scene.link("vm").display());
            prop_assert!(fs::read(scene.export(&pinned, "disk0")).unwrap() == data(seed));
        }
    }
}
