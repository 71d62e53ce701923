//! Tests of reading a domain: that nothing is left out in silence, and that no text does harm.

use proptest::prelude::*;
use vmnetx_format::machine::{Chipset, MachineType, NicModel, Vga};

use super::*;
use crate::limits::{DOMAIN_BYTES_MAX, DOMAIN_DEPTH_MAX, DOMAIN_NAMESPACES_MAX, DOMAIN_NODES_MAX, DOMAIN_REMARKS_MAX};

fn base() -> Machine {
    Machine::from_toml(include_str!("../../../qemu-configs/default.toml")).unwrap()
}

fn read(xml: &str) -> Result<Description, DomainError> {
    describe(xml.as_bytes(), base(), DiskFiles::FromDomain)
}

/// The domains of `tests/domains`, by name.
fn samples() -> Vec<(String, String)> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/domains")).unwrap();
    let files = folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().unwrap() == "xml");
    let samples: Vec<_> =
        files.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect();
    assert!(samples.len() > 5);
    samples
}

/// A domain with these devices, of which the guest finds nothing else changed.
fn with_devices(devices: &str) -> Description {
    let os = "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>";
    let rest = "<features><acpi/></features><cpu><model>Nehalem</model></cpu>";
    let memory = "<memory unit='MiB'>64</memory>";
    read(&format!("<domain type='kvm'>{memory}{os}{rest}<devices>{devices}</devices></domain>")).unwrap()
}

fn remarks(description: &Description) -> Vec<String> {
    description.remarks.iter().map(|remark| format!("{} {}", remark.kind.as_str(), remark.path)).collect()
}

