use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use vmnetx_format::{Digest, Link, SecretKey, Version};

use super::*;
use crate::failure::{Class, Told};
use crate::limits::{KNOWN_LINKS_BYTES_MAX, SIGNED_LINKS_MAX, STATE_LOCK_TIMEOUT, UNSIGNED_LINKS_MAX};

const HERE: &str = "https://vms.example.org/debian.vmnetx";
const MIRROR: &str = "http://mirror.example.net/vms/debian.vmnetx";

/// A user who reads links.
struct Reader {
    dir: TempDir,
    trust: Trust,
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn link(name: &str, serial: u64, text: &str) -> Envelope {
    let current = Version {
        manifest: Digest::of(text.as_bytes()),
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

/// The link of debian, signed with the key of this seed.
fn signed(seed: u8, serial: u64) -> Envelope {
    link("debian", serial, &format!("version {serial}")).signed(&key(seed))
}

fn unsigned(serial: u64) -> Envelope {
    link("debian", serial, &format!("version {serial}"))
}

/// A link whose signature was made over another one.
fn forged(seed: u8, serial: u64) -> Envelope {
    let mut envelope = unsigned(serial);
    envelope.signature = signed(seed, 1000).signature;
    envelope
}

impl Reader {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let trust = Trust { state_dir: Some(dir.path().join("state/vmnetx")), ..Trust::default() };
        Self { dir, trust }
    }

    /// The same user, who names these keys or not.
    fn with(&self, edit: impl FnOnce(&mut Trust)) -> Trust {
        let mut trust = self.trust.clone();
        edit(&mut trust);
        trust
    }

    fn file(&self, name: &str) -> PathBuf {
        self.trust.state_dir.as_ref().unwrap().join(name)
    }

    fn known(&self) -> KnownLinks {
        KnownLinks::decode(&fs::read(self.file("known-links.json")).unwrap()).unwrap()
    }

    fn read(&self, url: &str, envelope: &Envelope) -> Result<Vec<Notice>, TrustError> {
        read(&self.trust, url, envelope)
    }
}

fn read_as(
    trust: &Trust,
    url: &str,
    envelope: &Envelope,
    pinned: bool,
    pointer: Option<&Envelope>,
) -> Result<Vec<Notice>, TrustError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let asked = Asked { url: &url.parse().unwrap(), pinned, pointer };
    runtime.block_on(trust.check(&asked, envelope)).map(|believed| {
        assert_eq!(believed.signer, envelope.signer().unwrap());
        believed.notices
    })
}

fn read(trust: &Trust, url: &str, envelope: &Envelope) -> Result<Vec<Notice>, TrustError> {
    read_as(trust, url, envelope, false, None)
}

fn first_use(url: &str, seed: u8) -> Vec<Notice> {
    vec![Notice::FirstUse { object: url.to_owned(), key: key(seed).public() }]
}

#[test]
fn the_first_key_is_told_once_and_kept() {
    let reader = Reader::new();
    assert_eq!(reader.read(HERE, &signed(1, 3)).unwrap(), first_use(HERE, 1));
    assert_eq!(reader.read(HERE, &signed(1, 3)).unwrap(), []);
    assert_eq!(reader.read(HERE, &signed(1, 4)).unwrap(), []);
    // Another place is another first use, and so is another package there.
    assert_eq!(reader.read(MIRROR, &signed(1, 4)).unwrap(), first_use(MIRROR, 1));
    let other = "https://vms.example.org/arch.vmnetx";
    assert_eq!(reader.read(other, &link("arch", 1, "x").signed(&key(2))).unwrap(), first_use(other, 2));

    let error = reader.read(HERE, &signed(2, 5)).unwrap_err();
    assert!(matches!(error, TrustError::OtherKey { .. }), "{error}");
    assert_eq!(error.class(), Class::Integrity);
    let told = crate::failure::tell(&error);
    for words in [&key(1).public().to_string(), &format!("--trust-key {} once", key(2).public()), HERE] {
        assert!(told.contains(words), "{told}");
    }
    let error = reader.read(HERE, &unsigned(5)).unwrap_err();
    assert!(matches!(error, TrustError::SignatureGone { .. }), "{error}");
    let error = reader.read(HERE, &forged(1, 5)).unwrap_err();
    assert!(matches!(error, TrustError::BadSignature { .. }), "{error}");
    // None of that has left a trace.
    assert_eq!(reader.read(HERE, &signed(1, 4)).unwrap(), []);
}

#[test]
fn a_signature_that_does_not_hold_is_refused_everywhere() {
    let reader = Reader::new();
    for pinned in [false, true] {
        let error = read_as(&reader.trust, HERE, &forged(1, 1), pinned, None).unwrap_err();
        assert!(matches!(error, TrustError::BadSignature { .. }), "{error}");
    }
    let error = read_as(&reader.trust, HERE, &signed(1, 1), false, Some(&forged(1, 1))).unwrap_err();
    assert!(matches!(error, TrustError::BadSignature { .. }), "{error}");
    let error = reader.trust.check_file(Path::new("debian.vmnetx"), &forged(1, 1)).unwrap_err();
    assert!(matches!(error, TrustError::BadSignature { .. }), "{error}");
    assert!(read(&Trust::default(), HERE, &forged(1, 1)).is_err());
    assert!(!reader.file("known-links.json").exists());
}

#[test]
fn an_older_link_of_the_same_key_is_refused_wherever_it_lies() {
    let reader = Reader::new();
    reader.read(HERE, &signed(1, 7)).unwrap();
    for url in [HERE, MIRROR] {
        let error = reader.read(url, &signed(1, 6)).unwrap_err();
        assert!(matches!(error, TrustError::RolledBack { seen: 7, offered: 6, .. }), "{error}");
        assert_eq!(error.class(), Class::Integrity);
        assert!(error.to_string().contains("serial 6") && error.to_string().contains("serial 7"), "{error}");
        let other = link("debian", 7, "another version").signed(&key(1));
        let error = reader.read(url, &other).unwrap_err();
        assert!(matches!(error, TrustError::TwoFaced { serial: 7, .. }), "{error}");
    }
    // Another package of the key counts on its own, and so does another key.
    reader.read("https://vms.example.org/arch.vmnetx", &link("arch", 1, "x").signed(&key(1))).unwrap();
    reader.read(MIRROR, &signed(2, 1)).unwrap();
    // What was learned at the mirror holds at the first place.
    reader.read("https://third.example.org/debian.vmnetx", &signed(1, 9)).unwrap();
    assert!(matches!(reader.read(HERE, &signed(1, 8)).unwrap_err(), TrustError::RolledBack { seen: 9, .. }));
}

#[test]
fn one_package_is_not_shown_in_the_place_of_another() {
    let reader = Reader::new();
    let arch = link("arch", 1, "x").signed(&key(1));
    for url in [HERE, "https://h/", "https://h/arch", "https://h/arch.vmnetx/", "https://h/x?arch.vmnetx"] {
        for pinned in [false, true] {
            let error = read_as(&reader.trust, url, &arch, pinned, None).unwrap_err();
            assert!(matches!(error, TrustError::Name { .. }), "{url}: {error}");
        }
    }
    assert!(error_of_file(&reader, "debian.vmnetx", &arch).is_some());
    for file in ["arch.vmnetx", "x/arch.vmnetx", "arch(1).vmnetx", "arch.vmnetx.part"] {
        assert_eq!(error_of_file(&reader, file, &arch), None, "{file}");
    }
    reader.read("https://h/arch.vmnetx?token=1", &arch).unwrap();
    let text = fs::read_to_string(reader.file("known-links.json")).unwrap();
    assert!(text.contains("https://h/arch.vmnetx") && !text.contains("token"), "{text}");
}

fn error_of_file(reader: &Reader, file: &str, envelope: &Envelope) -> Option<String> {
    reader.trust.check_file(Path::new(file), envelope).err().map(|error| error.to_string())
}

#[test]
fn a_pinned_version_needs_no_trust_and_changes_none() {
    let reader = Reader::new();
    reader.read(HERE, &signed(1, 7)).unwrap();
    let before = reader.known();
    for envelope in [signed(1, 3), signed(2, 9), unsigned(1), signed(1, 9)] {
        assert_eq!(read_as(&reader.trust, HERE, &envelope, true, None).unwrap(), []);
    }
    assert_eq!(reader.known(), before);
    // What the user demands is demanded all the same.
    let demanding = reader.with(|trust| trust.keys = vec![key(1).public()]);
    read_as(&demanding, HERE, &signed(1, 3), true, None).unwrap();
    let error = read_as(&demanding, HERE, &signed(2, 9), true, None).unwrap_err();
    assert!(matches!(error, TrustError::Untrusted { .. }), "{error}");
}

#[test]
fn keys_that_the_user_names_are_the_only_ones() {
    let reader = Reader::new();
    let demanding =
        |seeds: &[u8]| reader.with(|trust| trust.keys = seeds.iter().map(|&seed| key(seed).public()).collect());
    for envelope in [signed(2, 1), unsigned(1)] {
        let error = read(&demanding(&[1]), HERE, &envelope).unwrap_err();
        assert!(matches!(error, TrustError::Untrusted { .. }), "{error}");
        assert_eq!(error.class(), Class::Integrity);
        assert!(reader.with(|trust| trust.keys = vec![key(1).public()]).check_file(Path::new("-"), &envelope).is_err());
    }
    // There is nothing to tell of a key that the user has named.
    assert_eq!(read(&demanding(&[1]), HERE, &signed(1, 5)).unwrap(), []);
    assert_eq!(reader.read(HERE, &signed(1, 5)).unwrap(), []);
    // An old state is none of what naming the key allows.
    assert!(matches!(read(&demanding(&[1]), HERE, &signed(1, 4)).unwrap_err(), TrustError::RolledBack { .. }));

    // A new key is taken once it is named, and then the old one is not.
    assert!(matches!(reader.read(HERE, &signed(2, 6)).unwrap_err(), TrustError::OtherKey { .. }));
    let replaced = Notice::KeyReplaced { object: HERE.to_owned(), known: key(1).public(), key: key(2).public() };
    assert_eq!(read(&demanding(&[1, 2]), HERE, &signed(2, 6)).unwrap(), [replaced]);
    assert_eq!(reader.read(HERE, &signed(2, 6)).unwrap(), []);
    assert!(matches!(reader.read(HERE, &signed(1, 7)).unwrap_err(), TrustError::OtherKey { .. }));
    // Back to the first: its serial numbers are not forgotten.
    assert!(matches!(read(&demanding(&[1]), HERE, &signed(1, 4)).unwrap_err(), TrustError::RolledBack { .. }));
}

#[test]
fn a_missing_signature_is_taken_only_when_the_user_says_so() {
    let reader = Reader::new();
    reader.read(HERE, &signed(1, 5)).unwrap();
    let careless = reader.with(|trust| trust.accept_unsigned = true);
    assert_eq!(read(&careless, HERE, &signed(1, 5)).unwrap(), []);
    let dropped = Notice::SignatureDropped { object: HERE.to_owned(), known: key(1).public() };
    assert!(dropped.is_warning());
    assert_eq!(read(&careless, HERE, &unsigned(6)).unwrap(), [dropped]);
    assert_eq!(reader.read(HERE, &unsigned(6)).unwrap(), []);
    // Signed again, it is a first use; what the key has signed before still counts.
    assert!(matches!(reader.read(HERE, &signed(1, 4)).unwrap_err(), TrustError::RolledBack { .. }));
    assert_eq!(reader.read(HERE, &signed(1, 7)).unwrap(), first_use(HERE, 1));
    assert!(reader.read(HERE, &unsigned(8)).is_err());
    // It is for missing signatures alone.
    assert!(read(&careless, HERE, &signed(2, 9)).is_err());
    assert!(read(&careless, HERE, &forged(1, 9)).is_err());
}

#[test]
fn links_without_a_signature_are_warned_of_and_read() {
    let reader = Reader::new();
    let object = || HERE.to_owned();
    assert_eq!(reader.read(HERE, &unsigned(5)).unwrap(), []);
    let back = Notice::SerialWentBack { object: object(), seen: 5, offered: 2 };
    assert!(back.is_warning());
    assert_eq!(reader.read(HERE, &unsigned(2)).unwrap(), [back]);
    assert_eq!(reader.read(HERE, &unsigned(2)).unwrap(), [], "it is told once");
    let other = Notice::OtherText { object: object(), serial: 2 };
    assert_eq!(reader.read(HERE, &link("debian", 2, "another")).unwrap(), [other]);
    // Elsewhere it is another link: nothing says that it is the same.
    assert_eq!(reader.read(MIRROR, &unsigned(1)).unwrap(), []);
    // The publisher begins to sign.
    assert_eq!(reader.read(HERE, &signed(1, 3)).unwrap(), first_use(HERE, 1));
}

#[test]
fn a_link_file_that_was_handed_on_vouches_for_the_key_and_the_age() {
    let follow = |reader: &Reader, pointer: &Envelope, found: &Envelope| {
        read_as(&reader.trust, HERE, found, false, Some(pointer))
    };
    let reader = Reader::new();
    let error = follow(&reader, &signed(1, 5), &signed(2, 9)).unwrap_err();
    assert!(matches!(error, TrustError::OtherKey { .. }), "{error}");
    let error = follow(&reader, &signed(1, 5), &unsigned(9)).unwrap_err();
    assert!(matches!(error, TrustError::SignatureGone { .. }), "{error}");
    let error = follow(&reader, &signed(1, 5), &signed(1, 4)).unwrap_err();
    assert!(matches!(error, TrustError::RolledBack { seen: 5, offered: 4, .. }), "{error}");
    let error = follow(&reader, &signed(1, 5), &link("debian", 5, "another").signed(&key(1))).unwrap_err();
    assert!(matches!(error, TrustError::TwoFaced { .. }), "{error}");
    assert!(!reader.file("known-links.json").exists());
    // It holds where nothing is remembered, too.
    assert!(read_as(&Trust::default(), HERE, &signed(2, 9), false, Some(&signed(1, 5))).is_err());

    assert_eq!(follow(&reader, &signed(1, 5), &signed(1, 6)).unwrap(), first_use(HERE, 1));
    // What is remembered weighs more than the key of a file from who knows where.
    assert_eq!(follow(&reader, &signed(2, 1), &signed(1, 6)).unwrap(), []);
    assert!(follow(&reader, &signed(2, 1), &signed(2, 7)).is_err());
    // A pointer without a signature says nothing.
    assert_eq!(follow(&reader, &unsigned(99), &signed(1, 6)).unwrap(), []);
}

#[test]
fn without_a_state_directory_the_user_is_told() {
    let trust = Trust::default();
    assert_eq!(read(&trust, HERE, &unsigned(1)).unwrap(), []);
    let notices = read(&trust, HERE, &signed(1, 1)).unwrap();
    assert!(matches!(&notices[..], [notice @ Notice::NotRemembered { .. }] if notice.is_warning()), "{notices:?}");
    let named = Trust { keys: vec![key(1).public()], ..Trust::default() };
    assert_eq!(read(&named, HERE, &signed(1, 1)).unwrap(), []);
}

#[test]
fn only_the_user_can_look_at_the_state() {
    let reader = Reader::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    reader.read(HERE, &signed(1, 1)).unwrap();
    assert_eq!(mode(reader.trust.state_dir.as_ref().unwrap()), 0o700);
    for file in ["known-links.json", "known-links.lock"] {
        assert_eq!(mode(&reader.file(file)), 0o600, "{file}");
    }
    // What a process that died has left, and with what mode, does not matter.
    fs::write(reader.file("known-links.json.new"), "half a fi").unwrap();
    fs::set_permissions(reader.file("known-links.json.new"), fs::Permissions::from_mode(0o666)).unwrap();
    reader.read(HERE, &signed(1, 2)).unwrap();
    assert_eq!(mode(&reader.file("known-links.json")), 0o600);
    assert!(!reader.file("known-links.json.new").exists());
    assert_eq!(reader.dir.path().read_dir().unwrap().count(), 1);
}

#[test]
fn a_damaged_state_is_told_and_left_alone() {
    let reader = Reader::new();
    reader.read(HERE, &signed(1, 1)).unwrap();
    let file = reader.file("known-links.json");
    let whole = fs::read_to_string(&file).unwrap();
    let weak = format!("vmnetx-key-{}", "0".repeat(64));
    for (damaged, words) in [
        (String::new(), "EOF"),
        (whole[..whole.len() / 2].to_owned(), "EOF"),
        (whole.replace("\"known_links\": 1", "\"known_links\": 2"), "newer"),
        (whole.replace("\"signed\"", "\"new\": 1, \"signed\""), "new"),
        (whole.replace("\"serial\": 1", "\"serial\": -1"), "-1"),
        (whole.replace(&key(1).public().to_string(), &weak), "not a public key"),
        (" ".repeat(KNOWN_LINKS_BYTES_MAX as usize) + &whole, "bytes"),
    ] {
        fs::write(&file, &damaged).unwrap();
        for envelope in [signed(1, 2), unsigned(2)] {
            let error = reader.read(HERE, &envelope).unwrap_err();
            assert_eq!(error.class(), Class::Integrity);
            let told = crate::failure::tell(&error);
            assert!(told.contains(words) && told.contains("known-links.json is damaged"), "{told}");
            assert!(told.contains("hint: bring it back"), "{told}");
        }
        assert!(fs::read_to_string(&file).unwrap() == damaged, "it was written over");
    }
    fs::write(&file, whole).unwrap();
    assert!(matches!(reader.read(HERE, &signed(2, 2)).unwrap_err(), TrustError::OtherKey { .. }));
}

#[test]
fn what_cannot_be_remembered_is_not_believed_if_it_is_signed() {
    for obstacle in ["known-links.json.new", "known-links.lock"] {
        let reader = Reader::new();
        reader.read(MIRROR, &signed(1, 3)).unwrap();
        let path = reader.file(obstacle);
        let _ = fs::remove_file(&path);
        fs::create_dir(&path).unwrap();
        let error = reader.read(HERE, &signed(1, 3)).unwrap_err();
        assert!(matches!(error, TrustError::State { .. }) && error.class() == Class::Host, "{error}");
        assert!(error.hint().unwrap().contains("VMNETX_STATE_DIR"));
        let notices = reader.read(HERE, &unsigned(1)).unwrap();
        assert!(matches!(&notices[..], [Notice::NotRemembered { .. }]), "{notices:?}");
        // Nothing new is to be written, and what is known is known.
        assert_eq!(reader.read(MIRROR, &signed(1, 3)).unwrap(), []);
        assert!(matches!(reader.read(MIRROR, &signed(1, 2)).unwrap_err(), TrustError::RolledBack { .. }));
        fs::remove_dir(&path).unwrap();
        assert_eq!(reader.read(HERE, &signed(1, 3)).unwrap(), first_use(HERE, 1));
    }
}

#[test]
fn a_process_that_holds_the_state_is_not_waited_for_for_ever() {
    let reader = Reader::new();
    reader.read(MIRROR, &signed(1, 3)).unwrap();
    let lock = fs::File::open(reader.file("known-links.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let start = std::time::Instant::now();
    let error = reader.read(HERE, &signed(1, 3)).unwrap_err();
    assert!(matches!(error, TrustError::StateBusy { .. }) && error.class() == Class::Host, "{error}");
    assert!((STATE_LOCK_TIMEOUT..2 * STATE_LOCK_TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
    drop(lock);
    reader.read(HERE, &signed(1, 3)).unwrap();
}

#[test]
fn readers_at_the_same_time_forget_nothing() {
    const READERS: usize = 4;
    const LINKS: usize = 12;
    let reader = Reader::new();
    let url = |who: usize, which: usize| format!("https://h{who}.example.org/{which}/debian.vmnetx");
    std::thread::scope(|scope| {
        for who in 0..READERS {
            let reader = &reader;
            scope.spawn(move || {
                for which in 0..LINKS {
                    reader.read(&url(who, which), &signed(who as u8, which as u64 + 1)).unwrap();
                }
            });
        }
    });
    for who in 0..READERS {
        for which in 0..LINKS {
            let error = reader.read(&url(who, which), &signed(99, 1)).unwrap_err();
            assert!(matches!(error, TrustError::OtherKey { .. }), "{error}");
        }
        let error = reader.read(MIRROR, &signed(who as u8, LINKS as u64 - 1)).unwrap_err();
        assert!(matches!(error, TrustError::RolledBack { .. }), "{error}");
    }
}

#[test]
fn there_is_an_end_to_what_is_remembered() {
    let mut known = KnownLinks::default();
    let trust = Trust::default();
    let url = |which: usize| format!("https://h/{which}/debian.vmnetx");
    let mut meet = |url: String, envelope: &Envelope| {
        let signer = envelope.signer().unwrap();
        known.meet(&trust, &Offer::new(url, envelope, signer), None).unwrap();
        known.clone()
    };
    let (signed, unsigned) = (signed(1, 1), unsigned(1));
    for which in 0..SIGNED_LINKS_MAX {
        meet(url(which), &signed);
    }
    for which in 0..2 * UNSIGNED_LINKS_MAX {
        meet(url(which + SIGNED_LINKS_MAX), &unsigned);
    }
    let full = meet(url(SIGNED_LINKS_MAX), &unsigned);
    assert!(full.check_room().is_ok());
    let text = String::from_utf8(full.encode()).unwrap();
    assert_eq!(text.matches("https://h/").count(), SIGNED_LINKS_MAX + UNSIGNED_LINKS_MAX);
    assert!(text.contains(&url(0)) && text.contains(&url(SIGNED_LINKS_MAX + 2 * UNSIGNED_LINKS_MAX - 1)));
    assert!((text.len() as u64) < KNOWN_LINKS_BYTES_MAX / 2);
    assert!(meet(url(99_999), &signed).check_room().is_err());

    // In the file it is an error, and nothing is lost.
    let reader = Reader::new();
    reader.read(MIRROR, &signed).unwrap();
    fs::write(reader.file("known-links.json"), full.encode()).unwrap();
    let error = reader.read(HERE, &signed).unwrap_err();
    assert!(matches!(error, TrustError::StateFull { .. }) && error.class() == Class::Host, "{error}");
    assert_eq!(reader.known(), full);
    assert_eq!(reader.read(&url(0), &signed).unwrap(), []);
    assert_eq!(reader.read(HERE, &unsigned).unwrap(), []);
}

proptest! {
    #[test]
    fn no_bytes_make_the_state_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        let _ = KnownLinks::decode(&bytes);
        let _ = KnownLinks::decode(text.as_bytes());
    }

    /// Whatever is read in whatever order: a URL keeps its key, and a key never goes back or says two things.
    #[test]
    fn nothing_that_was_believed_is_taken_back(
        reads in proptest::collection::vec((0..3_usize, prop::option::of(0..2_u8), 1..5_u64, 0..2_u8), 1..40),
    ) {
        let mut known = KnownLinks::default();
        let mut keys: HashMap<usize, u8> = HashMap::new();
        let mut highest: HashMap<u8, (u64, Digest)> = HashMap::new();
        let mut told: HashSet<usize> = HashSet::new();
        for (place, seed, serial, text) in reads {
            let envelope = link("debian", serial, &format!("{serial} {text}"));
            let envelope = seed.map_or(envelope.clone(), |seed| envelope.signed(&key(seed)));
            let offer = Offer::new(format!("https://h{place}/debian.vmnetx"), &envelope, envelope.signer().unwrap());
            let met = known.meet(&Trust::default(), &offer, None);
            let same_key = keys.get(&place).is_none_or(|known| Some(*known) == seed);
            let state = (serial, envelope.digest());
            let newer = seed.and_then(|seed| highest.get(&seed)).is_none_or(|seen| seen.0 < serial || *seen == state);
            prop_assert_eq!(met.is_ok(), same_key && newer);
            let Ok(met) = met else { continue };
            if let Some(seed) = seed {
                keys.insert(place, seed);
                highest.insert(seed, state);
                let first = met.notices.iter().any(|notice| matches!(notice, Notice::FirstUse { .. }));
                prop_assert_eq!(first, told.insert(place));
            }
            let again = KnownLinks::decode(&known.encode()).unwrap();
            prop_assert_eq!(&again, &known);
            prop_assert!(!known.meet(&Trust::default(), &offer, None).unwrap().learned);
        }
    }
}
