//! Options that many commands have.

use serde::Serialize;
use vmnetx_store::dir::Wait;

use super::output::put_json;
use super::progress::Shown;

/// How a command that takes its time reports.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct ReportArgs {
    /// Print one JSON object, and no progress.
    #[arg(long)]
    pub(super) json: bool,
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

impl ReportArgs {
    /// Progress of what `verb` says, unless it is not to be shown.
    pub(super) fn progress(self, verb: &'static str) -> Shown {
        Shown::new(verb, self.json || self.quiet)
    }

    /// Gives the report as JSON, or as `print` shows it to people.
    pub(super) fn put<T: Serialize>(self, report: &T, print: impl FnOnce(&T)) {
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
