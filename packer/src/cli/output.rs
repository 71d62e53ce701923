//! What the commands print: data on standard output, talk on standard error.

use std::io::Write;

use serde::Serialize;

/// Talks to the user.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
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
