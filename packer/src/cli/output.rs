//! What the commands print: data on standard output, talk on standard error.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::LinkReport;

/// Talks to the user.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Starts a log on standard error, of what `level` says unless `VMNETX_LOG` says more or less.
pub(super) fn start_log(level: &str) {
    let filter = EnvFilter::try_from_env("VMNETX_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // The root program may have set up its own.
    let _ = subscriber.with_target(false).try_init();
}

/// Gives data to whatever reads standard output.
pub(super) fn put(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Gives one JSON object to whatever reads standard output.
pub(super) fn put_json(value: &impl Serialize) {
    // A structure of numbers and text always serialises.
    put(&serde_json::to_string(value).unwrap_or_default());
}

/// Says what a link names now.
pub(super) fn put_link(report: &LinkReport) {
    let LinkReport { name, serial, .. } = report;
    if report.published {
        put(&format!("published {name}, serial {serial}"));
    } else {
        put(&format!("{name} says just that already, serial {serial}: nothing was changed"));
    }
    put(&format!("current   {}", report.current));
    for version in &report.retained {
        put(&format!("retained  {version}"));
    }
    for version in &report.given_up {
        put(&format!("given up  {version}"));
    }
}

/// Reads a part of a whole: `40` and `40%` are 40.
pub(super) fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| "it is no number".to_owned())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("it is not between 0 and 100".to_owned()) }
}

/// Bytes for people: `442.1 MB`.
pub(super) fn shown_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

/// Seconds since 1970 for people: `2026-11-23 10:10 UTC`.
pub(super) fn shown_time(unix_s: u64) -> String {
    let (days, second_of_day) = (unix_s / 86_400, unix_s % 86_400);
    // Days are counted from 0000-03-01, so that a leap day is the last of its year: 400 years have 146097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second_of_day / 3600, second_of_day / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_a_unit() {
        for (bytes, text) in [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (442_100_000, "442.1 MB")] {
            assert_eq!(shown_bytes(bytes), text);
        }
    }

    #[test]
    fn times_are_shown_as_dates() {
        // From `date -u -d @SECONDS`.
        for (unix_s, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_795_428_645, "2026-11-23 10:10 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(shown_time(unix_s), text);
        }
    }
}
