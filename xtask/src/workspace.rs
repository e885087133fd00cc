//! What cargo and git know about the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::{cargo, output};

/// The workspace this program was built from.
#[derive(Debug)]
pub struct Workspace {
    /// Its root folder.
    pub root: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
    /// Every package of the resolved graph, ours and others'.
    pub packages: Vec<Package>,
}

/// One package as `cargo metadata` tells it.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// None for our own.
    pub source: Option<String>,
    pub license: Option<String>,
    pub manifest_path: PathBuf,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// None for a normal one, else "dev" or "build".
    pub kind: Option<String>,
    pub path: Option<PathBuf>,
}

/// Something cargo can build.
#[derive(Debug, Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

impl Workspace {
    /// Asks cargo, for this machine's platform only.
    pub fn find() -> Result<Workspace> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = cargo();
        command.args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
        ]);
        command.arg(host()?).current_dir(here);
        let text = output(&mut command)?;
        let found: Metadata =
            serde_json::from_str(&text).context("cannot read `cargo metadata`")?;
        Ok(Workspace {
            root: found.workspace_root,
            target: found.target_directory,
            packages: found.packages,
        })
    }

    /// Our own packages.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| package.source.is_none())
    }

    /// Every file that is or could be committed, relative to the root, in order.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut git = Command::new("git");
        git.args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]);
        let text = output(git.current_dir(&self.root))?;
        let mut files: Vec<PathBuf> = text
            .split('\0')
            .filter(|f| !f.is_empty())
            .map(Into::into)
            .collect();
        // Deleted but not yet staged files are listed too.
        files.retain(|file| self.root.join(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }
}

/// The platform we run on, as rustc calls it.
fn host() -> Result<String> {
    let text = output(Command::new("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.to_owned())
}
