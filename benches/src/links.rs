//! What the replays over slow links have shown: medians, goals and ratios, as a table and as a picture.

mod picture;
mod table;

use std::time::Duration;

use serde::Deserialize;

pub use picture::picture;
pub use table::table;

use crate::link::Shape;
use crate::units::{ParseError, parse_duration, parse_rate_bits_per_s};

/// What ours are called in [`Run::system`].
const NO_ORDER: &str = "ours, no order";
const WITH_ORDER: &str = "ours, with order";
const WARM: &str = "warm disk tier";
/// What everybody is compared with where the link does not matter.
const RAW: &str = "local raw file, qemu-nbd";
/// The link that the goals without an order speak of: 100 Mbit/s, 20 ms.
const GOAL_LINK: Shape = Shape { rate_bits_per_s: 100_000_000, rtt: Duration::from_millis(20) };

/// All runs of one `benches/links`.
#[derive(Debug, Clone, Deserialize)]
pub struct Runs {
    /// When they were made: `2026-01-31`.
    pub day: String,
    /// How often ours were repeated.
    pub rounds: u32,
    /// The links, as `100M/20ms`.
    pub links: Vec<String>,
    /// Bytes of the chunks that the boot touches, compressed at zstd level 12.
    pub limit_bytes: u64,
    /// The runs in their order.
    pub runs: Vec<Run>,
}

/// One replay.
#[derive(Debug, Clone, Deserialize)]
pub struct Run {
    /// One of [`Runs::links`].
    pub link: String,
    /// What was measured.
    pub system: String,
    /// How it ended.
    pub outcome: Outcome,
    /// From the start of the server, or of the download, to the last read.
    pub seconds: f64,
    /// Requests that arrived at the web server.
    pub requests: u64,
    /// What the line has carried.
    #[serde(default)]
    pub line: Line,
}

/// What a line has carried; nothing where there was none.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    /// Bytes to the reader, headers of HTTP included.
    pub down_bytes: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every byte was read and was the image's.
    Done,
    /// It was stopped when it took too long.
    Timeout,
    /// It ended with an error.
    Failed,
    /// It was not run: bytes over rate.
    Computed,
}

/// The median of a system's runs over one link.
#[derive(Debug, Clone, PartialEq)]
struct Row<'a> {
    system: &'a str,
    outcome: Outcome,
    seconds: f64,
    down_bytes: f64,
    requests: f64,
    goal: Goal,
}

/// What a row should not exceed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Goal {
    seconds: Option<f64>,
    down_bytes: Option<f64>,
}

/// One link's rows, the limit first.
#[derive(Debug, Clone, PartialEq)]
struct Panel<'a> {
    link: &'a str,
    limit_s: f64,
    limit_bytes: f64,
    rows: Vec<Row<'a>>,
}

/// Parses `100M/20ms`.
///
/// # Errors
///
/// When it is no rate and round trip.
pub fn parse_link(text: &str) -> Result<Shape, ParseError> {
    let (rate, rtt) = text.split_once('/').unwrap_or((text, ""));
    Ok(Shape { rate_bits_per_s: parse_rate_bits_per_s(rate)?, rtt: parse_duration(rtt)? })
}

impl Runs {
    fn panels(&self) -> Result<Vec<Panel<'_>>, ParseError> {
        self.links.iter().map(|link| self.panel(link)).collect()
    }

    fn panel<'a>(&'a self, link: &'a str) -> Result<Panel<'a>, ParseError> {
        let shape = parse_link(link)?;
        let limit_bytes = self.limit_bytes as f64;
        let limit_s = limit_bytes * 8.0 / shape.rate_bits_per_s as f64;
        let mut panel = Panel { link, limit_s, limit_bytes, rows: Vec::new() };
        for run in self.runs.iter().filter(|run| run.link == link) {
            if !panel.rows.iter().any(|row| row.system == run.system) {
                panel.rows.push(self.row(link, &run.system));
            }
        }
        let raw_s = panel.rows.iter().find(|row| row.system == RAW).map(|row| row.seconds);
        for row in &mut panel.rows {
            row.goal = goal(row.system, shape, limit_bytes, raw_s);
        }
        Ok(panel)
    }

    /// The medians of a system; one bad end makes a bad row.
    fn row<'a>(&'a self, link: &str, system: &'a str) -> Row<'a> {
        let of_system = || self.runs.iter().filter(|run| run.link == link && run.system == system);
        let worst = of_system().map(|run| run.outcome).find(|outcome| *outcome != Outcome::Done);
        Row {
            system,
            outcome: worst.unwrap_or(Outcome::Done),
            seconds: median(of_system().map(|run| run.seconds)),
            down_bytes: median(of_system().map(|run| run.line.down_bytes as f64)),
            requests: median(of_system().map(|run| run.requests as f64)),
            goal: Goal::default(),
        }
    }
}

