//! The disks of a domain: where their data is, what they are plugged into and in which order they boot.

use std::path::Path;

use vmnetx_format::machine::Bus;

use super::devices::{ADDRESS, ALIAS, DRIVER, SLOT, VIRTIO_OF_ANY_AGE};
use super::ledger::{Element, Ledger, Reasons, path, shown};
use super::remark::RemarkKind::{Assumed, Changed, Dropped, Refused};
use super::{DiskFiles, DiskSource, DomainDisk};

const HOST: &str = "it concerns the host: how the disk's file is opened and shared";
const IDENTITY: &str = "the disk has QEMU's own name and serial number";
const CHAIN: &str = "the disk's file itself names what it builds on";
const ENCRYPTED: &str = "encrypted disks cannot be read";
const GIVEN: &str = "--disk gives the disk's data";

const DROPPED: Reasons = &[
    ALIAS,
    ADDRESS,
    SLOT,
    ("iotune", HOST),
    ("throttlefilters", HOST),
    ("shareable", "every guest writes to an overlay of its own"),
    ("transient", "what is kept of the guest's writes, `vmnetx run --persist` says"),
    ("serial", IDENTITY),
    ("wwn", IDENTITY),
    ("vendor", IDENTITY),
    ("product", IDENTITY),
    ("backingStore", CHAIN),
    ("mirror", "a copy that libvirt was making"),
];

/// Characters that are kept of a target's name and of a format's.
const TARGET_CHARS: usize = 64;

const DRIVER_DROPPED: &[&str] = &[
    "cache",
    "error_policy",
    "rerror_policy",
    "io",
    "ioeventfd",
    "event_idx",
    "copy_on_read",
    "discard",
    "discard_no_unref",
    "detect_zeroes",
    "iothread",
    "queues",
    "queue_size",
    "iommu",
    "ats",
    "packed",
    "page_per_vq",
    "max_bufs",
];

const SOURCE_DROPPED: Reasons = &[("seclabel", HOST), ("privateData", HOST), ("cookies", HOST)];

const SOURCE_REFUSED: Reasons = &[
    ("encryption", ENCRYPTED),
    ("slices", "a part of a file cannot be read as a disk"),
    ("reservations", "it is a device of one host"),
    ("dataStore", "a file that keeps its data in another one cannot be read"),
];

/// A disk and what its place in the boot order depends on.
struct Found {
    disk: DomainDisk,
    /// The domain's own number, if it gives one.
    boot: Option<u32>,
    /// Its place among the devices of its bus, by its target's name.
    index: u64,
}

/// The disks in the order in which the domain boots them: those with a number of their own first, then as libvirt sorts
/// them, bus by bus in the order of the text and within a bus by the target's name.
pub(super) fn read<'a>(ledger: &mut Ledger<'a>, devices: Element<'a>, files: DiskFiles) -> Vec<DomainDisk> {
    let elements = ledger.children(devices, "disk");
    let mut found: Vec<_> = elements.into_iter().filter_map(|element| disk(ledger, element, files)).collect();
    let mut buses: Vec<Bus> = Vec::new();
    for found in &found {
        if !buses.contains(&found.disk.bus) {
            buses.push(found.disk.bus);
        }
    }
    let bus_rank = |bus| buses.iter().position(|known| *known == bus);
    found.sort_by_key(|found| (found.boot.unwrap_or(u32::MAX), bus_rank(found.disk.bus), found.index));
    found.into_iter().map(|found| found.disk).collect()
}

