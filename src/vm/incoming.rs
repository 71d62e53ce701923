//! The state of a saved VM on its way into a QEMU that waits for it.
//!
//! QEMU reads from a channel that it has inherited ([`Spec::incoming`](super::Spec::incoming)); whoever has the other end writes
//! what `docs/migration.md` describes. Capabilities come first: QEMU refuses those that it, or this host, does not have, and
//! waits on.

use std::os::fd::OwnedFd;

use super::command::Begins;
use super::qmp::{Event, MigrationStatus, QmpError};
use super::{Error, Started, process};

/// What QEMU gets to begin in another state than a machine that boots.
#[derive(Debug)]
pub struct Incoming {
    /// QEMU's end of the socket or pipe over which the state comes, as a migration.
    pub channel: OwnedFd,
    /// What the main memory holds already: a memfd of its size, of which QEMU gets a private mapping. `None`: zeros.
    pub ram: Option<OwnedFd>,
}

impl Incoming {
    pub(super) const fn begins(&self) -> Begins {
        match &self.ram {
            // Behind the channel.
            Some(_) => Begins::Mapping(process::INHERITED_FD + 1),
            None => Begins::Waiting,
        }
    }

    /// The files that QEMU inherits.
    pub(super) fn into_inherited(self) -> Vec<OwnedFd> {
        [Some(self.channel), self.ram].into_iter().flatten().collect()
    }
}

/// How the state comes, and with it what QEMU must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All of it before the guest runs.
    Stream,
    /// The devices, and memory as the guest asks for it: needs userfaultfd.
    Lazy,
}

impl Way {
    pub(super) const fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Stream => &["events"],
            Self::Lazy => &["events", "postcopy-ram"],
        }
    }
}

impl Started {
    /// Makes QEMU read its state from its channel.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU cannot, or may not on this host; it waits on, and another way may do.
    pub async fn receive(&mut self, way: Way) -> Result<(), Error> {
        self.qmp.set_capabilities(way.capabilities(), true).await?;
        self.is_loading = true;
        Ok(self.qmp.migrate_incoming(process::INHERITED_FD).await?)
    }

    /// Waits until the guest runs. That is as long as the network takes; whoever does not want to wait drops the future.
    ///
    /// # Errors
    /// [`Error`] when QEMU does not take the state; the guest has not run then.
    pub async fn until_running(&mut self) -> Result<(), Error> {
        loop {
            match self.qmp.event().await {
                // By itself: that the saved VM was running is part of its state only if it was saved so.
                Ok(Event::Migration(MigrationStatus::Completed)) => {
                    self.is_loading = false;
                    return Ok(self.qmp.cont().await?);
                }
                Ok(Event::Migration(MigrationStatus::Failed)) => return Err(self.not_loaded().await),
                Ok(Event::Resume) => return Ok(()),
                Ok(_) => {}
                Err(QmpError::Closed) => return Err(self.not_loaded().await),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn not_loaded(&mut self) -> Error {
        // Its last words come just before its end.
        match self.process.died().await {
            Error::QemuDied { words, .. } => Error::NotLoaded { words },
            error => error,
        }
    }
}
