//! `cargo xtask sim`: the whole farm in one thread, from many seeds (`tests/sim`).

use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, output, succeeds};
use crate::workspace::Workspace;

/// How many seeds the test run simulates, if not [`SEEDS_IN_TESTS`].
const SEEDS: &str = "OAST_SIM_SEEDS";
/// A bit more than a minute on two quiet cores.
const SEEDS_IN_TESTS: &str = "200";

/// Builds the simulator with the features that everything else is built with, and runs it.
pub fn run(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    let mut build = cargo();
    build
        .args(["build", "--release", "--locked", "--workspace"])
        .args(["--bin", "oast-sim"])
        .current_dir(&workspace.root);
    Ok(succeeds(&mut build)? && succeeds(seeds(workspace).args(args))?)
}

/// The simulator that was built. Half of many seeds come from the commit, so that each commit is tried
/// with seeds of its own.
fn seeds(workspace: &Workspace) -> Command {
    let mut command = Command::new(workspace.target.join("release/oast-sim"));
    let mut head = Command::new("git");
    head.args(["rev-parse", "HEAD"])
        .current_dir(&workspace.root);
    // A tree without its history has the counted seeds only.
    if let Ok(commit) = output(&mut head) {
        command.args(["--commit", commit.trim()]);
    }
    command
}

/// What the test run does: some seeds, or the table of planted bugs.
pub fn in_tests(workspace: &Workspace, bugs: bool) -> Command {
    let mut command = seeds(workspace);
    if bugs {
        command.arg("--bugs");
    } else {
        let count = std::env::var(SEEDS).unwrap_or_else(|_| SEEDS_IN_TESTS.to_owned());
        command.args(["--seeds", &count]);
    }
    command
}
