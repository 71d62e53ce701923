//! Shows how far a pull is: as a bar on a terminal, and otherwise as a line now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What is shown; it leaves the terminal when it is dropped.
pub(super) struct Shown {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Instant,
}

impl Shown {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_bar}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, is_terminal, last_line: Instant::now() }
    }

    /// So many bytes of so many are here; 0 of 0 while it is not known how many there are.
    pub(super) fn show(&mut self, done_bytes: u64, total_bytes: u64) {
        if self.is_terminal {
            self.bar.set_length(total_bytes);
            self.bar.set_position(done_bytes);
            return;
        }
        if self.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        if total_bytes == 0 {
            say("looking what the package consists of");
        } else {
            say(&format!("{} of {} are here", HumanBytes(done_bytes), HumanBytes(total_bytes)));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
