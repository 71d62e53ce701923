//! Manifests: every field set to what it cannot be, and machines that try to give QEMU an option.

use super::evil::{DISK_BYTES, Evil, Stage};
use super::readers::Reader;
use super::{all_refused, refused_by};

const SIZE: &str = "\"size_bytes\":1048576";
const DISK: &str = "\"name\":\"disk0\"";
const MODEL: &str = "\"model\":\"qemu64\"";
const BOARD: &str = "\"machine\":\"pc-i440fx-7.2\"";
const MEMORY: &str = "\"memory_mib\":64";

#[test]
fn disks_that_cannot_be_are_refused_by_field() {
    assert_eq!(SIZE, format!("\"size_bytes\":{DISK_BYTES}"));
    let digest = "0".repeat(64);
    let chunker = "\"chunker\":{\"min_blocks\":4,\"cut_blocks\":8,\"max_blocks\":32}";
    let disk = |name: &str| format!("{{\"name\":\"{name}\",\"size_bytes\":1,\"content\":\"{digest}\",{chunker}}}");
    let with = |disks: Vec<String>| format!("\"disks\":[{},", disks.join(","));
    let (twin, many) = (with(vec![disk("disk0")]), with((1..17).map(|number| disk(&format!("d{number}"))).collect()));
    all_refused(
        Stage::Manifest,
        &[
            (SIZE, "\"size_bytes\":35184372088833", "disk0"),
            (SIZE, "\"size_bytes\":18446744073709551615", "disk0"),
            (SIZE, "\"size_bytes\":18446744073709551616", "size_bytes"),
            (SIZE, "\"size_bytes\":-1", "size_bytes"),
            (SIZE, "\"size_bytes\":1e999", "size_bytes"),
            (SIZE, "\"size_bytes\":1e6", "size_bytes"),
            (DISK, "\"name\":\"..\"", "disks[0].name"),
            (DISK, "\"name\":\"../../etc/cron.d/x\"", "disks[0].name"),
            (DISK, "\"name\":\"disk0,file=/etc/passwd\"", "disks[0].name"),
            (DISK, "\"name\":\"disk0\\n-hda /dev/sda\"", "disks[0].name"),
            (DISK, "\"name\":\"disk0\\u0000\"", "disks[0].name"),
            (DISK, "\"name\":\"\\u001b[31m\"", "disks[0].name"),
            (DISK, "\"path\":\"/etc/passwd\",\"name\":\"disk0\"", "disks[0].path"),
            ("\"disks\":[", &twin, "disk0"),
            ("\"disks\":[", &many, "17 disks"),
            ("\"disks\":[", "\"disks\":[],\"x\":[", "unknown field `x`"),
            ("\"min_blocks\":4", "\"min_blocks\":0", "chunker"),
            ("\"min_blocks\":4", "\"min_blocks\":4294967296", "min_blocks"),
            ("\"cut_blocks\":8", "\"cut_blocks\":7", "chunker"),
            ("\"cut_blocks\":8", "\"cut_blocks\":0", "chunker"),
            ("\"max_blocks\":32", "\"max_blocks\":1025", "chunker"),
            ("\"content\":\"", "\"content\":\"00", "content"),
            ("\"vmnetx\":0", "\"vmnetx\":7", "format number 7"),
            ("\"vmnetx\":0", "\"vmnetx\":4294967296", "format number"),
            ("\"vmnetx\":0", "\"vmnetx\":0,\"vmnetx\":0", "vmnetx"),
        ],
    );
}

