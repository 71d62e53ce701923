//! Orders: what a boot touches lies once more, in sequence, in packs of its own.

use std::collections::HashSet;
use std::fs;

use vmnetx_format::{Chunker, Digest, Kind, Order, Place, Version, decode_frame, order_path, pack_path};
use vmnetx_pack::{
    BuildOptions, Depth, LaidOrder, OrderChoice, PruneOptions, Reader, RepackOptions, RetainOptions, Signing, Silent,
    build, prune, repack, retain, verify_remote,
};
use vmnetx_store::dir::{RepositoryDir, Wait};

use crate::server::Server;
use crate::support::{Scene, blocks, large_index, noise, record, text};

fn version(scene: &Scene, name: &str) -> Version {
    scene.repository().link(&name.parse().unwrap()).unwrap().unwrap().link.current
}

/// The only order of the current version.
fn order(scene: &Scene, name: &str) -> Order {
    let [digest] = version(scene, name).orders[..] else { panic!("not one order") };
    let bytes = scene.repository().verified(&order_path(&digest), 1 << 20, &digest).unwrap();
    Order::decode(&bytes).unwrap()
}

fn with_order(scene: &Scene, disk: &[u8], touches: &[(u64, u32)]) -> BuildOptions {
    let options = scene.options("vm", &scene.image("disk", disk));
    BuildOptions { orders: OrderChoice::Records(vec![record(touches)]), ..options }
}

fn stored(repository: &RepositoryDir, place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; place.stored_len as usize];
    repository.pack(&place.pack).unwrap().read_exact_at(&mut bytes, place.offset).unwrap();
    bytes
}

/// Every frame of an order as it is when plain, compared with its digest.
fn frames(scene: &Scene, order: &Order) -> Vec<Vec<u8>> {
    let repository = scene.repository();
    let plain = order.frames().iter().map(|frame| {
        let plain = decode_frame(&stored(&repository, &frame.place), frame.plain_len).unwrap();
        assert_eq!(Digest::of(&plain), frame.digest);
        plain
    });
    plain.collect()
}

/// The packs of an order.
fn packs(order: &Order) -> HashSet<Digest> {
    order.frames().iter().map(|frame| frame.place.pack).collect()
}

/// Text that is another in every block, so that it can be told where a frame is from.
fn numbered(count: u32) -> Vec<u8> {
    let block = |number: u32| format!("block {number} ").into_bytes().into_iter().cycle().take(blocks(1));
    (0..count).flat_map(block).collect()
}

#[test]
fn chunks_lie_in_the_sequence_of_their_touches_in_packs_of_their_own() {
    let scene = Scene::new();
    let disk = numbered(3000);
    // The last touch goes on behind the disk's end, where a later version may have something.
    let touches = [(2000, 40), (5, 1), (2010, 20), (900, 300), (2990, 500)];
    let report = build(&with_order(&scene, &disk, &touches), &Silent).unwrap();
    let [LaidOrder { info, reused_bytes: 0, written_bytes }] = report.orders[..] else { panic!("{report:?}") };
    let order = order(&scene, "vm");
    assert_eq!(info.frames, order.frames().len() as u64);
    assert!(written_bytes > info.stored_bytes && info.stored_bytes < info.plain_bytes, "{info:?}");
    // Each block once: the third touch has nothing new, the last one ends with the disk.
    let ranges: Vec<(u64, u32)> = order.touches().iter().map(|touch| (touch.first_block, touch.blocks)).collect();
    assert_eq!(ranges, [(2000, 40), (5, 1), (900, 300), (2990, 10)]);

    // Chunks are the disk's own, whole, and each touch is covered before the next one's begin.
    let plain = frames(&scene, &order);
    let mut left = plain.iter();
    for (first, count) in ranges {
        let wanted = &disk[blocks(first as usize)..blocks(first as usize + count as usize)];
        let mut found = Vec::new();
        while !found.windows(wanted.len()).any(|part| part == wanted) {
            found.extend_from_slice(left.next().expect("the touch is covered"));
        }
        assert!(found.len() < wanted.len() + blocks(64), "nothing else lies between");
    }
    assert_eq!(left.next(), None);

    // They follow one another, and nothing else is in their pack.
    let repository = scene.repository();
    let [pack] = packs(&order).into_iter().collect::<Vec<_>>()[..] else { panic!("several packs") };
    let catalogue = repository.pack(&pack).unwrap().catalogue().unwrap();
    let entries: Vec<_> = catalogue.entries().map(|(offset, entry)| (offset, entry.kind, entry.digest)).collect();
    let expected: Vec<_> = order.frames().iter().map(|frame| (frame.place.offset, Kind::Copy, frame.digest)).collect();
    assert_eq!(entries, expected);
    assert_eq!(scene.verify_whole().orders, 1);
    assert!(scene.exported("vm") == disk);

    // No build counts on copies: with them alone, everything is new.
    for file in scene.files() {
        if file != repository.root().join(pack_path(&pack)) {
            fs::remove_file(file).unwrap();
        }
    }
    let again = scene.build("other", &scene.image("disk", &disk));
    assert_eq!(again.new_chunks, report.new_chunks);
}