#[test]
fn whatever_is_added_anywhere_is_remarked_on() {
    let mut tried = 0;
    for (name, text) in samples() {
        let before = read(&text).unwrap().remarks;
        let document = roxmltree::Document::parse(&text).unwrap();
        for element in document.root_element().descendants().filter(roxmltree::Node::is_element) {
            let path = ledger::path(element);
            // A remark on an element stands for all that is in it.
            let covered = before.iter().any(|remark| format!("{path}/").starts_with(&format!("{}/", remark.path)));
            let start = element.range().start;
            let tag = text[start + 1..].find([' ', '\n', '>', '/']).unwrap() + start + 1;
            let mut changed = vec![format!("{} zzz='1'{}", &text[..tag], &text[tag..])];
            if let Some(child) = element.first_child() {
                let inside = child.range().start;
                changed.push(format!("{}<zzz/>{}", &text[..inside], &text[inside..]));
            }
            for changed in changed {
                let after = read(&changed).unwrap().remarks;
                assert!(after.len() > before.len() || covered, "{name}: something new in {path} is not remarked on");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn without_remarks_there_is_nothing_to_remark_on() {
    let description = with_devices(
        "<disk type='file'><driver type='raw'/><source file='/a'/><target dev='vda' bus='virtio'/></disk>\
         <interface type='user'><model type='virtio'/></interface><input type='tablet' bus='usb'/>\
         <serial/><rng model='virtio'/><video><model type='qxl' primary='yes'/></video>",
    );
    assert_eq!(description.remarks, []);
    let machine = &description.machine;
    assert_eq!((machine.vga, machine.serial, machine.tablet, machine.rng), (Vga::Qxl, true, true, true));
    assert_eq!(machine.nics[0].model, NicModel::VirtioNetPci);
    assert_eq!(description.machine_with(&description.disk_names()).disk_bus, Some(Bus::Virtio));
}

#[test]
fn unknown_hardware_is_refused_and_other_unknown_things_are_dropped() {
    let description = with_devices("<teleporter/><rng model='virtio' warp='9'/>");
    assert_eq!(remarks(&description), ["refused /domain/devices/teleporter", "refused /domain/devices/rng/@warp"]);
    let xml = "<domain type='kvm' zzz='1'><zzz/><memory>1024</memory>\
               <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os></domain>";
    let description = read(xml).unwrap();
    let expected = ["changed /domain/acpi", "assumed /domain/cpu", "dropped /domain/@zzz", "dropped /domain/zzz"]
        .map(String::from);
    assert_eq!(remarks(&description), expected);
}

#[test]
fn what_is_refused_can_be_dropped_by_its_path_and_only_then() {
    let mut description = with_devices("<hostdev/><hostdev/><tpm/>");
    let drop = |description: &mut Description, paths: &[&str]| {
        let paths: Vec<DropPath> = paths.iter().map(|path| path.parse().unwrap()).collect();
        description.drop_refused(&paths)
    };
    let missed = drop(&mut description, &["/domain/devices/tpm", "/domain/devices/hostdev[3]"]).unwrap_err();
    assert_eq!(missed.to_string(), "nothing that is refused lies at /domain/devices/hostdev[3]");
    drop(&mut description, &["/domain/devices/hostdev[2]", "/domain/devices/tpm[1]"]).unwrap();
    let refused = description.check().unwrap_err().to_string();
    assert!(refused.contains("hostdev[1]") && !refused.contains("hostdev[2]") && !refused.contains("tpm"), "{refused}");
    drop(&mut description, &["/domain/devices/hostdev"]).unwrap();
    assert_eq!(description.check(), Ok(()));
    for bad in ["", "/", "/domain", "/domain/", "devices/tpm", "/domain//tpm"] {
        assert!(bad.parse::<DropPath>().is_err(), "{bad}");
    }
    // A path above stands for all below it; a name that only begins alike does not.
    let mut description = with_devices("<tpm/>");
    assert!(drop(&mut description, &["/domain/device"]).is_err());
    drop(&mut description, &["/domain/devices"]).unwrap();
    assert_eq!(description.check(), Ok(()));
}

#[test]
fn disks_come_in_the_order_in_which_the_domain_boots_them() {
    let disk = |target: &str, bus: &str, boot: &str| {
        format!("<disk type='file'><source file='/{target}'/><target dev='{target}' bus='{bus}'/>{boot}</disk>")
    };
    let targets = |disks: &[String]| {
        let description = with_devices(&disks.concat());
        description.disks.iter().map(|disk| disk.target.clone()).collect::<Vec<_>>()
    };
    let plain =
        [disk("vdaa", "virtio", ""), disk("sdb", "sata", ""), disk("vdb", "virtio", ""), disk("sda", "sata", "")];
    assert_eq!(targets(&plain), ["vdb", "vdaa", "sda", "sdb"]);
    let numbered = [
        disk("vda", "virtio", ""),
        disk("vdb", "virtio", "<boot order='2'/>"),
        disk("sda", "sata", "<boot order='1'/>"),
    ];
    assert_eq!(targets(&numbered), ["sda", "vdb", "vda"]);
}

#[test]
fn a_disk_with_a_given_file_needs_none_of_its_own() {
    let devices =
        "<disk type='network'><source protocol='rbd' name='pool/image'/><target dev='vda' bus='virtio'/></disk>";
    let xml = format!("<domain type='kvm'><devices>{devices}</devices></domain>");
    let own = describe(xml.as_bytes(), base(), DiskFiles::FromDomain).unwrap();
    assert!(own.disks.is_empty() && remarks(&own).contains(&"refused /domain/devices/disk".to_owned()));
    let given = describe(xml.as_bytes(), base(), DiskFiles::Given).unwrap();
    assert_eq!((given.disks.len(), given.disks[0].bus), (1, Bus::Virtio));
    assert!(remarks(&given).contains(&"dropped /domain/devices/disk/source".to_owned()));
}

#[test]
fn more_than_a_machine_has_places_for_is_refused() {
    let nics = "<interface type='user'><model type='e1000'/></interface>".repeat(9);
    assert_eq!(remarks(&with_devices(&nics)), ["refused /domain/devices/interface[9]"]);
    let disk = |number: usize| {
        format!("<disk><driver type='raw'/><source file='/{number}'/><target dev='sd{number}' bus='sata'/></disk>")
    };
    let disks: String = (0..7).map(disk).collect();
    assert_eq!(remarks(&with_devices(&disks)), ["refused /domain/devices"]);
    let ide = "<disk><driver type='raw'/><source file='/a'/><target dev='hda' bus='ide'/></disk>";
    assert_eq!(remarks(&with_devices(ide)), ["refused /domain/devices"], "the board has no IDE");
}

#[test]
fn boards_are_kept_if_every_supported_qemu_has_them() {
    let board = |name: &str| {
        let xml = format!("<domain type='kvm'><os><type arch='x86_64' machine='{name}'>hvm</type></os></domain>");
        let description = read(&xml).unwrap();
        let remark = description.remarks.into_iter().find(|remark| remark.path == "/domain/os/type/@machine");
        (description.machine.machine.to_string(), remark.map(|remark| remark.kind))
    };
    for kept in ["pc-i440fx-5.0", "pc-q35-5.2", "pc-q35-6.2", "pc-i440fx-7.2"] {
        assert_eq!(board(kept), (kept.to_owned(), None));
    }
    for (changed, chipset) in [
        ("pc", Chipset::I440fx),
        ("pc-1.3", Chipset::I440fx),
        ("pc-i440fx-2.12", Chipset::I440fx),
        ("pc-i440fx-rhel7.6.0", Chipset::I440fx),
        ("pc-i440fx-jammy", Chipset::I440fx),
        ("q35", Chipset::Q35),
        ("pc-q35-4.0.1", Chipset::Q35),
        ("pc-q35-4.2", Chipset::Q35),
        ("pc-q35-10.0", Chipset::Q35),
    ] {
        let expected = MachineType::new(chipset, 7, 2).to_string();
        assert_eq!(board(changed), (expected, Some(RemarkKind::Changed)), "{changed}");
    }
    for refused in ["microvm", "isapc", "xenfv", "virt", ""] {
        assert_eq!(board(refused).1, Some(RemarkKind::Refused), "{refused}");
    }
}

#[test]
fn memory_is_read_in_every_unit() {
    let memory = |unit: &str, number: &str| {
        let xml = format!("<domain type='kvm'><memory{unit}>{number}</memory></domain>");
        let description = read(&xml).unwrap();
        let remark =
            description.remarks.iter().find(|remark| remark.path == "/domain/memory").map(|remark| remark.kind);
        (description.machine.memory_mib.mib(), remark)
    };
    assert_eq!(memory("", "524288"), (512, None));
    assert_eq!(memory(" unit='GiB'", " 2 "), (2048, None));
    assert_eq!(memory(" unit='b'", "1"), (1, Some(RemarkKind::Changed)));
    assert_eq!(memory(" unit='MB'", "1000"), (954, Some(RemarkKind::Changed)));
    for (unit, number) in [("", "0"), ("", "x"), ("", ""), (" unit='TiB'", "99999999999"), (" unit='m'", "1")] {
        assert_eq!(memory(unit, number), (1024, Some(RemarkKind::Refused)), "{unit} {number}");
    }
}

#[test]
fn what_is_no_domain_is_said_to_be_none() {
    assert!(matches!(read("memory_mib = 1024"), Err(DomainError::Syntax(_))));
    assert!(matches!(read("<domain>"), Err(DomainError::Syntax(_))));
    assert_eq!(describe(b"<domain>\xff</domain>", base(), DiskFiles::Given), Err(DomainError::NotText));
    assert_eq!(read("<domainsnapshot/>"), Err(DomainError::NotADomain("domainsnapshot".into())));
    assert!(matches!(read("<domain xmlns='urn:x'/>"), Err(DomainError::NotADomain(_))));
    assert_eq!(read("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>"), Err(DomainError::Doctype));
    assert!(matches!(read("<domain>&a;</domain>"), Err(DomainError::Syntax(_))));
}

#[test]
fn texts_that_are_made_to_be_expensive_are_refused() {
    let inside = |text: String| format!("<domain>{text}</domain>");
    assert_eq!(read(&inside(" ".repeat(DOMAIN_BYTES_MAX))), Err(DomainError::TooLong));
    assert_eq!(read(&inside("<a/>".repeat(DOMAIN_NODES_MAX as usize))), Err(DomainError::TooManyNodes));
    assert_eq!(read(&inside("<a/>".repeat(DOMAIN_REMARKS_MAX + 1))), Err(DomainError::TooManyRemarks));
    let nested = |depth: usize| inside(format!("{}{}", "<a>".repeat(depth - 1), "</a>".repeat(depth - 1)));
    assert_eq!(read(&nested(DOMAIN_DEPTH_MAX + 1)), Err(DomainError::TooDeep));
    assert_eq!(read(&nested(9000)), Err(DomainError::TooDeep));
    assert!(read(&nested(DOMAIN_DEPTH_MAX)).is_ok());
    let namespaces = (0..=DOMAIN_NAMESPACES_MAX).map(|n| format!("<a xmlns:n{n}='urn:{n}'/>")).collect();
    assert_eq!(read(&inside(namespaces)), Err(DomainError::TooManyNamespaces));
    let attributes: String = (0..20_000).map(|n| format!(" a{n}=''")).collect();
    assert_eq!(read(&format!("<domain{attributes}/>")), Err(DomainError::TooManyRemarks));
}

/// A sample with some of its bytes replaced by pieces that mean something in XML or here.
fn disturbed() -> impl Strategy<Value = Vec<u8>> {
    let pieces =
        ["<", "/>", "'", "\"", ">", "&#10;", "-1", "99999999999999999999", "<![CDATA[", "", "\u{202e}", "disk"];
    let change = (any::<prop::sample::Index>(), 0..40_usize, prop::sample::select(pieces.to_vec()));
    (prop::sample::select(samples()), prop::collection::vec(change, 0..6)).prop_map(|((_, text), changes)| {
        let mut bytes = text.into_bytes();
        for (at, length, piece) in changes {
            let start = at.index(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, piece.bytes());
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic_or_steer_a_terminal(xml in disturbed()) {
        if let Ok(description) = describe(&xml, base(), DiskFiles::FromDomain) {
            for remark in &description.remarks {
                prop_assert!(remark.path.starts_with("/domain"));
                prop_assert!(!remark.to_string().contains(|c: char| c.is_control() || c == '\u{202e}'), "{}", remark);
            }
            let names = description.disk_names();
            if description.check().is_ok() {
                prop_assert_eq!(description.machine_with(&names).validate(&names), Ok(()));
            }
        }
    }
}
