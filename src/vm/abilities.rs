//! What the QEMU of this host can: one without a machine is started as a launch starts it, in the same sandbox, and asked over
//! its monitor.
//!
//! It waits for a saved state, for only then does QEMU try whether the host lets it have memory lazily.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::accel::Accelerator;
use super::command::{SANDBOX, doubled};
use super::error::Error;
use super::incoming::Way;
use super::process::{Process, Programs};
use super::qmp::{QemuVersion, Qmp, QmpError, shown};
use super::run_dir::RunDir;
use super::{connect, listen};

/// What a QEMU says of itself and of this host.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// Its version.
    pub(crate) version: QemuVersion,
    /// The names of its machine types.
    pub(crate) machines: HashSet<String>,
    /// Its CPU models under the accelerator that it was asked with.
    pub(crate) cpus: Vec<CpuAbility>,
    /// Whether a saved VM can be resumed lazily; else QEMU's words.
    pub(crate) lazy: Result<(), String>,
}

/// A CPU model.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CpuAbility {
    /// What `-cpu` calls it.
    pub(crate) name: String,
    /// What a guest would lack of it here.
    #[serde(default)]
    pub(crate) unavailable_features: Vec<String>,
}

#[derive(Deserialize)]
struct MachineAbility {
    name: String,
}

impl Abilities {
    /// Asks the QEMU of these programs what it can with this accelerator. Takes some tenths of a second.
    ///
    /// # Errors
    /// [`Error`] when it does not start in its sandbox, with its words, or does not answer.
    pub(crate) async fn ask(programs: &Programs, accelerator: Accelerator, run_dir: &RunDir) -> Result<Self, Error> {
        let (monitor, path) = listen(run_dir, "monitor")?;
        let mut process = Process::spawn(programs, &programs.qemu, &arguments(accelerator, &path)?, Vec::new()).await?;
        let asked = match connect(&mut process, &monitor, None).await {
            Ok((qmp, _)) => Self::answers(qmp).await,
            Err(error) => Err(error),
        };
        process.kill().await?;
        let mut abilities = asked?;
        // What it says on standard error is mostly more, and all there when it has ended.
        abilities.lazy = abilities.lazy.map_err(|why| match process.said() {
            Some(words) => format!("{why} ({})", shown(&words)),
            None => why,
        });
        Ok(abilities)
    }

    async fn answers(mut qmp: Qmp) -> Result<Self, Error> {
        let version = qmp.version().await?;
        let machines: Vec<MachineAbility> = answer(&mut qmp, "query-machines").await?;
        let cpus = answer(&mut qmp, "query-cpu-definitions").await?;
        let lazy = match qmp.set_capabilities(Way::Lazy.capabilities(), true).await {
            Ok(()) => Ok(()),
            Err(QmpError::Refused { why, .. }) => Err(why),
            Err(error) => return Err(error.into()),
        };
        let machines = machines.into_iter().map(|machine| machine.name).collect();
        Ok(Self { version, machines, cpus, lazy })
    }
}

async fn answer<T: DeserializeOwned>(qmp: &mut Qmp, command: &'static str) -> Result<T, Error> {
    let answer = serde_json::from_value(qmp.execute(command).await?);
    answer.map_err(|_| QmpError::Protocol("an answer without what was asked for").into())
}

fn arguments(accelerator: Accelerator, monitor: &Path) -> Result<Vec<OsString>, Error> {
    let machine = format!("none,accel={}", accelerator.as_str());
    let monitor = format!("socket,id=monitor,path={}", doubled(monitor)?);
    let options = ["-nodefaults", "-no-user-config", "-sandbox", SANDBOX, "-machine", &machine, "-display", "none"];
    let waits = ["-chardev", &monitor, "-mon", "chardev=monitor,mode=control", "-incoming", "defer"];
    Ok(options.into_iter().chain(waits).map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> (Programs, tempfile::TempDir, RunDir) {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(base.path()).unwrap();
        (Programs::find(Path::new("qemu-system-x86_64")).unwrap(), base, run_dir)
    }

    #[tokio::test]
    async fn a_qemu_says_what_it_can_and_is_gone() {
        let (programs, _base, run_dir) = setting();
        let abilities = Abilities::ask(&programs, Accelerator::Tcg, &run_dir).await.unwrap();
        assert!(abilities.version.major >= 7, "{}", abilities.version);
        assert!(abilities.machines.contains("pc-q35-7.2"));
        let nehalem = abilities.cpus.iter().find(|cpu| cpu.name == "Nehalem").unwrap();
        assert_eq!(nehalem.unavailable_features, [""; 0]);
        let skylake = abilities.cpus.iter().find(|cpu| cpu.name == "Skylake-Server").unwrap();
        assert!(skylake.unavailable_features.contains(&"avx512f".to_owned()), "{skylake:?}");
        // The same as a resume would find.
        if rustix::process::geteuid().is_root() {
            assert_eq!(abilities.lazy, Ok(()));
        }
    }

    #[tokio::test]
    async fn a_qemu_that_does_not_start_is_quoted() {
        let (mut programs, base, run_dir) = setting();
        programs.qemu = base.path().join("qemu");
        std::fs::write(&programs.qemu, "#!/bin/sh\necho no sandbox here >&2; exit 1\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&programs.qemu, executable).unwrap();
        let error = Abilities::ask(&programs, Accelerator::Tcg, &run_dir).await.unwrap_err();
        assert!(error.to_string().contains("no sandbox here"), "{error}");
    }
}
