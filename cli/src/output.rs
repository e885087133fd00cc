//! How results look: text for people, JSON for programs, names for shells.
//!
//! Results go to standard output, everything else to standard error. What comes from elsewhere
//! (log lines, commit subjects, reasons) is cleaned before it reaches a terminal: colours may pass
//! in logs, nothing else that steers a terminal does. Colours end where no terminal is or NO_COLOR
//! is set, which `anstream` sees to.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use oast_daemon::clock::{Clock, SystemClock};
use oast_daemon::exit::Exit;
use serde::Serialize;

use crate::fail::Fail;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON value.
    Json,
    /// One JSON value a line: each element of a list, each change of a watch.
    Jsonl,
    /// Only the name or id, one a line.
    Name,
}

/// The flag of commands that print a result.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Output {
    /// How the result is printed
    #[arg(short = 'o', long = "output", global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

impl Output {
    /// Prints one thing.
    pub fn one<T: Serialize>(
        self,
        name: &str,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        match self.format {
            Format::Text => out.write_all(text().as_bytes())?,
            Format::Json => writeln!(out, "{}", json(value, true)?)?,
            Format::Jsonl => writeln!(out, "{}", json(value, false)?)?,
            Format::Name => writeln!(out, "{}", plain(name))?,
        }
        out.flush()
    }

    /// Prints a list. An empty one says so on standard error, so that it reads as an answer.
    pub fn list<T: Serialize>(
        self,
        items: &[T],
        name: impl Fn(&T) -> &str,
        empty: &str,
        text: impl FnOnce(&[T]) -> String,
    ) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        match self.format {
            Format::Text if items.is_empty() => note(empty),
            Format::Text => out.write_all(text(items).as_bytes())?,
            Format::Json => writeln!(out, "{}", json(&items, true)?)?,
            Format::Jsonl => {
                for item in items {
                    writeln!(out, "{}", json(item, false)?)?;
                }
            }
            Format::Name => {
                for item in items {
                    writeln!(out, "{}", plain(name(item)))?;
                }
            }
        }
        out.flush()
    }

    /// Whether people read it.
    pub fn is_text(self) -> bool {
        self.format == Format::Text
    }
}

fn json<T: Serialize + ?Sized>(value: &T, pretty: bool) -> io::Result<String> {
    let text = if pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    text.map_err(io::Error::other)
}

/// A line on standard error.
pub fn note(text: impl AsRef<str>) {
    // A terminal that is gone is no reason to fail.
    let _ = writeln!(anstream::stderr().lock(), "{}", text.as_ref());
}

/// Columns without lines around them, as other tools print them.
pub fn table<const N: usize>(
    heads: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads);
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    let last = N.saturating_sub(1);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if place == last { 0 } else { 2 }));
        column.set_cell_alignment(CellAlignment::Left);
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `label  value` lines with the labels in a column; what is empty is left out.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in shown() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:width$}  {}", plain(value));
    }
    text
}

/// The text without anything that steers a terminal.
pub fn plain(text: &str) -> String {
    let stripped = anstream::adapter::strip_str(text).to_string();
    stripped
        .chars()
        .filter(|c| !steers(*c) || *c == '\n')
        .collect()
}

/// The text with colours, but without anything else that steers a terminal.
pub fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(steers) {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        match sgr(tail) {
            Some(length) => {
                out.push_str(&tail[..length]);
                rest = &tail[length..];
            }
            None => {
                let first = tail.chars().next().map_or(0, char::len_utf8);
                if tail.starts_with('\t') {
                    out.push('\t');
                }
                rest = &tail[first..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Length of the colour sequence at the start of the text, if there is one.
fn sgr(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("\u{1b}[")?;
    let end = inner.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    inner[end..].starts_with('m').then_some(2 + end + 1)
}

/// Control characters, C1 included, and what reorders text.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Now, in the farm's unit.
pub fn now_ms() -> u64 {
    SystemClock.wall().as_millis()
}

/// A span as people say it: `850ms`, `4.2s`, `3m05s`, `2h10m`, `5d`.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}.{}s", seconds, ms % 1000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600_000..172_800_000 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago, or nothing for a time that is not there.
pub fn ago(at_ms: u64) -> String {
    match at_ms {
        0 => String::new(),
        at => match now_ms().saturating_sub(at) {
            recent @ 0..60_000 => format!("{}s ago", recent / 1000),
            longer => format!("{} ago", span(longer)),
        },
    }
}

/// From one time to another, or to now.
pub fn took(from_ms: u64, to_ms: u64) -> String {
    let to = if to_ms == 0 { now_ms() } else { to_ms };
    if from_ms == 0 {
        String::new()
    } else {
        span(to.saturating_sub(from_ms))
    }
}

/// Bytes as people say them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 file`, `2 files`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// The phase with a sign, so that it can be found with half an eye.
pub fn phase(word: &str) -> String {
    let (colour, sign) = match word {
        "succeeded" | "done" | "passed" | "healthy" => (32, "\u{2714}"),
        "failed" | "errored" | "rolled_back" | "unhealthy" => (31, "\u{2716}"),
        "cancelled" | "skipped" => (33, "-"),
        "pending" | "waiting" | "planned" => (2, "."),
        _ => (36, ">"),
    };
    let sign = if crate::validate::unicode() || sign.is_ascii() {
        sign
    } else if colour == 32 {
        "+"
    } else {
        "x"
    };
    format!("\u{1b}[{colour}m{sign} {}\u{1b}[0m", word.replace('_', " "))
}

/// The first of a commit, as Git shows it.
pub fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

/// Asks before something that cannot be taken back. Without a terminal `--yes` must be given.
pub fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Fail::usage(format!("nobody can be asked here: {question}"))
            .hint("--yes says so beforehand")
            .into());
    }
    let mut err = anstream::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        note("Nothing was changed.");
    }
    Ok(yes)
}

/// What a declined question ends with.
pub const DECLINED: Exit = Exit::Interrupted;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_plain_columns_without_trailing_space() {
        let rows = [
            ["r-1".to_owned(), "x".to_owned()],
            ["r-1000".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["RUN", "PHASE"], rows),
            "RUN     PHASE\nr-1     x\nr-1000\n"
        );
    }

    #[test]
    fn facts_leave_out_what_is_empty() {
        let pairs = [
            ("Run", "r-1".to_owned()),
            ("Commit", String::new()),
            ("Team", "demo".to_owned()),
        ];
        assert_eq!(facts(&pairs), "Run   r-1\nTeam  demo\n");
    }

    #[test]
    fn only_colours_pass_from_a_log_to_the_terminal() {
        assert_eq!(
            coloured("a\u{1b}[31mred\u{1b}[0m\tb"),
            "a\u{1b}[31mred\u{1b}[0m\tb"
        );
        assert_eq!(coloured("\u{1b}]0;t\u{7}x\u{1b}[2Jy\r"), "]0;tx[2Jy");
        assert_eq!(coloured("\u{1b}["), "[");
        assert_eq!(plain("a\u{1b}[31mred\u{1b}[0m\u{202e}"), "ared");
    }

    #[test]
    fn spans_and_sizes_read_as_people_say_them() {
        let spans = [
            (0, "0ms"),
            (4_250, "4.2s"),
            (185_000, "3m05s"),
            (7_800_000, "2h10m"),
            (432_000_000, "5d"),
        ];
        for (ms, text) in spans {
            assert_eq!(span(ms), text);
        }
        for (n, text) in [
            (0, "0 B"),
            (1536, "1.5 KiB"),
            (1 << 30, "1.0 GiB"),
            ((1 << 20) - 1, "1.0 MiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }
}
