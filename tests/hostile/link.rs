//! Links: every field set to what it cannot be.

use std::os::unix::fs::symlink;
use std::process::Command;

use vmnetx_format::Digest;

use super::evil::{Evil, Stage};
use super::readers::{Reader, Scratch, says, tool};
use super::{all_refused, refused_by};

const SERIAL: &str = "\"serial\":1,";
const MANIFEST_BYTES: &str = "\"manifest_bytes\":";
const NAME: &str = "\"name\":\"vm\"";
const TITLE: &str = "\"title\":\"a title\"";

#[test]
fn numbers_that_cannot_be_are_refused_by_field() {
    all_refused(
        Stage::Link,
        &[
            (SERIAL, "\"serial\":0,", "serial"),
            (SERIAL, "\"serial\":-1,", "serial"),
            (SERIAL, "\"serial\":-0,", "serial"),
            (SERIAL, "\"serial\":1.5,", "serial"),
            (SERIAL, "\"serial\":1e999,", "serial"),
            (SERIAL, "\"serial\":18446744073709551616,", "serial"),
            (SERIAL, "\"serial\":\"1\",", "serial"),
            (SERIAL, "\"serial\":null,", "serial"),
            (SERIAL, "", "serial"),
            (SERIAL, "\"serial\":1,\"serial\":2,", "serial"),
            (MANIFEST_BYTES, "\"manifest_bytes\":1048577,\"x\":", "current.x"),
            (MANIFEST_BYTES, "\"manifest_bytes\":9999999", "manifest_bytes"),
            (MANIFEST_BYTES, "\"manifest_bytes\":18446744073709551615,\"manifest_bytes\":", "manifest_bytes"),
            ("\"layout_bytes\":", "\"layout_bytes\":99999999", "layout_bytes"),
            ("\"published_unix_s\":", "\"published_unix_s\":-", "published_unix_s"),
            ("\"published_unix_s\":", "\"pinned\":1,\"published_unix_s\":", "pinned"),
        ],
    );
}

#[test]
fn texts_that_cannot_be_are_refused_by_field() {
    let long_name = format!("\"name\":\"{}\"", "x".repeat(65));
    let long_title = format!("\"title\":\"{}\"", "x".repeat(257));
    let mut cases = vec![
        (NAME, "\"name\":\"../vm\"", "name"),
        (NAME, "\"name\":\"..\"", "name"),
        (NAME, "\"name\":\"/etc/passwd\"", "name"),
        (NAME, "\"name\":\"a/b\"", "name"),
        (NAME, "\"name\":\"\"", "name"),
        (NAME, "\"name\":\"-vm\"", "name"),
        (NAME, "\"name\":\".vm\"", "name"),
        (NAME, "\"name\":\"vm\\u0000\"", "name"),
        (NAME, "\"name\":\"vm\\u001b]0;owned\\u0007\"", "name"),
        (NAME, "\"name\":\"vm\\u202egnp\"", "name"),
        (NAME, "\"name\":\"v\u{ff4d}\"", "name"),
        (NAME, &*long_name, "name"),
        (TITLE, "\"title\":\"\\u001b[2J\\u001b[31mpwned\"", "title"),
        (TITLE, "\"title\":\"two\\nlines\"", "title"),
        (TITLE, "\"title\":\"\\u009b31m\"", "title"),
        (TITLE, "\"title\":\"\\u202emoc.live\"", "title"),
        (TITLE, "\"title\":\"a\\u200bb\"", "title"),
        (TITLE, "\"title\":[\"a title\"]", "title"),
        (TITLE, &*long_title, "title"),
    ];
    cases.extend([
        ("\"manifest\":\"", "\"manifest\":\"../../../etc/passwd", "manifest"),
        ("\"manifest\":\"", "\"manifest\":\"A", "manifest"),
        ("\"layout\":\"", "\"layout\":\"0", "layout"),
    ]);
    all_refused(Stage::Link, &cases);
}

#[test]
fn repositories_that_lead_elsewhere_are_refused_by_field() {
    let at = |url: &str| format!("{SERIAL}\"repositories\":[{url}],");
    let many = at(&vec!["\"https://example.org/\""; 17].join(","));
    let long = at(&format!("\"https://example.org/{}/\"", "x".repeat(2048)));
    let urls = [
        "\"file:///etc/\"",
        "\"/etc/\"",
        "\"ftp://example.org/\"",
        "\"https://user:secret@example.org/\"",
        "\"https://user@example.org/\"",
        "\"https://example.org/?x=/\"",
        "\"https://example.org/#/\"",
        "\"https://example.org\\u0000/x\"",
        "\"https://example.org/vm\"",
        "\"javascript:alert(1)/\"",
        "\"\"",
        "7",
    ];
    let mut cases: Vec<String> = urls.into_iter().map(at).collect();
    cases.extend([many, long]);
    let cases: Vec<_> = cases.iter().map(|to| (SERIAL, to.as_str(), "repositories")).collect();
    all_refused(Stage::Link, &cases);
    let evil = Evil::replaced(Stage::Link, SERIAL, &at("\"https://user:secret@example.org/\""));
    let told = Scratch::new().run(Reader::Info, evil.link().to_str().unwrap());
    assert!(!told.text.contains("secret"), "{}", told.text);
}

