//! Just enough of Rust's lexical grammar to look for calls without being fooled.
//!
//! [`code`] blanks comments and the insides of string and character literals, keeping every line
//! where it was. [`outside_tests`] blanks inline `#[cfg(test)]` modules as well. Not a parser: a
//! macro that builds an identifier from pieces is not seen, and need not be.

/// The text with comments and literals blanked, byte for byte.
pub fn code(text: &str) -> String {
    blank(text, true)
}

/// Blanks comments, and the insides of literals when `literals` says so.
fn blank(text: &str, literals: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (length, blanked) = match (comment(rest), literal(rest)) {
            (Some(length), _) => (length, true),
            (None, Some(length)) => (length, literals),
            // An identifier is taken whole, so that its end cannot look like r"..".
            (None, None) => match rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()) {
                0 => (rest.chars().next().map_or(0, char::len_utf8), false),
                word => (word, false),
            },
        };
        let (piece, after) = rest.split_at(length);
        if blanked {
            out.push_str(&spaces(piece))
        } else {
            out.push_str(piece)
        }
        rest = after;
    }
    out
}

/// As many bytes of blanks, with the line breaks kept.
fn spaces(text: &str) -> String {
    text.bytes()
        .map(|b| if b == b'\n' { '\n' } else { ' ' })
        .collect()
}

/// Whether `c` may be part of an identifier or number.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(text.len())
}

/// Length of the string or character literal that `text` begins with, prefix included.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['"', '\'', '#']))
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        if !rest[hashes..].starts_with('"') {
            return None;
        }
        let close = format!("\"{}", "#".repeat(hashes));
        let body = &rest[hashes + 1..];
        let end = body.find(&close).map_or(body.len(), |at| at + close.len());
        return Some(prefix.len() + hashes + 1 + end);
    }
    match rest.chars().next()? {
        '"' => Some(prefix.len() + quoted(rest, '"')),
        '\'' if is_char(rest) => Some(prefix.len() + quoted(rest, '\'')),
        _ => None,
    }
}

/// Tells a character literal from a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!(
        (chars.next(), chars.next()),
        (Some('\\'), _) | (Some(_), Some('\''))
    )
}

/// Length up to and including the closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// [`code`] with the inline `#[cfg(test)]` modules blanked too.
pub fn outside_tests(text: &str) -> String {
    without_test_modules(text, code(text))
}

/// As [`outside_tests`], but string literals stay: for rules about what is compiled in.
pub fn outside_tests_with_strings(text: &str) -> String {
    without_test_modules(text, blank(text, false))
}

/// Blanks in `out` what are test modules in `text`; both have the same length.
fn without_test_modules(text: &str, mut out: String) -> String {
    let code = code(text);
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]") {
        let begin = from + at;
        let Some(length) = module_end(&code[begin..]) else {
            from = begin + 1;
            continue;
        };
        let range = begin..begin + length;
        let blanked = spaces(&out[range.clone()]);
        from = range.end;
        out.replace_range(range, &blanked);
    }
    out
}

/// Where the braced item behind the attribute ends; None for `mod tests;`.
fn module_end(text: &str) -> Option<usize> {
    let open = text.find(['{', ';'])?;
    if text.as_bytes()[open] == b';' {
        return None;
    }
    let mut depth = 0_usize;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < open) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_stay() {
        let text = "a(); // todo!\n/* x /* y */ z */ b(\"todo!\", r#\"to\"do!\"#, 'x', b'\\'');\n";
        let code = code(text);
        assert_eq!(code.lines().count(), 2);
        assert!(!code.contains("todo") && !code.contains("to\"do"), "{code}");
        assert!(code.contains("a();") && code.contains("b("), "{code}");
    }

    #[test]
    fn a_lifetime_is_not_a_character() {
        assert_eq!(
            code("fn f<'a>(x: &'a str) { g('a') }"),
            "fn f<'a>(x: &'a str) { g(   ) }"
        );
        assert_eq!(code("let for_r = bar\"s\";"), "let for_r = bar   ;");
    }

    #[test]
    fn an_inline_test_module_is_blanked_and_code_behind_it_is_not() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { x.unwrap() } }\nfn c() {}\n";
        let code = outside_tests(text);
        assert!(code.contains("fn a") && code.contains("fn c") && !code.contains("unwrap"));
        assert!(outside_tests("#[cfg(test)]\nmod tests;\nfn c() {}").contains("fn c"));
    }
}
