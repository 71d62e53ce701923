//! QEMU: which it is, whether it starts as it is started for a VM, and what runs its guests' instructions.

use std::io;
use std::path::{Path, PathBuf};

use vmnetx_format::machine::{Machine, MachineError};

use super::limits::{QEMU_VERSION_MAX, QEMU_VERSION_MIN};
use super::{Check, Finding, State};
use crate::vm::{self, Abilities, Accelerator, KvmObstacle, RunDir, Searched, kvm_obstacle};

/// The machines that publishers begin with.
const PROFILES: [(&str, &str); 5] = [
    ("default", include_str!("../../qemu-configs/default.toml")),
    ("modern", include_str!("../../qemu-configs/modern.toml")),
    ("retro", include_str!("../../qemu-configs/retro.toml")),
    ("server", include_str!("../../qemu-configs/server.toml")),
    ("windows", include_str!("../../qemu-configs/windows.toml")),
];

/// What came of trying QEMU.
#[derive(Debug)]
pub(super) struct Tried {
    /// Why KVM runs no guests.
    pub(super) obstacle: Result<Option<KvmObstacle>, vm::Error>,
    /// What QEMU says of itself under the accelerator that a run would choose.
    pub(super) abilities: Result<Abilities, vm::Error>,
}

/// Tries it; nothing if there is not all that this takes.
pub(super) async fn look(searched: &Searched, run_dir: Option<&RunDir>) -> Option<Tried> {
    let (programs, run_dir) = (searched.programs()?, run_dir?);
    let obstacle = kvm_obstacle(&programs, run_dir).await;
    let abilities = Abilities::ask(&programs, accelerator(&obstacle), run_dir).await;
    Some(Tried { obstacle, abilities })
}

impl Tried {
    /// What would run a guest.
    pub(super) fn accelerator(&self) -> Accelerator {
        accelerator(&self.obstacle)
    }
}

const fn accelerator(obstacle: &Result<Option<KvmObstacle>, vm::Error>) -> Accelerator {
    match obstacle {
        Ok(None) => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    }
}

/// Where QEMU is, and whether VMs have been run with its version.
pub(super) fn qemu(found: &Result<PathBuf, vm::Error>, abilities: Option<&Abilities>) -> Finding {
    let path = match found {
        Ok(path) => path.display(),
        Err(error) => return Finding::of_error(Check::Qemu, State::Missing, error),
    };
    // Of one that does not start, another finding tells.
    let Some(Abilities { version, .. }) = abilities else { return Finding::good(Check::Qemu, path.to_string()) };
    let ((min_major, min_minor), (max_major, max_minor)) = (QEMU_VERSION_MIN, QEMU_VERSION_MAX);
    let tried = format!("{min_major}.{min_minor} to {max_major}.{max_minor}");
    let this = (version.major, version.minor);
    if this < QEMU_VERSION_MIN {
        let found = format!("{version} at {path}, which is older than what is known to work ({tried})");
        Finding::limited(Check::Qemu, found, "use a newer one; --qemu says where it is")
    } else if this > QEMU_VERSION_MAX {
        let found = format!("{version} at {path}, which is newer than what is known to work ({tried})");
        Finding::limited(Check::Qemu, found, "if VMs fail with it, use an older one; --qemu says where it is")
    } else {
        Finding::good(Check::Qemu, format!("{version} at {path}"))
    }
}

/// The programs beside it.
pub(super) fn tools(qemu_img: &Result<PathBuf, vm::Error>, setpriv: &Result<PathBuf, vm::Error>) -> Finding {
    match (qemu_img, setpriv) {
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Finding::of_error(Check::Tools, State::Missing, error),
        (Err(one), Err(other)) => {
            let [one, other] = [one, other].map(|error| Finding::of_error(Check::Tools, State::Missing, error));
            let advice = [one.advice, other.advice].into_iter().flatten().collect::<Vec<_>>().join("; ");
            Finding::missing(Check::Tools, format!("{}; {}", one.found, other.found), advice)
        }
        (Ok(qemu_img), Ok(setpriv)) => {
            let show = |path: &Path| path.display().to_string();
            let found = format!("{} makes overlays, {} ends QEMU with us", show(qemu_img), show(setpriv));
            Finding::good(Check::Tools, found)
        }
    }
}

/// Whether QEMU has started without the rights that it does not need.
pub(super) fn sandbox(abilities: &Result<Abilities, vm::Error>) -> Finding {
    match abilities {
        Ok(_) => Finding::good(Check::Sandbox, "QEMU starts in it: it may gain no rights and start no programs"),
        Err(error) => {
            let found = format!("QEMU does not start as it is started for a VM: {error}");
            let advice = match found.contains("sandbox") {
                true => {
                    "this QEMU was built without seccomp; use your distribution's, or build it with --enable-seccomp"
                }
                false => "run another QEMU; --qemu says where it is",
            };
            Finding::missing(Check::Sandbox, found, advice)
        }
    }
}

/// Whether QEMU has the machine types of the profiles.
pub(super) fn machines(abilities: &Abilities) -> Finding {
    let lacking = PROFILES.iter().filter_map(|(profile, text)| lacking(profile, text, abilities).transpose());
    match lacking.collect::<Result<Vec<_>, _>>() {
        Ok(lacking) if lacking.is_empty() => {
            Finding::good(Check::Machines, "QEMU has the machine types of all profiles")
        }
        Ok(lacking) => {
            let found = format!("QEMU has no {}", lacking.join(", "));
            Finding::limited(
                Check::Machines,
                found,
                "packages made with these need a QEMU that has them; --qemu names one",
            )
        }
        Err(error) => {
            Finding::limited(Check::Machines, error.to_string(), "this is a fault of vmnetx; please report it")
        }
    }
}

