//! The disks of a VM as they are when the guest stops: copied while it runs, and what it writes meanwhile again.
//!
//! QEMU itself copies each disk into an image of ours (`blockdev-mirror`): nobody else opens a file that it has open. Of an
//! overlay over a published version only what is in it is copied (`sync=top`), so nothing is fetched from anywhere. When the
//! copies have caught up, the guest is stopped, and ending the copying then leaves them as the disks are.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vmnetx_format::{Binding, Name};
use vmnetx_pack::{DiskFile, DiskFormat, Progress};

use super::Error;
use super::limits::{COPY_END_DEADLINE, LOOK};
use super::monitor::{Job, Monitor};
use crate::vm::qmp::shown;
use crate::vm::{Programs, QmpError, RunDir, overlay};

/// What the names of our jobs and nodes begin with.
pub(super) const JOB_PREFIX: &str = "vmnetx-capture-";

/// Bytes by which changes to an overlay are told apart: what the guest wrote and no more.
const OVERLAY_GRANULARITY_BYTES: u64 = 4096;

/// A disk that is to be captured.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) name: Name,
    /// QEMU's block node.
    pub(super) node: String,
    pub(super) size_bytes: u64,
    /// The published disk that it is an overlay over, of which only the changes are wanted; nothing for a whole disk.
    pub(super) over: Option<Binding>,
}

/// Disks that are being copied.
#[derive(Debug)]
pub(super) struct Copies {
    disks: Vec<(Disk, PathBuf)>,
}

/// The name of the job and the node of a disk.
pub(super) fn job_of(index: usize) -> String {
    format!("{JOB_PREFIX}{index}")
}

impl Copies {
    /// Begins to copy.
    pub(super) async fn begin(
        monitor: &mut Monitor,
        disks: Vec<Disk>,
        programs: &Programs,
        run_dir: &RunDir,
    ) -> Result<Self, Error> {
        let mut copies = Vec::new();
        for (index, disk) in disks.into_iter().enumerate() {
            let file = run_dir.path().join(format!("{}.copy.qcow2", disk.name));
            overlay::create_copy(programs, &file, disk.over.as_ref(), disk.size_bytes).await?;
            let begun = begin_one(monitor, &job_of(index), &disk, &file).await;
            begun.map_err(|error| of_disk(&disk.name, error))?;
            copies.push((disk, file));
        }
        Ok(Self { disks: copies })
    }

    /// Waits until the copies have caught up with the guest.
    pub(super) async fn until_ready(&self, monitor: &mut Monitor, progress: &dyn Progress) -> Result<(), Error> {
        let mut told = 0;
        loop {
            let jobs = self.jobs(monitor).await?;
            let sum = |bytes: fn(&Job) -> u64| jobs.iter().map(bytes).sum::<u64>();
            progress.total(sum(|job| job.total_progress));
            let done = sum(|job| job.current_progress);
            progress.advance(done.saturating_sub(told));
            told = told.max(done);
            if jobs.iter().all(|job| job.status == "ready") {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Ends the copying once the guest stands still, and gives the copies.
    pub(super) async fn finish(self, monitor: &mut Monitor) -> Result<Vec<DiskFile>, Error> {
        let deadline = Instant::now() + COPY_END_DEADLINE;
        for index in 0..self.disks.len() {
            // Not by force: it ends when nothing is left to be copied.
            monitor.tell("block-job-cancel", &json!({ "device": job_of(index), "force": false })).await?;
        }
        while !self.jobs(monitor).await?.iter().all(|job| job.status == "concluded") {
            if Instant::now() >= deadline {
                return Err(Error::DisksLate);
            }
            sleep(LOOK / 4).await;
        }
        for index in 0..self.disks.len() {
            let job = job_of(index);
            monitor.tell("job-dismiss", &json!({ "id": job })).await?;
            // This completes and closes the image.
            monitor.tell("blockdev-del", &json!({ "node-name": job })).await?;
        }
        let format = DiskFormat::Qcow2;
        Ok(self.disks.into_iter().map(|(disk, file)| DiskFile { name: disk.name, file, format }).collect())
    }

    /// The jobs of all disks, none of which has failed.
    async fn jobs(&self, monitor: &mut Monitor) -> Result<Vec<Job>, Error> {
        let mut all = monitor.jobs().await?;
        let mut ours = Vec::new();
        for (index, (disk, _)) in self.disks.iter().enumerate() {
            let failed = |why: &str| Error::Disk { name: disk.name.clone(), why: shown(why) };
            let place = all.iter().position(|job| job.id == job_of(index));
            let job = all.swap_remove(place.ok_or_else(|| failed("somebody has ended it"))?);
            if let Some(why) = &job.error {
                return Err(failed(why));
            }
            ours.push(job);
        }
        Ok(ours)
    }
}

async fn begin_one(monitor: &mut Monitor, job: &str, disk: &Disk, file: &std::path::Path) -> Result<(), Error> {
    let path = file.to_str().ok_or_else(|| crate::vm::Error::PathNotText(file.to_owned()))?;
    // Nothing here must survive the host's crash.
    let cache = json!({ "direct": false, "no-flush": true });
    let node = json!({ "driver": "qcow2", "node-name": job, "backing": null, "discard": "unmap", "cache": cache,
        "detect-zeroes": if disk.over.is_some() { "off" } else { "unmap" },
        "file": { "driver": "file", "filename": path, "discard": "unmap", "cache": cache } });
    monitor.tell("blockdev-add", &node).await?;
    let mut mirror = json!({ "job-id": job, "device": disk.node, "target": job, "auto-dismiss": false,
        "on-source-error": "report", "on-target-error": "report", "sync": "full" });
    if disk.over.is_some() {
        mirror["sync"] = Value::from("top");
        mirror["granularity"] = Value::from(OVERLAY_GRANULARITY_BYTES);
    }
    monitor.tell("blockdev-mirror", &mirror).await
}

fn of_disk(name: &Name, error: Error) -> Error {
    match error {
        Error::Qmp(QmpError::Refused { why, .. }) => Error::Disk { name: name.clone(), why },
        error => error,
    }
}
