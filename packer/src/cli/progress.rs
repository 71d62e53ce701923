//! Shows progress on standard error: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use vmnetx_format::Name;

use super::output::{say, shown_bytes};
use crate::{ChainFile, FilePart, Progress};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress on standard error.
pub(super) struct Shown {
    verb: &'static str,
    bar: ProgressBar,
    hidden: bool,
    /// When the next line is due; nothing on a terminal and when progress is hidden.
    next_line: Option<Mutex<Instant>>,
}

impl Shown {
    /// Progress of what `verb` says, such as "read"; `hidden` shows only warnings.
    pub(super) fn new(verb: &'static str, hidden: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal && !hidden { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template =
            "{msg} {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_bar}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(verb);
        let next_line = (!terminal && !hidden).then(|| Mutex::new(Instant::now() + LINE_INTERVAL));
        Self { verb, bar, hidden, next_line }
    }
}

impl Progress for Shown {
    fn total(&self, bytes: u64) {
        self.bar.set_length(bytes);
        // The time before was spent on other things.
        self.bar.reset_elapsed();
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        let Some(Ok(mut due)) = self.next_line.as_ref().map(Mutex::try_lock) else { return };
        let now = Instant::now();
        if now < *due {
            return;
        }
        *due = now + LINE_INTERVAL;
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let rate = done as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        let left_s = total.saturating_sub(done) as f64 / rate.max(1.0);
        let [done, total, rate] = [done, total, rate as u64].map(shown_bytes);
        say(&format!("{} {done} of {total}, {rate}/s, {left_s:.0} s left", self.verb));
    }

    fn note(&self, text: &str) {
        if !self.hidden {
            self.bar.suspend(|| say(&format!("note: {text}")));
        }
    }

    fn warn(&self, text: &str) {
        self.bar.suspend(|| say(&format!("warning: {text}")));
    }

    fn reads(&self, disk: &Name, files: &[ChainFile]) {
        let shown = |file: &ChainFile| {
            let part = match file.part {
                FilePart::Image => "",
                FilePart::Data => ", its data",
                FilePart::Extent => ", a part",
            };
            format!("{} ({}{part})", file.file.replace(char::is_control, "\u{fffd}"), file.format)
        };
        let files: Vec<String> = files.iter().map(shown).collect();
        self.bar.suspend(|| say(&format!("{disk} is read from {}", files.join(", over "))));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
