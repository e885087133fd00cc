//! Python packages of others that judge what we make, each set in an environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{shown, succeeds};
use crate::workspace::Workspace;

/// A set of packages and the tests that ask it.
#[derive(Debug)]
pub struct Judge {
    /// The test target, alone in the workspace with this name.
    pub target: &'static str,
    /// What is installed, with versions.
    requirements: &'static str,
    /// The environment, below the target folder.
    folder: &'static str,
    /// The variable that tells the tests where its programs are.
    pub variable: &'static str,
}

/// Judges bills of material and signatures.
pub const ATTEST: Judge = Judge {
    target: "judges",
    requirements: "attest/tests/judges/requirements.txt",
    folder: "judges",
    variable: "OAST_JUDGES",
};

/// Microsoft's own client judges the simulated cloud.
pub const AZURE: Judge = Judge {
    target: "sdk",
    requirements: "tests/azure-sim/tests/sdk/requirements.txt",
    folder: "azure-sdk",
    variable: "OAST_AZURE_SDK",
};

/// Every judge; their test targets are suites of their own.
pub const ALL: [&Judge; 2] = [&ATTEST, &AZURE];

/// Holds the requirements that the environment was made for; written last.
const STAMP: &str = "requirements.txt";

/// The environment's `bin` folder, made anew when the requirements have changed.
pub fn provide(workspace: &Workspace, judge: &Judge) -> Result<PathBuf> {
    let name = judge.requirements;
    let requirements = workspace.root.join(name);
    let wanted =
        std::fs::read_to_string(&requirements).with_context(|| format!("cannot read {name}"))?;
    let folder = workspace.target.join(judge.folder);
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
    println!("test: judges: installing {name} into {}", folder.display());
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
