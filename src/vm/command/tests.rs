//! Tests of QEMU's command line: one whole line to read, and the rules that every line keeps.

use proptest::prelude::*;

use super::*;

fn machine(toml: &str) -> Machine {
    Machine::from_toml(toml).unwrap()
}

fn disks(names: &[&str]) -> Vec<DiskFacts> {
    let disk = |name: &&str| DiskFacts {
        name: name.parse().unwrap(),
        nbd_socket: "/run/nbd".into(),
        export: (*name).to_owned(),
        overlay: format!("/scratch/{name}.qcow2").into(),
        scratch: true,
    };
    names.iter().map(disk).collect()
}

fn line(machine: &Machine, change: impl FnOnce(&mut Facts<'_>), disks: &[DiskFacts]) -> Result<Vec<String>, Error> {
    let name = "vm".parse().unwrap();
    let mut facts = Facts {
        name: &name,
        accelerator: Accelerator::Tcg,
        display: Display::None,
        network: Network::User,
        monitor: Path::new("/run/monitor"),
        control: Path::new("/run/control"),
        agent: Path::new("/run/agent"),
        serial: None,
        vnc: Path::new("/run/vnc"),
        disks,
        begins: Begins::Booting,
    };
    change(&mut facts);
    Ok(arguments(machine, &facts)?.into_iter().map(|argument| argument.into_string().unwrap()).collect())
}

/// The values of an option that stand as JSON.
fn values(line: &[String], option: &str) -> Vec<Value> {
    let pairs = line.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| serde_json::from_str(&pair[1]).unwrap()).collect()
}

/// The only channels of a machine without a serial port that anyone listens to.
const CHARDEVS: [&str; 4] = [
    "null,id=serial",
    "socket,id=monitor,path=/run/monitor",
    "socket,id=control,path=/run/control,server=on,wait=off",
    "socket,id=agent,path=/run/agent,server=on,wait=off",
];

const I440FX: &str = "machine = 'pc-i440fx-7.2'\nmemory_mib = 64\ncpu.model = 'qemu64'\n";
const Q35: &str = "machine = 'pc-q35-7.2'\nmemory_mib = 64\ncpu.model = 'qemu64'\n";

#[test]
fn a_machine_with_a_bit_of_everything() {
    let machine = machine(
        "machine = 'pc-q35-7.2'\nmemory_mib = 2048\nvga = 'virtio'\ntablet = true\nrng = true\nvmgenid = true\nguest_agent = true\nclock = 'localtime'\n\
         disk_bus = 'virtio'\ncpu = { model = 'Nehalem', count = 2 }\n\
         nics = [{ model = 'e1000', mac = '52:54:00:00:00:01' }]",
    );
    let line = line(&machine, |facts| facts.serial = Some(Path::new("/run/serial")), &disks(&["disk0"])).unwrap();
    let expected = r#"
-name guest=vm
-nodefaults
-no-user-config
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine pc-q35-7.2,accel=tcg,dump-guest-core=off
-cpu Nehalem
-smp 2
-m size=2048M
-rtc base=localtime
-boot strict=on
-chardev socket,id=monitor,path=/run/monitor
-mon chardev=monitor,mode=control
-chardev socket,id=control,path=/run/control,server=on,wait=off
-mon chardev=control,mode=control
-display none
-device {"driver":"virtio-vga","id":"vga"}
-chardev socket,id=serial,path=/run/serial
-device {"chardev":"serial","driver":"isa-serial","id":"serial0"}
-device {"driver":"qemu-xhci","id":"usb"}
-device {"bus":"usb.0","driver":"usb-tablet","id":"tablet"}
-device {"driver":"virtio-rng-pci","id":"rng0","rng":"random0"}
-object {"id":"random0","qom-type":"rng-builtin"}
-netdev user,id=net0,restrict=off
-device {"driver":"e1000","id":"nic0","mac":"52:54:00:00:00:01","netdev":"net0","romfile":""}
-blockdev {"driver":"nbd","export":"disk0","node-name":"pristine0","open-timeout":10,"read-only":true,"reconnect-delay":60,"server":{"path":"/run/nbd","type":"unix"}}
-blockdev {"backing":"pristine0","cache":{"direct":false,"no-flush":true},"discard":"unmap","driver":"qcow2","file":{"cache":{"direct":false,"no-flush":true},"discard":"unmap","driver":"file","filename":"/scratch/disk0.qcow2"},"node-name":"overlay0"}
-device {"bootindex":0,"drive":"overlay0","driver":"virtio-blk-pci","id":"disk0","rerror":"stop","werror":"stop"}
-device {"driver":"vmgenid","guid":"auto","id":"vmgenid"}
-chardev socket,id=agent,path=/run/agent,server=on,wait=off
-device {"driver":"virtio-serial-pci","id":"ports"}
-device {"bus":"ports.0","chardev":"agent","driver":"virtserialport","id":"agent0","name":"org.qemu.guest_agent.0"}
"#;
    assert_eq!(line.join(" ").replace(" -", "\n-"), expected.trim());
}

