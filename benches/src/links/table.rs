//! The runs as Markdown.

use std::fmt::Write;

use super::{Goal, Outcome, Panel, Row, Runs, parse_link};
use crate::units::ParseError;

/// A table for each link.
///
/// # Errors
///
/// When a link of the runs is none.
pub fn table(runs: &Runs) -> Result<String, ParseError> {
    let mut out = String::new();
    for panel in runs.panels()? {
        let Panel { limit_s, limit_bytes, .. } = panel;
        let title = title(panel.link)?;
        // Writing to text cannot fail.
        let _ = writeln!(out, "{title}; ours are medians of {} ({}):\n", runs.rounds, runs.day);
        out.push_str("| what | seconds | of the limit | MB over the link | requests | goal | met |\n");
        out.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
        let limit = limit_bytes / 1e6;
        let _ = writeln!(
            out,
            "| limit: chunks touched, zstd -12, at line speed | {limit_s:.2} | 1.00 | {limit:.2} |  |  |  |"
        );
        for row in &panel.rows {
            out.push_str(&line(row, limit_s));
        }
        out.push('\n');
    }
    Ok(out)
}

/// `100M/20ms` for people.
pub(super) fn title(link: &str) -> Result<String, ParseError> {
    let shape = parse_link(link)?;
    let rate = shape.rate_bits_per_s as f64 / 1e6;
    let (rate, unit) = if rate < 1000.0 { (rate, "Mbit/s") } else { (rate / 1000.0, "Gbit/s") };
    Ok(format!("{rate} {unit}, {} ms", shape.rtt.as_secs_f64() * 1000.0))
}

fn line(row: &Row<'_>, limit_s: f64) -> String {
    let Row { system, seconds, down_bytes, requests, goal, .. } = row;
    let megabytes = down_bytes / 1e6;
    let counts = format!("{megabytes:.2} | {requests:.0}");
    match row.outcome {
        Outcome::Done => {
            let (goal, met) = (shown(goal), row.met());
            format!("| {system} | {seconds:.2} | {:.2} | {counts} | {goal} | {met} |\n", seconds / limit_s)
        }
        Outcome::Computed => {
            format!("| {system} | {seconds:.0} (bytes / rate) | {:.0} | {megabytes:.2} |  |  |  |\n", seconds / limit_s)
        }
        Outcome::Timeout => format!("| {system} | not within {seconds:.0} s |  | {counts} |  |  |\n"),
        Outcome::Failed => format!("| {system} | failed after {seconds:.0} s |  | {counts} |  |  |\n"),
    }
}

fn shown(goal: &Goal) -> String {
    let seconds = goal.seconds.map(|seconds| format!("<= {seconds:.2} s"));
    let bytes = goal.down_bytes.map(|bytes| format!("<= {:.2} MB", bytes / 1e6));
    [seconds, bytes].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

impl Row<'_> {
    fn met(&self) -> &'static str {
        let kept = |value: f64, goal: Option<f64>| goal.is_none_or(|goal| value <= goal);
        match self.goal {
            Goal { seconds: None, down_bytes: None } => "",
            goal if kept(self.seconds, goal.seconds) && kept(self.down_bytes, goal.down_bytes) => "yes",
            _ => "no",
        }
    }
}
