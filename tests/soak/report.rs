//! What a soak has seen.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::faults::Fault;

/// Counts; all of them of one run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    /// What gives the same faults again.
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    /// Reads that were answered, and their bytes, all compared.
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    /// Copies of the whole disk by nbdcopy, compared too.
    pub(crate) copies: u64,
    pub(crate) connections: u64,
    /// How often each fault happened.
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// Servers that were killed or told to end, each followed by another on the same cache directory.
    pub(crate) restarts: u64,
    pub(crate) versions: u64,
    /// Reads that failed while the origin did, by what it did.
    pub(crate) failed: BTreeMap<Fault, u64>,
    /// Reads and connections that ended with their server.
    pub(crate) cut_off: u64,
    /// The longest answered read.
    pub(crate) slowest_ms: u64,
    /// Bytes that were not the image's.
    pub(crate) wrong_bytes: u64,
    /// Reads without an answer.
    pub(crate) hung_reads: u64,
    /// What should not have happened otherwise.
    pub(crate) unexplained: Vec<String>,
}

impl Report {
    /// Complaints that are kept; of more, the number is enough.
    const UNEXPLAINED_MAX: usize = 20;

    pub(crate) fn is_good(&self) -> bool {
        self.wrong_bytes == 0 && self.hung_reads == 0 && self.unexplained.is_empty()
    }

    pub(crate) fn complain(&mut self, of: String) {
        if self.unexplained.len() < Self::UNEXPLAINED_MAX {
            self.unexplained.push(of);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "seed         {:>14}", self.seed)?;
        writeln!(out, "seconds      {:>14.0}", self.seconds)?;
        writeln!(out, "reads        {:>14}  of {} bytes", self.reads, self.bytes)?;
        writeln!(out, "copies       {:>14}", self.copies)?;
        writeln!(out, "connections  {:>14}", self.connections)?;
        writeln!(out, "restarts     {:>14}", self.restarts)?;
        writeln!(out, "versions     {:>14}", self.versions)?;
        writeln!(out, "faults       {:>14}  {:?}", self.faults.values().sum::<u64>(), self.faults)?;
        writeln!(out, "failed reads {:>14}  {:?}", self.failed.values().sum::<u64>(), self.failed)?;
        writeln!(out, "cut off      {:>14}", self.cut_off)?;
        writeln!(out, "slowest ms   {:>14}", self.slowest_ms)?;
        writeln!(out, "wrong bytes  {:>14}", self.wrong_bytes)?;
        writeln!(out, "hung reads   {:>14}", self.hung_reads)?;
        writeln!(out, "unexplained  {:>14}", self.unexplained.len())?;
        self.unexplained.iter().try_for_each(|what| writeln!(out, "  {what}"))
    }
}