#[test]
fn each_bus_gives_its_disks_places() {
    let places = |machine: &Machine, names: &[&str]| {
        let line = line(machine, |_| (), &disks(names)).unwrap();
        let devices = values(&line, "-device").into_iter().filter(|device| device.get("drive").is_some());
        let place =
            |device: Value| format!("{} {} {}", device["driver"], device["bus"], device["unit"]).replace('"', "");
        devices.map(place).collect::<Vec<_>>()
    };
    assert_eq!(places(&machine(I440FX), &["a", "b", "c"]), ["ide-hd ide.0 0", "ide-hd ide.0 1", "ide-hd ide.1 0"]);
    assert_eq!(places(&machine(Q35), &["a", "b"]), ["ide-hd ide.0 null", "ide-hd ide.1 null"]);
    let sata = machine(&format!("{I440FX}disk_bus = 'sata'"));
    assert_eq!(places(&sata, &["a", "b"]), ["ide-hd ahci.0 null", "ide-hd ahci.1 null"]);
    let scsi = machine(&format!("{I440FX}disk_bus = 'scsi'"));
    assert_eq!(places(&scsi, &["a"]), ["scsi-hd scsi.0 null"]);
}

#[test]
fn disks_boot_in_the_machines_order_and_keep_the_packages_nodes() {
    let machine =
        machine(&format!("{I440FX}disks = [{{ name = 'system', bus = 'virtio' }}, {{ name = 'data', bus = 'ide' }}]"));
    let line = line(&machine, |_| (), &disks(&["data", "system"])).unwrap();
    let devices = values(&line, "-device");
    let drives: Vec<_> = devices.iter().filter(|device| device.get("drive").is_some()).collect();
    assert_eq!((&drives[0]["drive"], &drives[0]["bootindex"]), (&json!("overlay1"), &json!(0)));
    assert_eq!((&drives[1]["drive"], &drives[1]["bootindex"]), (&json!("overlay0"), &json!(1)));
}

#[test]
fn odd_paths_stay_inside_their_values() {
    let mut disks = disks(&["disk0"]);
    disks[0].nbd_socket = "/a,b/\"nbd\",server=x".into();
    disks[0].overlay = "/home/a b/ü,read-only=on\\\".qcow2".into();
    disks[0].export = "a\",\"x\":\"".to_owned();
    let change = |facts: &mut Facts<'_>| {
        facts.monitor = Path::new("/a,b/monitor");
        facts.serial = Some(Path::new("/a,server=on/serial"));
        facts.vnc = Path::new("/a,to=5/vnc");
        facts.display = Display::Vnc;
    };
    let line = line(&machine(I440FX), change, &disks).unwrap();
    assert!(line.contains(&"socket,id=monitor,path=/a,,b/monitor".to_owned()));
    assert!(line.contains(&"socket,id=serial,path=/a,,server=on/serial".to_owned()));
    assert!(line.contains(&"unix:/a,,to=5/vnc".to_owned()));
    let nodes = values(&line, "-blockdev");
    assert_eq!(nodes[0]["server"]["path"], disks[0].nbd_socket.to_str().unwrap());
    assert_eq!(nodes[0]["export"], disks[0].export.as_str());
    assert_eq!(nodes[1]["file"]["filename"], disks[0].overlay.to_str().unwrap());
}

#[test]
fn a_path_that_is_not_text_is_an_error() {
    use std::os::unix::ffi::OsStrExt;
    let mut disks = disks(&["disk0"]);
    disks[0].overlay = Path::new(std::ffi::OsStr::from_bytes(b"/x/\xff")).to_owned();
    assert!(matches!(line(&machine(I440FX), |_| (), &disks), Err(Error::PathNotText(_))));
}

#[test]
fn only_what_is_kept_is_flushed() {
    let mut disks = disks(&["thrown", "kept"]);
    disks[1].scratch = false;
    let nodes = values(&line(&machine(I440FX), |_| (), &disks).unwrap(), "-blockdev");
    assert_eq!(nodes[1]["cache"]["no-flush"], true);
    assert_eq!(nodes[3]["cache"]["no-flush"], false);
    assert_eq!(nodes[3]["file"]["cache"]["no-flush"], false);
}

#[test]
fn an_isolated_guest_reaches_nothing() {
    let machine = machine(&format!("{I440FX}nics = [{{ model = 'ne2k_pci' }}]"));
    let line = line(&machine, |facts| facts.network = Network::Isolated, &[]).unwrap();
    assert!(line.contains(&"user,id=net0,restrict=on".to_owned()));
}