/// The goals scale with the image's own limit: its touched chunks at the link's rate.
fn goal(system: &str, shape: Shape, limit_bytes: f64, raw_s: Option<f64>) -> Goal {
    let limit_s = limit_bytes * 8.0 / shape.rate_bits_per_s as f64;
    let no_more = |times_s: f64, times_bytes: f64| Goal {
        seconds: Some(times_s * limit_s),
        down_bytes: Some(times_bytes * limit_bytes),
    };
    let seconds = |seconds| Goal { seconds, down_bytes: None };
    match system {
        NO_ORDER if shape == GOAL_LINK => no_more(5.7, 1.5),
        WITH_ORDER if shape == GOAL_LINK => no_more(1.2, 1.07),
        WITH_ORDER if shape.rate_bits_per_s < GOAL_LINK.rate_bits_per_s => {
            seconds(Some(1.05 * limit_s + 5.0 * shape.rtt.as_secs_f64()))
        }
        WITH_ORDER => seconds(raw_s.map(|raw_s| 2.5 * raw_s)),
        _ if system.starts_with("ours") && system.ends_with(WARM) => seconds(raw_s.map(|raw_s| 1.5 * raw_s)),
        _ => Goal::default(),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(upper) if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], *upper),
        Some(middle) => *middle,
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(system: &str, outcome: Outcome, seconds: f64) -> Run {
        let line = Line { down_bytes: (seconds * 1e6) as u64 };
        Run { link: "100M/20ms".into(), system: system.into(), outcome, seconds, requests: 7, line }
    }

    fn runs() -> Runs {
        let runs = vec![
            run(WITH_ORDER, Outcome::Done, 1.3),
            run(RAW, Outcome::Done, 0.1),
            run(WITH_ORDER, Outcome::Done, 1.1),
            run("ours, with order, warm disk tier", Outcome::Done, 0.2),
            run(WITH_ORDER, Outcome::Done, 1.2),
            run("nbdkit <curl>", Outcome::Timeout, 150.0),
        ];
        Runs { day: "2026-01-31".into(), rounds: 3, links: vec!["100M/20ms".into()], limit_bytes: 12_500_000, runs }
    }

    #[test]
    fn a_table_has_medians_ratios_and_what_missed_its_goal() {
        let table = table(&runs()).expect("table");
        let found = |words: &str| assert!(table.contains(words), "no {words:?} in:\n{table}");
        found("100 Mbit/s, 20 ms");
        found("| limit: chunks touched, zstd -12, at line speed | 1.00 | 1.00 | 12.50 |");
        found("| ours, with order | 1.20 | 1.20 | 1.20 | 7 | <= 1.20 s, <= 13.38 MB | yes |");
        found("| ours, with order, warm disk tier | 0.20 | 0.20 | 0.20 | 7 | <= 0.15 s | no |");
        found("| nbdkit <curl> | not within 150 s |");
    }

    #[test]
    fn goals_follow_the_link() {
        let fast = goal(WITH_ORDER, parse_link("1G/1ms").expect("link"), 12.5e6, Some(0.1));
        assert_eq!(fast, Goal { seconds: Some(0.25), down_bytes: None });
        let slow = goal(WITH_ORDER, parse_link("10M/80ms").expect("link"), 12.5e6, Some(0.1));
        assert!((slow.seconds.expect("a goal") - 10.9).abs() < 1e-9);
        assert_eq!(goal("nbdkit curl", GOAL_LINK, 12.5e6, Some(0.1)), Goal::default());
        assert!(parse_link("100M").is_err());
    }

    #[test]
    fn a_picture_is_well_formed_and_names_every_system() {
        let picture = picture(&runs()).expect("picture");
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("nbdkit &lt;curl&gt;") && picture.contains("prefers-color-scheme: dark"));
        let (opened, closed) = (picture.matches("<text").count(), picture.matches("</text>").count());
        assert!(opened == closed && opened > 2 * runs().runs.len() / 2, "{opened} {closed}");
    }
}
