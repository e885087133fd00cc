//! Documents: decision pages have their sections, links lead somewhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::{Problem, Text};

/// What every decision page answers, in this order.
const SECTIONS: [&str; 5] = [
    "Context",
    "Options",
    "Choice",
    "Drawbacks",
    "When to revisit",
];

const DECISIONS: &str = "docs/decisions";

/// Checks name, number and sections of each decision page.
pub fn decisions(texts: &[Text]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut numbers = BTreeSet::new();
    for page in texts.iter().filter(|file| file.path.starts_with(DECISIONS)) {
        let place = page.path.display().to_string();
        let stem = page
            .path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        if stem == "README" || stem == "template" {
            continue;
        }
        let number = stem
            .split_once('-')
            .map(|(number, _)| number)
            .unwrap_or_default();
        if number.len() != 4 || !number.bytes().all(|b| b.is_ascii_digit()) {
            problems.push(Problem::new(&place, "name it NNNN-what-was-decided.md"));
        } else if !numbers.insert(number.to_owned()) {
            problems.push(Problem::new(
                &place,
                format!("number {number} is taken; take the next"),
            ));
        }
        let found: Vec<&str> = page
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .map(str::trim)
            .collect();
        if found != SECTIONS {
            let what = format!("has the sections {found:?}; a decision has {SECTIONS:?}");
            problems.push(Problem::new(&place, what));
        }
    }
    problems
}

/// Checks that relative links name a file (and heading) that is there.
pub fn links(texts: &[Text], paths: &[PathBuf]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for page in texts.iter().filter(|file| file.extension() == "md") {
        for (number, line) in prose(&page.text) {
            for target in targets(&line) {
                if let Some(why) = broken(page, &target, texts, paths) {
                    problems.push(Problem::new(
                        page.place(number),
                        format!("link {target}: {why}"),
                    ));
                }
            }
        }
    }
    problems
}

/// The lines outside fenced blocks, without inline code, numbered.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let outside: Vec<&str> = line.split('`').step_by(2).collect();
            lines.push((at + 1, outside.join(" ")));
        }
    }
    lines
}

/// Every `](target)` of a line.
fn targets(line: &str) -> Vec<String> {
    let pieces = line.split("](").skip(1);
    let inside = pieces.filter_map(|piece| piece.split_once(')').map(|(target, _)| target));
    inside
        .map(|target| {
            target
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

/// Why a link leads nowhere, if it does.
fn broken(page: &Text, target: &str, texts: &[Text], paths: &[PathBuf]) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match file {
        "" => page.path.clone(),
        _ => normal(&page.path.with_file_name(file)),
    };
    let is_folder =
        path.as_os_str().is_empty() || paths.iter().any(|known| known.starts_with(&path));
    if !is_folder {
        return Some("no such file".to_owned());
    }
    let text = texts.iter().find(|text| text.path == path);
    let headings = text.map(|text| anchors(&text.text)).unwrap_or_default();
    let known = anchor.is_empty() || headings.iter().any(|heading| heading == anchor);
    (!known).then(|| "no such heading".to_owned())
}

/// Resolves `..` without looking at the disk.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Headings as the anchors that common renderers give them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let names = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    names
        .map(|name| {
            let kept = name
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, text: &str) -> Text {
        Text {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_link_to_nowhere_is_found_and_code_is_not_a_link() {
        let texts = [
            page(
                "README.md",
                "see [a](docs/a.md#two-words), [b](docs/b.md)\n`[c](d)`\n```\n[e](f)\n```\n[g](docs)\n",
            ),
            page("docs/a.md", "# Two words\n[up](../README.md#gone)\n"),
        ];
        let paths: Vec<PathBuf> = texts.iter().map(|text| text.path.clone()).collect();
        let found: Vec<String> = links(&texts, &paths)
            .into_iter()
            .map(|p| p.place + " " + &p.what)
            .collect();
        assert_eq!(
            found,
            [
                "README.md:1 link docs/b.md: no such file",
                "docs/a.md:2 link ../README.md#gone: no such heading",
            ]
        );
    }

    #[test]
    fn a_decision_without_its_sections_or_with_a_taken_number_is_found() {
        let good = "# T\n## Context\n## Options\n## Choice\n## Drawbacks\n## When to revisit\n";
        let texts = [
            page("docs/decisions/0001-a.md", good),
            page("docs/decisions/0001-b.md", good),
            page("docs/decisions/c.md", "# T\n"),
        ];
        let places: Vec<String> = decisions(&texts).into_iter().map(|p| p.place).collect();
        assert_eq!(
            places,
            [
                "docs/decisions/0001-b.md",
                "docs/decisions/c.md",
                "docs/decisions/c.md"
            ]
        );
    }
}
