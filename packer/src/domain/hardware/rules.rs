//! What of a domain XML is hardware: elements and attributes that are kept, and those that are the host's and left out. All else
//! is refused.
//!
//! No value that is kept can be a path: [`Value::Word`] has no slash, and nothing here names a file, a socket, a device, a network or a
//! program of a host.

/// What may stand in an element.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    /// In the sequence in which they are written.
    pub(super) attributes: &'static [(&'static str, Value)],
    pub(super) text: Option<Value>,
    pub(super) parts: &'static [Self],
    /// Elements and attributes of the host, which are left out with all that is in them.
    pub(super) host: &'static [&'static str],
}

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// A name or number: letters, digits and `._:+-`.
    Word,
    /// One of these.
    Of(&'static [&'static str]),
    /// One of these, and kept as the last of them: what is at the host's end of the device is every host's own.
    Becomes(&'static [&'static str]),
    /// A word that each run has one of its own for: that it is there is kept, and not which it is.
    Own,
}

use Value::{Becomes, Of, Own, Word};

const ON_OFF: Value = Of(&["on", "off"]);
const YES_NO: Value = Of(&["yes", "no"]);
const ALIAS: &[&str] = &["alias"];

const fn rule(name: &'static str) -> Rule {
    Rule { name, attributes: &[], text: None, parts: &[], host: &[] }
}

