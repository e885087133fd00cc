//! Times, sizes and marks as people read them on a page.

use oast_model::time::Timestamp;

/// Mark and colour class of a phase; never colour alone.
pub(super) fn mark(phase: &str) -> (&'static str, &'static str) {
    match phase {
        "succeeded" | "done" | "passed" => ("✔", "good"),
        "failed" | "errored" => ("✖", "bad"),
        "rolled_back" | "rolling_back" => ("↩", "bad"),
        "cancelled" | "skipped" => ("–", "quiet"),
        "waiting" | "pending" | "planned" | "paused" => ("○", "quiet"),
        _ => ("●", "busy"),
    }
}

/// A phase as two words instead of one with an underscore.
pub(super) fn phase(phase: &str) -> String {
    phase.replace('_', " ")
}

/// `1.2 s`, `3 min 04 s`, `2 h 05 min`.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{}.{} s", seconds, ms % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `just now`, `5 min ago`, `3 h ago`, `2 d ago`.
pub(super) fn ago(then_ms: u64, now: Timestamp) -> String {
    let seconds = now.as_millis().saturating_sub(then_ms) / 1000;
    match seconds {
        0..5 => "just now".to_owned(),
        5..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// The first characters of a commit id, as `git` shows them.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}

/// The time of day in UTC.
pub(super) fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hour:02}:{minute:02}:{:02}", seconds % 60)
}

/// One of eight colour classes, the same for a version wherever it is shown, and different for
/// neighbours.
pub(super) fn colour(version: &str) -> &'static str {
    const CLASSES: [&str; 8] = ["v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"];
    let number = version
        .rsplit(':')
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    CLASSES[number.unwrap_or(0) % CLASSES.len()]
}

/// Text without the control sequences that terminals understand.
pub(super) fn plain(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next_if_eq(&'[').is_some() {
                // Up to the letter that ends it.
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            continue;
        }
        if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_colours_leave_only_their_text() {
        assert_eq!(plain(b"\x1b[1;32mok\x1b[0m done\r"), "ok done");
        assert_eq!(plain(b"\x1b"), "");
        assert_eq!(plain(b"\x1b[31"), "");
    }

    #[test]
    fn spans_and_ages_read_well() {
        assert_eq!(span(1_234), "1.2 s");
        assert_eq!(span(61_000), "1 min 01 s");
        assert_eq!(span(3_720_000), "1 h 02 min");
        let now = Timestamp::from_millis(10_000_000);
        assert_eq!(ago(10_000_000 - 65_000, now), "1 min ago");
        assert_eq!(ago(20_000_000, now), "just now");
    }
}
