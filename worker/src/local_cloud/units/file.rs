//! Unit files as text: sections, assignments, command lines.
//!
//! The grammar is systemd's (`systemd.syntax(7)`, "Command lines" of `systemd.service(5)`): later
//! assignments add to lists, an empty one clears them, a backslash at the end of a line joins it
//! with the next. Nothing is given a meaning here.

use std::collections::BTreeMap;

/// The assignments of a unit and its drop-ins, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct UnitFile {
    values: BTreeMap<(String, String), Vec<String>>,
}

impl UnitFile {
    /// Adds a file's assignments.
    pub(super) fn add(&mut self, text: &str) {
        let mut section = String::new();
        for line in joined(text) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let place = (section.clone(), key.trim().to_owned());
            let values = self.values.entry(place).or_default();
            match value.trim() {
                "" => values.clear(),
                value => values.push(value.to_owned()),
            }
        }
    }

    /// All values of a directive.
    pub(super) fn all(&self, section: &str, key: &str) -> &[String] {
        self.values
            .get(&(section.to_owned(), key.to_owned()))
            .map_or(&[], Vec::as_slice)
    }

    /// The value that counts of a directive that takes one.
    pub(super) fn last(&self, section: &str, key: &str) -> Option<&str> {
        self.all(section, key).last().map(String::as_str)
    }

    /// The words of a list directive.
    pub(super) fn words(&self, section: &str, key: &str) -> Vec<String> {
        self.all(section, key)
            .iter()
            .flat_map(|v| v.split_whitespace())
            .map(str::to_owned)
            .collect()
    }

    /// Every directive that is set, as section and key.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        let set = self.values.iter().filter(|(_, v)| !v.is_empty());
        set.map(|((section, key), _)| (section.as_str(), key.as_str()))
    }
}

/// Lines with continuations joined; comments in between are left out, as systemd does.
fn joined(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        if open.is_some() && line.trim_start().starts_with(['#', ';']) {
            continue;
        }
        let mut whole = open.take().unwrap_or_default();
        match line.trim_end().strip_suffix('\\') {
            Some(more) => {
                whole.push_str(more);
                whole.push(' ');
                open = Some(whole);
            }
            None => {
                whole.push_str(line);
                lines.push(whole);
            }
        }
    }
    lines.extend(open);
    lines
}

/// Splits a command line or an `Environment=` value into words, with quotes and escapes undone.
///
/// # Errors
/// A quote that is not closed, or an escape that is not known.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\\') => word.get_or_insert_default().push(escape(&mut chars)?),
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

fn escape(chars: &mut std::str::Chars<'_>) -> Result<char, String> {
    let code = |chars: &mut std::str::Chars<'_>, digits: usize, radix| {
        let text: String = chars.by_ref().take(digits).collect();
        let number = u32::from_str_radix(&text, radix)
            .ok()
            .filter(|_| text.len() == digits);
        number
            .and_then(char::from_u32)
            .ok_or_else(|| format!("\\x{text} is no character"))
    };
    match chars.next() {
        Some('n') => Ok('\n'),
        Some('t') => Ok('\t'),
        Some('r') => Ok('\r'),
        Some('s') => Ok(' '),
        Some('x') => code(chars, 2, 16),
        Some('u') => code(chars, 4, 16),
        Some(c @ ('\\' | '"' | '\'' | ' ' | ';')) => Ok(c),
        Some(c) => Err(format!("the escape \\{c} is not known")),
        None => Err("a backslash at the end".to_owned()),
    }
}

/// A time span in seconds: `5`, `5s`, `1min 30s`, `500ms`, `infinity` (none).
pub(super) fn seconds(text: &str) -> Result<Option<f64>, String> {
    if text == "infinity" {
        return Ok(None);
    }
    let bad = || format!("{text:?} is no time span");
    let mut total = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        rest = rest[end..].trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "" | "s" | "sec" | "second" | "seconds" => 1.0,
                "ms" | "msec" => 0.001,
                "m" | "min" | "minute" | "minutes" => 60.0,
                "h" | "hr" | "hour" | "hours" => 3600.0,
                _ => return Err(bad()),
            };
        rest = rest[end..].trim_start();
    }
    Ok(Some(total))
}
