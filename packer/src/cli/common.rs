//! Options that many commands have.

use serde::Serialize;
use vmnetx_store::dir::Wait;
use vmnetx_store::origin::AccessArgs;
use vmnetx_store::trust::TrustArgs;

use super::output::put_json;
use super::progress::Shown;
use crate::{Progress, Reader};

/// How a command reads packages.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ReadArgs {
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
}

/// How a command that takes its time reports.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ReportArgs {
    /// Print one JSON object, and no progress.
    #[arg(long)]
    pub json: bool,
    /// Show no progress.
    #[arg(long)]
    pub(super) quiet: bool,
}

/// Whether a command that publishes waits for its turn.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct WaitArgs {
    /// Wait if another publisher works in REPO.
    #[arg(long)]
    wait: bool,
}

impl ReadArgs {
    /// What the options say.
    pub(super) fn reader(&self) -> Reader {
        Reader { trust: self.trust.trust(), access: self.access.clone() }
    }
}

impl ReportArgs {
    /// Progress of what `verb` says, unless it is not to be shown.
    #[must_use]
    pub fn progress(self, verb: &'static str) -> impl Progress + Send + use<> {
        Shown::new(verb, self.json || self.quiet)
    }

    /// Gives the report as JSON, or as `print` shows it to people.
    pub fn put<T: Serialize>(self, report: &T, print: impl FnOnce(&T)) {
        if self.json { put_json(report) } else { print(report) }
    }
}

impl WaitArgs {
    /// What was asked for.
    #[must_use]
    pub const fn wait(self) -> Wait {
        if self.wait { Wait::Yes } else { Wait::No }
    }
}