#[test]
fn machines_carry_no_option_into_qemu() {
    let nic = |text: &str| format!("{MEMORY},\"nics\":[{{{text}}}]");
    let nics = [
        nic("\"model\":\"e1000,netdev=net1\""),
        nic("\"model\":\"virtio-net-pci\",\"romfile\":\"/etc/passwd\""),
        nic("\"model\":\"e1000\",\"mac\":\"52:54:00:00:00:01,bus=x\""),
        nic("\"model\":\"e1000\",\"mac\":\"ff:ff:ff:ff:ff:ff\""),
        nic("\"model\":\"e1000\",\"bridge\":\"br0\""),
        format!("{MEMORY},\"nics\":[{}]", ["{\"model\":\"e1000\"}"; 9].join(",")),
    ];
    let disks = [
        format!("{MEMORY},\"disks\":[{{\"name\":\"disk0\",\"bus\":\"usb\"}}]"),
        format!("{MEMORY},\"disks\":[{{\"name\":\"disk0\",\"bus\":\"ide\",\"file\":\"/etc/passwd\"}}]"),
        format!("{MEMORY},\"disks\":[{{\"name\":\"disk1\",\"bus\":\"ide\"}}]"),
        format!("{MEMORY},\"disks\":[{{\"name\":\"a,if=none\",\"bus\":\"ide\"}}]"),
    ];
    let mut cases = vec![
        (BOARD, "\"machine\":\"pc-q35-7.2,accel=kvm\"", "machine"),
        (BOARD, "\"machine\":\"pc-i440fx-7.2,kernel=/etc/passwd\"", "machine"),
        (BOARD, "\"machine\":\"pc-i440fx-7.2\\n-hda /dev/sda\"", "machine"),
        (BOARD, "\"machine\":\"none\"", "machine"),
        (BOARD, "\"machine\":\"pc-i440fx-+7.2\"", "machine"),
        (BOARD, "\"machine\":\"\\u001b[2J\"", "machine"),
        (MODEL, "\"model\":\"qemu64,+vmx\"", "cpu.model"),
        (MODEL, "\"model\":\"qemu64 -hda /dev/sda\"", "cpu.model"),
        (MODEL, "\"model\":\"-hda\"", "cpu.model"),
        (MODEL, "\"model\":\"host\"", "cpu.model"),
        (MODEL, "\"model\":\"Max-x86_64-cpu\"", "cpu.model"),
        (MODEL, "\"model\":\"help\"", "cpu.model"),
        (MODEL, "\"model\":\"\"", "cpu.model"),
        (MODEL, "\"model\":\"qemu64\\u0000\"", "cpu.model"),
        (MODEL, "\"model\":\"qemu64\",\"features\":\"+vmx\"", "cpu.features"),
        (MEMORY, "\"memory_mib\":0", "memory_mib"),
        (MEMORY, "\"memory_mib\":4194305", "memory_mib"),
        (MEMORY, "\"memory_mib\":\"64,maxmem=4T\"", "memory_mib"),
        (MEMORY, "\"memory_mib\":64,\"memory_mib\":128", "memory_mib"),
        ("\"count\":1", "\"count\":0", "cpu.count"),
        ("\"count\":1", "\"count\":65", "cpu.count"),
        ("\"vga\":\"std\"", "\"vga\":\"/dev/fb0\"", "vga"),
        ("\"vga\":\"std\"", "\"vga\":\"VGA,romfile=/etc/passwd\"", "vga"),
        ("\"firmware\":\"bios\"", "\"firmware\":\"/usr/share/OVMF.fd\"", "firmware"),
        ("\"serial\":true", "\"serial\":\"file:/etc/cron.d/x\"", "serial"),
        ("\"clock\":\"utc\"", "\"clock\":\"utc,driftfix=slew\"", "clock"),
        (MEMORY, "\"memory_mib\":64,\"kernel\":\"/boot/vmlinuz\"", "machine.kernel"),
        (MEMORY, "\"memory_mib\":64,\"qemu_args\":[\"-hda\",\"/dev/sda\"]", "machine.qemu_args"),
        (MEMORY, "\"memory_mib\":64,\"disk_bus\":\"usb\"", "disk_bus"),
    ];
    cases.extend(nics.iter().map(|nic| (MEMORY, nic.as_str(), "nics")));
    cases.extend(disks.iter().map(|disk| (MEMORY, disk.as_str(), "disks")));
    all_refused(Stage::Manifest, &cases);
}

