//! What a check comes to.

use std::fmt;

use serde::Serialize;
use vmnetx_store::failure::{Told, describe};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "&'static str")]
pub enum Check {
    /// The user that QEMU runs as.
    User,
    /// Where a run keeps its sockets and temporary overlays.
    RunDirectory,
    /// QEMU itself.
    Qemu,
    /// The programs beside it.
    Tools,
    /// Whether QEMU starts as it is started for a VM: without rights that it does not need.
    Sandbox,
    /// The machine types of the profiles.
    Machines,
    /// What runs the guest's instructions.
    Acceleration,
    /// Resuming a saved VM when all of its memory is there.
    Stream,
    /// Resuming it at once.
    Lazy,
    /// Resuming it from memory that VMs share.
    Mapped,
    /// Where chunks are kept.
    CacheDirectory,
    /// The server that VMs read through.
    Server,
    /// How many files a process may have open.
    OpenFiles,
    /// The list of VMs that run.
    VmNames,
    /// libvirt, for whoever has VMs run by it.
    Libvirt,
    /// Of a package: its machine type.
    Machine,
    /// Of a package: its CPU model.
    Cpu,
    /// Of a package: its main memory.
    Memory,
    /// Of a package: how it goes on, or that it boots.
    Resume,
}

/// How good what was found is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// VMs run, but slower or with less than they could.
    Limited,
    /// No VM runs without it.
    Missing,
    /// Not to be told before something else is there that is missing.
    Untried,
}

/// What was looked at, what was found, and what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How good it is.
    pub state: State,
    /// What was found, and why it is so.
    pub found: String,
    /// What the user can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    pub(super) fn good(check: Check, found: impl Into<String>) -> Self {
        Self { check, state: State::Good, found: found.into(), advice: None }
    }

    pub(super) fn limited(check: Check, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Limited, found: found.into(), advice: Some(advice.into()) }
    }

    pub(super) fn missing(check: Check, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Missing, found: found.into(), advice: Some(advice.into()) }
    }

    /// What an error says, with its hint.
    pub(super) fn of_error(check: Check, state: State, error: &dyn Told) -> Self {
        Self { check, state, found: describe(&error), advice: error.hint() }
    }

    /// What cannot be looked at before something else is there.
    pub(super) fn untried(check: Check) -> Self {
        Self { check, state: State::Untried, found: "for want of what is missing".to_owned(), advice: None }
    }
}

impl Check {
    /// Its name, in lines for people and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::RunDirectory => "run-directory",
            Self::Qemu => "qemu",
            Self::Tools => "tools",
            Self::Sandbox => "sandbox",
            Self::Machines => "machines",
            Self::Acceleration => "acceleration",
            Self::Stream => "stream",
            Self::Lazy => "lazy",
            Self::Mapped => "mapped",
            Self::CacheDirectory => "cache-directory",
            Self::Server => "server",
            Self::OpenFiles => "open-files",
            Self::VmNames => "vm-names",
            Self::Libvirt => "libvirt",
            Self::Machine => "machine",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Resume => "resume",
        }
    }
}

impl From<Check> for &'static str {
    fn from(check: Check) -> Self {
        check.as_str()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::Untried => "untried",
        })
    }
}