fn lacking(profile: &str, text: &str, abilities: &Abilities) -> Result<Option<String>, MachineError> {
    let machine = Machine::from_toml(text)?.machine.to_string();
    Ok((!abilities.machines.contains(&machine)).then(|| format!("{machine} ({profile}.toml)")))
}

/// What `--accel auto` chooses.
pub(super) fn acceleration(obstacle: &Result<Option<KvmObstacle>, vm::Error>) -> Finding {
    match obstacle {
        Ok(None) => Finding::good(Check::Acceleration, "KVM: a trial guest came to its end"),
        Ok(Some(why)) => Finding::limited(
            Check::Acceleration,
            format!("TCG, several times slower than KVM, because {why}"),
            kvm_advice(why),
        ),
        Err(error) => Finding::of_error(Check::Acceleration, State::Limited, error),
    }
}

fn kvm_advice(why: &KvmObstacle) -> &'static str {
    const NESTED: &str =
        "turn on virtualisation in the firmware; in a VM, have its host pass it on (nested virtualisation)";
    match why {
        KvmObstacle::Device(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "join the group that may open /dev/kvm (usermod -aG kvm USER) and log in again"
        }
        KvmObstacle::Device(error) if error.kind() == io::ErrorKind::NotFound => {
            "load kvm_intel or kvm_amd; if that fails, turn on virtualisation in the firmware, or have this VM's host pass it on"
        }
        KvmObstacle::Device(_) | KvmObstacle::Processor => NESTED,
        KvmObstacle::Trial(_) => {
            "in a VM, its host does not pass virtualisation on as it should; else look into the kernel's log"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::vm::QemuVersion;

    fn abilities(major: u32, minor: u32, machines: &[&str]) -> Abilities {
        let machines: HashSet<_> = machines.iter().map(|&name| name.to_owned()).collect();
        let version = QemuVersion { major, minor, micro: 1 };
        Abilities { version, machines, cpus: Vec::new(), lazy: Ok(()) }
    }

    fn missing(program: &str) -> Result<PathBuf, vm::Error> {
        Err(vm::Error::NoProgram { program: program.into(), package: "some-package" })
    }

    #[test]
    fn versions_that_nobody_has_tried_are_told() {
        let finding = |major, minor| qemu(&Ok("/q".into()), Some(&abilities(major, minor, &[])));
        for (major, minor, state) in [
            (7, 1, State::Limited),
            (7, 2, State::Good),
            (9, 9, State::Good),
            (10, 0, State::Good),
            (10, 1, State::Limited),
        ] {
            let finding = finding(major, minor);
            assert_eq!(finding.state, state, "{}", finding.found);
            assert!(finding.found.contains(&format!("{major}.{minor}.1 at /q")), "{}", finding.found);
        }
        assert_eq!(qemu(&Ok("/q".into()), None).state, State::Good);
        let finding = qemu(&missing("qemu"), None);
        assert!(finding.state == State::Missing && finding.advice.unwrap().contains("apt install some-package"));
    }

    #[test]
    fn every_tool_that_is_missing_is_named() {
        let there = || Ok(PathBuf::from("/there"));
        assert_eq!(tools(&there(), &there()).state, State::Good);
        for (qemu_img, setpriv) in [(missing("one"), there()), (there(), missing("one"))] {
            let finding = tools(&qemu_img, &setpriv);
            assert!(finding.state == State::Missing && finding.found.contains("one"), "{}", finding.found);
        }
        let finding = tools(&missing("one"), &missing("other"));
        assert!(finding.found.contains("find one") && finding.found.contains("find other"), "{}", finding.found);
    }

    #[test]
    fn a_qemu_that_does_not_start_is_quoted_and_explained() {
        let error = |words: &str| vm::Error::StartTimeout { words: words.to_owned() };
        let finding = sandbox(&Err(error("-sandbox support is not enabled in this QEMU binary")));
        assert!(finding.state == State::Missing && finding.advice.unwrap().contains("seccomp"), "{}", finding.found);
        let finding = sandbox(&Err(error("no such library")));
        assert!(finding.found.contains("no such library") && finding.advice.unwrap().contains("--qemu"));
    }

    #[test]
    fn profiles_whose_machine_qemu_lacks_are_named() {
        assert_eq!(machines(&abilities(7, 2, &["pc-i440fx-7.2", "pc-q35-7.2", "pc"])).state, State::Good);
        let finding = machines(&abilities(12, 0, &["pc-q35-7.2"]));
        assert_eq!(finding.state, State::Limited);
        assert!(finding.found.contains("pc-i440fx-7.2 (default.toml)") && !finding.found.contains("modern"));
    }

    #[test]
    fn each_obstacle_to_kvm_has_its_advice() {
        assert_eq!(acceleration(&Ok(None)).state, State::Good);
        let device = |kind: io::ErrorKind| KvmObstacle::Device(kind.into());
        for (obstacle, advice) in [
            (device(io::ErrorKind::PermissionDenied), "usermod -aG kvm"),
            (device(io::ErrorKind::NotFound), "kvm_intel"),
            (KvmObstacle::Processor, "firmware"),
            (KvmObstacle::Trial("hangs".into()), "its host"),
        ] {
            let why = obstacle.to_string();
            let finding = acceleration(&Ok(Some(obstacle)));
            assert!(finding.state == State::Limited && finding.found.contains(&why), "{}", finding.found);
            assert!(finding.advice.as_ref().unwrap().contains(advice), "{:?}", finding.advice);
        }
    }
}
