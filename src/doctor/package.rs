//! Whether this host can run one package, and how its saved VM would go on.

use indicatif::HumanBytes;
use serde::Serialize;
use vmnetx_format::machine::{CpuModel, MachineType};
use vmnetx_format::{Accelerator, Digest, Manifest, Memory, Name};

use super::limits::FEATURES_SHOWN_MAX;
use super::{Check, Finding, State, can_run};
use crate::resume::{self, Mode, Progress};
use crate::server::Lease;
use crate::vm::qmp::shown;
use crate::vm::{self, Abilities, check_machine};

/// What came of looking at a package.
#[derive(Debug, Serialize)]
pub struct PackageReport {
    /// The package's name.
    pub name: Name,
    /// The digest of the version's manifest.
    pub version: Digest,
    /// Whether it can be run here.
    pub can_run: bool,
    /// The mode in which `--resume auto` would begin; absent if the VM boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// What a host is to a package.
pub(super) struct Host<'a> {
    pub(super) abilities: &'a Abilities,
    /// What runs guests.
    pub(super) accelerator: Accelerator,
    /// Bytes of memory that programs may still have, if that can be told.
    pub(super) available_bytes: Option<u64>,
}

/// Looks at the package that is attached, with its memory.
pub(super) async fn examine(lease: &Lease, manifest: &Manifest, host: &Host<'_>) -> PackageReport {
    let attached = lease.attached();
    let is_mapped = match &manifest.memory {
        Some(_) => resume::map_soon(lease.control(), attached, manifest, &Progress::default()).await.is_some(),
        None => false,
    };
    let mode = manifest.memory.as_ref().map(|_| mode(is_mapped, host.abilities));
    let machine = &manifest.machine;
    let disks: Vec<_> = manifest.disks.iter().map(|disk| disk.name.clone()).collect();
    let checked = check_machine(machine, &disks);
    let findings = vec![
        machine_type(machine.machine, &checked, host.abilities),
        cpu_model(&machine.cpu.model, host),
        main_memory(machine.memory_mib.bytes(), &checked, host.available_bytes),
        goes_on(manifest.memory.as_ref(), mode, host),
    ];
    PackageReport {
        name: attached.name.clone(),
        version: attached.version,
        can_run: can_run(&findings),
        resume: mode.map(|mode| mode.to_string()),
        findings,
    }
}

fn machine_type(machine: MachineType, checked: &Result<(), vm::Error>, abilities: &Abilities) -> Finding {
    let version = abilities.version;
    if let Err(error) = checked
        && !matches!(error, vm::Error::Memory { .. })
    {
        return Finding::of_error(Check::Machine, State::Missing, error);
    }
    if abilities.machines.contains(&machine.to_string()) {
        Finding::good(Check::Machine, format!("{machine}, which QEMU {version} has"))
    } else {
        let found = format!("{machine}, which QEMU {version} does not have");
        Finding::missing(Check::Machine, found, "use a QEMU that has it; --qemu says where it is")
    }
}

fn cpu_model(model: &CpuModel, host: &Host<'_>) -> Finding {
    let (name, runs) = (model.as_str(), word(host.accelerator));
    // QEMU takes the name of the model's type, too.
    let short = name.strip_suffix("-x86_64-cpu").unwrap_or(name);
    match host.abilities.cpus.iter().find(|cpu| cpu.name == short) {
        None => Finding::missing(
            Check::Cpu,
            format!("{name}, which QEMU {} does not have", host.abilities.version),
            "use a QEMU that has it; --qemu says where it is",
        ),
        Some(cpu) if cpu.unavailable_features.is_empty() => {
            Finding::good(Check::Cpu, format!("{name}, all of whose features {runs} has here"))
        }
        Some(cpu) => Finding::limited(
            Check::Cpu,
            format!("{name}, of which {runs} lacks {} here", listed(&cpu.unavailable_features)),
            "a guest that uses these fails; a saved one may not go on. Run it where they are there, or publish it with another model",
        ),
    }
}