#[test]
fn the_same_order_again_changes_nothing() {
    let scene = Scene::new();
    let disk = [text(1, 300_000), noise(1, 3 << 20)].concat();
    let touches = [(400, 40), (0, 8), (300, 1)];
    scene.build("vm", &scene.image("disk", &disk));
    let without = version(&scene, "vm");
    let first = scene.order("vm", &touches);
    assert!(first.named.published && first.named.serial == 2 && first.version == without.manifest);
    // The version is what it was, and is laid out as it was.
    assert_eq!(Version { orders: Vec::new(), ..version(&scene, "vm") }, without);
    let files = scene.files();
    let link = fs::read(scene.link("vm")).unwrap();
    let again = scene.order("vm", &touches);
    assert!(!again.named.published && again.orders[0].written_bytes == 0, "{again:?}");
    assert_eq!(again.orders[0].reused_bytes, first.orders[0].info.stored_bytes);
    // Building it again, with the order or without a word about it, is no change either.
    for options in [with_order(&scene, &disk, &touches), scene.options("vm", &scene.path("disk"))] {
        let report = build(&options, &Silent).unwrap();
        assert!(!report.published && report.orders[0].info == first.orders[0].info, "{report:?}");
    }
    assert_eq!((scene.files(), fs::read(scene.link("vm")).unwrap()), (files, link));
    let dropped = build(&BuildOptions { orders: OrderChoice::Drop, ..with_order(&scene, &disk, &[]) }, &Silent);
    assert!(dropped.unwrap().published && version(&scene, "vm").orders.is_empty());
}

#[test]
fn a_later_version_inherits_the_order_and_few_changes_cost_little() {
    let scene = Scene::new();
    let old = [noise(1, 4 << 20), text(1, 1 << 20)].concat();
    let touches = [(1100, 40), (0, 300), (500, 100), (900, 100)];
    let first = build(&with_order(&scene, &old, &touches), &Silent).unwrap().orders[0].clone();
    let before = order(&scene, "vm");
    // Two blocks of the second touch are written in place; a part that no boot touches is, too.
    let mut new = old.clone();
    new[blocks(100)..blocks(102)].copy_from_slice(&noise(2, blocks(2)));
    new[blocks(420)..blocks(440)].copy_from_slice(&noise(3, blocks(20)));
    let report = scene.build("vm", &scene.image("disk", &new));
    let LaidOrder { info, reused_bytes, written_bytes } = report.orders[0];
    assert!(written_bytes < info.stored_bytes / 5, "{report:?}");
    assert!(reused_bytes > first.info.stored_bytes * 8 / 10);
    let after = order(&scene, "vm");
    assert_eq!(after.touches(), before.touches());
    assert!(packs(&after).len() == 2 && packs(&before).is_subset(&packs(&after)));
    let all = frames(&scene, &after).concat();
    assert!(all.windows(blocks(2)).any(|part| part == &new[blocks(100)..blocks(102)]));
    scene.verify_whole();

    // Where most is new, all of it is laid out anew, in sequence.
    let other = [&noise(4, 3 << 20), &new[3 << 20..]].concat();
    let report = scene.build("vm", &scene.image("disk", &other));
    assert_eq!(report.orders[0].reused_bytes, 0);
    assert_eq!((order(&scene, "vm").touches(), packs(&order(&scene, "vm")).len()), (before.touches(), 1));
    // So it is where the sequence is another one.
    let backwards: Vec<(u64, u32)> = (0..60).rev().map(|part| (part * 20, 20)).collect();
    let report = build(&with_order(&scene, &other, &backwards), &Silent).unwrap();
    assert_eq!((report.orders[0].reused_bytes, report.version == version(&scene, "vm").manifest), (0, true));
    scene.verify_whole();

    // Versions that were before keep their orders, also when one of them is current again.
    let link = link(&scene);
    vmnetx_pack::roll_back(&link, &first_version(&scene)).unwrap();
    assert_eq!(order(&scene, "vm"), before);
    // What no version has any more goes.
    retain(&link, &RetainOptions { keep: Some(0), ..RetainOptions::default() }).unwrap();
    let options =
        PruneOptions { repository: scene.repo(), grace: std::time::Duration::ZERO, dry_run: false, wait: Wait::No };
    prune(&options, &Silent).unwrap();
    prune(&options, &Silent).unwrap();
    let report = scene.verify_whole();
    assert_eq!((report.orders, report.unreferenced), (1, Vec::new()));
    assert_eq!(scene.repository().orders().unwrap().objects.len(), 1);
    assert_eq!(order(&scene, "vm"), before);
}