/// A disk; nothing if it is settled as refused or dropped.
fn disk<'a>(ledger: &mut Ledger<'a>, element: Element<'a>, files: DiskFiles) -> Option<Found> {
    match ledger.attribute(element, "device") {
        None | Some("disk") => {}
        Some(kind @ ("cdrom" | "floppy")) => {
            let target = child_attribute(element, "target", "dev").unwrap_or_default();
            ledger.settle(Dropped, element, format!("the machine has no {kind} drive, here {}", shown(target)));
            return None;
        }
        Some(_) => {
            ledger.settle(Refused, element, "it is a device of one host");
            return None;
        }
    }
    let (target, bus) = target(ledger, element)?;
    let source = match files {
        DiskFiles::FromDomain => Some(source(ledger, element)?),
        DiskFiles::Given => {
            let _ = ledger.attribute(element, "type");
            let replaced = &[("source", GIVEN), ("driver", GIVEN), ("encryption", GIVEN), ("auth", GIVEN)];
            ledger.settle_children(Dropped, element, replaced);
            None
        }
    };
    let boot = boot_number(ledger, element);
    sectors(ledger, element);
    if let Some(readonly) = ledger.child(element, "readonly") {
        ledger.note(Changed, readonly, "the guest can write; what it writes goes to its overlay");
    }
    if ledger.attribute(element, "model").is_some_and(|model| model != "virtio") {
        ledger.note_attribute(Changed, element, "model", VIRTIO_OF_ANY_AGE);
    }
    ledger.note_attributes(Dropped, element, &[("snapshot", HOST), ("sgio", HOST), ("rawio", HOST)]);
    ledger.settle_children(Dropped, element, DROPPED);
    let disk = DomainDisk { path: path(element), target: target.chars().take(TARGET_CHARS).collect(), bus, source };
    Some(Found { disk, boot, index: target_index(target) })
}

/// What the disk is plugged into, and its name there; nothing if the disk is settled as refused.
fn target<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) -> Option<(&'a str, Bus)> {
    let Some(target) = ledger.child(element, "target") else {
        ledger.settle(Refused, element, "it does not say what it is plugged into");
        return None;
    };
    let name = ledger.attribute(target, "dev").unwrap_or_default();
    let default = match name.get(..2) {
        Some("vd") => "virtio",
        Some("hd") => "ide",
        Some("sd") => "scsi",
        _ => "none",
    };
    let bus = ledger.attribute(target, "bus").unwrap_or_else(|| {
        ledger.note_absent(Assumed, target, "@bus", format!("{} by its name {}", shown(default), shown(name)));
        default
    });
    let reasons = &[("tray", HOST), ("removable", DRIVER), ("rotation_rate", DRIVER)];
    ledger.note_attributes(Dropped, target, reasons);
    let bus = match bus {
        "virtio" => Bus::Virtio,
        "ide" => Bus::Ide,
        "sata" => Bus::Sata,
        "scsi" if on_virtio_scsi(element) => Bus::Scsi,
        "scsi" => {
            let why = "its SCSI controller is not virtio-scsi, and the guest may have no driver for that";
            ledger.settle(Refused, element, why);
            return None;
        }
        other => {
            ledger.settle(Refused, element, format!("the machine has no disks on {}", shown(other)));
            return None;
        }
    };
    Some((name, bus))
}

/// Whether the controller that a SCSI disk's address names is a virtio one; libvirt's default is another.
fn on_virtio_scsi(disk: Element<'_>) -> bool {
    let number = child_attribute(disk, "address", "controller").unwrap_or("0");
    let mut controllers = disk.parent().into_iter().flat_map(|devices| devices.children()).filter(|node| {
        node.has_tag_name("controller")
            && node.attribute("type") == Some("scsi")
            && node.attribute("index").unwrap_or("0") == number
    });
    let model = controllers.next().and_then(|controller| controller.attribute("model"));
    matches!(model, Some("virtio-scsi" | "virtio-transitional" | "virtio-non-transitional"))
}

