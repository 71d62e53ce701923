//! `run --backend libvirt`: the VM as a domain of libvirt's.

use vmnetx_format::{Manifest, Name};
use vmnetx_nbd::control::api::Attached;
use vmnetx_store::failure::describe;

use super::{DisplayArg, Error, Launched, NetworkArg, ResumeArg, Run, SerialArg, accel, disks, keep};
use crate::cli::resume::{Show, Shown};
use crate::libvirt::{self, Plugged, Running, Spec};
use crate::resume::{self, Mode, Saved};
use crate::server::Lease;
use crate::vm::{Outcome, RunDir};

/// Options that only QEMU's own launch has.
pub(super) fn check(args: &super::Args) -> Result<(), Error> {
    let not_had = |option| Err(Error::NotWithLibvirt(option));
    match args {
        super::Args { display, .. } if !matches!(display, DisplayArg::Auto | DisplayArg::None) => not_had("--display"),
        super::Args { network: NetworkArg::Isolated, .. } => not_had("--network isolated"),
        super::Args { serial: Some(SerialArg::Stdio), .. } => not_had("--serial -"),
        super::Args { resume: ResumeArg::Lazy, .. } => not_had("--resume lazy"),
        super::Args { resume: ResumeArg::Mapped, .. } => not_had("--resume mapped"),
        _ => Ok(()),
    }
}

impl Run<'_> {
    /// Resumes the VM as a stream if libvirt has saved it and it is to be resumed, and else boots it.
    pub(super) async fn launch_in_libvirt(&self, lease: &Lease, wants_memory: bool) -> Result<Launched, Error> {
        let attached = lease.attached();
        let manifest = super::manifest(attached)?;
        if self.args.resume == ResumeArg::Stream && manifest.memory.is_none() {
            return Err(resume::Error::NoMemory.into());
        }
        let saved = Plugged::saved(&manifest)?;
        if wants_memory && manifest.memory.is_some() {
            let resumed = match saved {
                Some(plugged) => self.resume_in_libvirt(lease, &manifest, plugged).await,
                None => Err(libvirt::Error::NotSavedByLibvirt.into()),
            };
            match resumed {
                // A guest that has run does not begin anew.
                Ok(Some(running)) => return Ok(Launched::Ended(running.run(&self.shutdown).await?)),
                Ok(None) => return Ok(Launched::Ended(Outcome::Cancelled)),
                Err(error) if self.args.resume == ResumeArg::Auto => {
                    tracing::warn!("the VM boots, for it cannot be resumed: {}", describe(&error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Launched::Ended(self.boot_in_libvirt(attached, &manifest).await?))
    }

    /// Resumes the VM until its guest runs; nothing when cancelled before.
    async fn resume_in_libvirt(
        &self,
        lease: &Lease,
        manifest: &Manifest,
        plugged: Plugged,
    ) -> Result<Option<Running>, Error> {
        let attached = lease.attached();
        let spec = self.libvirt_spec(attached, manifest).await?;
        let mut shown = Shown::start(if self.args.json { Show::Json } else { Show::Words });
        let saved = Saved::open(lease.control(), attached, manifest);
        let running = libvirt::resume(spec, plugged, saved, &shown.progress(), &self.shutdown).await?;
        if running.is_some() {
            shown.running(Mode::Stream, None);
        }
        Ok(running)
    }

    async fn boot_in_libvirt(&self, attached: &Attached, manifest: &Manifest) -> Result<Outcome, Error> {
        let names: Vec<Name> = manifest.disks.iter().map(|disk| disk.name.clone()).collect();
        let plugged = Plugged::described(&manifest.machine, &names, accel(self.args.accel));
        let spec = self.libvirt_spec(attached, manifest).await?;
        match libvirt::boot(spec, plugged, &self.shutdown).await? {
            Some(running) => Ok(running.run(&self.shutdown).await?),
            None => Ok(Outcome::Cancelled),
        }
    }

    async fn libvirt_spec(&self, attached: &Attached, manifest: &Manifest) -> Result<Spec, Error> {
        let args = self.args;
        let mut disks = disks(manifest, attached);
        keep(&mut disks, &args.persist)?;
        let serial = match &args.serial {
            Some(SerialArg::File(file)) => Some(std::path::absolute(file).map_err(Error::Runtime)?),
            _ => None,
        };
        Ok(Spec {
            uri: args.connect.clone().unwrap_or_default(),
            name: args.name.clone().unwrap_or_else(|| attached.name.clone()),
            version: attached.version,
            disks,
            serial,
            programs: self.programs.clone(),
            run_dir: RunDir::temporary().await?,
        })
    }
}
