//! Tests of the machine description: what it takes, what it refuses, and that it survives a round trip.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

const SMALLEST: &str = r#"
machine = "pc-i440fx-7.2"
memory_mib = 1024
[cpu]
model = "qemu64"
"#;

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn many(count: usize) -> Vec<Name> {
    (0..count).map(|index| format!("disk{index}").parse().unwrap()).collect()
}

fn with(line: &str) -> Result<Machine, MachineError> {
    Machine::from_toml(&format!("{line}\n{SMALLEST}"))
}

fn with_tables(tables: &str) -> Machine {
    Machine::from_toml(&format!("{SMALLEST}\n{tables}")).unwrap()
}

#[test]
fn the_smallest_description_is_a_machine_for_any_guest() {
    let machine = Machine::from_toml(SMALLEST).unwrap();
    assert_eq!(machine.memory_mib.bytes(), 1 << 30);
    assert_eq!((machine.cpu.count.count(), machine.firmware, machine.vga), (1, Firmware::Bios, Vga::Std));
    assert!(machine.serial && machine.nics.is_empty());
    assert_eq!(machine.bus_of(&names(&["disk0"])[0]), Bus::Ide);
    assert_eq!(machine.validate(&names(&["disk0"])), Ok(()));
    assert_eq!(
        serde_json::to_string(&machine).unwrap(),
        r#"{"machine":"pc-i440fx-7.2","memory_mib":1024,"cpu":{"model":"qemu64","count":1},"firmware":"bios","vga":"std","serial":true,"tablet":false,"rng":false,"vmgenid":false,"guest_agent":false,"clock":"utc"}"#
    );
}

