//! The values of a machine description that are checked on their own: text and numbers that become types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CPU_MODEL_BYTES_MAX, CPUS_MAX, MEMORY_MIB_MAX};

/// The board and the version of its details, such as `pc-q35-7.2`: QEMU's versioned names, which later QEMUs keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineType {
    chipset: Chipset,
    major: u8,
    minor: u8,
}

/// The family of boards that a [`MachineType`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chipset {
    /// Intel 440FX of 1996: PCI, IDE.
    I440fx,
    /// Intel Q35 of 2009: PCI Express, SATA.
    Q35,
}

/// The name of a CPU model: ASCII letters, digits, `.`, `_` and `-`. The names that mean "whatever this host has"
/// are refused, because the guest would find another processor on every host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuModel(String);

/// A number of virtual CPUs: 1 to [`CPUS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct CpuCount(u32);

/// A size of guest RAM in MiB: 1 to [`MEMORY_MIB_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

/// The address of a network card: six bytes, unicast, not all zero. Written as `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// A value that its field does not take. Text from outside is shown with its special characters escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a [`MachineType`].
    #[error("field `machine`: {0:?} is not a board; use `pc-i440fx-X.Y` or `pc-q35-X.Y`, such as `pc-q35-7.2`")]
    Machine(String),
    /// Not a [`CpuModel`].
    #[error(
        "field `cpu.model`: {0:?} is not a name of at most {CPU_MODEL_BYTES_MAX} letters, digits, '.', '_' and '-'"
    )]
    CpuModel(String),
    /// A CPU model that differs from host to host.
    #[error("field `cpu.model`: {0:?} is not the same on every host; name a model, such as `Nehalem` or `qemu64`")]
    CpuOfHost(String),
    /// Not a [`CpuCount`].
    #[error("field `cpu.count`: {0} is not in 1 to {CPUS_MAX}")]
    CpuCount(u32),
    /// Not a [`MemorySize`].
    #[error("field `memory_mib`: {0} is not in 1 to {MEMORY_MIB_MAX}")]
    Memory(u64),
    /// Not a [`MacAddress`].
    #[error("field `nics.mac`: {0:?} is not the address of a card, such as `52:54:00:12:34:56`")]
    Mac(String),
}

impl MachineType {
    /// The board of a family in the version `major.minor` of QEMU.
    #[must_use]
    pub const fn new(chipset: Chipset, major: u8, minor: u8) -> Self {
        Self { chipset, major, minor }
    }

    /// The version of QEMU that had the board's details first: major and minor number.
    #[must_use]
    pub const fn version(self) -> (u8, u8) {
        (self.major, self.minor)
    }

    /// The family of boards.
    #[must_use]
    pub const fn chipset(self) -> Chipset {
        self.chipset
    }
}

impl CpuModel {
    /// The model's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CpuCount {
    /// The number.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0
    }
}

impl Default for CpuCount {
    /// One CPU.
    fn default() -> Self {
        Self(1)
    }
}

impl MemorySize {
    /// The size in MiB.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 << 20
    }
}

impl TryFrom<String> for MachineType {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        parse_machine_type(&text).ok_or_else(|| ValueError::Machine(clip(&text)))
    }
}

fn parse_machine_type(text: &str) -> Option<MachineType> {
    let (chipset, version) = match text.strip_prefix("pc-i440fx-") {
        Some(version) => (Chipset::I440fx, version),
        None => (Chipset::Q35, text.strip_prefix("pc-q35-")?),
    };
    let (major, minor) = version.split_once('.')?;
    let machine = MachineType { chipset, major: major.parse().ok()?, minor: minor.parse().ok()? };
    // One spelling: `+7.2` and `07.2` are numbers too.
    (machine.to_string() == text).then_some(machine)
}

impl TryFrom<String> for CpuModel {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let charset = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if text.is_empty() || text.len() > CPU_MODEL_BYTES_MAX || !charset || text.starts_with('-') {
            return Err(ValueError::CpuModel(clip(&text)));
        }
        // QEMU also knows each model under its type's name, "MODEL-x86_64-cpu".
        let lower = text.to_ascii_lowercase();
        let model =
            lower.strip_suffix("-cpu").and_then(|rest| rest.rsplit_once('-')).map_or(&*lower, |(model, _)| model);
        if matches!(model, "host" | "max" | "help" | "base") {
            return Err(ValueError::CpuOfHost(text));
        }
        Ok(Self(text))
    }
}

impl TryFrom<u32> for CpuCount {
    type Error = ValueError;

    fn try_from(count: u32) -> Result<Self, ValueError> {
        if (1..=CPUS_MAX).contains(&count) { Ok(Self(count)) } else { Err(ValueError::CpuCount(count)) }
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = ValueError;

    fn try_from(mib: u64) -> Result<Self, ValueError> {
        if (1..=MEMORY_MIB_MAX).contains(&mib) { Ok(Self(mib)) } else { Err(ValueError::Memory(mib)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        parse_mac(&text).ok_or_else(|| ValueError::Mac(clip(&text)))
    }
}

fn parse_mac(text: &str) -> Option<MacAddress> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let multicast = bytes[0] & 1 == 1;
    (parts.next().is_none() && !multicast && bytes != [0; 6]).then_some(MacAddress(bytes))
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chipset = match self.chipset {
            Chipset::I440fx => "i440fx",
            Chipset::Q35 => "q35",
        };
        write!(f, "pc-{chipset}-{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MachineType {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl FromStr for CpuModel {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl FromStr for MacAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl From<MachineType> for String {
    fn from(machine: MachineType) -> Self {
        machine.to_string()
    }
}

impl From<CpuModel> for String {
    fn from(model: CpuModel) -> Self {
        model.0
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl From<CpuCount> for u32 {
    fn from(count: CpuCount) -> Self {
        count.0
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}
