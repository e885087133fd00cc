//! The Python packages that judge our attestations, in an environment of their own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{shown, succeeds};
use crate::workspace::Workspace;

/// What is installed, with versions.
const REQUIREMENTS: &str = "attest/tests/judges/requirements.txt";
/// Holds the requirements that the environment was made for; written last.
const STAMP: &str = "requirements.txt";

/// The environment's `bin` folder, made anew when the requirements have changed.
pub fn provide(workspace: &Workspace) -> Result<PathBuf> {
    let requirements = workspace.root.join(REQUIREMENTS);
    let wanted = std::fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {REQUIREMENTS}"))?;
    let folder = workspace.target.join("judges");
    let stamp = folder.join(STAMP);
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(folder.join("bin"));
    }
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    println!(
        "test: judges: installing {REQUIREMENTS} into {}",
        folder.display()
    );
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let mut install = Command::new(folder.join("bin/python"));
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    run(install.arg("-r").arg(&requirements))?;
    std::fs::write(&stamp, wanted)?;
    Ok(folder.join("bin"))
}

fn run(command: &mut Command) -> Result<()> {
    println!("test: {}", shown(command));
    match succeeds(command)? {
        true => Ok(()),
        false => bail!("`{}` failed", shown(command)),
    }
}
