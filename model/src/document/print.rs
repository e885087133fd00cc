//! Values to YAML, for people: blocks, two spaces, quotes only where they are needed.
//!
//! Takes a JSON value, because every file type can be made one. What it prints,
//! [`super::yaml`] reads back as the same.

use std::fmt::Write as _;

use serde_json::Value;

/// Prints a value as one YAML document.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, false, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, false, &mut out),
        other => {
            inline(other, &mut out);
            out.push('\n');
        }
    }
    out
}

/// Prints a map or list of at least one entry. `hanging`: the first line's indent is already there.
fn block(value: &Value, indent: usize, hanging: bool, out: &mut String) {
    let pad = |first: bool, out: &mut String| {
        if !(first && hanging) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                pad(index == 0, out);
                scalar(key, out);
                out.push(':');
                entry(value, indent, out);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pad(index == 0, out);
                out.push('-');
                if is_block(item) {
                    out.push(' ');
                    block(item, indent + 2, true, out);
                } else {
                    entry(item, indent, out);
                }
            }
        }
        other => inline(other, out),
    }
}

/// Prints what follows a key or a dash, with the line's end.
fn entry(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::String(text) if fits_literal(text) => literal(text, indent + 2, out),
        value if is_block(value) => {
            out.push('\n');
            block(value, indent + 2, false, out);
        }
        other => {
            out.push(' ');
            inline(other, out);
            out.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn inline(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => scalar(text, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Whether a text of several lines can be printed as `|`.
fn fits_literal(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && !body.ends_with('\n')
        && body.split('\n').all(|line| line.trim_end() == line)
        && body.chars().all(|c| c == '\n' || !needs_escape(c))
}

fn literal(text: &str, indent: usize, out: &mut String) {
    // `|-`: the text itself does not end its last line.
    out.push_str(if text.ends_with('\n') {
        " |\n"
    } else {
        " |-\n"
    });
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        if !line.is_empty() {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn scalar(text: &str, out: &mut String) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // Writing to a String cannot fail.
            c if needs_escape(c) => drop(write!(out, "\\U{:08X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Controls, line separators, marks that change the reading order, and what YAML cannot hold.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether a text may stand without quotes and still be read as a text by every YAML tool.
fn is_plain(text: &str) -> bool {
    let inner = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(
                c,
                ' ' | '_' | '-' | '.' | '/' | '+' | '=' | '@' | '$' | '(' | ')' | ';'
            )
    };
    text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'))
        && !text.ends_with(' ')
        && text.chars().all(inner)
        && !text.contains(" -")
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_print_as_people_would_write_them() {
        let value = json!({
            "name": "web",
            "port": 80,
            "off": "off",
            "empty": {},
            "steps": [{ "run": "a\nb\n", "name": "two lines" }, { "run": "echo \"x: y\"" }],
            "list": ["a", 1, ["b"]],
        });
        let expected = "name: web\nport: 80\n\"off\": \"off\"\nempty: {}\nsteps:\n  - run: |\n      a\n      b\n    \
                        name: two lines\n  - run: \"echo \\\"x: y\\\"\"\nlist:\n  - a\n  - 1\n  - - b\n";
        assert_eq!(yaml(&value), expected);
    }
}
