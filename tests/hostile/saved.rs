//! Saved VMs that lie: device states that are none, or another VM's, orders without end, and servers that give them slowly. Each is
//! refused before QEMU is given a byte of it, or by QEMU, and takes no more time and memory than a good one.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmnetx_format::machine::Machine;
use vmnetx_format::{
    BLOCK_BYTES, Chunker, ContentInner, ContentLeaf, DeviceStateImage, Digest, Disk, Envelope, Kind, LayoutInner,
    LayoutLeaf, LayoutObject, MAIN_RAM_BLOCK, Manifest, Memory, NodePlace, Order, Place, Purpose, RamBlock, Roots,
    Touch, order_path, pack_path,
};

use super::evil::{DISK_BYTES, Evil, MACHINE, link, pack, put, put_version};
use super::readers::{Reader, Scratch, finish, says};
use super::server::Server;

const RAM_BYTES: u64 = 64 << 20;
const MODES: [Reader; 3] = [Reader::Resume("lazy"), Reader::Resume("stream"), Reader::Resume("mapped")];
/// The largest device state that there may be.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// A section of the device state: name and body.
type Section<'a> = (&'a str, &'a [u8]);

/// Sections with these numbers, as QEMU writes them.
fn sections(of: &[Section<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for ((name, body), number) in of.iter().zip(7_u32..) {
        out.extend([&[4][..], &number.to_be_bytes(), &[name.len() as u8], name.as_bytes(), &[0; 4]].concat());
        out.extend([&1_u32.to_be_bytes()[..], body, &[0x7e], &number.to_be_bytes()].concat());
    }
    out
}

/// A device state in which everything is where it should be.
fn state(of: &[Section<'_>]) -> Vec<u8> {
    let device = |(name, _): &Section<'_>| format!("{{\"name\":\"{name}\",\"instance_id\":0}}");
    let devices: Vec<_> = of.iter().map(device).collect();
    let description = format!("{{\"devices\":[{}]}}", devices.join(","));
    let length = (description.len() as u32).to_be_bytes();
    [&sections(of)[..], &[0, 6], &length, description.as_bytes()].concat()
}

/// The roots of an image of these bytes, of up to a leaf's span and in chunks of 4 MiB, which are stored; of zeros there is nothing.
fn image(root: &std::path::Path, bytes: &[u8]) -> Roots {
    let (mut content, mut layout) = (ContentInner::default(), Vec::new());
    if bytes.iter().any(|byte| *byte != 0) {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let (mut leaf, mut places) = (ContentLeaf::default(), Vec::new());
        for (number, chunk) in padded.chunks(1024 * BLOCK_BYTES).enumerate() {
            let (file, at) = pack(&[(Kind::Chunk, chunk, chunk)]);
            leaf.push(number as u32 * 1024, (chunk.len() / BLOCK_BYTES) as u32, Digest::of(chunk)).unwrap();
            let (offset, stored_len) = at[0];
            places.push(Place { pack: Digest::of(&file), offset, stored_len });
            put(root, &pack_path(&Digest::of(&file)), &file);
        }
        let (leaf, places) = (leaf.encode(), LayoutLeaf::new(places).encode());
        let (file, at) = pack(&[(Kind::Content, &leaf, &leaf), (Kind::Layout, &places, &places)]);
        content.push(0, Digest::of(&leaf)).unwrap();
        layout.push(NodePlace {
            pack: Digest::of(&file),
            offset: at[0].0,
            content_stored_len: leaf.len() as u32,
            content_plain_len: leaf.len() as u32,
            layout_stored_len: places.len() as u32,
            layout_plain_len: places.len() as u32,
            layout: Digest::of(&places),
        });
        put(root, &pack_path(&Digest::of(&file)), &file);
    }
    Roots { content, layout: LayoutInner::new(layout) }
}

/// A package with an empty disk and a saved VM of empty RAM, with this device state, and perhaps an order of its resume.
fn saved(device_state: &[u8], order: Option<&Order>) -> Evil {
    saved_of_size(device_state, device_state.len() as u64, order)
}

fn saved_of_size(device_state: &[u8], size_bytes: u64, order: Option<&Order>) -> Evil {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (empty, state) = (image(root, &[]), image(root, device_state));
    let (nothing, content) = (Digest::of(&empty.content.encode()), Digest::of(&state.content.encode()));
    let chunker = Chunker::DISK;
    let disk = Disk { name: "disk0".parse().unwrap(), size_bytes: DISK_BYTES, content: nothing, chunker };
    let ram = RamBlock { name: MAIN_RAM_BLOCK.to_owned(), size_bytes: RAM_BYTES, content: nothing, chunker };
    let device_state = DeviceStateImage { size_bytes, content, chunker };
    let memory = Memory { blocks: vec![ram], device_state, accelerator: None, qemu: None, libvirt: None };
    let manifest = Manifest::new(Machine::from_toml(MACHINE).unwrap(), vec![disk], Some(memory)).unwrap().encode();
    let layout = LayoutObject { images: vec![empty.clone(), empty, state] }.encode();
    let mut version = put_version(root, &manifest, &layout);
    if let Some(order) = order.map(Order::encode) {
        version.orders.push(Digest::of(&order));
        put(root, &order_path(&Digest::of(&order)), &order);
    }
    put(root, "vm.vmnetx", &Envelope::unsigned(link(version)).unwrap().encode());
    Evil::made_in(dir)
}

/// A resume in each of these modes ends with this code and these words.
fn resumes_end(modes: &[Reader], case: &str, evil: &Evil, code: i32, words: &[&str]) {
    for &reader in modes {
        let told = Scratch::new().run(reader, evil.link().to_str().unwrap());
        assert_eq!(told.code, Some(code), "{reader:?} of {case}: {}", told.text);
        assert!(says(&told.text, words), "{reader:?} of {case} does not say {words:?}: {}", told.text);
    }
}

#[test]
fn device_states_that_cannot_be_are_refused_before_qemu_is_given_any() {
    let good = state(&[("timer", b"ticks"), ("cpu", b"registers")]);
    // Of a VM that was saved on another machine: a whole stream, with its configuration and RAM.
    let other = b"pc-q35-7.2";
    let head = [b"QEVM\0\0\0\x03\x07", &(other.len() as u32).to_be_bytes()[..], other].concat();
    let cases = [
        ("nothing", Vec::new(), "there is none"),
        ("cut off", good[..good.len() - 1].to_vec(), "does not end in a description"),
        ("without its front", good[1..].to_vec(), "\"timer\", which has no section"),
        ("another machine's stream", [&head[..], &good].concat(), "\"timer\", which has no section"),
        ("RAM of its own", state(&[("timer", b"ticks"), ("ram", &[0, 0, 0, 0, 0, 0, 0, 0x10])]), "a section of RAM"),
        ("a future version", b"QEVM\0\0\0\x04".repeat(4096), "does not end in a description"),
        ("more behind the end", [&good[..], b"\0"].concat(), "does not end in a description"),
    ];
    for (case, bytes, words) in cases {
        resumes_end(&MODES, case, &saved(&bytes, None), 4, &["the package's device state", words]);
    }
}

#[test]
fn device_states_as_large_as_may_be_take_bounded_memory_and_time() {
    resumes_end(&MODES, "zeros", &saved_of_size(&[], STATE_BYTES_MAX, None), 4, &["does not end in a description"]);
    // What looks like the end of a section, and of the whole, at every place.
    let ends = [0x7e, 0, 0, 0, 7, 0, 6, 0, 0].repeat((16 << 20) / 9);
    resumes_end(&[Reader::Resume("lazy")], "ends", &saved(&ends, None), 4, &["does not end in a description"]);
}

/// What looks like a device state is QEMU's to refuse; it has no such devices.
#[test]
fn devices_that_no_machine_has_are_refused_by_qemu() {
    let evil = saved(&state(&[("evil", b"body"), ("evil-too", &[0xff; 4096])]), None);
    resumes_end(&MODES, "unknown devices", &evil, 1, &["QEMU cannot load the saved state", "evil"]);
}

/// Each touch names all RAM, which would be thousands of times more pages than there are.
#[test]
fn an_order_that_goes_round_and_round_takes_no_more_than_the_memory_has() {
    let touch = Touch { image: 1, first_block: 0, blocks: u32::MAX, after_ms: 0 };
    let order = Order::new(Purpose::Resume, vec![touch; 1 << 17], Vec::new()).unwrap();
    let evil = saved(&state(&[("evil", b"body")]), Some(&order));
    resumes_end(&[Reader::Resume("lazy")], "an endless order", &evil, 1, &["QEMU cannot load the saved state"]);
    // What is not there is not pushed, and lies behind the end of its block.
    let nowhere = Touch { image: 1, first_block: u64::from(u32::MAX), blocks: u32::MAX, after_ms: 0 };
    let order = Order::new(Purpose::Resume, vec![nowhere], Vec::new()).unwrap();
    let evil = saved(&state(&[("evil", b"body")]), Some(&order));
    resumes_end(&[Reader::Resume("lazy")], "an order of nothing", &evil, 1, &["QEMU cannot load the saved state"]);
}

/// A server that gives a byte now and then is as good as none, but whoever waits for it can leave.
#[test]
fn a_device_state_that_trickles_in_can_be_left() {
    const SOON: Duration = Duration::from_secs(20);
    let evil = saved(&state(&[("timer", &[0xa5; 100_000])]), None);
    let root = evil.root().to_owned();
    let (asked, drips) = mpsc::channel();
    let server = Server::start(evil.root(), move |path, range| {
        let bytes = std::fs::read(root.join(path)).ok()?;
        // Nodes come at once; the pack with the chunk is larger.
        let range = range.filter(|_| bytes.len() > 50_000)?;
        // Nobody listens when the test is over.
        let _ = asked.send(());
        let head = format!(
            "206 Partial Content\r\nContent-Range: bytes {}-{}/{}\r\nContent-Length: {}",
            range.start,
            range.end - 1,
            bytes.len(),
            range.len()
        );
        let drip = bytes.into_iter().skip(range.start).take(range.len()).map(|byte| {
            std::thread::sleep(Duration::from_millis(200));
            vec![byte]
        });
        Some((head, Box::new(drip) as _))
    });
    for reader in MODES {
        let scratch = Scratch::new();
        // What the reader before has asked for once more.
        while drips.try_recv().is_ok() {}
        let mut child = scratch.start(reader, &format!("{}vm.vmnetx", server.url()));
        drips.recv_timeout(Duration::from_secs(60)).expect("the chunk is asked for");
        std::thread::sleep(Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "{reader:?}: {:?}", finish(child));
        let told_to_end = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let told = finish(child);
        assert_eq!(told.code, Some(0), "{reader:?}: {}", told.text);
        assert!(told_to_end.elapsed() < SOON, "{reader:?} took {:?}", told_to_end.elapsed());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "{reader:?} left something");
    }
}