/// The disk's own file and its format; nothing if the disk is settled as refused.
fn source<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) -> Option<DiskSource> {
    let attribute = match ledger.attribute(element, "type").unwrap_or("file") {
        "file" => "file",
        "block" => "dev",
        other => {
            let why =
                format!("its data is in no file of this host but in {}; give a copy of it with --disk", shown(other));
            ledger.settle(Refused, element, why);
            return None;
        }
    };
    if child_attribute(element, "driver", "name").is_some_and(|name| name != "qemu") {
        ledger.settle(Refused, element, "another program than QEMU reads its file");
        return None;
    }
    if has_child(element, "encryption") || has_child(element, "auth") {
        ledger.settle(Refused, element, ENCRYPTED);
        return None;
    }
    let source = ledger.child(element, "source");
    let file = source.and_then(|source| ledger.attribute(source, attribute)).unwrap_or_default();
    // A path with a line break could pass for a line of ours where it is shown.
    if !Path::new(file).is_absolute() || file.chars().any(char::is_control) {
        ledger.settle(Refused, element, format!("{} is no absolute path of a disk's data", shown(file)));
        return None;
    }
    if let Some(source) = source {
        if let Some((_, why)) = SOURCE_REFUSED.iter().find(|(name, _)| has_child(source, name)) {
            ledger.settle(Refused, element, *why);
            return None;
        }
        ledger.note_attributes(Dropped, source, &[("startupPolicy", HOST), ("index", HOST), ("fdgroup", HOST)]);
        ledger.settle_children(Dropped, source, SOURCE_DROPPED);
    }
    Some(DiskSource { file: file.into(), format: format(ledger, element) })
}

/// The image format. It is never found out from the bytes, which a guest may have written.
fn format<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) -> String {
    let driver = ledger.child(element, "driver");
    let format = driver.and_then(|driver| ledger.attribute(driver, "type"));
    if let Some(driver) = driver {
        let _ = ledger.attribute(driver, "name");
        for name in DRIVER_DROPPED {
            ledger.note_attribute(Dropped, driver, name, DRIVER);
        }
        ledger.settle_children(Dropped, driver, &[("metadata_cache", DRIVER), ("iothreads", DRIVER)]);
    }
    match format {
        Some(format) => format.chars().take(TARGET_CHARS).collect(),
        None => {
            ledger.note_absent(Assumed, element, "driver/@type", "\"raw\"");
            "raw".to_owned()
        }
    }
}

fn boot_number<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) -> Option<u32> {
    let boot = ledger.child(element, "boot")?;
    ledger.note_attribute(Dropped, boot, "loadparm", DRIVER);
    let text = ledger.attribute(boot, "order")?;
    let number = text.parse().ok();
    if number.is_none() {
        ledger.note_attribute(Dropped, boot, "order", format!("{} is no number", shown(text)));
    }
    number
}

/// The sizes that the guest has laid its partitions out by.
fn sectors<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) {
    if let Some(geometry) = ledger.child(element, "geometry") {
        ledger.settle(
            Refused,
            geometry,
            "the guest's boot loader may count in cylinders and heads that only this gives",
        );
    }
    let Some(io) = ledger.child(element, "blockio") else { return };
    if ledger.attribute(io, "logical_block_size").is_some_and(|size| size != "512") {
        let why = "the machine's disks have sectors of 512 bytes, and partitions are counted in sectors";
        ledger.note_attribute(Refused, io, "logical_block_size", why);
    }
    ledger.note_attributes(Dropped, io, &[("physical_block_size", DRIVER), ("discard_granularity", DRIVER)]);
}

/// The place that a target's name stands for, after the two or three letters of its kind: `sda` 0, `sdz` 25, `sdaa` 26.
fn target_index(name: &str) -> u64 {
    let letters = name.strip_prefix("xvd").or(name.get(2..)).unwrap_or_default();
    letters
        .bytes()
        .take_while(u8::is_ascii_lowercase)
        .fold(0_u64, |index, letter| index.saturating_mul(26).saturating_add(u64::from(letter - b'a') + 1))
}

fn has_child(element: Element<'_>, name: &str) -> bool {
    element.children().any(|node| node.has_tag_name(name))
}

fn child_attribute<'a>(element: Element<'a>, child: &str, attribute: &str) -> Option<&'a str> {
    element.children().find(|node| node.has_tag_name(child))?.attribute(attribute)
}
