//! `cargo xtask check`: what CI demands before it runs a test.

use std::time::Instant;

use anyhow::Result;

use crate::command::{cargo, output, shown, succeeds};
use crate::tidy;
use crate::workspace::Workspace;

/// Runs every check, also after one has failed, and says whether all passed.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let mut passed = true;
    let mut step = |name: &str, result: Result<bool>, began: Instant| {
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(true) => println!("check: {name}: ok ({seconds:.1} s)"),
            Ok(false) => println!("check: {name}: FAILED ({seconds:.1} s)"),
            Err(ref error) => println!("check: {name}: FAILED: {error:#}"),
        }
        passed &= matches!(result, Ok(true));
    };

    let began = Instant::now();
    step(
        "fmt",
        cargo_step(workspace, &["fmt", "--all", "--check"]),
        began,
    );
    let began = Instant::now();
    step("tidy", tidy::run(workspace), began);
    // The profile people run and tests use, so that build scripts and macros are compiled once.
    let clippy = [
        "clippy",
        "--release",
        "--locked",
        "--workspace",
        "--all-targets",
    ];
    let began = Instant::now();
    step(
        "clippy",
        cargo_step(workspace, &[&clippy[..], &["--", "-Dwarnings"]].concat()),
        began,
    );
    let began = Instant::now();
    step("advisories", advisories(workspace), began);
    Ok(passed)
}

fn cargo_step(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    let mut command = cargo();
    command.args(args).current_dir(&workspace.root);
    println!("check: {}", shown(&command));
    succeeds(&mut command)
}

/// Known vulnerabilities, where cargo-deny is installed.
///
/// Licences, duplicates and sources are checked by `tidy` from the same deny.toml, so that those
/// rules hold on every machine. The advisory database changes without a commit of ours and has to
/// be downloaded, so its verdict cannot be a property of a commit: absence is said, not failed.
fn advisories(workspace: &Workspace) -> Result<bool> {
    if output(cargo().args(["deny", "--version"])).is_err() {
        println!("check: advisories: cargo-deny is not installed; get it with");
        println!("check:   cargo install --locked cargo-deny && cargo deny check");
        return Ok(true);
    }
    cargo_step(workspace, &["deny", "--all-features", "check"])
}
