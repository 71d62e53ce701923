//! Saved VMs whose memory is damaged or absent where it is published: nobody is given wrong bytes, nobody waits in vain, and what
//! is not touched hurts nobody.

use std::collections::{BTreeSet, HashMap};

use vmnetx_format::{
    Catalogue, ContentLeaf, DEVICE_STATE_IMAGE, Digest, Envelope, Kind, LayoutObject, Manifest, Trailer, decode_frame,
    layout_path, manifest_path,
};

use super::resume::{SUM, SavedGuest};
use super::*;

const INTEGRITY: i32 = 4;
const MAIN_RAM: &str = "ram:pc.ram";
/// For an end that follows from damage: the server's tries, the launcher's, and QEMU's end.
const SOON: Duration = Duration::from_secs(20);
/// What is said when all that can be had of a guest's memory is there.
const LACKS: &str = "KiB of the guest's memory cannot be had; it runs on until it needs them";

/// A frame as it lies in a pack.
#[derive(Debug, Clone)]
struct Stored {
    pack: PathBuf,
    offset: usize,
    stored_bytes: usize,
    plain_bytes: u32,
}

impl Stored {
    /// Whether it is what compresses to nothing smaller, as the guest's noise.
    fn is_noise(&self) -> bool {
        self.stored_bytes >= self.plain_bytes as usize
    }

    fn plain(&self) -> Vec<u8> {
        let pack = fs::read(&self.pack).unwrap();
        decode_frame(&pack[self.offset..][..self.stored_bytes], self.plain_bytes).unwrap()
    }
}

impl SavedGuest {
    fn repository(&self) -> PathBuf {
        self.bench.path("repository")
    }

    /// All frames of these kinds in all packs.
    fn frames(&self, kind: Kind) -> HashMap<Digest, Stored> {
        let packs = fs::read_dir(self.repository().join("packs")).unwrap();
        let packs = packs.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        let mut frames = HashMap::new();
        for pack in packs.map(|pack| pack.unwrap().path()) {
            let bytes = fs::read(&pack).unwrap();
            let (rest, trailer) = bytes.split_last_chunk::<{ Trailer::BYTES }>().unwrap();
            let trailer = Trailer::decode(trailer, bytes.len() as u64).unwrap();
            let stored = &rest[rest.len() - trailer.stored_len as usize..];
            let catalogue = Catalogue::decode(stored, &trailer, bytes.len() as u64).unwrap();
            for (offset, entry) in catalogue.entries().filter(|(_, entry)| entry.kind == kind) {
                let (offset, stored_bytes) = (offset as usize, entry.stored_len as usize);
                let pack = pack.clone();
                frames.insert(entry.digest, Stored { pack, offset, stored_bytes, plain_bytes: entry.plain_len });
            }
        }
        frames
    }

    /// The chunks of an image of the current version, from its front on, that no other image has.
    fn chunks(&self, image: &str) -> Vec<Stored> {
        let link = Envelope::decode(&fs::read(self.bench.link()).unwrap()).unwrap().link;
        let read = |path: String| fs::read(self.repository().join(path)).unwrap();
        let manifest = Manifest::decode(&read(manifest_path(&link.current.manifest))).unwrap();
        let layout = read(layout_path(&link.current.layout));
        let layout = LayoutObject::decode(&layout, &manifest.shapes().unwrap()).unwrap();
        let (nodes, stored) = (self.frames(Kind::Content), self.frames(Kind::Chunk));
        let chunks = |index: usize| {
            // These images are so small that the leaves are the roots' own children.
            let leaves = layout.images[index].content.children().iter();
            let leaves = leaves.map(|(_, digest)| ContentLeaf::decode(&nodes[digest].plain(), 4096).unwrap());
            leaves.flat_map(|leaf| leaf.chunks().to_vec()).map(|(_, _, digest)| digest).collect::<Vec<_>>()
        };
        let index = manifest.images().position(|known| known.name == image).unwrap();
        let others = (0..layout.images.len()).filter(|other| *other != index);
        let of_others: BTreeSet<_> = others.flat_map(chunks).collect();
        let mut seen = BTreeSet::new();
        let own = chunks(index).into_iter().filter(|digest| !of_others.contains(digest) && seen.insert(*digest));
        own.map(|digest| stored[&digest].clone()).collect()
    }

    /// Some of the chunks of what the guest's memory was filled with, which a guest does not look at by itself.
    fn filling(&self) -> Vec<Stored> {
        let noise: Vec<_> = self.chunks(MAIN_RAM).into_iter().filter(Stored::is_noise).collect();
        assert!(noise.len() > 100, "{} chunks of noise", noise.len());
        noise.into_iter().step_by(16).collect()
    }

    fn start_lazy(&self, name: &str, link: &str) -> Running {
        let cache = self.bench.path("tmp").join(format!("{name}-cache"));
        let mut running = self.resume(name, link, &["--resume", "lazy", "--cache-dir", cache.to_str().unwrap()]);
        running.wait_for("(lazy", BOOT_DEADLINE);
        running
    }

    /// A resume in this mode, from nothing, ends like this.
    fn refused(&self, link: &str, mode: &str, expected: i32, words: &[&str]) {
        let (code, said) = failure(self.bench.run(link, &["--resume", mode, "--disk-cache", "0"]));
        assert_eq!(code, expected, "{mode}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{mode} does not say {words:?}: {said}");
        self.bench.assert_clean();
    }

    fn let_go(&self, name: &str) {
        let cache = self.bench.path("tmp").join(format!("{name}-cache"));
        let mut drain = self.bench.vmnetx(&["nbd", "drain", "--cache-dir"]);
        let _ = drain.arg(&cache).stderr(Stdio::null()).status();
        wait_until("its server ends", DEADLINE, || server::server_of(&cache).is_none());
        fs::remove_dir_all(cache).unwrap();
    }
}

