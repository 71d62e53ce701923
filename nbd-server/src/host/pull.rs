//! Pulls: the versions of attachments are made complete in the cache directory and kept there.

use std::sync::Arc;

use vmnetx_store::Progress;

use super::{Attachment, Holder, Host, Peer};
use crate::Error;
use crate::control::api::{AttachmentId, Problem, PullProgress};
use crate::limits::{PULLS_MAX, PULLS_PER_UID_MAX};

/// A pull that is about to run. It holds its attachment, and the attachment is not being pulled any more when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Pull {
    attachment: Arc<Attachment>,
    holder: Holder,
    progress: Arc<Progress>,
}

impl Host {
    /// Begins to make the version of an attachment complete.
    pub(crate) fn pull(&self, peer: Peer, id: &AttachmentId) -> Result<Pull, Error> {
        let attachment = self.find(peer, id)?;
        // Nobody else begins one between counting and beginning.
        let state = self.lock();
        let attached = state.slots.values().filter_map(|slot| slot.cell.get());
        let owners: Vec<u32> = attached.filter(|one| one.pull().is_some()).map(|one| one.owner()).collect();
        let of_owner = owners.iter().filter(|owner| **owner == peer.uid).count();
        if owners.len() >= PULLS_MAX || (!peer.is_master && of_owner >= PULLS_PER_UID_MAX) {
            return Err(Error::TooManyPulls);
        }
        let progress = attachment.begin_pull().ok_or(Error::BeingPulled)?;
        drop(state);
        Ok(Pull { holder: Holder::new(&attachment), attachment, progress })
    }
}

impl Pull {
    /// How far it is now.
    pub(crate) fn progress(&self) -> PullProgress {
        PullProgress::of(&self.progress)
    }

    /// Pulls, until it is complete, cannot be, or the attachment ends. What was fetched until then stays, and another pull
    /// goes on from there.
    pub(crate) async fn run(&self) -> PullProgress {
        let pulled = tokio::select! {
            pulled = self.attachment.pull_whole(&self.progress) => pulled,
            () = self.holder.ended() => Err(Error::Detached),
        };
        let problem = pulled.err().map(|error| Problem::of(&error));
        PullProgress { complete: problem.is_none(), problem, ..self.progress() }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.attachment.end_pull();
    }
}