fn listed(features: &[String]) -> String {
    let names: Vec<_> = features.iter().take(FEATURES_SHOWN_MAX).map(|feature| shown(feature)).collect();
    match features.len().saturating_sub(FEATURES_SHOWN_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn main_memory(bytes: u64, checked: &Result<(), vm::Error>, available_bytes: Option<u64>) -> Finding {
    if let Err(error @ vm::Error::Memory { .. }) = checked {
        return Finding::of_error(Check::Memory, State::Missing, error);
    }
    let size = HumanBytes(bytes);
    match available_bytes {
        Some(available_bytes) if available_bytes < bytes => Finding::limited(
            Check::Memory,
            format!(
                "{size}, and {} are available: once the guest uses all of it, the host runs out",
                HumanBytes(available_bytes)
            ),
            "end other programs first, or run it on a host with more memory",
        ),
        Some(available_bytes) => {
            Finding::good(Check::Memory, format!("{size}, and {} are available", HumanBytes(available_bytes)))
        }
        None => Finding::good(Check::Memory, format!("{size}, which this host has")),
    }
}

/// The mode in which `--resume auto` begins.
const fn mode(is_mapped: bool, abilities: &Abilities) -> Mode {
    match (is_mapped, &abilities.lazy) {
        (true, _) => Mode::Mapped,
        (false, Ok(())) => Mode::Lazy,
        (false, Err(_)) => Mode::Stream,
    }
}

fn goes_on(memory: Option<&Memory>, mode: Option<Mode>, host: &Host<'_>) -> Finding {
    let (Some(memory), Some(mode)) = (memory, mode) else {
        return Finding::good(Check::Resume, "it boots: the package holds no saved memory");
    };
    let ram_bytes: u64 = memory.blocks.iter().map(|block| block.size_bytes).fold(0, u64::saturating_add);
    let why = match mode {
        Mode::Mapped => "all of its memory is here, to be shared by VMs".to_owned(),
        Mode::Lazy => "QEMU may use userfaultfd, and not all of its memory is ready to be mapped".to_owned(),
        Mode::Stream => format!("QEMU may not use userfaultfd; first all of its {} are fetched", HumanBytes(ram_bytes)),
    };
    let found = format!("{mode}: {why}");
    let here = host.accelerator;
    match (&memory.libvirt, memory.accelerator) {
        (Some(_), _) => Finding::limited(
            Check::Resume,
            format!("{found}; but libvirt has saved it, and QEMU alone may not take that: then it boots"),
            "run it with --backend libvirt",
        ),
        (None, Some(saved)) if saved != here => Finding::limited(
            Check::Resume,
            format!(
                "{found}; it was saved under {} and {} would run it, whose CPU may lack what it uses",
                word(saved),
                word(here)
            ),
            match saved {
                Accelerator::Tcg => "run it with --accel tcg",
                Accelerator::Kvm => "run it where KVM works, or boot it with --resume off",
            },
        ),
        _ if mode == Mode::Stream => Finding::limited(Check::Resume, found, "see what is said of lazy"),
        _ => Finding::good(Check::Resume, found),
    }
}

const fn word(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG",
    }
}

#[cfg(test)]
mod tests {
    use vmnetx_format::machine::Machine;
    use vmnetx_format::{Chunker, DeviceStateImage, RamBlock};

    use super::*;
    use crate::vm::{CpuAbility, QemuVersion};

    fn abilities(lazy: Result<(), String>) -> Abilities {
        let cpu = |name: &str, lacking: &[&str]| CpuAbility {
            name: name.to_owned(),
            unavailable_features: lacking.iter().map(|&feature| feature.to_owned()).collect(),
        };
        Abilities {
            version: QemuVersion { major: 7, minor: 2, micro: 22 },
            machines: ["pc-q35-7.2".to_owned()].into(),
            cpus: vec![cpu("Nehalem", &[]), cpu("EPYC", &["sha-ni"]), cpu("Wide", &["f"; 20])],
            lazy,
        }
    }

    const fn host(abilities: &Abilities) -> Host<'_> {
        Host { abilities, accelerator: Accelerator::Tcg, available_bytes: None }
    }

    fn saved(accelerator: Option<Accelerator>, libvirt: Option<&str>) -> Memory {
        let (content, chunker) = (Digest::of(b""), Chunker::RAM);
        Memory {
            blocks: vec![RamBlock { name: "pc.ram".into(), size_bytes: 1 << 30, content, chunker }],
            device_state: DeviceStateImage { size_bytes: 1, content, chunker },
            accelerator,
            qemu: None,
            libvirt: libvirt.map(str::to_owned),
        }
    }

    #[test]
    fn a_machine_or_a_model_that_qemu_lacks_cannot_be_run() {
        let abilities = abilities(Ok(()));
        let machine = |name: &str| machine_type(name.parse().unwrap(), &Ok(()), &abilities).state;
        assert_eq!([machine("pc-q35-7.2"), machine("pc-q35-10.0")], [State::Good, State::Missing]);
        let not_handled = Err(vm::Error::NotHandled("UEFI firmware"));
        assert!(machine_type("pc-q35-7.2".parse().unwrap(), &not_handled, &abilities).found.contains("UEFI"));
        let cpu = |name: &str| cpu_model(&name.parse().unwrap(), &host(&abilities));
        assert_eq!(cpu("Nehalem").state, State::Good);
        assert_eq!(cpu("Nehalem-x86_64-cpu").state, State::Good);
        assert_eq!(cpu("Tomorrow").state, State::Missing);
        assert!(cpu("EPYC").state == State::Limited && cpu("EPYC").found.contains("TCG lacks sha-ni here"));
        assert!(cpu("Wide").found.contains("and 12 more"), "{}", cpu("Wide").found);
    }

    #[test]
    fn the_mode_is_the_one_that_a_run_would_take() {
        let (can, cannot) = (abilities(Ok(())), abilities(Err("no".into())));
        assert_eq!(mode(true, &cannot), Mode::Mapped);
        assert_eq!([mode(false, &can), mode(false, &cannot)], [Mode::Lazy, Mode::Stream]);
        let state = |mode| goes_on(Some(&saved(None, None)), Some(mode), &host(&can)).state;
        assert_eq!([Mode::Mapped, Mode::Lazy, Mode::Stream].map(state), [State::Good, State::Good, State::Limited]);
        assert!(goes_on(None, None, &host(&can)).found.contains("boots"));
    }

    #[test]
    fn memory_of_another_accelerator_or_of_libvirt_is_told_of() {
        let abilities = abilities(Ok(()));
        let finding = |memory: Memory| goes_on(Some(&memory), Some(Mode::Lazy), &host(&abilities));
        assert_eq!(finding(saved(Some(Accelerator::Tcg), None)).state, State::Good);
        let other = finding(saved(Some(Accelerator::Kvm), None));
        assert!(other.state == State::Limited && other.found.contains("saved under KVM"), "{}", other.found);
        let libvirt = finding(saved(None, Some("<domain/>")));
        assert!(libvirt.advice.unwrap().contains("--backend libvirt"));
    }

    #[test]
    fn a_guest_has_to_fit_into_memory() {
        let finding = |memory_mib: u64, available_bytes| {
            let text = format!("machine = 'pc-q35-7.2'\nmemory_mib = {memory_mib}\ncpu.model = 'qemu64'");
            let checked = check_machine(&Machine::from_toml(&text).unwrap(), &[]);
            main_memory(memory_mib << 20, &checked, available_bytes)
        };
        assert_eq!(finding(64, Some(1 << 30)).state, State::Good);
        assert_eq!(finding(64, None).state, State::Good);
        assert_eq!(finding(64, Some(1 << 20)).state, State::Limited);
        assert_eq!(finding(4 << 20, Some(u64::MAX)).state, State::Missing);
    }
}