/// Inverts a byte in each of these frames, which damages or repairs them.
fn flip(frames: &[Stored]) {
    for pack in frames.iter().map(|frame| &frame.pack).collect::<BTreeSet<_>>() {
        let mut bytes = fs::read(pack).unwrap();
        for frame in frames.iter().filter(|frame| frame.pack == *pack) {
            bytes[frame.offset + frame.stored_bytes / 2] ^= 0xff;
        }
        // In its place, as a disk does that fails.
        File::options().write(true).open(pack).unwrap().write_all(&bytes).unwrap();
    }
}

/// It ends by itself, soon, with this code and these words.
fn ends(running: &mut Running, within: Duration, expected: i32, words: &[&str]) {
    assert_eq!(running.ended(within).code(), Some(expected), "{}", running.said());
    let said = running.said();
    assert!(words.iter().all(|word| said.contains(word)), "not {words:?}: {said}");
}

#[test]
fn damaged_memory_hurts_a_guest_when_it_is_touched_and_is_not_waited_for() {
    let guest = SavedGuest::new("damaged", &["--no-rehearse"]);
    let web = WebServer::start(&guest.bench, 0);
    let link = web.link();
    let filling = guest.filling();
    let damaged = ["packs/", "damaged", "tell its publisher"];
    flip(&filling);

    // Everything else arrives, and the guest runs on, until it looks.
    let mut running = guest.start_lazy("touching", &link);
    running.wait_for(LACKS, BOOT_DEADLINE);
    let lacks = running.said();
    let kib = lacks.split(LACKS).next().unwrap().split_whitespace().next_back().unwrap().parse::<u64>().unwrap();
    let damaged_kib = filling.iter().map(|frame| u64::from(frame.plain_bytes)).sum::<u64>() >> 10;
    // Two pieces may be on their way when it is told.
    assert!((damaged_kib..=damaged_kib + 512).contains(&kib), "{kib} KiB are said, {damaged_kib} damaged: {lacks}");
    running.ticks_on();
    running.type_line(SUM);
    ends(&mut running, SOON, INTEGRITY, &[&damaged[..], &["ram:pc.ram", "the VM is ended"]].concat());
    assert!(!running.said().contains("SUM-"), "it was given something: {}", running.said());
    guest.let_go("touching");
    guest.bench.assert_clean();

    // All of it must be had before these let it run.
    for mode in ["stream", "mapped"] {
        guest.refused(&link, mode, INTEGRITY, &damaged);
    }

    // What is repaired while it runs completes it.
    let mut running = guest.start_lazy("repaired", &link);
    running.wait_for(LACKS, BOOT_DEADLINE);
    flip(&filling);
    running.wait_for("all of the guest's memory is here", DEADLINE);
    guest.check(&mut running);
    running.type_line("poweroff");
    ends(&mut running, DEADLINE, 0, &[]);
    guest.let_go("repaired");

    // Pages that it cannot do without: QEMU may ask for the first of them before the guest runs.
    let all: Vec<_> = guest.chunks(MAIN_RAM);
    flip(&all);
    let mut running = guest.resume("demanding", &link, &["--resume", "lazy", "--disk-cache", "0"]);
    ends(&mut running, BOOT_DEADLINE, INTEGRITY, &[&damaged[..], &["ram:pc.ram"]].concat());
    flip(&all);
    guest.bench.assert_clean();

    // Without the state of its devices there is nothing to resume.
    let devices = guest.chunks(DEVICE_STATE_IMAGE);
    flip(&devices);
    guest.refused(&link, "lazy", INTEGRITY, &[&damaged[..], &["vm:device-state"]].concat());
    let mut running = guest.resume("booting", &link, &["--disk-cache", "0"]);
    running.wait_for("VMNETX-GUEST-READY", BOOT_DEADLINE);
    let said = running.said();
    let why = said.find("the VM cannot be resumed so: read vm:device-state").expect(&said);
    assert!(said[why..].contains("damaged") && said.contains("the VM boots"), "{said}");
    running.signal(Signal::TERM);
    ends(&mut running, DEADLINE, 0, &[]);
    guest.bench.assert_clean();
}

#[test]
fn absent_memory_is_waited_for_a_little_where_a_guest_runs() {
    let guest = SavedGuest::new("absent", &["--no-rehearse"]);
    // So slow that most of the filling is not here when the guest runs.
    let web = WebServer::start_with(&guest.bench, 0, "limit_rate 1m;");
    let link = web.link();
    let packs: BTreeSet<_> = guest.filling().into_iter().map(|frame| frame.pack).collect();
    let put_away = |away: bool| {
        for pack in &packs {
            let aside = pack.with_extension("away");
            let [from, to] = if away { [pack, &aside] } else { [&aside, pack] };
            fs::rename(from, to).unwrap();
        }
    };
    let mut back = guest.start_lazy("back", &link);
    put_away(true);
    back.type_line(SUM);
    back.wait_for("404", DEADLINE);
    // An upload may be under way.
    put_away(false);
    guest.check(&mut back);
    put_away(true);
    back.signal(Signal::TERM);
    ends(&mut back, DEADLINE, 0, &[]);
    guest.let_go("back");
    put_away(false);

    let mut gone = guest.start_lazy("gone", &link);
    put_away(true);
    gone.type_line(SUM);
    ends(&mut gone, Duration::from_secs(60), NETWORK, &["404", "packs/", "the VM is ended", "incomplete"]);
    assert!(!gone.said().contains("SUM-"), "{}", gone.said());
    guest.let_go("gone");

    for mode in ["lazy", "stream", "mapped"] {
        guest.refused(&link, mode, NETWORK, &["404", "packs/"]);
    }
}
