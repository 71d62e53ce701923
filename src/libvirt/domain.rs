//! The XML of the domain that libvirt is given: the package's hardware, and of this host only what this run has made.

use std::path::{Path, PathBuf};

use vmnetx_format::Name;
use vmnetx_format::machine::{Bus, Clock, Machine, Nic, NicModel, Vga};
use vmnetx_pack::domain::Part;

use super::Error;
use super::limits::RECONNECT_DELAY_S;

const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// What this host has for a machine.
#[derive(Debug)]
pub(super) struct Host {
    /// The domain's name, which no other domain has.
    pub(super) name: String,
    /// Where the first serial port's output goes, if not to a terminal of libvirt's.
    pub(super) serial: Option<PathBuf>,
    /// In the order of the package.
    pub(super) disks: Vec<HostDisk>,
}

/// Where a disk's data is.
#[derive(Debug)]
pub(super) struct HostDisk {
    pub(super) name: Name,
    /// What the hardware has it plugged in as.
    pub(super) target: String,
    pub(super) overlay: PathBuf,
    /// Whether the overlay is thrown away in the end.
    pub(super) scratch: bool,
    pub(super) nbd_socket: PathBuf,
    pub(super) export: String,
}

/// Completes the hardware.
pub(super) fn complete(mut domain: Part, host: &Host) -> Result<String, Error> {
    domain.parts.insert(0, Part::new("name").text(&host.name));
    domain.parts.push(Part::new("on_poweroff").text("destroy"));
    domain.parts.push(Part::new("on_reboot").text("restart"));
    domain.parts.push(Part::new("on_crash").text("destroy"));
    for device in &mut domain.part_mut("devices").parts {
        match device.name {
            "disk" => put_disk(device, host)?,
            "serial" | "console" => put_port(device, host.serial.as_deref())?,
            "rng" => device.parts.insert(0, Part::new("backend").with("model", "random").text("/dev/urandom")),
            _ => {}
        }
    }
    Ok(domain.to_xml())
}

/// Gives a disk its overlay, over the package's export. A drive without a disk stays empty.
fn put_disk(device: &mut Part, host: &Host) -> Result<(), Error> {
    let target = device.part("target").and_then(|target| target.attribute("dev"));
    let Some(disk) = host.disks.iter().find(|disk| Some(disk.target.as_str()) == target) else { return Ok(()) };
    let path = |path: &Path| match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(Error::Path(path.to_owned(), disk.name.clone())),
    };
    let driver = device.part_mut("driver");
    // What is thrown away in the end need not be safe on the host's disk.
    let cache = if disk.scratch { "unsafe" } else { "writeback" };
    let options = [("name", "qemu"), ("type", "qcow2"), ("cache", cache), ("discard", "unmap")];
    let stop = [("error_policy", "stop"), ("rerror_policy", "stop")];
    driver.attributes.extend(options.into_iter().chain(stop).map(|(name, value)| (name, value.to_owned())));
    let server = Part::new("host").with("transport", "unix").with("socket", path(&disk.nbd_socket)?);
    let export = Part::new("source").with("protocol", "nbd").with("name", &disk.export);
    let export = export.holding(server).holding(Part::new("reconnect").with("delay", RECONNECT_DELAY_S.to_string()));
    // The chain is told to its end, so libvirt looks at no file's header for more.
    let pristine = Part::new("backingStore").with("type", "network").holding(Part::new("format").with("type", "raw"));
    device.parts.push(Part::new("source").with("file", path(&disk.overlay)?));
    device.parts.push(pristine.holding(export).holding(Part::new("backingStore")));
    Ok(())
}

