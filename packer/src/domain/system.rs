//! The parts of a domain that are no devices: board, CPU, memory, clock, firmware.

use vmnetx_format::machine::{Chipset, Clock, CpuCount, Machine, MachineType, MemorySize};

use super::ledger::{Element, Ledger, Reasons, shown};
use super::remark::RemarkKind::{Assumed, Changed, Dropped, Refused};

/// The newest board that QEMU 7.2 has.
const NEWEST: (u8, u8) = (7, 2);

/// The oldest board that QEMU 10 still has: boards are deleted six years after they were new.
const OLDEST: (u8, u8) = (5, 0);

const HOST_TUNING: &str = "it concerns the host: how the domain shares its CPUs, memory and disks";
const EVENTS: &str = "it concerns the host: what libvirt does when the domain ends";
const NAMES: &str = "the package has a name, a title and an identity of its own";
const GUEST_HINTS: &str = "guests do without: it makes them faster or tells them what they run on";
const CPU_CHOICE: &str = "it concerns the host: how libvirt picks and checks the CPU";
const BOOT_MENU: &str = "nothing waits for a choice before the disk boots";
const SMBIOS: &str = "the guest finds QEMU's own SMBIOS and ACPI tables";
const DIRECT_KERNEL: &str = "the guest's kernel lies outside its disks; make the disk boot by itself";

const DROPPED: Reasons = &[
    ("name", NAMES),
    ("uuid", NAMES),
    ("hwuuid", NAMES),
    ("title", NAMES),
    ("description", NAMES),
    ("metadata", NAMES),
    ("on_poweroff", EVENTS),
    ("on_reboot", EVENTS),
    ("on_crash", EVENTS),
    ("on_lockfailure", EVENTS),
    ("pm", "guests may sleep as QEMU lets them"),
    ("memoryBacking", HOST_TUNING),
    ("memtune", HOST_TUNING),
    ("numatune", HOST_TUNING),
    ("blkiotune", HOST_TUNING),
    ("cputune", HOST_TUNING),
    ("iothreads", HOST_TUNING),
    ("iothreadids", HOST_TUNING),
    ("defaultiothread", HOST_TUNING),
    ("resource", HOST_TUNING),
    ("perf", HOST_TUNING),
    ("seclabel", HOST_TUNING),
    ("maxMemory", "memory is not plugged in later"),
    ("vcpus", "CPUs are not plugged in later"),
];

const REFUSED: Reasons = &[
    ("launchSecurity", "no launcher handles encrypted guest memory"),
    ("bootloader", "it belongs to Xen"),
    ("bootloader_args", "it belongs to Xen"),
];

const OS_DROPPED: Reasons = &[("bootmenu", BOOT_MENU), ("bios", BOOT_MENU), ("smbios", SMBIOS), ("acpi", SMBIOS)];

const OS_REFUSED: Reasons = &[
    ("loader", "no launcher handles UEFI or other firmware than QEMU's BIOS yet"),
    ("nvram", "no launcher handles UEFI yet"),
    ("firmware", "no launcher handles UEFI yet"),
    ("kernel", DIRECT_KERNEL),
    ("initrd", DIRECT_KERNEL),
    ("cmdline", DIRECT_KERNEL),
    ("dtb", DIRECT_KERNEL),
];

const FEATURES_DROPPED: Reasons = &[
    ("hyperv", GUEST_HINTS),
    ("kvm", GUEST_HINTS),
    ("pvspinlock", GUEST_HINTS),
    ("viridian", GUEST_HINTS),
    ("privnet", GUEST_HINTS),
    ("hap", GUEST_HINTS),
    ("pmu", GUEST_HINTS),
    ("vmport", GUEST_HINTS),
    ("vmcoreinfo", GUEST_HINTS),
    ("async-teardown", GUEST_HINTS),
    ("ioapic", GUEST_HINTS),
    ("msrs", GUEST_HINTS),
];