#[test]
fn unknown_fields_are_refused_at_every_level() {
    for text in [
        format!("qemu_args = \"-hda /dev/sda\"\n{SMALLEST}"),
        format!("{SMALLEST}features = \"+vmx\""),
        format!("{SMALLEST}\n[[disks]]\nname = \"disk0\"\nbus = \"ide\"\nfile = \"/etc/passwd\""),
        format!("{SMALLEST}\n[[nics]]\nmodel = \"e1000\"\nbridge = \"br0\""),
    ] {
        let error = Machine::from_toml(&text).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
    let json = r#"{"machine":"pc-q35-7.2","memory_mib":1,"cpu":{"model":"x"},"x":1}"#;
    assert!(serde_json::from_str::<Machine>(json).is_err());
}

#[test]
fn errors_name_the_field() {
    for (line, field) in [
        ("tablet = 3", "tablet"),
        ("vga = \"/dev/fb0\"", "vga"),
        ("firmware = \"/usr/share/OVMF.fd\"", "firmware"),
        ("disk_bus = \"usb\"", "disk_bus"),
    ] {
        let error = with(line).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    for (from, to, field) in [
        ("pc-i440fx-7.2", "microvm", "machine"),
        ("1024", "0", "memory_mib"),
        ("1024", "4194305", "memory_mib"),
        ("qemu64", "host", "cpu.model"),
        ("\"qemu64\"", "\"qemu64\"\ncount = 65", "cpu.count"),
    ] {
        let error = Machine::from_toml(&SMALLEST.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(&format!("field `{field}`")), "{error}");
    }
}

#[test]
fn a_machine_type_has_one_spelling_and_two_families() {
    for good in ["pc-i440fx-7.2", "pc-q35-10.0"] {
        assert_eq!(good.parse::<MachineType>().unwrap().to_string(), good);
    }
    for bad in [
        "pc",
        "q35",
        "none",
        "pc-q35",
        "pc-q35-7",
        "pc-q35-7.2.1",
        "pc-q35-07.2",
        "pc-q35-+7.2",
        "pc-q35-7.2,accel=kvm",
        "pc-q35-7.256",
        "PC-q35-7.2",
        "pc-i440fx-7.2 ",
        "xenfv-4.2",
    ] {
        assert!(bad.parse::<MachineType>().is_err(), "{bad}");
    }
}

#[test]
fn a_cpu_model_is_a_name_that_means_the_same_everywhere() {
    for good in ["qemu64", "Skylake-Client-v3", "Opteron_G5", "486"] {
        assert!(good.parse::<CpuModel>().is_ok(), "{good}");
    }
    let long = "x".repeat(65);
    for bad in [
        "",
        "host",
        "HOST",
        "max",
        "help",
        "base",
        "host-x86_64-cpu",
        "max-i386-cpu",
        "?",
        "qemu64,+vmx",
        "a b",
        "-x",
        "é",
        &long,
    ] {
        assert!(bad.parse::<CpuModel>().is_err(), "{bad}");
    }
}

#[test]
fn a_mac_address_belongs_to_one_card() {
    assert_eq!("52:54:00:AB:cd:01".parse::<MacAddress>().unwrap().to_string(), "52:54:00:ab:cd:01");
    for bad in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:01:02",
        "52-54-00-ab-cd-01",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "+2:54:00:ab:cd:01",
        "5:54:00:ab:cd:011",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
}

#[test]
fn listed_disks_are_the_packages_disks() {
    let disk = |name: &str| format!("[[disks]]\nname = \"{name}\"\nbus = \"virtio\"\n");
    let machine = with_tables(&(disk("data") + &disk("disk0")));
    let package = names(&["disk0", "data"]);
    assert_eq!(machine.validate(&package), Ok(()));
    assert_eq!(machine.boot_order(&package), [&package[1], &package[0]]);
    assert_eq!(Machine::from_toml(SMALLEST).unwrap().boot_order(&package), [&package[0], &package[1]]);
    assert_eq!(machine.validate(&package[..1]), Err(MachineError::UnknownDisk(package[1].clone())));
    let one = with_tables(&disk("disk0"));
    assert_eq!(one.validate(&package), Err(MachineError::DiskNotListed(package[1].clone())));
    let twice = with_tables(&(disk("disk0") + &disk("disk0")));
    assert_eq!(twice.validate(&package[..1]), Err(MachineError::RepeatedDisk(package[0].clone())));
}

#[test]
fn a_machine_has_places_for_its_devices() {
    let too_many =
        |machine: &Machine, disks| matches!(machine.validate(&many(disks)), Err(MachineError::TooMany { .. }));
    let plain = Machine::from_toml(SMALLEST).unwrap();
    assert!(!too_many(&plain, IDE_DISKS_MAX) && too_many(&plain, IDE_DISKS_MAX + 1));
    let sata = with("disk_bus = \"sata\"").unwrap();
    assert!(!too_many(&sata, SATA_DISKS_MAX) && too_many(&sata, SATA_DISKS_MAX + 1));
    let virtio = with("disk_bus = \"virtio\"").unwrap();
    assert!(!too_many(&virtio, MACHINE_DISKS_MAX) && too_many(&virtio, MACHINE_DISKS_MAX + 1));
    let nic = "[[nics]]\nmodel = \"e1000\"\n";
    assert!(!too_many(&with_tables(&nic.repeat(NICS_MAX)), 0) && too_many(&with_tables(&nic.repeat(NICS_MAX + 1)), 0));
    let twins = with_tables(&format!("{nic}mac = \"52:54:00:00:00:01\"\n").repeat(2));
    assert!(matches!(twins.validate(&[]), Err(MachineError::RepeatedMac(_))));
    let q35 = SMALLEST.replace("i440fx", "q35");
    assert_eq!(Machine::from_toml(&q35).unwrap().bus_of(&many(1)[0]), Bus::Sata);
    let ide = Machine::from_toml(&format!("disk_bus = \"ide\"\n{q35}")).unwrap();
    assert!(matches!(ide.validate(&many(1)), Err(MachineError::NoIde(_))));
}

#[test]
fn what_is_wrong_in_a_text_is_shown_without_steering_a_terminal() {
    for line in ["vga = \"\u{1b}[2J\"", "vga = \"\u{202e}x\"", "# \u{7}", "\u{9b}31m = 1"] {
        let error = with(line).map(|machine| panic!("{machine:?}")).unwrap_err().to_string();
        assert!(error.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{error:?}");
    }
}

#[test]
fn a_long_text_is_refused_before_it_is_parsed() {
    let text = format!("#{}\n{SMALLEST}", "x".repeat(MACHINE_BYTES_MAX));
    assert_eq!(Machine::from_toml(&text), Err(MachineError::TooLong { bytes: text.len() }));
}

#[test]
fn every_shipped_profile_is_a_machine_and_says_what_it_is_for() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../qemu-configs");
    let mut profiles = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{} must begin with what it is for", path.display());
        let machine = Machine::from_toml(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        machine.validate(&many(1)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(machine.firmware, Firmware::Bios, "{}", path.display());
        profiles.push((path.file_name().unwrap().to_owned(), machine));
    }
    let default = &profiles.iter().find(|(name, _)| name == "default.toml").unwrap().1;
    assert_eq!(default.machine.to_string(), "pc-i440fx-7.2");
    assert_eq!((default.memory_mib.mib(), default.cpu.count.count()), (1024, 1));
    assert!(default.serial && default.vga != Vga::None && default.nics.is_empty());
}

fn bus() -> impl Strategy<Value = Bus> {
    prop_oneof![Just(Bus::Virtio), Just(Bus::Ide), Just(Bus::Sata), Just(Bus::Scsi)]
}

fn nic() -> impl Strategy<Value = Nic> {
    let model = prop_oneof![
        Just(NicModel::VirtioNetPci),
        Just(NicModel::E1000),
        Just(NicModel::E1000e),
        Just(NicModel::Rtl8139),
        Just(NicModel::Pcnet),
        Just(NicModel::Ne2kPci)
    ];
    let mac = option::of("52:54:00(:[0-9a-f]{2}){3}".prop_map(|text| text.parse().unwrap()));
    (model, mac).prop_map(|(model, mac)| Nic { model, mac })
}

prop_compose! {
    fn machine()(
        board in "pc-(i440fx|q35)-(10|[1-9])\\.[0-9]".prop_map(|text| text.parse().unwrap()),
        mib in 1..=MEMORY_MIB_MAX,
        model in "[A-Z][a-z]{1,8}-v[0-9]".prop_map(|text| text.parse().unwrap()),
        count in 1..=CPUS_MAX,
        vga in prop_oneof![Just(Vga::None), Just(Vga::Std), Just(Vga::Cirrus), Just(Vga::Virtio), Just(Vga::Qxl), Just(Vga::Vmware)],
        (uefi, serial, tablet, rng, local) in any::<(bool, bool, bool, bool, bool)>(),
        (vmgenid, guest_agent) in any::<(bool, bool)>(),
        disk_bus in option::of(bus()),
        buses in vec(bus(), 0..4),
        nics in vec(nic(), 0..4),
    ) -> Machine {
        let disks = buses.into_iter().zip(many(4)).map(|(bus, name)| MachineDisk { name, bus }).collect();
        Machine {
            machine: board,
            memory_mib: mib.try_into().unwrap(),
            cpu: Cpu { model, count: count.try_into().unwrap() },
            firmware: if uefi { Firmware::Uefi } else { Firmware::Bios },
            vga, serial, tablet, rng, vmgenid, guest_agent,
            clock: if local { Clock::Localtime } else { Clock::Utc },
            disk_bus, disks, nics,
        }
    }
}

proptest! {
    #[test]
    fn a_machine_survives_json_and_toml(machine in machine()) {
        let json = serde_json::to_string(&machine).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Machine>(&json).unwrap(), &machine);
        prop_assert_eq!(&Machine::from_toml(&machine.to_toml()).unwrap(), &machine);
        prop_assert_eq!(serde_json::to_string(&machine.clone()).unwrap(), json);
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}", prefix in 0..SMALLEST.len(), json in "[{}\\[\\]\":,a-z0-9]{0,80}") {
        let _ = Machine::from_toml(&text);
        let _ = Machine::from_toml(&format!("{}{text}", &SMALLEST[..prefix]));
        let _ = serde_json::from_str::<Machine>(&json);
        let _ = text.parse::<MachineType>();
        let _ = text.parse::<CpuModel>();
        let _ = text.parse::<MacAddress>();
    }

    #[test]
    fn validation_never_panics(machine in machine(), disks in 0..20_usize) {
        let _ = machine.validate(&many(disks));
        prop_assert!(machine.boot_order(&many(disks)).len() <= 20);
    }
}
