//! Names, sizes and words of committed files.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Problem, Text};

/// Largest committed file: a repository is cloned by everybody, for ever.
const LARGEST: u64 = 1 << 20;

/// Where a source file is worth a question, not an error: which state or command can leave?
const LONG: usize = 800;

/// File stems that say nothing about what is inside.
const EMPTY_STEMS: [&str; 9] = [
    "mod", "util", "utils", "helper", "helpers", "common", "misc", "manager", "impl",
];

/// Words that only a particular machine or a mirror of ours would bring, in pieces so that this
/// file does not contain them.
const MACHINE: [(&str, &str); 3] = [("/tmp", "/wt"), ("/work", "/shared"), ("/work", "/main")];

/// Distribution hosts: which mirror is used is configuration, never compiled in.
const HOSTS: [&str; 4] = [
    "deb.debian.org",
    "security.debian.org",
    "archive.ubuntu.com",
    "ports.ubuntu.com",
];

/// Where a distribution's public archive is named because an image's own sources.list needs a
/// default. Nothing is fetched from there on the build machine.
const NAMES_ARCHIVES: &str = "worker/src/bake/base/distribution.rs";

/// Crates whose code may name no host.
const PRODUCT: [&str; 7] = [
    "artifacts/",
    "cli/",
    "coordinator/",
    "daemon/",
    "model/",
    "proto/",
    "worker/",
];

/// Files that are too big to commit.
pub fn sizes(root: &Path, paths: &[PathBuf]) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for path in paths {
        let bytes = std::fs::metadata(root.join(path))?.len();
        if bytes > LARGEST {
            let what = format!("{bytes} bytes; generate or download it instead (limit {LARGEST})");
            problems.push(Problem::new(path.display().to_string(), what));
        }
    }
    Ok(problems)
}

/// Source files whose name says nothing.
pub fn names(paths: &[PathBuf]) -> Vec<Problem> {
    let sources = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let empty = sources.filter(|path| {
        path.file_stem()
            .and_then(|s| s.to_str())
            .is_some_and(|stem| EMPTY_STEMS.contains(&stem))
    });
    let what = "name the file for what it holds; a folder `foo/` has its parent in `foo.rs`";
    empty
        .map(|path| Problem::new(path.display().to_string(), what))
        .collect()
}

/// Lines that do not belong into a repository.
pub fn contents(texts: &[Text]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in texts {
        let path = file.path.to_string_lossy();
        let product = file.extension() == "rs"
            && PRODUCT.iter().any(|dir| path.starts_with(dir))
            && path != NAMES_ARCHIVES
            && !file.path.ends_with("tests.rs")
            && !path.contains("/tests/");
        let code = if product {
            super::lexer::outside_tests_with_strings(&file.text)
        } else {
            String::new()
        };
        for (number, line) in file.text.lines().enumerate() {
            let place = || file.place(number + 1);
            if MACHINE
                .iter()
                .any(|(a, b)| line.contains(&[*a, *b].concat()))
            {
                problems.push(Problem::new(place(), "a path of one machine"));
            }
            if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
                problems.push(Problem::new(place(), "an unresolved merge"));
            }
            if file.extension() == "rs" && line.contains(concat!("FIX", "ME")) {
                problems.push(Problem::new(
                    place(),
                    "fix it now, or write TODO(issue): and why it can wait",
                ));
            }
        }
        for (number, line) in code.lines().enumerate() {
            if let Some(host) = HOSTS.iter().find(|host| line.contains(*host)) {
                let what = format!("{host} is compiled in; the mirror is configuration");
                problems.push(Problem::new(file.place(number + 1), what));
            }
        }
    }
    problems
}

/// Source files that have grown long.
pub fn long(texts: &[Text]) -> Vec<Problem> {
    let mut long: Vec<(usize, &Text)> = texts
        .iter()
        .filter(|file| file.extension() == "rs")
        .map(|file| (file.text.lines().count(), file))
        .filter(|(lines, _)| *lines > LONG)
        .collect();
    long.sort_by_key(|(lines, _)| std::cmp::Reverse(*lines));
    let note = |(lines, file): (usize, &Text)| {
        Problem::new(
            file.path.display().to_string(),
            format!("{lines} lines; what can leave?"),
        )
    };
    long.into_iter().map(note).collect()
}