const CPU_DROPPED: Reasons = &[
    ("vendor", CPU_CHOICE),
    ("feature", "the CPU has its model's own features"),
    ("topology", "all CPUs are cores of one socket"),
    ("cache", "the CPU has its model's own caches"),
    ("maxphysaddr", "the CPU has its model's own width of addresses"),
];

/// Reads all of the domain but its devices into `machine`, whose values stay where the domain has none that can be used.
pub(super) fn read<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    kind(ledger, root);
    memory(ledger, root, machine);
    cpus(ledger, root, machine);
    os(ledger, root, machine);
    features(ledger, root);
    cpu_model(ledger, root, machine);
    clock(ledger, root, machine);
    for sysinfo in ledger.children(root, "sysinfo") {
        match sysinfo.attribute("type") {
            Some("smbios") => ledger.settle(Dropped, sysinfo, SMBIOS),
            _ => ledger.settle(Refused, sysinfo, "the guest may need the files that it finds in its firmware"),
        }
    }
    if let Some(genid) = ledger.child(root, "genid") {
        machine.vmgenid = true;
        ledger.settle(Changed, genid, "each run tells its guest an identity of its own");
    }
    ledger.settle_children(Dropped, root, DROPPED);
    ledger.settle_children(Refused, root, REFUSED);
}

fn kind<'a>(ledger: &mut Ledger<'a>, root: Element<'a>) {
    match ledger.attribute(root, "type") {
        Some("kvm" | "qemu") => {}
        Some(other) => {
            let why = format!("{} is another hypervisor than QEMU, with other hardware", shown(other));
            ledger.note_attribute(Refused, root, "type", why);
        }
        None => ledger.note_absent(Assumed, root, "@type", "\"kvm\""),
    }
    let why = "the domain was running: shut it down before its disks are read";
    ledger.note_attribute(Dropped, root, "id", why);
}

fn memory<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    let Some(memory) = ledger.child(root, "memory") else {
        return ledger.note_absent(Refused, root, "memory", "a domain says how much memory it has");
    };
    ledger.note_attribute(Dropped, memory, "dumpCore", HOST_TUNING);
    let Some(bytes) = size_bytes(ledger, memory) else {
        let why = format!("{} is no size", shown(ledger.text(memory)));
        return ledger.note(Refused, memory, why);
    };
    let mib = bytes.div_ceil(1 << 20);
    match MemorySize::try_from(mib) {
        Ok(size) => machine.memory_mib = size,
        Err(error) => return ledger.note(Refused, memory, error.to_string()),
    }
    if mib << 20 != bytes {
        ledger.note(Changed, memory, format!("rounded up to {mib} MiB"));
    }
    let Some(current) = ledger.child(root, "currentMemory") else { return };
    if size_bytes(ledger, current) != Some(bytes) {
        ledger.note(Dropped, current, "nothing takes memory away from the guest: it has all of it");
    }
}

/// The bytes that an element's text and unit say; libvirt's units, KiB if there is none.
fn size_bytes<'a>(ledger: &mut Ledger<'a>, element: Element<'a>) -> Option<u64> {
    let number: u64 = ledger.text(element).parse().ok()?;
    let unit_bytes = match ledger.attribute(element, "unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1_u64 << 40,
        _ => return None,
    };
    number.checked_mul(unit_bytes)
}

fn cpus<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    let Some(vcpu) = ledger.child(root, "vcpu") else {
        machine.cpu.count = CpuCount::default();
        return;
    };
    ledger.note_attributes(Dropped, vcpu, &[("placement", HOST_TUNING), ("cpuset", HOST_TUNING)]);
    let all = ledger.text(vcpu);
    let current = ledger.attribute(vcpu, "current");
    let count = current.unwrap_or(all);
    match count.parse::<u32>().ok().map(CpuCount::try_from) {
        Some(Ok(count)) => machine.cpu.count = count,
        Some(Err(error)) => return ledger.note(Refused, vcpu, error.to_string()),
        None => return ledger.note(Refused, vcpu, format!("{} is no number of CPUs", shown(count))),
    }
    if count != all {
        let why = format!("the guest has the {count} CPUs that it starts with, and none is plugged in later");
        ledger.note_attribute(Changed, vcpu, "current", why);
    }
}