/// libvirt writes the first serial port as the first console, too, and both must say the same.
fn put_port(device: &mut Part, file: Option<&Path>) -> Result<(), Error> {
    let is_serial =
        device.name == "serial" || device.part("target").and_then(|at| at.attribute("type")) == Some("serial");
    let is_first = device.part("target").and_then(|target| target.attribute("port")).unwrap_or("0") == "0";
    let Some(file) = file.filter(|_| is_serial && is_first) else { return Ok(()) };
    let text = file.to_str().filter(|text| !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| vm_path(file))?;
    device.attributes.retain(|(name, _)| *name != "type");
    device.attributes.push(("type", "file".to_owned()));
    device.parts.push(Part::new("source").with("path", text));
    Ok(())
}

fn vm_path(file: &Path) -> Error {
    crate::vm::Error::PathNotText(file.to_owned()).into()
}

/// Whether a guest agent has a port there.
pub(super) fn has_agent(domain: &Part) -> bool {
    let is_agents = |part: &Part| {
        part.name == "channel" && part.part("target").and_then(|target| target.attribute("name")) == Some(AGENT_PORT)
    };
    domain.part("devices").is_some_and(|devices| devices.parts.iter().any(is_agents))
}

/// The hardware of a machine that is to be booted, and what its disks are plugged in as. `kind` is libvirt's name of what runs
/// the guest's instructions.
pub(super) fn of_machine(machine: &Machine, disks: &[Name], kind: &str) -> (Part, Vec<String>) {
    let mut devices = Part::new("devices");
    let mut targets = Vec::new();
    let order = machine.boot_order(disks);
    for name in disks {
        let bus = machine.bus_of(name);
        let on_bus = targets.iter().filter(|target: &&String| target.starts_with(prefix(bus))).count();
        // At most 16 disks, so one letter does.
        let letter = char::from(b'a' + (on_bus % 26) as u8);
        let target = format!("{}{letter}", prefix(bus));
        let place = Part::new("target").with("dev", &target).with("bus", bus_name(bus));
        let rank = order.iter().position(|at| *at == name).unwrap_or_default() + 1;
        let disk = Part::new("disk").with("type", "file").with("device", "disk");
        devices.parts.push(disk.holding(place).holding(Part::new("boot").with("order", rank.to_string())));
        targets.push(target);
    }
    if disks.iter().any(|name| machine.bus_of(name) == Bus::Scsi) {
        devices.parts.push(Part::new("controller").with("type", "scsi").with("model", "virtio-scsi"));
    }
    devices.parts.extend(machine.nics.iter().map(nic));
    add_single_devices(&mut devices, machine);
    let offset = match machine.clock {
        Clock::Utc => "utc",
        Clock::Localtime => "localtime",
    };
    let board = Part::new("type").with("arch", "x86_64").with("machine", machine.machine.to_string()).text("hvm");
    let cpu = Part::new("cpu").with("mode", "custom").with("match", "exact");
    let mut domain = Part::new("domain").with("type", kind);
    if machine.vmgenid {
        // libvirt draws one, and another whenever it restores the domain.
        domain = domain.holding(Part::new("genid"));
    }
    let domain = domain
        .holding(Part::new("memory").with("unit", "MiB").text(machine.memory_mib.mib().to_string()))
        .holding(Part::new("vcpu").text(machine.cpu.count.count().to_string()))
        .holding(Part::new("os").holding(board))
        .holding(Part::new("features").holding(Part::new("acpi")).holding(Part::new("apic")))
        .holding(cpu.holding(Part::new("model").with("fallback", "forbid").text(machine.cpu.model.as_str())))
        .holding(Part::new("clock").with("offset", offset))
        .holding(devices);
    (domain, targets)
}

