//! How `run` resumes a saved VM: which modes are tried, what is shown meanwhile, and what follows when it cannot be.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::resume::{Mode, Progress};

/// How often what is shown is renewed.
const LOOK: Duration = Duration::from_millis(200);

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What `--resume` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ResumeArg {
    /// The mode in which the guest runs first; where none works, the VM boots.
    #[default]
    Auto,
    /// All memory is fetched, and shared with all VMs that are resumed from it on this host.
    Mapped,
    /// The guest runs at once, and its memory is fetched as it needs it.
    Lazy,
    /// All memory is fetched, then the guest runs.
    Stream,
    /// The VM boots.
    Off,
}

impl ResumeArg {
    /// The modes to try, the best first, if the memory is not mapped.
    pub(super) fn modes(self) -> Vec<Mode> {
        match self {
            Self::Auto => vec![Mode::Lazy, Mode::Stream],
            Self::Lazy => vec![Mode::Lazy],
            Self::Stream => vec![Mode::Stream],
            Self::Mapped | Self::Off => Vec::new(),
        }
    }
}

/// Whom the progress is shown to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// People, on standard error.
    Words,
    /// Programs, on standard output.
    Json,
}

/// What a program is told, one JSON object on a line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    /// So much of the guest's RAM has been sent to QEMU, zeros included.
    Resuming { done_bytes: u64, total_bytes: u64, left_s: Option<f64> },
    /// The guest runs, so long after its state was asked for, and after QEMU was started.
    Running {
        mode: String,
        after_s: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        qemu_s: Option<f64>,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// All of its memory is there: it needs the server for its disks only.
    MemoryComplete { after_s: f64 },
}

/// Shows how far resuming is, until it is dropped.
pub(super) struct Shown {
    progress: Arc<Progress>,
    show: Show,
    start: Instant,
    task: Option<AbortOnDropHandle<()>>,
}

impl Shown {
    pub(super) fn start(show: Show) -> Self {
        let (progress, start) = (Arc::<Progress>::default(), Instant::now());
        let task = tokio::spawn(follow(Arc::clone(&progress), show, start));
        Self { progress, show, start, task: Some(AbortOnDropHandle::new(task)) }
    }

    /// What is to be counted.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The guest runs, so long after QEMU was started if that is known; whether all of its memory is there by then depends on the mode.
    pub(super) fn running(&mut self, mode: Mode, qemu_took: Option<Duration>) {
        self.task = None;
        let (total_bytes, done_bytes) = self.progress.bytes();
        let qemu_s = qemu_took.map(|took| took.as_secs_f64());
        let after_s = self.start.elapsed().as_secs_f64();
        match self.show {
            Show::Json => put(&Event::Running { mode: mode.to_string(), after_s, qemu_s, done_bytes, total_bytes }),
            Show::Words => {
                let of_them = qemu_s.map_or_else(String::new, |qemu_s| format!(", {qemu_s:.2} s after QEMU's start"));
                tracing::info!("the guest goes on from where it was saved ({mode}, after {after_s:.2} s{of_them})");
            }
        }
        if done_bytes < total_bytes {
            let (progress, show, start) = (Arc::clone(&self.progress), self.show, self.start);
            self.task = Some(AbortOnDropHandle::new(tokio::spawn(complete(progress, show, start))));
        }
    }
}

/// Tells how far it is until the guest runs.
async fn follow(progress: Arc<Progress>, show: Show, start: Instant) {
    let is_terminal = show == Show::Words && std::io::stderr().is_terminal();
    let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = Bar(ProgressBar::with_draw_target(None, target));
    let template = "memory  {decimal_bytes} of {decimal_total_bytes}  {eta} left  {wide_bar}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.0.set_style(style);
    }
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_line = Instant::now();
    loop {
        look.tick().await;
        let (total_bytes, done_bytes) = progress.bytes();
        if total_bytes == 0 {
            continue;
        }
        bar.0.set_length(total_bytes);
        bar.0.set_position(done_bytes);
        let left_s = left_s(start, done_bytes, total_bytes);
        match show {
            Show::Json => put(&Event::Resuming { done_bytes, total_bytes, left_s }),
            Show::Words if !is_terminal && last_line.elapsed() >= LINE_INTERVAL => {
                last_line = Instant::now();
                let left = left_s.map_or_else(String::new, |left_s| format!(", about {left_s:.0} s left"));
                tracing::info!("{} % of the guest's memory are here{left}", 100 * done_bytes / total_bytes);
            }
            Show::Words => {}
        }
    }
}

/// Tells when a guest that runs has all of its memory.
async fn complete(progress: Arc<Progress>, show: Show, start: Instant) {
    let mut look = interval(LOOK);
    loop {
        look.tick().await;
        let (total_bytes, done_bytes) = progress.bytes();
        if done_bytes >= total_bytes {
            break;
        }
    }
    let after_s = start.elapsed().as_secs_f64();
    match show {
        Show::Json => put(&Event::MemoryComplete { after_s }),
        Show::Words => tracing::info!("all of the guest's memory is here (after {after_s:.1} s)"),
    }
}

/// A bar that leaves the terminal when it is dropped.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// How long it will take if it goes on as it went.
fn left_s(start: Instant, done_bytes: u64, total_bytes: u64) -> Option<f64> {
    let left_bytes = total_bytes.saturating_sub(done_bytes) as f64;
    (done_bytes > 0).then(|| start.elapsed().as_secs_f64() * left_bytes / done_bytes as f64)
}

fn put(event: &Event) {
    // Numbers and text always serialise; a program that has gone need not be told.
    let line = serde_json::to_string(event).unwrap_or_default();
    let _ = writeln!(std::io::stdout(), "{line}");
}