fn os<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    let Some(os) = ledger.child(root, "os") else {
        return ledger.note_absent(Refused, root, "os", "a domain says which board it has");
    };
    match ledger.attribute(os, "firmware") {
        None | Some("bios") => {}
        Some(_) => ledger.note_attribute(Refused, os, "firmware", "no launcher handles UEFI yet"),
    }
    match ledger.child(os, "type") {
        Some(kind) => board(ledger, kind, machine),
        None => ledger.note_absent(Refused, os, "type", "a domain says which board it has"),
    }
    for boot in ledger.children(os, "boot") {
        if ledger.attribute(boot, "dev") != Some("hd") {
            ledger.note(Dropped, boot, "only disks boot");
        }
    }
    ledger.settle_children(Dropped, os, OS_DROPPED);
    ledger.settle_children(Refused, os, OS_REFUSED);
}

fn board<'a>(ledger: &mut Ledger<'a>, kind: Element<'a>, machine: &mut Machine) {
    let virtualisation = ledger.text(kind);
    if virtualisation != "hvm" {
        ledger.note(Refused, kind, format!("{} is no full virtualisation", shown(virtualisation)));
    }
    match ledger.attribute(kind, "arch") {
        Some("x86_64") => {}
        Some("i686") => ledger.note_attribute(Changed, kind, "arch", "the guest's 32 bits run on an x86_64 machine"),
        Some(other) => {
            ledger.note_attribute(Refused, kind, "arch", format!("{} is not x86_64", shown(other)));
        }
        None => ledger.note_absent(Assumed, kind, "@arch", "\"x86_64\""),
    }
    let Some(name) = ledger.attribute(kind, "machine") else {
        machine.machine = MachineType::new(Chipset::I440fx, NEWEST.0, NEWEST.1);
        return ledger.note_absent(Assumed, kind, "@machine", format!("\"pc\", here {}", machine.machine));
    };
    let found = name.parse().ok().filter(|found: &MachineType| (OLDEST..=NEWEST).contains(&found.version()));
    if let Some(found) = found {
        machine.machine = found;
        return;
    }
    let Some(chipset) = chipset(name) else {
        let why = format!("{} is another board than pc-i440fx and pc-q35", shown(name));
        return ledger.note_attribute(Refused, kind, "machine", why);
    };
    machine.machine = MachineType::new(chipset, NEWEST.0, NEWEST.1);
    let why = match name {
        "pc" | "q35" => format!("it is another version of the board with every QEMU: here {}", machine.machine),
        _ => format!("not every QEMU has {}: the board is {}", shown(name), machine.machine),
    };
    ledger.note_attribute(Changed, kind, "machine", why);
}

/// The family of a board by its alias or the name that a distribution gives to its own version, such as `pc-q35-rhel9.2.0`.
fn chipset(name: &str) -> Option<Chipset> {
    match name {
        "pc" => Some(Chipset::I440fx),
        "q35" => Some(Chipset::Q35),
        _ if name.starts_with("pc-i440fx-") => Some(Chipset::I440fx),
        _ if name.starts_with("pc-q35-") => Some(Chipset::Q35),
        // What the i440FX board was called before it had a sister: pc-0.12 to pc-1.3.
        _ if name.starts_with("pc-0.") || name.starts_with("pc-1.") => Some(Chipset::I440fx),
        _ => None,
    }
}

