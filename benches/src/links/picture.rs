//! The runs as horizontal bars in an SVG that is read on light and on dark ground.

use std::fmt::Write;

use super::table::title;
use super::{Outcome, Row, Runs};
use crate::units::ParseError;

const WIDTH: u32 = 960;
const LINE: u32 = 22;
const BAR: u32 = 14;
/// Where the bars of seconds and those of megabytes begin, and how long they may be.
const SECONDS_AT: u32 = 290;
const BYTES_AT: u32 = 660;
const BAR_MAX: f64 = 230.0;
/// Bars end at so many times the limit: what is longer is drawn broken off, for else the short ones could not be seen.
const LIMITS_SHOWN: f64 = 30.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.ours{fill:#0969da}\
    .peer{fill:#8c959f}.limit{fill:#1a7f37}.break{stroke:#fff;stroke-width:3}\
    @media (prefers-color-scheme: dark){text{fill:#e6edf3}.ours{fill:#58a6ff}.peer{fill:#6e7681}.limit{fill:#3fb950}\
    .break{stroke:#0d1117}}";

/// A panel for each link: seconds on the left, megabytes on the right.
///
/// # Errors
///
/// When a link of the runs is none.
pub fn picture(runs: &Runs) -> Result<String, ParseError> {
    let mut drawing = Drawing { body: String::new(), y: 6 };
    for panel in runs.panels()? {
        drawing.head(&title(panel.link)?);
        let limit = Bars { seconds: panel.limit_s, bytes: panel.limit_bytes };
        let most = panel.rows.iter().fold(limit, |most, row| Bars {
            seconds: most.seconds.max(row.seconds),
            bytes: most.bytes.max(row.down_bytes),
        });
        let scale = Bars {
            seconds: most.seconds.min(LIMITS_SHOWN * limit.seconds),
            bytes: most.bytes.min(LIMITS_SHOWN * limit.bytes),
        };
        drawing.row("limit", "limit: chunks touched, zstd -12", limit, scale, &format!("{:.2} s", limit.seconds));
        for row in &panel.rows {
            let class = if row.system.starts_with("ours") { "ours" } else { "peer" };
            let bars = Bars { seconds: row.seconds, bytes: row.down_bytes };
            drawing.row(class, row.system, bars, scale, &label(row));
        }
        drawing.y += LINE;
    }
    let Drawing { body, y: height } = drawing;
    let about = format!("Seconds and megabytes of a boot's reads over slow links, {}", escaped(&runs.day));
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{about}\">\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    ))
}

#[derive(Clone, Copy)]
struct Bars {
    seconds: f64,
    bytes: f64,
}

struct Drawing {
    body: String,
    y: u32,
}

impl Drawing {
    fn head(&mut self, link: &str) {
        self.text("head", 0, link);
        self.text("head", SECONDS_AT, "seconds");
        self.text("head", BYTES_AT, "MB over the link");
        self.y += LINE;
    }

    fn row(&mut self, class: &str, system: &str, bars: Bars, scale: Bars, seconds: &str) {
        self.text("", 0, system);
        self.bar(class, SECONDS_AT, bars.seconds / scale.seconds, seconds);
        self.bar(class, BYTES_AT, bars.bytes / scale.bytes, &format!("{:.1}", bars.bytes / 1e6));
        self.y += LINE;
    }

    fn text(&mut self, class: &str, x: u32, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        // Writing to text cannot fail.
        let _ = writeln!(self.body, "<text{class} x=\"{x}\" y=\"{}\">{}</text>", self.y + 12, escaped(text));
    }

    /// A bar of this part of the scale, with its value behind it.
    fn bar(&mut self, class: &str, x: u32, part: f64, value: &str) {
        let width = (part.min(1.0) * BAR_MAX).max(1.0);
        let y = self.y;
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        );
        if part > 1.0 {
            let at = f64::from(x) + BAR_MAX - 14.0;
            let (low, high) = (y + BAR + 1, y - 1);
            let _ = writeln!(
                self.body,
                "<line class=\"break\" x1=\"{at}\" y1=\"{low}\" x2=\"{}\" y2=\"{high}\"/>",
                at + 6.0
            );
        }
        self.text("", x + width.ceil() as u32 + 6, value);
    }
}

fn label(row: &Row<'_>) -> String {
    match row.outcome {
        Outcome::Done => format!("{:.2} s", row.seconds),
        Outcome::Computed => format!("{:.0} s at line speed", row.seconds),
        Outcome::Timeout => format!("not in {:.0} s", row.seconds),
        Outcome::Failed => "failed".to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