#[test]
fn memory_that_cannot_be_is_refused_by_field() {
    let digest = "0".repeat(64);
    let chunker = "\"chunker\":{\"min_blocks\":4,\"cut_blocks\":8,\"max_blocks\":32}";
    let block = |name: &str, size: &str| {
        format!("{{\"name\":\"{name}\",\"size_bytes\":{size},\"content\":\"{digest}\",{chunker}}}")
    };
    let memory = |blocks: &[String], state: &str| {
        let blocks = blocks.join(",");
        let state = format!("{{\"size_bytes\":{state},\"content\":\"{digest}\",{chunker}}}");
        format!("\"memory\":{{\"blocks\":[{blocks}],\"device_state\":{state}}},\"disks\"")
    };
    let one = || [block("pc.ram", "4096")];
    let saved_by = |what: &str| memory(&one(), "1").replace("\"blocks\"", &format!("{what},\"blocks\""));
    let long_version = format!("\"qemu\":\"{}\"", "7".repeat(65));
    let long = "x".repeat(256);
    let long_xml = format!("\"libvirt\":\"{}\"", "x".repeat((64 << 10) + 1));
    let cases = [
        (memory(&[block("\\u001b]0;owned\\u0007", "4096")], "1"), "RAM block"),
        (memory(&[block("pc.ram\\n", "4096")], "1"), "RAM block"),
        (memory(&[block("", "4096")], "1"), "RAM block"),
        (memory(&[block(&long, "4096")], "1"), "RAM block"),
        (memory(&[block("pc.ram", "4096"), block("pc.ram", "4096")], "1"), "pc.ram"),
        (memory(&[block("pc.ram", "18446744073709551615")], "1"), "pc.ram"),
        (memory(&one(), "18446744073709551615"), "device state"),
        (memory(&one(), "67108865"), "device state"),
        (memory(&one(), "-1"), "device_state.size_bytes"),
        (memory(&one(), "1"), "pc.ram has 4096 bytes"),
        (memory(&[block("pc.ram", "4398046511104")], "1"), "pc.ram has 4398046511104 bytes"),
        (memory(&[block("pc.rom", "67108864")], "1"), "pc.ram has 0 bytes"),
        (memory(&[block("pc.ram", "67108864"), block("vga.vram", "4398046511104")], "1"), "beside pc.ram"),
        (memory(&[block("pc.ram", "67108864"), block("a", "1073741824"), block("b", "1")], "1"), "beside pc.ram"),
        (saved_by("\"accelerator\":\"hvf,thread=multi\""), "accelerator"),
        (saved_by("\"qemu\":\"\""), "version of QEMU"),
        (saved_by("\"qemu\":\"7.2\\u001b[31m\""), "version of QEMU"),
        (saved_by(&long_version), "version of QEMU"),
        (saved_by("\"libvirt\":\"\""), "domain XML"),
        (saved_by("\"libvirt\":\"<domain>\\n</domain>\""), "domain XML"),
        (saved_by(&long_xml), "domain XML"),
        (saved_by("\"path\":\"/dev/mem\""), "memory.path"),
        (memory(&[], "1"), "0 RAM blocks"),
        (memory(&(0..257).map(|number| block(&number.to_string(), "1")).collect::<Vec<_>>(), "1"), "257 RAM blocks"),
    ];
    let cases: Vec<_> = cases.iter().map(|(to, says)| ("\"disks\"", to.as_str(), *says)).collect();
    all_refused(Stage::Manifest, &cases);
}

#[test]
fn a_manifest_is_what_its_digest_says_and_not_larger_than_the_link_says() {
    let evil = Evil::good();
    let file = std::fs::read_dir(evil.root().join("manifests")).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("\"memory_mib\":64", "\"memory_mib\":65")).unwrap();
    refused_by(&Reader::ALL, &evil, "another manifest", &["manifests/", "digest"]);
    std::fs::remove_file(&file).unwrap();
    refused_by(&Reader::ALL, &evil, "no manifest", &["manifests/"]);
    let evil = Evil::replaced(Stage::Manifest, "\"disks\"", &format!("{}\"disks\"", " ".repeat(1 << 20)));
    refused_by(&Reader::ALL, &evil, "a manifest of over 1 MiB", &["manifests/", "1048576"]);
}
