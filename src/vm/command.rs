//! The command line of QEMU for a machine: a pure function of the description and the facts of this run.
//!
//! Nothing of a package reaches an option unless a type of [`Machine`] has let it through, and every path stands in JSON or
//! has its commas doubled. Works with QEMU 7.2 to 10.0.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmnetx_format::machine::{Bus, Chipset, Clock, Machine, NicModel, Vga};
use vmnetx_format::{MAIN_RAM_BLOCK, Name};

use super::accel::Accelerator;
use super::display::Display;
use super::error::Error;
use super::limits::{OPEN_TIMEOUT_S, RECONNECT_DELAY_S};

/// What QEMU may not do: system calls of old, gaining privileges, starting processes, changing its own limits.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What the guest's network cards reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Whatever this user's programs reach, this host's own services included.
    #[default]
    User,
    /// Nothing.
    Isolated,
}

/// What a run adds to the machine's description.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) name: &'a Name,
    pub(super) accelerator: Accelerator,
    pub(super) display: Display,
    pub(super) network: Network,
    /// The socket on which we wait for QEMU's monitor.
    pub(super) monitor: &'a Path,
    /// Where QEMU has another monitor, for whoever comes.
    pub(super) control: &'a Path,
    /// Where QEMU has the port of the guest agent, if the machine has one.
    pub(super) agent: &'a Path,
    /// The socket on which we wait for the serial port, if anyone listens to it.
    pub(super) serial: Option<&'a Path>,
    /// Where VNC listens, if it does.
    pub(super) vnc: &'a Path,
    /// In the order of the package.
    pub(super) disks: &'a [DiskFacts],
    /// What the machine does first.
    pub(super) begins: Begins,
}

/// What a machine does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// It boots.
    Booting,
    /// It waits for the state that it is to go on from.
    Waiting,
    /// The same, and its main memory is a private mapping of a file that QEMU inherits under this number.
    Mapping(RawFd),
}

/// Where a disk's data is.
#[derive(Debug)]
pub(super) struct DiskFacts {
    pub(super) name: Name,
    pub(super) nbd_socket: PathBuf,
    pub(super) export: String,
    pub(super) overlay: PathBuf,
    /// Whether the overlay is thrown away in the end, so that it need not be safe on the host's disk.
    pub(super) scratch: bool,
}

/// QEMU's arguments, without its own name.
///
/// # Errors
/// [`Error::PathNotText`], and [`Error::NotHandled`] for disks that the machine was not validated with.
pub(super) fn arguments(machine: &Machine, facts: &Facts<'_>) -> Result<Vec<OsString>, Error> {
    let mut line = Line::default();
    line.option("-name", format!("guest={}", facts.name));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-sandbox", SANDBOX);
    let mut board = format!("{},accel={},dump-guest-core=off", machine.machine, facts.accelerator.as_str());
    if let Begins::Mapping(fd) = facts.begins {
        // QEMU 7.2 opens a file read-write, also for a private mapping, and knows no file by its number but in this way.
        line.object(
            &json!({ "qom-type": "memory-backend-file", "id": MAIN_RAM_BLOCK, "size": machine.memory_mib.mib() << 20,
            "mem-path": format!("/proc/self/fd/{fd}"), "share": false }),
        );
        board += &format!(",memory-backend={MAIN_RAM_BLOCK}");
    }
    line.option("-machine", board);
    line.option("-cpu", machine.cpu.model.as_str());
    line.option("-smp", machine.cpu.count.count().to_string());
    line.option("-m", format!("size={}M", machine.memory_mib.mib()));
    line.option(
        "-rtc",
        match machine.clock {
            Clock::Utc => "base=utc",
            Clock::Localtime => "base=localtime",
        },
    );
    line.option("-boot", "strict=on");
    line.option("-chardev", format!("socket,id=monitor,path={}", doubled(facts.monitor)?));
    line.option("-mon", "chardev=monitor,mode=control");
    line.option("-chardev", format!("socket,id=control,path={},server=on,wait=off", doubled(facts.control)?));
    line.option("-mon", "chardev=control,mode=control");
    add_display(&mut line, facts)?;
    add_devices(&mut line, machine, facts)?;
    add_disks(&mut line, machine, facts)?;
    add_late_devices(&mut line, machine, facts)?;
    if facts.begins != Begins::Booting {
        // Which one and how is said over the monitor.
        line.option("-incoming", "defer");
    }
    Ok(line.0)
}

