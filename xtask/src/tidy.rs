//! The rules of this code base that no other tool knows.
//!
//! Each rule is a function from the workspace to problems; a problem names the place, the rule and
//! the way out. Warnings are printed and do not fail.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

mod arrows;
mod banned;
mod dependencies;
mod docs;
mod files;
mod lexer;
mod licence;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// `file` or `file:line`.
    pub place: String,
    /// What is wrong and what to do instead.
    pub what: String,
}

impl Problem {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Problem {
        Problem {
            place: place.into(),
            what: what.into(),
        }
    }
}

/// A committed text file.
#[derive(Debug)]
pub struct Text {
    /// Relative to the root.
    pub path: PathBuf,
    pub text: String,
}

impl Text {
    fn extension(&self) -> &str {
        self.path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

/// Runs every rule and prints what it finds; true when nothing is wrong.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let paths = workspace.files()?;
    let texts = read(&workspace.root, &paths)?;
    let mut problems = files::sizes(&workspace.root, &paths)?;
    problems.extend(files::names(&paths));
    problems.extend(files::contents(&texts));
    problems.extend(banned::scan(&texts));
    problems.extend(docs::decisions(&texts));
    problems.extend(docs::links(&texts, &paths));
    problems.extend(arrows::direct(workspace));
    problems.extend(arrows::reachable(workspace)?);
    problems.extend(dependencies::manifests(&texts));
    problems.extend(dependencies::rules(workspace)?);
    for problem in &problems {
        println!("tidy: {}: {}", problem.place, problem.what);
    }
    for warning in files::long(&texts) {
        println!("tidy: note: {}: {}", warning.place, warning.what);
    }
    println!("tidy: {} files, {} problems", paths.len(), problems.len());
    Ok(problems.is_empty())
}

/// Reads what is text; the rest (images, archives) only has a size.
fn read(root: &Path, paths: &[PathBuf]) -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    for path in paths {
        let bytes = std::fs::read(root.join(path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            texts.push(Text {
                path: path.clone(),
                text,
            });
        }
    }
    Ok(texts)
}