fn add_single_devices(devices: &mut Part, machine: &Machine) {
    let mut add = |part: Part| devices.parts.push(part);
    if machine.serial {
        add(Part::new("serial").with("type", "pty"));
    }
    if machine.tablet {
        add(Part::new("input").with("type", "tablet").with("bus", "usb"));
    }
    let card = match machine.vga {
        Vga::None => "none",
        Vga::Std => "vga",
        Vga::Cirrus => "cirrus",
        Vga::Virtio => "virtio",
        Vga::Qxl => "qxl",
        Vga::Vmware => "vmvga",
    };
    add(Part::new("video").holding(Part::new("model").with("type", card)));
    if machine.rng {
        add(Part::new("rng").with("model", "virtio"));
    }
    if machine.guest_agent {
        let port = Part::new("target").with("type", "virtio").with("name", AGENT_PORT);
        add(Part::new("channel").with("type", "unix").holding(port));
    }
    add(Part::new("memballoon").with("model", "none"));
}

fn nic(nic: &Nic) -> Part {
    let model = match nic.model {
        NicModel::VirtioNetPci => "virtio",
        NicModel::E1000 => "e1000",
        NicModel::E1000e => "e1000e",
        NicModel::Rtl8139 => "rtl8139",
        NicModel::Pcnet => "pcnet",
        NicModel::Ne2kPci => "ne2k_pci",
    };
    let mut part = Part::new("interface").with("type", "user");
    if let Some(mac) = nic.mac {
        part = part.holding(Part::new("mac").with("address", mac.to_string()));
    }
    part.holding(Part::new("model").with("type", model))
}

const fn prefix(bus: Bus) -> &'static str {
    match bus {
        Bus::Virtio => "vd",
        Bus::Ide => "hd",
        Bus::Sata | Bus::Scsi => "sd",
    }
}

const fn bus_name(bus: Bus) -> &'static str {
    match bus {
        Bus::Virtio => "virtio",
        Bus::Ide => "ide",
        Bus::Sata => "sata",
        Bus::Scsi => "scsi",
    }
}

#[cfg(test)]
mod tests {
    use vmnetx_pack::domain::Hardware;

    use super::*;

    fn host() -> Host {
        let disk = HostDisk {
            name: "disk0".parse().unwrap(),
            target: "vda".to_owned(),
            overlay: "/run/it's&<one>.qcow2".into(),
            scratch: true,
            nbd_socket: "/run/nbd".into(),
            export: "disk0".to_owned(),
        };
        Host { name: "vm-1".to_owned(), serial: Some("/tmp/serial".into()), disks: vec![disk] }
    }

    #[test]
    fn a_kept_domain_gets_this_hosts_disks_and_no_others() {
        let kept = "<domain type='qemu'><memory>65536</memory><devices>\
            <disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>\
            <disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>\
            <serial type='pty'><target type='isa-serial' port='0'/></serial></devices></domain>";
        let xml = complete(Hardware::of_package(kept).unwrap().into_domain(), &host()).unwrap();
        assert_eq!(xml.matches("<source ").count(), 3, "{xml}");
        assert!(xml.contains("<source file='/run/it&apos;s&amp;&lt;one>.qcow2'/>"), "{xml}");
        assert!(xml.contains("<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>"), "{xml}");
        assert!(xml.contains("<serial type='file'>"), "{xml}");
    }

    #[test]
    fn a_described_machine_is_the_same_when_it_is_read_as_a_domain() {
        let profile = include_str!("../../qemu-configs/default.toml");
        let more = "tablet = true\nrng = true\nguest_agent = true\ndisk_bus = 'virtio'\n";
        let described = Machine::from_toml(&format!("{more}{profile}")).unwrap();
        assert!(described.vmgenid);
        let names: Vec<Name> = vec!["disk0".parse().unwrap(), "data".parse().unwrap()];
        let (domain, targets) = of_machine(&described, &names, "qemu");
        let hardware = Hardware::of_package(&domain.to_xml()).unwrap();
        assert_eq!(hardware.targets(&described, 2).unwrap(), targets);
        let read = vmnetx_pack::domain::describe(
            domain.to_xml().as_bytes(),
            described.clone(),
            vmnetx_pack::domain::DiskFiles::Given,
        );
        assert_eq!(read.unwrap().machine_with(&names), described);
    }
}