#[test]
fn in_a_file_system_that_was_made_anew_an_order_follows_the_data() {
    let scene = Scene::new();
    let old = numbered(3000);
    let touches = [(2000, 40), (5, 1), (900, 300)];
    build(&with_order(&scene, &old, &touches), &Silent).unwrap();
    // All is 500 blocks further on, but for a part of the last touch, which is not there any more.
    let mut new = [noise(1, blocks(500)), old].concat();
    new[blocks(1500)..blocks(1600)].copy_from_slice(&noise(2, blocks(100)));
    scene.build("vm", &scene.image("disk", &new));
    let order = order(&scene, "vm");
    let touched: Vec<u64> = order.touches().iter().flat_map(|touch| touch.first_block..touch.end()).collect();
    let moved = (2500..2540).chain([505]).chain(1400..1500).chain(1600..1700);
    let found = moved.clone().filter(|block| touched.contains(block)).count();
    // Chunks that were cut otherwise at the edges of what changed are not found.
    assert!(found > 241 - 2 * 32 && touched[..40].iter().eq(&(2500..2540).collect::<Vec<_>>()), "{touched:?}");
    // For what is gone the guess is that it was changed in its place.
    assert!((1000..1100).all(|block| touched.contains(&block)));
    assert_eq!(touched.len(), 341);
    frames(&scene, &order);
    scene.verify_whole();
}

#[test]
fn what_an_order_needs_survives_a_repack() {
    let scene = Scene::new();
    let old = [noise(1, 3 << 20), text(1, 1 << 20)].concat();
    build(&with_order(&scene, &old, &[(700, 60), (0, 200)]), &Silent).unwrap();
    let mut new = old;
    new[blocks(50)..blocks(52)].copy_from_slice(&noise(2, blocks(2)));
    let report = scene.build("vm", &scene.image("disk", &new));
    assert!(report.orders[0].reused_bytes > 0);
    retain(&link(&scene), &RetainOptions { keep: Some(0), ..RetainOptions::default() }).unwrap();
    let (before, layout) = (order(&scene, "vm"), version(&scene, "vm").layout);
    assert_eq!(packs(&before).len(), 2);
    // A part of the first order's pack is in use no more, and a part of the first version's.
    let options =
        RepackOptions { repository: scene.repo(), below: 1.0, level: 1, signing: Signing::default(), wait: Wait::No };
    let report = repack(&options, &Silent).unwrap();
    assert!(report.emptied.count >= 2 && report.links.len() == 1, "{report:?}");
    let after = order(&scene, "vm");
    assert_eq!((after.touches(), packs(&after).len()), (before.touches(), 1));
    assert_ne!(version(&scene, "vm").layout, layout);
    frames(&scene, &after);
    let options =
        PruneOptions { repository: scene.repo(), grace: std::time::Duration::ZERO, dry_run: false, wait: Wait::No };
    prune(&options, &Silent).unwrap();
    assert!(prune(&options, &Silent).unwrap().removed.count >= 4);
    let report = scene.verify_whole();
    assert_eq!((report.orders, report.unreferenced), (1, Vec::new()));
    assert!(scene.exported("vm") == new && order(&scene, "vm") == after);
}