/// The block node of the overlay of the disk at this place in the package.
pub(super) fn overlay_node(index: usize) -> String {
    format!("overlay{index}")
}

fn add_display(line: &mut Line, facts: &Facts<'_>) -> Result<(), Error> {
    match facts.display {
        Display::None => line.option("-display", "none"),
        Display::Gtk => line.option("-display", "gtk"),
        Display::Sdl => line.option("-display", "sdl"),
        Display::Vnc => {
            line.option("-display", "none");
            line.option("-vnc", format!("unix:{}", doubled(facts.vnc)?));
        }
    }
    Ok(())
}

/// The devices that are neither disks nor for copies. Their order gives them their PCI slots, which a guest remembers: new ones
/// go to [`add_late_devices`].
fn add_devices(line: &mut Line, machine: &Machine, facts: &Facts<'_>) -> Result<(), Error> {
    let vga = match machine.vga {
        Vga::None => None,
        Vga::Std => Some("VGA"),
        Vga::Cirrus => Some("cirrus-vga"),
        Vga::Virtio => Some("virtio-vga"),
        Vga::Qxl => Some("qxl-vga"),
        Vga::Vmware => Some("vmware-svga"),
    };
    if let Some(driver) = vga {
        line.device(&json!({ "driver": driver, "id": "vga" }));
    }
    if machine.serial {
        match facts.serial {
            Some(path) => line.option("-chardev", format!("socket,id=serial,path={}", doubled(path)?)),
            None => line.option("-chardev", "null,id=serial"),
        }
        line.device(&json!({ "driver": "isa-serial", "id": "serial0", "chardev": "serial" }));
    }
    if machine.tablet {
        let driver = match machine.machine.chipset() {
            Chipset::I440fx => "piix3-usb-uhci",
            Chipset::Q35 => "qemu-xhci",
        };
        line.device(&json!({ "driver": driver, "id": "usb" }));
        line.device(&json!({ "driver": "usb-tablet", "id": "tablet", "bus": "usb.0" }));
    }
    if machine.rng {
        line.device(&json!({ "driver": "virtio-rng-pci", "id": "rng0", "rng": "random0" }));
        line.object(&json!({ "qom-type": "rng-builtin", "id": "random0" }));
    }
    let restrict = match facts.network {
        Network::User => "off",
        Network::Isolated => "on",
    };
    for (index, nic) in machine.nics.iter().enumerate() {
        line.option("-netdev", format!("user,id=net{index},restrict={restrict}"));
        // No boot ROM: the sizes of these differ from one distribution to the next, and nothing boots from a network.
        let mut device = json!({ "driver": nic_driver(nic.model), "id": format!("nic{index}"),
            "netdev": format!("net{index}"), "romfile": "" });
        if let Some(mac) = nic.mac {
            device["mac"] = mac.to_string().into();
        }
        line.device(&device);
    }
    Ok(())
}

const fn nic_driver(model: NicModel) -> &'static str {
    match model {
        NicModel::VirtioNetPci => "virtio-net-pci",
        NicModel::E1000 => "e1000",
        NicModel::E1000e => "e1000e",
        NicModel::Rtl8139 => "rtl8139",
        NicModel::Pcnet => "pcnet",
        NicModel::Ne2kPci => "ne2k_pci",
    }
}

fn add_disks(line: &mut Line, machine: &Machine, facts: &Facts<'_>) -> Result<(), Error> {
    let names: Vec<_> = facts.disks.iter().map(|disk| disk.name.clone()).collect();
    let order = machine.boot_order(&names);
    let uses = |bus| order.iter().any(|name| machine.bus_of(name) == bus);
    // Q35 has an AHCI controller on board; its ports are the buses `ide.0` to `ide.5`.
    let q35 = machine.machine.chipset() == Chipset::Q35;
    if uses(Bus::Sata) && !q35 {
        line.device(&json!({ "driver": "ich9-ahci", "id": "ahci" }));
    }
    if uses(Bus::Scsi) {
        line.device(&json!({ "driver": "virtio-scsi-pci", "id": "scsi" }));
    }
    let mut places = Places::default();
    for (position, name) in order.into_iter().enumerate() {
        let found = facts.disks.iter().enumerate().find(|(_, disk)| disk.name == *name);
        let (index, disk) = found.ok_or(Error::NotHandled("a disk that is not in the package"))?;
        add_nodes(line, index, disk)?;
        let mut device = json!({ "id": format!("disk{index}"), "drive": overlay_node(index),
            "rerror": "stop", "werror": "stop", "bootindex": position });
        places.plug(&mut device, machine.bus_of(name), q35);
        line.device(&device);
    }
    Ok(())
}