#[test]
fn unknown_fields_and_lists_without_end_are_refused_by_field() {
    let digest = Digest::of(b"");
    let version = format!(
        "{{\"manifest\":\"{digest}\",\"manifest_bytes\":1,\"layout\":\"{digest}\",\"layout_bytes\":1,\"published_unix_s\":1}}"
    );
    let retained = format!("{SERIAL}\"retained\":[{}],", vec![&*version; 1025].join(","));
    let orders = format!("\"orders\":[{}],{MANIFEST_BYTES}", vec![format!("\"{digest}\""); 17].join(","));
    let deep = format!("{SERIAL}\"title\":{}{},", "[".repeat(100_000), "]".repeat(100_000));
    let deep_unknown = format!("{SERIAL}\"deep\":{}{},", "{\"a\":".repeat(1000), "}".repeat(1000));
    let escape = format!("{SERIAL}\"\\u001b[2J\\u202e{}\":1,", "x".repeat(100_000));
    all_refused(
        Stage::Link,
        &[
            (SERIAL, &*retained, "retained"),
            (MANIFEST_BYTES, &*orders, "orders"),
            (SERIAL, "\"serial\":1,\"path\":\"/etc/passwd\",", "path"),
            (SERIAL, "\"serial\":1,\"qemu\":\"-hda /dev/sda\",", "qemu"),
            (SERIAL, &*deep, "damaged"),
            (SERIAL, &*deep_unknown, "damaged"),
            (SERIAL, &*escape, "unknown field"),
        ],
    );
}

#[test]
fn the_file_around_a_link_is_checked() {
    let zeros = format!("\"blake3\":\"{}\"", Digest::of(b"other"));
    let signature = "\"signature\":{\"key\":\"00\",\"ed25519\":\"00\"},\"blake3\":";
    let spaces = format!("\"vmnetx\":0,{}", " ".repeat(1 << 20));
    all_refused(
        Stage::LinkFile,
        &[
            ("\"vmnetx\":0", "\"vmnetx\":1", "format number 1"),
            ("\"vmnetx\":0", "\"vmnetx\":18446744073709551615", "format number"),
            ("\"vmnetx\":0", "\"vmnetx\":-0", "vmnetx"),
            ("\"vmnetx\":0", "\"vmnetx\":\"0\"", "vmnetx"),
            ("\"vmnetx\":0", "\"vmnetx\":0,\"vmnetx\":0", "vmnetx"),
            ("\"vmnetx\":0,", &*spaces, "1048576"),
            ("\"blake3\":\"", &*format!("{zeros},\"x\":\""), "unknown field `x`"),
            ("\"blake3\":\"", "\"blake3\":\"00", "blake3"),
            ("\"blake3\":", signature, "signature.key"),
            ("\"serial\":1", "\"serial\":2", "digest"),
            ("}\n", "}{}\n", "trailing"),
            ("{", "[", "damaged"),
        ],
    );
    for (case, bytes) in [("nothing", &b""[..]), ("zeros", &[0; 4096]), ("not text", b"{\"vmnetx\":0,\"\xff\":1}")] {
        let evil = Evil::at(Stage::LinkFile, |file, _| *file = bytes.to_vec());
        refused_by(&Reader::ALL, &evil, case, &["vm.vmnetx", "damaged"]);
    }
}

#[test]
fn times_and_serials_at_the_end_of_their_range_are_shown() {
    let evil =
        Evil::replaced(Stage::Link, "\"published_unix_s\":1700000000", "\"published_unix_s\":18446744073709551615");
    assert_eq!(Scratch::new().run(Reader::Info, evil.link().to_str().unwrap()).code, Some(0));
    let evil = Evil::replaced(Stage::Link, SERIAL, "\"serial\":18446744073709551615,");
    assert_eq!(Scratch::new().run(Reader::Info, evil.link().to_str().unwrap()).code, Some(0));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let fifo = |path: &std::path::Path| {
        std::fs::remove_file(path).unwrap();
        assert!(tool(Command::new("mkfifo").arg(path)).status.success());
    };
    let link = Evil::good();
    fifo(&link.link());
    let manifest = Evil::good();
    let folder = std::fs::read_dir(manifest.root().join("manifests")).unwrap();
    folder.for_each(|entry| fifo(&entry.unwrap().path()));
    let device = Evil::good();
    std::fs::remove_file(device.link()).unwrap();
    symlink("/dev/zero", device.link()).unwrap();
    for evil in [link, manifest, device] {
        for reader in Reader::ALL {
            let told = Scratch::new().run(reader, evil.link().to_str().unwrap());
            assert!(matches!(told.code, Some(1 | 4)), "{reader:?}: {told:?}");
            assert!(says(&told.text, &["not a regular file"]), "{reader:?}: {}", told.text);
        }
    }
}