fn link(scene: &Scene) -> vmnetx_pack::LinkOptions {
    let (name, signing) = ("vm".parse().unwrap(), Signing::default());
    vmnetx_pack::LinkOptions { repository: scene.repo(), name, signing, wait: Wait::No }
}

fn first_version(scene: &Scene) -> vmnetx_pack::VersionName {
    let link = scene.repository().link(&"vm".parse().unwrap()).unwrap().unwrap().link;
    link.retained.last().unwrap().manifest.to_string().parse().unwrap()
}

#[test]
fn the_nodes_of_a_large_index_come_before_the_chunks_they_lead_to() {
    let scene = Scene::new();
    let disk = large_index(0, None);
    let cut = Chunker::new(1, 1, 1).unwrap();
    let options = BuildOptions { chunker: Some(cut), ..with_order(&scene, &disk, &[(4096 * 3 + 7, 2), (4096 * 3, 1)]) };
    build(&options, &Silent).unwrap();
    let order = order(&scene, "vm");
    let plain = frames(&scene, &order);
    let tags: Vec<&[u8]> =
        plain.iter().map(|frame| if frame.len() == blocks(1) { b"  " } else { &frame[..2] }).collect();
    assert_eq!(tags, [b"cl", b"ll", b"  ", b"  ", b"  "]);
    assert!(plain[2] == disk[blocks(4096 * 3 + 7)..blocks(4096 * 3 + 8)]);
    // A new leaf needs a new copy of its nodes alone, which is too much of so short an order.
    let changed = large_index(9, Some(3));
    scene.build_cut("vm", &scene.image("disk", &changed), cut);
    assert!(crate::order::order(&scene, "vm") != order);
    scene.verify_whole();
}

#[test]
fn a_damaged_order_is_told_and_harms_no_version() {
    let scene = Scene::new();
    let disk = noise(1, 2 << 20);
    scene.build("vm", &scene.image("disk", &disk));
    scene.order("vm", &[(100, 40), (5, 5)]);
    let good = order(&scene, "vm");
    let object = scene.repo().join(order_path(&version(&scene, "vm").orders[0]));
    let pack = scene.repo().join(pack_path(&good.frames()[0].place.pack));
    for file in [&object, &pack] {
        let whole = fs::read(file).unwrap();
        let mut bad = whole.clone();
        bad[40] ^= 1;
        for damage in [Some(&bad), None] {
            match damage {
                Some(bytes) => fs::write(file, bytes).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            let report = scene.verify();
            assert!(!report.findings.is_empty(), "{}", file.display());
            assert!(report.findings.iter().all(|finding| finding.affects.is_none()), "{report:?}");
            assert!(scene.exported("vm") == disk);
            // What the order led to is not known, so nothing may go.
            if file == &object {
                scene.program().arg("prune").arg(scene.repo()).assert().code(4);
            }
        }
        fs::write(file, whole).unwrap();
    }
    scene.verify_whole();
    fs::write(&object, "VMNXORD0").unwrap();
    // A build goes on without it.
    let mut new = scene.program();
    new.arg("build").arg(scene.repo()).arg("vm").arg("--disk").arg(scene.image("new", &noise(2, 1 << 20)));
    let told = String::from_utf8(new.assert().success().get_output().stderr.clone()).unwrap();
    assert!(told.contains("an order is left out"), "{told}");
    assert!(version(&scene, "vm").orders.is_empty());
    let mut old = scene.program();
    old.args(["order", scene.repo().to_str().unwrap(), "vm", "--drop", "--version"]);
    old.arg(first_version(&scene).to_string()).assert().success();
    assert_eq!(scene.verify_whole().orders, 0);
}

#[test]
fn the_program_merges_records_and_tells_of_orders() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("disk", &noise(1, 2 << 20)));
    let file = |name: &str, touches: &[(u64, u32)]| scene.image(name, &record(touches).encode().unwrap());
    let records = [file("a", &[(0, 10), (100, 10)]), file("b", &[(0, 10), (100, 10)]), file("c", &[(400, 4), (0, 10)])];
    let told = |words: &[&str]| {
        let assert = scene.program().args(words).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let (repo, link) = (scene.repo(), scene.link("vm"));
    let (repo, link) = (repo.to_str().unwrap(), link.to_str().unwrap());
    let files = records.each_ref().map(|path| path.to_str().unwrap());
    let json: serde_json::Value =
        serde_json::from_str(&told(&[&["order", repo, "vm", "--json"][..], &files].concat())).unwrap();
    assert_eq!((&json["orders"][0]["purpose"], &json["orders"][0]["touches"]), (&"boot".into(), &3.into()));
    assert_eq!(json["serial"], 2);
    // What one of three has touched comes last.
    let sequence: Vec<u64> = order(&scene, "vm").touches().iter().map(|touch| touch.first_block).collect();
    assert_eq!(sequence, [0, 100, 400]);
    assert!(told(&["info", link]).contains("order     of a boot: 3 touches, "));
    assert!(told(&["log", link]).contains("boot order of "));
    let build = ["build", repo, "vm", "--quiet", "--disk", scene.path("disk").to_str().unwrap(), "--order", files[0]]
        .map(str::to_owned);
    assert!(told(&build.each_ref().map(String::as_str)).contains("order     of a boot: 2 touches, "));
    let first = version(&scene, "vm").manifest.to_string();
    assert!(told(&["diff", link, &first]).contains("to        order  of a boot: 2 touches, "));

    let bad = scene.image("bad", b"{\"vmnetx\":0}");
    scene.program().args(["order", repo, "vm"]).arg(bad).assert().code(2);
    scene.program().args(["order", repo, "vm", files[0], "--drop"]).assert().code(2);
    scene.program().args(["order", repo, "vm"]).assert().code(2);
    scene.program().args(["order", repo, "none", files[0]]).assert().code(2);
    scene.verify_whole();
}

