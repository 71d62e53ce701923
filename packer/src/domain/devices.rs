//! The devices of a domain other than its disks.

use vmnetx_format::machine::{Machine, NICS_MAX, Nic, NicModel, Vga};

use super::ledger::{Element, Ledger, Reasons, shown};
use super::remark::RemarkKind::{Assumed, Changed, Dropped, Refused};
use super::{DiskFiles, DomainDisk, disks};

pub(super) const ALIAS: (&str, &str) = ("alias", "it is libvirt's own name for the device");
pub(super) const ADDRESS: (&str, &str) = (
    "address",
    "devices get places in the package's own order: a guest that names its network cards by slot finds other names",
);
pub(super) const SLOT: (&str, &str) = ("acpi", ADDRESS.1);
pub(super) const DRIVER: &str = "it concerns the host: how QEMU drives the device";
pub(super) const VIRTIO_OF_ANY_AGE: &str = "a virtio device that guests old and new have drivers for";
const BACKEND: &str = "it concerns the host: where the device's data goes";
const CONTROLLER: &str = "controllers come with the devices that need them";
const SCREEN: &str = "`vmnetx run --display` says where the screen is shown; passwords are never published";
const DEFAULT_SCREEN: &str = "libvirt's default, \"cirrus\"";
const SOUND: &str = "the machine has no sound";
const DISPLAY_DETAIL: &str = "the card has its usual memory and one screen";
const USER_NETWORK: &str = "each card is on a user network of its own, behind the host's address";
const NETWORK_TUNING: &str = "it concerns the host: how the network is shaped and guarded";
const NO_NETWORK_BOOT: &str = "only disks boot";
const NO_CHANNEL: &str = "the machine has no channels but that of the guest agent";
const AGENT: &str = "org.qemu.guest_agent.0";
const WITHOUT: &str = "guests do without";
const OTHER_HARDWARE: &str = "the machine cannot have it, and the guest may need it";
const HOST_DEVICE: &str = "it is a device of one host";

const DROPPED: Reasons = &[
    ("emulator", DRIVER),
    ("graphics", SCREEN),
    ("sound", SOUND),
    ("audio", SOUND),
    ("redirdev", NO_CHANNEL),
    ("redirfilter", NO_CHANNEL),
    ("watchdog", WITHOUT),
    ("memballoon", WITHOUT),
    ("panic", WITHOUT),
    ("parallel", WITHOUT),
    ("hub", CONTROLLER),
    ("lease", "it concerns the host: who may use the disks"),
];

const REFUSED: Reasons = &[
    ("hostdev", HOST_DEVICE),
    ("filesystem", "it is a folder of one host"),
    ("shmem", HOST_DEVICE),
    ("tpm", "no launcher handles a TPM, and the guest may have sealed its keys in it"),
    ("smartcard", HOST_DEVICE),
    ("iommu", OTHER_HARDWARE),
    ("vsock", OTHER_HARDWARE),
    ("memory", OTHER_HARDWARE),
    ("nvram", OTHER_HARDWARE),
    ("crypto", OTHER_HARDWARE),
    ("pstore", OTHER_HARDWARE),
];

const INTERFACE_DROPPED: Reasons = &[
    ALIAS,
    ADDRESS,
    SLOT,
    ("boot", NO_NETWORK_BOOT),
    ("rom", NO_NETWORK_BOOT),
    ("target", USER_NETWORK),
    ("ip", USER_NETWORK),
    ("route", USER_NETWORK),
    ("guest", USER_NETWORK),
    ("script", USER_NETWORK),
    ("downscript", USER_NETWORK),
    ("backend", USER_NETWORK),
    ("backenddomain", USER_NETWORK),
    ("portForward", USER_NETWORK),
    ("virtualport", USER_NETWORK),
    ("vlan", USER_NETWORK),
    ("port", USER_NETWORK),
    ("mtu", USER_NETWORK),
    ("bandwidth", NETWORK_TUNING),
    ("filterref", NETWORK_TUNING),
    ("coalesce", NETWORK_TUNING),
    ("tune", NETWORK_TUNING),
    ("driver", DRIVER),
];

/// Reads the devices into `machine`, which has none yet, and returns the disks.
pub(super) fn read<'a>(
    ledger: &mut Ledger<'a>,
    root: Element<'a>,
    machine: &mut Machine,
    files: DiskFiles,
) -> Vec<DomainDisk> {
    machine.vga = Vga::None;
    let Some(devices) = ledger.child(root, "devices") else { return Vec::new() };
    for nic in ledger.children(devices, "interface") {
        interface(ledger, nic, machine);
    }
    serial_ports(ledger, devices, machine);
    screen(ledger, devices, machine);
    for input in ledger.children(devices, "input") {
        pointer(ledger, input, machine);
    }
    for rng in ledger.children(devices, "rng") {
        random(ledger, rng, machine);
    }
    for channel in ledger.children(devices, "channel") {
        agent(ledger, channel, machine);
    }
    let disks = disks::read(ledger, devices, files);
    for controller in ledger.children(devices, "controller") {
        let known = ["usb", "ide", "sata", "scsi", "fdc", "pci", "virtio-serial", "ccid"];
        let known = controller.attribute("type").is_some_and(|kind| known.contains(&kind));
        // A SCSI controller of another model is refused with the disks that are on it.
        let (kind, why) = if known { (Dropped, CONTROLLER) } else { (Refused, OTHER_HARDWARE) };
        ledger.settle(kind, controller, why);
    }
    ledger.settle_children(Dropped, devices, DROPPED);
    ledger.settle_children(Refused, devices, REFUSED);
    disks
}