/// The block nodes of a disk: the pristine data over NBD, and the overlay that takes what the guest writes.
fn add_nodes(line: &mut Line, index: usize, disk: &DiskFacts) -> Result<(), Error> {
    line.blockdev(&json!({
        "driver": "nbd",
        "node-name": format!("pristine{index}"),
        "read-only": true,
        "server": { "type": "unix", "path": text(&disk.nbd_socket)? },
        "export": disk.export,
        "reconnect-delay": RECONNECT_DELAY_S,
        // The server may die between our attaching to it and QEMU's first connection.
        "open-timeout": OPEN_TIMEOUT_S,
    }));
    let cache = json!({ "direct": false, "no-flush": disk.scratch });
    line.blockdev(&json!({
        "driver": "qcow2",
        "node-name": overlay_node(index),
        "file": { "driver": "file", "filename": text(&disk.overlay)?, "discard": "unmap", "cache": cache },
        "discard": "unmap",
        "cache": cache,
        // This takes the place of the binding that stands in the file as its backing file's name.
        "backing": format!("pristine{index}"),
    }));
    Ok(())
}

/// What tells a guest of being a copy, and helps it to be one. They have their slots behind all others.
fn add_late_devices(line: &mut Line, machine: &Machine, facts: &Facts<'_>) -> Result<(), Error> {
    if machine.vmgenid {
        // Another one in every run: QEMU tells it to a guest that it resumes.
        line.device(&json!({ "driver": "vmgenid", "id": "vmgenid", "guid": "auto" }));
    }
    if machine.guest_agent {
        line.option("-chardev", format!("socket,id=agent,path={},server=on,wait=off", doubled(facts.agent)?));
        line.device(&json!({ "driver": "virtio-serial-pci", "id": "ports" }));
        line.device(&json!({ "driver": "virtserialport", "id": "agent0", "bus": "ports.0", "chardev": "agent",
            "name": "org.qemu.guest_agent.0" }));
    }
    Ok(())
}

/// The next free place on each bus.
#[derive(Debug, Default)]
struct Places {
    ide: usize,
    sata: usize,
    scsi: usize,
}

impl Places {
    fn plug(&mut self, device: &mut Value, bus: Bus, q35: bool) {
        let next = |place: &mut usize| std::mem::replace(place, *place + 1);
        match bus {
            Bus::Virtio => device["driver"] = "virtio-blk-pci".into(),
            Bus::Ide => {
                let place = next(&mut self.ide);
                device["driver"] = "ide-hd".into();
                device["bus"] = format!("ide.{}", place / 2).into();
                device["unit"] = (place % 2).into();
            }
            Bus::Sata => {
                device["driver"] = "ide-hd".into();
                device["bus"] = format!("{}.{}", if q35 { "ide" } else { "ahci" }, next(&mut self.sata)).into();
            }
            Bus::Scsi => {
                device["driver"] = "scsi-hd".into();
                device["bus"] = "scsi.0".into();
                device["scsi-id"] = next(&mut self.scsi).into();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    fn device(&mut self, device: &Value) {
        self.option("-device", device.to_string());
    }

    fn blockdev(&mut self, node: &Value) {
        self.option("-blockdev", node.to_string());
    }

    fn object(&mut self, object: &Value) {
        self.option("-object", object.to_string());
    }
}

/// A path for JSON.
fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::PathNotText(path.to_owned()))
}

/// A path for QEMU's own syntax, in which a comma ends a value and two stand for one.
pub(super) fn doubled(path: &Path) -> Result<String, Error> {
    Ok(text(path)?.replace(',', ",,"))
}

#[cfg(test)]
mod tests;