/// An order that is read from a web server is as good as one on this host: each frame is compared with its digest where the
/// order says that it lies, though the image itself has it elsewhere and whole.
#[test]
fn orders_are_verified_from_afar_too() {
    let scene = Scene::new();
    build(&with_order(&scene, &numbered(3000), &[(2000, 40), (5, 1), (900, 300)]), &Silent).unwrap();
    let order = order(&scene, "vm");
    let server = Server::start(&scene, 1);
    let url = format!("http://{}/vm.vmnetx", server.address).parse().unwrap();
    let verify = |depth| verify_remote(&url, depth, &Reader::default(), &Silent).unwrap();
    let whole = verify(Depth::Deep);
    assert_eq!((whole.orders, &whole.findings[..]), (1, &[][..]));
    let frames: u64 = order.frames().iter().map(|frame| u64::from(frame.plain_len)).sum();
    let index_alone = verify(Depth::Part(0.0));
    assert_eq!((index_alone.orders, index_alone.read_bytes), (1, 0));
    assert_eq!(whole.read_bytes, blocks(3000) as u64 + frames);

    let place = &order.frames()[0].place;
    let pack = scene.repo().join(pack_path(&place.pack));
    let good = fs::read(&pack).unwrap();
    let mut bytes = good.clone();
    bytes[place.offset as usize + place.stored_len as usize / 2] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let [digest] = version(&scene, "vm").orders[..] else { panic!("not one order") };
    let [finding] = &verify(Depth::Deep).findings[..] else { panic!("one finding") };
    assert_eq!(finding.object, order_path(&digest));
    assert!(finding.what.starts_with("frame 0: ") && finding.affects.is_none(), "{finding:?}");
    fs::remove_file(&pack).unwrap();
    let missing = verify(Depth::Deep);
    assert_eq!(missing.findings.len() as u64 + missing.more_findings, order.frames().len() as u64, "{missing:?}");
    fs::write(&pack, good).unwrap();
    fs::write(scene.repo().join(order_path(&digest)), "no order").unwrap();
    let [finding] = &verify(Depth::Deep).findings[..] else { panic!("one finding") };
    assert_eq!(finding.object, order_path(&digest));
}