/// Text as a hostile publisher would put it into a field, or a value that the field takes.
fn field(good: &'static [&'static str]) -> impl Strategy<Value = String> {
    const TRICKS: [&str; 11] =
        [",", "=", ",accel=kvm", " -hda /dev/sda", "\n-hda\n", "\0", "\"},{\"", ",,x", "../", "-", "\u{202e}"];
    let good = prop::sample::select(good);
    let trick = prop::sample::select(&TRICKS[..]);
    prop_oneof![
        12 => good.clone().prop_map(str::to_owned),
        2 => (good, trick).prop_map(|(good, trick)| format!("{good}{trick}")),
        1 => ".{0,12}",
    ]
}

prop_compose! {
    /// A machine in JSON, more or less.
    fn any_machine()(
        board in field(&["pc-i440fx-7.2", "pc-q35-7.2"]),
        model in field(&["qemu64", "Nehalem"]),
        vga in field(&["none", "std", "cirrus", "virtio", "qxl", "vmware"]),
        clock in field(&["utc", "localtime"]),
        bus in field(&["virtio", "ide", "sata", "scsi"]),
        disk in field(&["disk0"]),
        nic in field(&["virtio-net-pci", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k_pci"]),
        mac in field(&["52:54:00:00:00:01"]),
        (serial, tablet, rng, listed) in any::<(bool, bool, bool, bool)>(),
        (vmgenid, guest_agent) in any::<(bool, bool)>(),
        mib in prop_oneof![Just(64_u64), any::<u64>()],
    ) -> Value {
        let disks = if listed { json!([{ "name": disk, "bus": bus }]) } else { json!([]) };
        json!({ "machine": board, "memory_mib": mib, "cpu": { "model": model }, "vga": vga, "clock": clock,
            "serial": serial, "tablet": tablet, "rng": rng, "vmgenid": vmgenid, "guest_agent": guest_agent, "disk_bus": bus, "disks": disks,
            "nics": [{ "model": nic, "mac": mac }] })
    }
}

/// The keys and the drivers that may stand in an option in JSON.
const KEYS: &str = " driver id chardev bus rng qom-type netdev romfile mac node-name read-only server export \
    open-timeout reconnect-delay file discard cache backing bootindex drive rerror werror unit scsi-id guid name ";
const DRIVERS: &str = " VGA cirrus-vga virtio-vga qxl-vga vmware-svga isa-serial piix3-usb-uhci qemu-xhci usb-tablet \
    virtio-rng-pci virtio-net-pci e1000 e1000e rtl8139 pcnet ne2k_pci ich9-ahci virtio-scsi-pci nbd qcow2 \
    virtio-blk-pci ide-hd scsi-hd vmgenid virtio-serial-pci virtserialport ";

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_machine_says_the_options_are_ours(described in any_machine()) {
        let Ok(machine) = serde_json::from_value::<Machine>(described) else { return Ok(()) };
        if machine.validate(&["disk0".parse().unwrap()]).is_err() {
            return Ok(());
        }
        let line = line(&machine, |_| (), &disks(&["disk0"])).unwrap();
        let mut arguments = line.iter();
        while let Some(option) = arguments.next() {
            if matches!(option.as_str(), "-nodefaults" | "-no-user-config") {
                continue;
            }
            let value = arguments.next().unwrap();
            let listed = |list: &str, word: &str| list.contains(&format!(" {word} "));
            let good = match option.as_str() {
                "-device" | "-blockdev" | "-object" => {
                    let parsed: serde_json::Map<String, Value> = serde_json::from_str(value).unwrap();
                    parsed.keys().all(|key| listed(KEYS, key))
                        && parsed.get("driver").is_none_or(|driver| listed(DRIVERS, driver.as_str().unwrap()))
                }
                "-machine" => {
                    let board = value.strip_suffix(",accel=tcg,dump-guest-core=off").unwrap_or(",");
                    board.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
                }
                "-cpu" => !value.starts_with('-') && value.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
                "-smp" => value.parse::<u32>().is_ok(),
                "-m" => value.strip_prefix("size=").and_then(|rest| rest.strip_suffix('M')?.parse::<u64>().ok()).is_some(),
                "-rtc" => matches!(value.as_str(), "base=utc" | "base=localtime"),
                "-netdev" => value == "user,id=net0,restrict=off",
                "-chardev" => CHARDEVS.contains(&value.as_str()),
                "-name" | "-sandbox" | "-boot" | "-mon" | "-display" => true,
                _ => false,
            };
            prop_assert!(good, "{option} {value}");
        }
    }
}