const fn with(name: &'static str, attributes: &'static [(&'static str, Value)]) -> Rule {
    Rule { attributes, ..rule(name) }
}

const fn text(name: &'static str, value: Value) -> Rule {
    Rule { text: Some(value), ..rule(name) }
}

const ADDRESS: Rule = with(
    "address",
    &[
        ("type", Of(&["pci", "drive", "usb", "virtio-serial", "isa"])),
        ("domain", Word),
        ("controller", Word),
        ("bus", Word),
        ("target", Word),
        ("slot", Word),
        ("unit", Word),
        ("function", Word),
        ("multifunction", ON_OFF),
        ("port", Word),
        ("iobase", Word),
        ("irq", Word),
    ],
);

/// Options that change what a virtio device offers to its guest.
const VIRTIO: Rule = Rule {
    host: &[
        "name",
        "type",
        "cache",
        "error_policy",
        "rerror_policy",
        "io",
        "copy_on_read",
        "discard",
        "detect_zeroes",
        "iothread",
        "metadata_cache",
    ],
    ..with(
        "driver",
        &[
            ("ioeventfd", ON_OFF),
            ("event_idx", ON_OFF),
            ("queues", Word),
            ("queue_size", Word),
            ("iommu", ON_OFF),
            ("ats", ON_OFF),
            ("packed", ON_OFF),
        ],
    )
};

const MEMORY: [(&str, Value); 1] = [("unit", Of(&["b", "bytes", "k", "KiB", "M", "MiB", "G", "GiB", "T", "TiB"]))];

const OS: Rule = Rule {
    attributes: &[("firmware", Of(&["bios"]))],
    parts: &[
        Rule { text: Some(Of(&["hvm"])), ..with("type", &[("arch", Of(&["x86_64", "i686"])), ("machine", Word)]) },
        with("boot", &[("dev", Of(&["hd", "cdrom", "network", "fd"]))]),
        with("bootmenu", &[("enable", YES_NO), ("timeout", Word)]),
        with("bios", &[("useserial", YES_NO), ("rebootTimeout", Word)]),
        with("smbios", &[("mode", Of(&["emulate"]))]),
    ],
    ..rule("os")
};

const STATE: &[(&str, Value)] = &[("state", ON_OFF)];

const FEATURES: Rule = Rule {
    parts: &[
        rule("acpi"),
        with("apic", &[("eoi", ON_OFF)]),
        rule("pae"),
        with("pmu", STATE),
        with("vmport", STATE),
        with("vmcoreinfo", STATE),
        with("smm", &[("state", Of(&["off"]))]),
        Rule { parts: &[with("hidden", STATE)], ..rule("kvm") },
        Rule {
            parts: &[
                with("relaxed", STATE),
                with("vapic", STATE),
                with("spinlocks", &[("state", ON_OFF), ("retries", Word)]),
                with("vpindex", STATE),
                with("runtime", STATE),
                with("synic", STATE),
                with("stimer", STATE),
                with("reset", STATE),
                with("frequencies", STATE),
                with("tlbflush", STATE),
                with("ipi", STATE),
            ],
            ..with("hyperv", &[("mode", Of(&["custom"]))])
        },
    ],
    ..rule("features")
};

const CPU: Rule = Rule {
    parts: &[
        Rule { text: Some(Word), ..with("model", &[("fallback", Of(&["allow", "forbid"]))]) },
        text("vendor", Word),
        with("topology", &[("sockets", Word), ("dies", Word), ("cores", Word), ("threads", Word)]),
        with("cache", &[("level", Word), ("mode", Of(&["emulate", "disable"]))]),
        with("feature", &[("policy", Of(&["force", "require", "optional", "disable", "forbid"])), ("name", Word)]),
    ],
    host: &["migratable"],
    ..with("cpu", &[("mode", Of(&["custom"])), ("match", Of(&["exact"])), ("check", Of(&["none", "partial", "full"]))])
};

const CLOCK: Rule = Rule {
    parts: &[with("timer", &[("name", Word), ("present", YES_NO), ("tickpolicy", Word), ("mode", Word)])],
    ..with(
        "clock",
        &[
            ("offset", Of(&["utc", "localtime", "variable"])),
            ("adjustment", Word),
            ("basis", Of(&["utc", "localtime"])),
        ],
    )
};

const DISK: Rule = Rule {
    attributes: &[
        ("type", Becomes(&["block", "network", "volume", "nvme", "vhostuser", "file"])),
        ("device", Of(&["disk", "cdrom", "floppy"])),
        ("model", Of(&["virtio", "virtio-transitional", "virtio-non-transitional"])),
    ],
    parts: &[
        VIRTIO,
        Rule {
            host: &["tray"],
            ..with("target", &[("dev", Word), ("bus", Word), ("removable", ON_OFF), ("rotation_rate", Word)])
        },
        Rule { host: &["loadparm"], ..with("boot", &[("order", Word)]) },
        with("blockio", &[("logical_block_size", Word), ("physical_block_size", Word)]),
        rule("readonly"),
        text("serial", Word),
        text("wwn", Word),
        text("vendor", Word),
        text("product", Word),
        ADDRESS,
    ],
    host: &[
        "alias",
        "snapshot",
        "source",
        "backingStore",
        "mirror",
        "iotune",
        "throttlefilters",
        "shareable",
        "transient",
    ],
    ..rule("disk")
};

const CONTROLLER: Rule = Rule {
    attributes: &[
        ("type", Of(&["usb", "ide", "sata", "scsi", "fdc", "pci", "virtio-serial", "ccid"])),
        ("index", Word),
        ("model", Word),
        ("ports", Word),
        ("vectors", Word),
    ],
    parts: &[
        VIRTIO,
        with("master", &[("startport", Word)]),
        with("model", &[("name", Word)]),
        with("target", &[("chassisNr", Word), ("chassis", Word), ("port", Word), ("busNr", Word), ("hotplug", ON_OFF)]),
        Rule { text: Some(Word), ..with("pcihole64", &[("unit", Word)]) },
        ADDRESS,
    ],
    host: ALIAS,
    ..rule("controller")
};

const INTERFACE: Rule = Rule {
    attributes: &[("type", Becomes(&["network", "bridge", "direct", "ethernet", "internal", "user"]))],
    parts: &[
        with("mac", &[("address", Word)]),
        with("model", &[("type", Word)]),
        with("link", &[("state", Of(&["up", "down"]))]),
        with("boot", &[("order", Word)]),
        with("rom", &[("bar", ON_OFF), ("enabled", YES_NO)]),
        Rule { host: &["name"], ..with("driver", &[("ioeventfd", ON_OFF), ("event_idx", ON_OFF), ("packed", ON_OFF)]) },
        ADDRESS,
    ],
    host: &[
        "alias",
        "managed",
        "trustGuestRxFilters",
        "source",
        "target",
        "bandwidth",
        "filterref",
        "vlan",
        "virtualport",
        "port",
        "ip",
        "route",
        "guest",
        "script",
        "backend",
        "coalesce",
        "tune",
    ],
    ..rule("interface")
};

const CHARACTER: Value = Becomes(&["file", "unix", "tcp", "udp", "null", "stdio", "vc", "pipe", "dev", "nmdm", "pty"]);
const CHARACTER_HOST: &[&str] = &["alias", "source", "protocol", "log", "tty"];

const PORT: &[Rule] = &[
    Rule { parts: &[with("model", &[("name", Word)])], ..with("target", &[("type", Word), ("port", Word)]) },
    ADDRESS,
];

const fn port(name: &'static str) -> Rule {
    Rule { attributes: &[("type", CHARACTER)], parts: PORT, host: CHARACTER_HOST, ..rule(name) }
}

const CHANNEL: Rule = Rule {
    attributes: &[("type", Becomes(&["spicevmc", "spiceport", "pty", "unix"]))],
    parts: &[Rule { host: &["state"], ..with("target", &[("type", Of(&["virtio"])), ("name", Word)]) }, ADDRESS],
    host: CHARACTER_HOST,
    ..rule("channel")
};

const VIDEO: Rule = Rule {
    parts: &[
        Rule {
            parts: &[with("acceleration", &[("accel3d", Of(&["no"]))])],
            ..with(
                "model",
                &[
                    ("type", Of(&["vga", "cirrus", "virtio", "qxl", "bochs", "vmvga", "none"])),
                    ("ram", Word),
                    ("vram", Word),
                    ("vram64", Word),
                    ("vgamem", Word),
                    ("heads", Word),
                    ("primary", YES_NO),
                ],
            )
        },
        ADDRESS,
    ],
    host: ALIAS,
    ..rule("video")
};

const VIRTIO_MODEL: Value = Of(&["virtio", "virtio-transitional", "virtio-non-transitional"]);

const DEVICES: Rule = Rule {
    parts: &[
        DISK,
        CONTROLLER,
        INTERFACE,
        port("serial"),
        port("console"),
        CHANNEL,
        VIDEO,
        Rule {
            parts: &[ADDRESS],
            host: ALIAS,
            ..with(
                "input",
                &[
                    ("type", Of(&["tablet", "mouse", "keyboard"])),
                    ("bus", Of(&["usb", "ps2", "virtio"])),
                    ("model", VIRTIO_MODEL),
                ],
            )
        },
        Rule { parts: &[ADDRESS], host: ALIAS, ..with("hub", &[("type", Of(&["usb"]))]) },
        Rule {
            parts: &[with("codec", &[("type", Word)]), ADDRESS],
            host: &["alias", "audio"],
            ..with("sound", &[("model", Word)])
        },
        Rule {
            parts: &[with("stats", &[("period", Word)]), VIRTIO, ADDRESS],
            host: ALIAS,
            ..with(
                "memballoon",
                &[
                    ("model", Of(&["none", "virtio", "virtio-transitional", "virtio-non-transitional"])),
                    ("autodeflate", ON_OFF),
                    ("freePageReporting", ON_OFF),
                ],
            )
        },
        Rule {
            parts: &[with("rate", &[("bytes", Word), ("period", Word)]), VIRTIO, ADDRESS],
            host: &["alias", "backend"],
            ..with("rng", &[("model", VIRTIO_MODEL)])
        },
        Rule {
            parts: &[ADDRESS],
            host: ALIAS,
            ..with(
                "watchdog",
                &[
                    ("model", Of(&["i6300esb", "ib700", "itco"])),
                    ("action", Of(&["reset", "shutdown", "poweroff", "pause", "none", "inject-nmi"])),
                ],
            )
        },
        Rule { parts: &[ADDRESS], host: ALIAS, ..with("panic", &[("model", Of(&["isa", "pvpanic", "hyperv"]))]) },
    ],
    host: &["emulator", "graphics", "audio"],
    ..rule("devices")
};

/// All that is kept of a domain.
pub(super) const DOMAIN: Rule = Rule {
    attributes: &[("type", Of(&["kvm", "qemu"]))],
    parts: &[
        Rule { text: Some(Word), host: &["dumpCore"], ..with("memory", &MEMORY) },
        Rule { text: Some(Word), ..with("currentMemory", &MEMORY) },
        Rule { text: Some(Word), host: &["placement", "cpuset"], ..with("vcpu", &[("current", Word)]) },
        text("genid", Own),
        OS,
        FEATURES,
        CPU,
        CLOCK,
        Rule {
            parts: &[with("suspend-to-mem", &[("enabled", YES_NO)]), with("suspend-to-disk", &[("enabled", YES_NO)])],
            ..rule("pm")
        },
        DEVICES,
    ],
    host: &[
        "id",
        "name",
        "uuid",
        "title",
        "description",
        "metadata",
        "on_poweroff",
        "on_reboot",
        "on_crash",
        "on_lockfailure",
        "resource",
        "seclabel",
        "memoryBacking",
        "memtune",
        "numatune",
        "blkiotune",
        "cputune",
        "iothreads",
        "iothreadids",
        "defaultiothread",
        "perf",
    ],
    ..rule("domain")
};
