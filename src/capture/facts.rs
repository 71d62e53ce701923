//! What a VM that is to be captured is, and whether a package can say so: asked before anything is done to it.

use serde::Deserialize;
use serde_json::{Value, json};
use vmnetx_format::machine::Machine;
use vmnetx_format::{Accelerator, MAIN_RAM_BLOCK};

use super::Error;
use super::monitor::Monitor;
use crate::vm::qmp::shown;

/// What QEMU says of a VM.
#[derive(Debug)]
pub(super) struct Facts {
    /// QEMU's version, such as `7.2.22`.
    pub(super) qemu: String,
    pub(super) accelerator: Accelerator,
    /// Whether the guest runs; else it stands still because somebody wants it to.
    pub(super) is_running: bool,
    pub(super) drives: Vec<Drive>,
    /// What QEMU is told to do differently from its default when it saves or loads memory.
    pub(super) capabilities: Vec<String>,
    /// Bytes per second at which it saves memory at most.
    pub(super) rate: Option<u64>,
    machine: String,
    cpu: String,
    cpus: usize,
    ram_bytes: u64,
}

/// A disk that is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drive {
    /// The block node that the device reads and writes.
    pub(super) node: String,
    pub(super) size_bytes: u64,
}

#[derive(Deserialize)]
struct Kvm {
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cpu {
    qom_path: String,
}

#[derive(Deserialize)]
struct Backend {
    id: Option<String>,
    size: u64,
    #[serde(default)]
    share: bool,
}

#[derive(Deserialize)]
struct Capability {
    capability: String,
    state: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Parameters {
    max_bandwidth: Option<u64>,
}

#[derive(Deserialize)]
struct Block {
    device: String,
    qdev: Option<String>,
    removable: bool,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: String,
    image: Image,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

impl Facts {
    /// Asks for them.
    ///
    /// # Errors
    /// [`Error`] when the VM cannot be captured as it is now.
    pub(super) async fn ask(monitor: &mut Monitor) -> Result<Self, Error> {
        let nothing = json!({});
        let is_running = match monitor.status().await?.as_str() {
            "running" => true,
            "paused" | "postmigrate" => false,
            other => return Err(Error::State(other.to_owned())),
        };
        let migration = monitor.migration().await?;
        if let Some(status) = migration.under_way() {
            return Err(Error::Migrating(shown(status)));
        }
        if !migration.blocked_reasons.is_empty() {
            return Err(Error::Blocked(shown(&migration.blocked_reasons.join("; "))));
        }
        let qemu = monitor.version().await?;
        let kvm: Kvm = monitor.ask("query-kvm", &nothing).await?;
        let cpus: Vec<Cpu> = monitor.ask("query-cpus-fast", &nothing).await?;
        let first = cpus.first().map_or("", |cpu| cpu.qom_path.as_str());
        let cpu = type_of(monitor, first, "-x86_64-cpu").await?;
        let capabilities: Vec<Capability> = monitor.ask("query-migrate-capabilities", &nothing).await?;
        let parameters: Parameters = monitor.ask("query-migrate-parameters", &nothing).await?;
        Ok(Self {
            qemu: qemu.to_string(),
            accelerator: if kvm.enabled { Accelerator::Kvm } else { Accelerator::Tcg },
            is_running,
            drives: drives(monitor).await?,
            capabilities: capabilities.into_iter().filter(|one| one.state).map(|one| one.capability).collect(),
            rate: parameters.max_bandwidth,
            machine: type_of(monitor, "/machine", "-machine").await?,
            cpus: cpus.len(),
            cpu,
            ram_bytes: ram_bytes(monitor).await?,
        })
    }

    /// Whether the VM is the machine that is described, as far as QEMU tells. What its devices are shows when it is resumed.
    ///
    /// # Errors
    /// [`Error::OtherMachine`], [`Error::NotRepresented`].
    pub(super) fn check(&self, described: &Machine) -> Result<(), Error> {
        if self.cpu == "host" || self.cpu == "max" {
            return Err(Error::NotRepresented(format!("the CPU model {}, which is each host's own", self.cpu)));
        }
        let pairs = [
            (format!("the machine type {}", self.machine), format!("{}", described.machine)),
            (format!("{} MiB of RAM", self.ram_bytes >> 20), described.memory_mib.mib().to_string()),
            (format!("{} CPUs", self.cpus), described.cpu.count.count().to_string()),
            (format!("the CPU model {}", self.cpu), described.cpu.model.as_str().to_owned()),
        ];
        let is_said = |(has, says): &(String, String)| has.split(' ').any(|word| word == says);
        match pairs.into_iter().find(|pair| !is_said(pair)) {
            Some((has, says)) => Err(Error::OtherMachine { has, says }),
            None => Ok(()),
        }
    }
}

/// The type of an object without what all types of its kind end in.
async fn type_of(monitor: &mut Monitor, path: &str, suffix: &str) -> Result<String, Error> {
    let name: String = monitor.ask("qom-get", &json!({ "path": path, "property": "type" })).await?;
    Ok(shown(name.strip_suffix(suffix).unwrap_or(&name)))
}

/// The bytes of RAM, which must be one block of this host's memory.
async fn ram_bytes(monitor: &mut Monitor) -> Result<u64, Error> {
    let backends: Vec<Backend> = monitor.ask("query-memdev", &json!({})).await?;
    let mut main = None;
    for Backend { id, size, share } in backends {
        let id = id.unwrap_or_default();
        if id != MAIN_RAM_BLOCK || share {
            let how = if share { "shared memory" } else { "memory" };
            return Err(Error::NotRepresented(format!("{how} of its own kind ({})", shown(&id))));
        }
        main = Some(size);
    }
    main.ok_or_else(|| Error::NotRepresented(format!("no RAM called {MAIN_RAM_BLOCK}")))
}

/// The disks that are plugged in, in the order in which QEMU has them.
async fn drives(monitor: &mut Monitor) -> Result<Vec<Drive>, Error> {
    let blocks: Vec<Block> = monitor.ask("query-block", &Value::Object(serde_json::Map::new())).await?;
    let mut drives = Vec::new();
    for Block { device, qdev, removable, inserted } in blocks {
        // Without a device, no guest sees it.
        let Some(qdev) = qdev else { continue };
        let name = shown(if device.is_empty() { &qdev } else { &device });
        if removable {
            return Err(Error::NotRepresented(format!("a drive for media that can be taken out ({name})")));
        }
        if qdev.starts_with("/machine/system.flash") {
            return Err(Error::NotRepresented(format!("firmware in flash memory ({name})")));
        }
        if let Some(Inserted { node_name, image }) = inserted {
            drives.push(Drive { node: node_name, size_bytes: image.virtual_size });
        }
    }
    Ok(drives)
}