fn features<'a>(ledger: &mut Ledger<'a>, root: Element<'a>) {
    let features = ledger.child(root, "features");
    let acpi = features.and_then(|features| ledger.child(features, "acpi"));
    if acpi.is_none() {
        ledger.note_absent(Changed, features.unwrap_or(root), "acpi", "the machine has ACPI all the same");
    }
    let Some(features) = features else { return };
    // Every machine has them.
    let _ = ledger.child(features, "pae");
    if let Some(apic) = ledger.child(features, "apic") {
        ledger.note_attribute(Dropped, apic, "eoi", GUEST_HINTS);
    }
    if let Some(smm) = ledger.child(features, "smm") {
        match smm.attribute("state") {
            Some("off") => ledger.settle(Dropped, smm, "the board has its own system management mode"),
            _ => ledger.settle(Refused, smm, "system management mode is there for UEFI, which no launcher handles yet"),
        }
    }
    ledger.settle_children(Dropped, features, FEATURES_DROPPED);
}

fn cpu_model<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    let Some(cpu) = ledger.child(root, "cpu") else {
        if let Ok(model) = "qemu64".parse() {
            machine.cpu.model = model;
        }
        return ledger.note_absent(Assumed, root, "cpu", "QEMU's default, the model qemu64");
    };
    for numa in ledger.children(cpu, "numa") {
        ledger.settle(Refused, numa, "the machine has one NUMA node");
    }
    ledger.note_attributes(Dropped, cpu, &[("check", CPU_CHOICE), ("migratable", CPU_CHOICE)]);
    let model = ledger.child(cpu, "model");
    match ledger.attribute(cpu, "mode").unwrap_or("custom") {
        "custom" => named_model(ledger, cpu, model, machine),
        "host-passthrough" | "host-model" | "maximum" => {
            let why = format!("it is another CPU on every host: the model is {}", machine.cpu.model);
            ledger.note_attribute(Changed, cpu, "mode", why);
            if let Some(model) = model {
                ledger.settle(Dropped, model, CPU_CHOICE);
            }
        }
        other => ledger.note_attribute(Refused, cpu, "mode", format!("{} is no way to name a CPU", shown(other))),
    }
    ledger.settle_children(Dropped, cpu, CPU_DROPPED);
}

fn named_model<'a>(ledger: &mut Ledger<'a>, cpu: Element<'a>, model: Option<Element<'a>>, machine: &mut Machine) {
    match ledger.attribute(cpu, "match") {
        None | Some("exact") => {}
        Some(_) => ledger.note_attribute(Changed, cpu, "match", "the CPU is exactly its model, on every host"),
    }
    let Some(model) = model else {
        // A topology alone.
        if let Ok(model) = "qemu64".parse() {
            machine.cpu.model = model;
        }
        return ledger.note_absent(Assumed, cpu, "model", "QEMU's default, the model qemu64");
    };
    ledger.note_attributes(Dropped, model, &[("fallback", CPU_CHOICE), ("vendor_id", CPU_CHOICE)]);
    match ledger.text(model).parse() {
        Ok(found) => machine.cpu.model = found,
        Err(error) => ledger.note(Refused, model, format!("{error}")),
    }
}

fn clock<'a>(ledger: &mut Ledger<'a>, root: Element<'a>, machine: &mut Machine) {
    machine.clock = Clock::Utc;
    let Some(clock) = ledger.child(root, "clock") else { return };
    for timer in ledger.children(clock, "timer") {
        ledger.settle(Dropped, timer, "the machine has QEMU's own timers");
    }
    let basis = ledger.attribute(clock, "basis");
    let offset = ledger.attribute(clock, "offset").unwrap_or("utc");
    machine.clock = match (offset, basis) {
        ("localtime" | "timezone", _) | ("variable", Some("localtime")) => Clock::Localtime,
        _ => Clock::Utc,
    };
    let holds = match machine.clock {
        Clock::Utc => "the clock holds UTC",
        Clock::Localtime => "the clock holds the local time of the host that runs the guest",
    };
    if !matches!(offset, "utc" | "localtime") {
        ledger.note_attribute(Changed, clock, "offset", holds);
    }
    for name in ["timezone", "adjustment", "start"] {
        ledger.note_attribute(Dropped, clock, name, holds);
    }
}