fn interface<'a>(ledger: &mut Ledger<'a>, interface: Element<'a>, machine: &mut Machine) {
    match ledger.attribute(interface, "type") {
        Some("user") => {}
        Some("hostdev" | "vdpa") => return ledger.settle(Refused, interface, HOST_DEVICE),
        _ => ledger.note_attribute(Changed, interface, "type", USER_NETWORK),
    }
    if machine.nics.len() == NICS_MAX {
        return ledger.settle(Refused, interface, format!("the machine has at most {NICS_MAX} network cards"));
    }
    let Some(model) = card(ledger, interface) else { return };
    let mut mac = None;
    if let Some(element) = ledger.child(interface, "mac") {
        ledger.note_attributes(Dropped, element, &[("type", NETWORK_TUNING), ("check", NETWORK_TUNING)]);
        match ledger.attribute(element, "address").map(|text| text.parse()) {
            Some(Ok(found)) if machine.nics.iter().any(|nic| nic.mac == Some(found)) => {
                ledger.note_attribute(Refused, element, "address", "two cards have this address");
            }
            Some(Ok(found)) => mac = Some(found),
            Some(Err(error)) => ledger.note_attribute(Refused, element, "address", format!("{error}")),
            None => {}
        }
    }
    for source in ledger.children(interface, "source") {
        ledger.settle(Dropped, source, USER_NETWORK);
    }
    for link in ledger.children(interface, "link") {
        match ledger.attribute(link, "state") {
            Some("up") => {}
            _ => ledger.note_attribute(Changed, link, "state", "the card's cable is plugged in"),
        }
    }
    ledger.note_attributes(Dropped, interface, &[("managed", NETWORK_TUNING), ("trustGuestRxFilters", NETWORK_TUNING)]);
    ledger.settle_children(Dropped, interface, INTERFACE_DROPPED);
    machine.nics.push(Nic { model, mac });
}

/// The model of a network card; nothing if it is settled as refused.
fn card<'a>(ledger: &mut Ledger<'a>, interface: Element<'a>) -> Option<NicModel> {
    let Some(element) = ledger.child(interface, "model") else {
        ledger.note_absent(Assumed, interface, "model", "libvirt's default, \"rtl8139\"");
        return Some(NicModel::Rtl8139);
    };
    let name = ledger.attribute(element, "type").unwrap_or_default();
    Some(match name {
        "virtio" | "virtio-net-pci" => NicModel::VirtioNetPci,
        "virtio-transitional" | "virtio-non-transitional" => {
            ledger.note_attribute(Changed, element, "type", VIRTIO_OF_ANY_AGE);
            NicModel::VirtioNetPci
        }
        "e1000" => NicModel::E1000,
        "e1000e" => NicModel::E1000e,
        "rtl8139" => NicModel::Rtl8139,
        "pcnet" => NicModel::Pcnet,
        "ne2k_pci" => NicModel::Ne2kPci,
        _ => {
            ledger.settle(Refused, interface, format!("the machine cannot have the card {}", shown(name)));
            return None;
        }
    })
}

/// The first serial port, which libvirt also writes as the first console.
fn serial_ports<'a>(ledger: &mut Ledger<'a>, devices: Element<'a>, machine: &mut Machine) {
    for serial in ledger.children(devices, "serial") {
        let target = serial.children().find(|node| node.has_tag_name("target"));
        let kind = target.and_then(|target| target.attribute("type")).unwrap_or("isa-serial");
        if machine.serial {
            ledger.settle(Refused, serial, "the machine has one serial port");
        } else if matches!(kind, "isa-serial" | "serial") {
            machine.serial = true;
            port(ledger, serial);
        } else {
            ledger.settle(Refused, serial, format!("the machine's serial port is no {}", shown(kind)));
        }
    }
    for console in ledger.children(devices, "console") {
        let target = console.children().find(|node| node.has_tag_name("target"));
        match target.and_then(|target| target.attribute("type")).unwrap_or("serial") {
            "serial" => {
                machine.serial = true;
                port(ledger, console);
            }
            _ => ledger.settle(Dropped, console, "the machine's console is its serial port"),
        }
    }
}

fn port<'a>(ledger: &mut Ledger<'a>, port: Element<'a>) {
    ledger.note_attributes(Dropped, port, &[("type", BACKEND), ("tty", BACKEND)]);
    for target in ledger.children(port, "target") {
        // Port 0 of an ISA serial port is what the machine has.
        let _ = ledger.attribute(target, "type");
        if ledger.attribute(target, "port").is_some_and(|number| number != "0") {
            ledger.note_attribute(Changed, target, "port", "it is the first serial port");
        }
        for model in ledger.children(target, "model") {
            if ledger.attribute(model, "name") != Some("isa-serial") {
                ledger.note(Changed, model, "an ISA serial port");
            }
        }
    }
    let host = &[ALIAS, ADDRESS, ("source", BACKEND), ("protocol", BACKEND), ("log", BACKEND)];
    ledger.settle_children(Dropped, port, host);
}

fn screen<'a>(ledger: &mut Ledger<'a>, devices: Element<'a>, machine: &mut Machine) {
    let videos = ledger.children(devices, "video");
    let Some((video, others)) = videos.split_first() else {
        if devices.children().any(|node| node.has_tag_name("graphics")) {
            machine.vga = Vga::Cirrus;
            ledger.note_absent(Assumed, devices, "video", DEFAULT_SCREEN);
        }
        return;
    };
    for other in others {
        ledger.settle(Dropped, *other, "the machine has one graphics card");
    }
    let model = ledger.child(*video, "model");
    let name = model.and_then(|model| ledger.attribute(model, "type"));
    machine.vga = match name {
        Some("vga") => Vga::Std,
        Some("cirrus") => Vga::Cirrus,
        Some("virtio") => Vga::Virtio,
        Some("qxl") => Vga::Qxl,
        Some("vmvga") => Vga::Vmware,
        Some("none") => Vga::None,
        Some(other) => {
            return ledger.settle(Refused, *video, format!("the machine cannot have the card {}", shown(other)));
        }
        None => {
            ledger.note_absent(Assumed, *video, "model", DEFAULT_SCREEN);
            Vga::Cirrus
        }
    };
    if let Some(model) = model {
        let _ = ledger.attribute(model, "primary");
        for name in ["vram", "vram64", "ram", "vgamem", "heads", "blob", "edid"] {
            ledger.note_attribute(Dropped, model, name, DISPLAY_DETAIL);
        }
        let inner = &[("acceleration", DISPLAY_DETAIL), ("resolution", DISPLAY_DETAIL)];
        ledger.settle_children(Dropped, model, inner);
    }
    ledger.settle_children(Dropped, *video, &[ALIAS, ADDRESS, SLOT, ("driver", DRIVER)]);
}

fn pointer<'a>(ledger: &mut Ledger<'a>, input: Element<'a>, machine: &mut Machine) {
    let bus = ledger.attribute(input, "bus");
    let _ = ledger.attribute(input, "model");
    match ledger.attribute(input, "type") {
        Some("tablet") => {
            machine.tablet = true;
            if let Some(bus) = bus.filter(|bus| *bus != "usb") {
                ledger.note_attribute(Changed, input, "bus", format!("a USB tablet in place of one on {}", shown(bus)));
            }
        }
        // Every PC has them on PS/2.
        Some("mouse" | "keyboard") => {
            if let Some(bus) = bus.filter(|bus| *bus != "ps2") {
                ledger.note_attribute(Changed, input, "bus", format!("on PS/2 in place of {}", shown(bus)));
            }
        }
        Some("passthrough" | "evdev") => return ledger.settle(Refused, input, HOST_DEVICE),
        _ => return ledger.settle(Refused, input, OTHER_HARDWARE),
    }
    ledger.settle_children(Dropped, input, &[ALIAS, ADDRESS, SLOT, ("driver", DRIVER)]);
}

fn random<'a>(ledger: &mut Ledger<'a>, rng: Element<'a>, machine: &mut Machine) {
    if machine.rng {
        return ledger.settle(Dropped, rng, "the machine has one source of random numbers");
    }
    match ledger.attribute(rng, "model") {
        Some("virtio") | None => {}
        Some("virtio-transitional" | "virtio-non-transitional") => {
            ledger.note_attribute(Changed, rng, "model", VIRTIO_OF_ANY_AGE);
        }
        Some(_) => return ledger.settle(Refused, rng, OTHER_HARDWARE),
    }
    machine.rng = true;
    let host = &[ALIAS, ADDRESS, SLOT, ("backend", BACKEND), ("rate", BACKEND), ("driver", DRIVER)];
    ledger.settle_children(Dropped, rng, host);
}

fn agent<'a>(ledger: &mut Ledger<'a>, channel: Element<'a>, machine: &mut Machine) {
    let is_agents = |target: &Element<'a>| {
        target.has_tag_name("target")
            && target.attribute("type") == Some("virtio")
            && target.attribute("name") == Some(AGENT)
    };
    if machine.guest_agent || !channel.children().any(|part| is_agents(&part)) {
        return ledger.settle(Dropped, channel, NO_CHANNEL);
    }
    machine.guest_agent = true;
    let _ = ledger.attribute(channel, "type");
    if let Some(target) = ledger.child(channel, "target") {
        for name in ["type", "name", "state"] {
            let _ = ledger.attribute(target, name);
        }
    }
    ledger.settle_children(Dropped, channel, &[ALIAS, ADDRESS, SLOT, ("source", BACKEND), ("log", BACKEND)]);
}
